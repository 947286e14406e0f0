//! The versions of every key, and reading them at a revision.

use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::ops::Bound;

use bytes::Bytes;

use crate::command::{Answer, Command, MAX_LEASE_TTL_SECS, Outcome, Refusal};
use crate::history::History;
use crate::lease::Leases;
use crate::model::{Event, KeyRange, KeyValue, LeaseId, Query, RangeEnd, RangeResult, Revision};
use crate::settings::Settings;
use crate::time::{Mark, Marks};

/// The state one log leads to.
///
/// Invariants: a revision is made by exactly one command; every key's versions ascend by revision;
/// what the history holds and what can be read at a past revision have the same floor.
#[derive(Clone, Debug)]
pub struct Keyspace {
    pub(crate) index: u64,
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
    pub(crate) keys: BTreeMap<Bytes, Chain>,
    pub(crate) history: History,
    pub(crate) leases: Leases,
    pub(crate) settings: Settings,
    pub(crate) marks: Marks,
    /// What the newest versions weigh.
    pub(crate) live_bytes: usize,
}

/// Why a revision cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// It is no longer held; the oldest revision that is.
    Compacted(Revision),
    /// It does not exist yet; the newest that does.
    FutureRevision(Revision),
}

/// One version of a key, or the mark that it was deleted.
#[derive(Clone, Debug)]
pub(crate) enum Version {
    Live(KeyValue),
    Gone(Revision),
}

/// All held versions of one key.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    newest: Version,
    /// Superseded versions, oldest first.
    past: VecDeque<Version>,
}

impl Default for Keyspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Keyspace {
    /// The empty keyspace: revision 1, nothing applied.
    pub fn new() -> Self {
        Self {
            index: 0,
            revision: Revision(1),
            compacted: Revision(0),
            keys: BTreeMap::new(),
            history: History::default(),
            leases: Leases::default(),
            settings: Settings::default(),
            marks: Marks::default(),
            live_bytes: 0,
        }
    }

    /// Applies the log entry at `index`. The same entries in the same order give the same state
    /// and the same outcomes, everywhere.
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        self.index = index;
        command.check()?;
        match command {
            Command::Txn(txn) => self.run_txn(txn).map(Answer::Txn),
            Command::Compact { revision } => self.compact(*revision),
            Command::LeaseGrant { id, ttl_secs, now } => self.grant(*id, *ttl_secs, *now),
            Command::LeaseRevoke { id } => self.revoke(*id),
            Command::Settings(change) => self.settings.apply(change).map(Answer::Settings),
            Command::Under { settings, command } => {
                self.settings.expect(*settings)?;
                self.apply(index, command)
            }
            Command::Time { wall_ms } => {
                self.marks.push(Mark { revision: self.revision, wall_ms: *wall_ms });
                Ok(Answer::Time)
            }
        }
    }

    /// The few facts beside the keys.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Bytes the newest versions weigh.
    pub fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Index of the last applied log entry.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision of the last compaction, 0 when there was none.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The oldest revision that can be read here.
    pub fn oldest_readable(&self) -> Revision {
        self.compacted.max(self.history.floor())
    }

    /// Number of keys that exist now or in the held past.
    pub fn held_keys(&self) -> usize {
        self.keys.len()
    }

    /// The key-value of `key` at revision `at` (0: the newest).
    ///
    /// # Errors
    /// [`ReadError`] when `at` is not held.
    pub fn get(&self, key: &[u8], at: Revision) -> Result<Option<&KeyValue>, ReadError> {
        let at = self.resolve(at)?;
        Ok(self.keys.get(key).and_then(|chain| chain.at(at)))
    }

    /// The key-values of a range at revision `at` (0: the newest), in key order, without copies.
    ///
    /// # Errors
    /// [`ReadError`] when `at` is not held.
    pub fn iter(
        &self,
        range: &KeyRange,
        at: Revision,
    ) -> Result<impl DoubleEndedIterator<Item = &KeyValue> + use<'_>, ReadError> {
        let at = self.resolve(at)?;
        Ok(self.versions_at(range, at))
    }

    /// Reads a range at revision `at` (0: the newest): at most `limit` key-values (0: all).
    ///
    /// # Errors
    /// [`ReadError`] when `at` is not held.
    pub fn range(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
    ) -> Result<RangeResult, ReadError> {
        self.query(&Query { at, limit, ..Query::of(range.clone()) })
    }

    /// Answers a query.
    ///
    /// # Errors
    /// [`ReadError`] when its revision is not held.
    pub fn query(&self, query: &Query) -> Result<RangeResult, ReadError> {
        Ok(query.answer(self.iter(&query.range, query.at)?))
    }

    /// How many keys a range holds at revision `at` (0: the newest).
    ///
    /// # Errors
    /// [`ReadError`] when `at` is not held.
    pub fn count(&self, range: &KeyRange, at: Revision) -> Result<usize, ReadError> {
        Ok(self.iter(range, at)?.count())
    }

    pub(crate) fn resolve(&self, at: Revision) -> Result<Revision, ReadError> {
        let floor = self.oldest_readable();
        match at {
            Revision(0) => Ok(self.revision),
            at if at > self.revision => Err(ReadError::FutureRevision(self.revision)),
            at if at < floor => Err(ReadError::Compacted(floor)),
            at => Ok(at),
        }
    }

    /// At most `limit` keys after a key, and those of them that were there at a revision the caller
    /// knows to be held; the last key looked at.
    pub(crate) fn part(
        &self,
        after: Option<&Bytes>,
        at: Revision,
        limit: usize,
    ) -> (Vec<KeyValue>, Option<Bytes>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        let found = self.keys.range::<Bytes, _>((from, Bound::Unbounded)).take(limit);
        let found = found.inspect(|(key, _)| last = Some(*key)).filter_map(|(_, c)| c.at(at));
        let found = found.cloned().collect();
        (found, last.cloned())
    }

    /// The key-values of a range at a revision that is not below the [`Keyspace::floor`], whatever
    /// was compacted.
    pub fn held_at(&self, range: &KeyRange, at: Revision) -> Vec<KeyValue> {
        self.versions_at(range, at).cloned().collect()
    }

    /// The chains of a range; an upside-down range is empty.
    fn chains(
        &self,
        range: &KeyRange,
    ) -> impl DoubleEndedIterator<Item = (&Bytes, &Chain)> + use<'_> {
        let start: &[u8] = &range.start;
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = match &range.end {
            RangeEnd::Single => (Bound::Included(start), Bound::Included(start)),
            RangeEnd::Before(end) if start < &end[..] => {
                (Bound::Included(start), Bound::Excluded(end))
            }
            RangeEnd::Before(_) => (Bound::Included(start), Bound::Excluded(start)),
            RangeEnd::Unbounded => (Bound::Included(start), Bound::Unbounded),
        };
        self.keys.range::<[u8], _>(bounds)
    }

    /// The key-values of a range at a revision the caller knows to be held.
    pub(crate) fn versions_at(
        &self,
        range: &KeyRange,
        at: Revision,
    ) -> impl DoubleEndedIterator<Item = &KeyValue> + use<'_> {
        self.chains(range).filter_map(move |(_, chain)| chain.at(at))
    }

    /// The newest key-values of a range, writes of the running command included.
    pub(crate) fn live(&self, range: &KeyRange) -> impl Iterator<Item = &KeyValue> {
        self.chains(range).filter_map(|(_, chain)| chain.newest.live())
    }

    /// The newest key-value of a key, writes of the running command included.
    pub(crate) fn live_key(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key).and_then(|chain| chain.newest.live())
    }

    /// The one place where a key changes: the chain, its lease and the history move together.
    /// `make` gets the live version and gives the new one. Returns the version before.
    pub(crate) fn write(
        &mut self,
        revision: Revision,
        key: Bytes,
        make: impl FnOnce(Option<&KeyValue>) -> Option<KeyValue>,
    ) -> Option<KeyValue> {
        let version = |new: Option<KeyValue>| new.map_or(Version::Gone(revision), Version::Live);
        // The key is looked up once: in a large keyspace that is what a write costs.
        let (key, new, old, before) = match self.keys.entry(key) {
            Entry::Occupied(mut entry) => {
                let old = entry.get().newest.live().cloned();
                // Watchers see a revision whole: what was before it, not what was within it.
                let before = entry.get().at(revision.previous()).cloned();
                let new = make(old.as_ref());
                let version = version(new.clone());
                self.live_bytes += version.weight();
                self.live_bytes -= entry.get().newest.weight();
                entry.get_mut().push(version);
                (entry.key().clone(), new, old, before)
            }
            Entry::Vacant(entry) => {
                let (key, new) = (entry.key().clone(), make(None));
                let version = version(new.clone());
                self.live_bytes += version.weight();
                entry.insert(Chain { newest: version, past: VecDeque::new() });
                (key, new, None, None)
            }
        };
        if let Some(kv) = &old {
            self.leases.detach(kv.lease, &key);
        }
        if let Some(kv) = &new {
            self.leases.attach(kv.lease, &key);
        }
        self.history.push(Event { revision, key, new, old: before });
        old
    }

    /// A key as it stood when the history began.
    pub(crate) fn begin_with(&mut self, kv: KeyValue) {
        self.leases.attach(kv.lease, &kv.key);
        let (key, newest) = (kv.key.clone(), Version::Live(kv));
        self.live_bytes += newest.weight();
        self.keys.insert(key, Chain { newest, past: VecDeque::new() });
    }

    fn compact(&mut self, revision: Revision) -> Outcome {
        if revision <= self.compacted {
            return Err(Refusal::Compacted(self.compacted));
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision(self.revision));
        }
        self.compacted = revision;
        Ok(Answer::Compact(self.revision))
    }

    /// Forgets history that was compacted away or is over `budget` bytes, oldest first, at most
    /// `limit` changes of it; whether there is more to forget. What is gone can no longer be read
    /// here and answers "compacted". Which of it goes when is memory policy and no part of the
    /// replicated state.
    pub fn forget(&mut self, budget: usize, limit: usize) -> bool {
        // A watcher may still start at the compaction revision itself, as with etcd.
        let wanted = Revision(self.compacted.0.saturating_sub(1));
        for _ in 0..limit {
            let Some(event) = self.history.pop(wanted, budget) else { break };
            let revision = event.revision;
            if let Some(chain) = self.keys.get_mut(&event.key)
                && chain.forget(revision) == Left::Nothing
            {
                self.keys.remove(&event.key);
            }
        }
        self.marks.forget(self.history.floor());
        self.history.due(wanted, budget)
    }

    /// [`Keyspace::forget`] to the end.
    pub fn trim(&mut self, budget: usize) {
        self.forget(budget, usize::MAX);
    }

    /// Nothing above `revision` is forgotten from now on: somebody still has to copy it.
    pub fn hold(&mut self, revision: Revision) {
        self.history.hold(revision);
    }

    fn grant(&mut self, id: LeaseId, ttl_secs: i64, now: u64) -> Outcome {
        if ttl_secs > MAX_LEASE_TTL_SECS {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        let ttl_secs = ttl_secs.max(1);
        let id = self.leases.grant(id, ttl_secs, now, self.index)?;
        Ok(Answer::LeaseGrant { id, ttl_secs })
    }

    fn revoke(&mut self, id: LeaseId) -> Outcome {
        let lease = self.leases.remove(id).ok_or(Refusal::LeaseNotFound)?;
        if !lease.keys.is_empty() {
            self.revision.0 += 1;
        }
        for key in lease.keys {
            self.write(self.revision, key, |_| None);
        }
        Ok(Answer::LeaseRevoke(self.revision))
    }
}

/// What a key costs beside its bytes.
pub(crate) const FRAME: usize = mem::size_of::<(Bytes, Chain)>();

/// What holding a key-value as the newest costs.
pub(crate) fn weight(kv: &KeyValue) -> usize {
    FRAME + kv.key.len() + kv.value.len()
}

/// What a chain still holds.
#[derive(PartialEq, Eq)]
enum Left {
    Something,
    Nothing,
}

impl Version {
    pub(crate) fn revision(&self) -> Revision {
        match self {
            Self::Live(kv) => kv.mod_revision,
            Self::Gone(revision) => *revision,
        }
    }

    /// What holding it as the newest version costs: the key, the value, and their frames.
    fn weight(&self) -> usize {
        self.live().map_or(0, weight)
    }

    fn live(&self) -> Option<&KeyValue> {
        match self {
            Self::Live(kv) => Some(kv),
            Self::Gone(_) => None,
        }
    }
}

impl Chain {
    fn at(&self, at: Revision) -> Option<&KeyValue> {
        if self.newest.revision() <= at {
            return self.newest.live();
        }
        let older = self.past.partition_point(|version| version.revision() <= at);
        self.past.get(older.checked_sub(1)?).and_then(Version::live)
    }

    /// Within one revision only the last version counts.
    fn push(&mut self, version: Version) {
        let same = self.newest.revision() == version.revision();
        let before = mem::replace(&mut self.newest, version);
        if !same {
            self.past.push_back(before);
        }
    }

    fn forget(&mut self, floor: Revision) -> Left {
        if self.newest.revision() <= floor {
            self.past = VecDeque::new();
            return if self.newest.live().is_some() { Left::Something } else { Left::Nothing };
        }
        let older = self.past.partition_point(|version| version.revision() <= floor);
        self.past.drain(..older.saturating_sub(1));
        Left::Something
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Refusal::from(*self).fmt(f)
    }
}

impl core::error::Error for ReadError {}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Compacted(at) => Self::Compacted(at),
            ReadError::FutureRevision(at) => Self::FutureRevision(at),
        }
    }
}

//! The versions of every key, and reading them at a revision.

use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;

use crate::command::{Answer, Command, MAX_LEASE_TTL_SECS, Outcome, Refusal};
use crate::history::History;
use crate::keys::{FRAME, Key, Keys, Place};
use crate::lease::Leases;
use crate::model::{KeyRange, KeyValue, LeaseId, Query, RangeEnd, RangeResult, Revision};
use crate::settings::Settings;
use crate::time::{Mark, Marks};
use crate::version::{self, Version};

/// The state one log leads to.
///
/// Invariants: a revision is made by exactly one command; every key's versions ascend by revision;
/// what the history holds and what can be read at a past revision have the same floor.
#[derive(Clone, Debug)]
pub struct Keyspace {
    pub(crate) index: u64,
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
    pub(crate) keys: Keys,
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
            keys: Keys::default(),
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
    pub fn get(&self, key: &[u8], at: Revision) -> Result<Option<KeyValue>, ReadError> {
        let at = self.resolve(at)?;
        Ok(self.keys.get(key).and_then(|key| self.history.at(key, at)).map(Version::kv))
    }

    /// The key-values of a range at revision `at` (0: the newest), in key order. They share what
    /// the keyspace holds.
    ///
    /// # Errors
    /// [`ReadError`] when `at` is not held.
    pub fn iter(
        &self,
        range: &KeyRange,
        at: Revision,
    ) -> Result<impl DoubleEndedIterator<Item = KeyValue> + use<'_>, ReadError> {
        let at = self.resolve(at)?;
        Ok(self.versions_at(range, at).map(Version::kv))
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
        let at = self.resolve(query.at)?;
        Ok(query.answer_with(self.versions_at(&query.range, at), Version::kv))
    }

    /// How many keys a range holds at revision `at` (0: the newest).
    ///
    /// # Errors
    /// [`ReadError`] when `at` is not held.
    pub fn count(&self, range: &KeyRange, at: Revision) -> Result<usize, ReadError> {
        let at = self.resolve(at)?;
        Ok(self.versions_at(range, at).count())
    }

    pub(crate) fn resolve(&self, at: Revision) -> Result<Revision, ReadError> {
        self.meta().resolve(at)
    }

    /// At most `limit` keys after a key, and those of them that were there at a revision the caller
    /// knows to be held; the last key looked at.
    pub(crate) fn part(
        &self,
        after: Option<&Bytes>,
        at: Revision,
        limit: usize,
    ) -> (Vec<Version>, Option<Bytes>) {
        let from = after.map_or(Place::FIRST, |key| self.keys.after(key));
        let mut last = None;
        let found = self.keys.between(from, self.keys.end()).take(limit);
        let found = found.inspect(|key| last = Some(*key));
        let found = found.filter_map(|key| self.history.at(key, at)).cloned().collect();
        (found, last.map(|key| Bytes::copy_from_slice(key.newest.key())))
    }

    /// The key-values of a range at a revision that is not below the [`Keyspace::floor`], whatever
    /// was compacted.
    pub fn held_at(&self, range: &KeyRange, at: Revision) -> Vec<KeyValue> {
        self.versions_at(range, at).map(Version::kv).collect()
    }

    /// The keys of a range; an upside-down range is empty.
    fn keys_of(&self, range: &KeyRange) -> impl DoubleEndedIterator<Item = &Key> + use<'_> {
        let start: &[u8] = &range.start;
        let (from, to) = match (&range.end, self.keys.find(start)) {
            (RangeEnd::Single, Ok(place)) => (place, place.next()),
            (RangeEnd::Before(end), Ok(from) | Err(from)) if start < &end[..] => {
                (from, self.keys.from(end))
            }
            (RangeEnd::Unbounded, Ok(from) | Err(from)) => (from, self.keys.end()),
            (_, Ok(place) | Err(place)) => (place, place),
        };
        self.keys.between(from, to)
    }

    /// The versions of a range at a revision the caller knows to be held.
    pub(crate) fn versions_at(
        &self,
        range: &KeyRange,
        at: Revision,
    ) -> impl DoubleEndedIterator<Item = &Version> + use<'_> {
        self.keys_of(range).filter_map(move |key| self.history.at(key, at))
    }

    /// The newest versions of a range, writes of the running command included.
    pub(crate) fn live(&self, range: &KeyRange) -> impl Iterator<Item = &Version> + use<'_> {
        self.keys_of(range).filter_map(Key::live)
    }

    /// The newest version of a key, writes of the running command included.
    pub(crate) fn live_key(&self, key: &[u8]) -> Option<&Version> {
        self.keys.get(key).and_then(Key::live)
    }

    /// The one place where a key changes: the key, its lease and the history move together.
    /// `make` gets the live version and gives the new one. Returns the version before.
    pub(crate) fn write(
        &mut self,
        key: &[u8],
        make: impl FnOnce(Option<&Version>) -> Version,
    ) -> Option<Version> {
        // The key is looked up once: in a large keyspace that is what a write costs.
        let (new, old) = match self.keys.find(key) {
            Ok(place) => {
                let key = self.keys.at_mut(place);
                let old = key.live().cloned();
                let new = make(old.as_ref());
                key.newest = new.clone();
                key.change = self.history.push(new.clone(), old.clone(), key.change);
                (new, old)
            }
            Err(place) => {
                let new = make(None);
                let change = self.history.push(new.clone(), None, 0);
                self.keys.insert(place, Key { newest: new.clone(), change });
                (new, None)
            }
        };
        if let Some(old) = &old {
            self.live_bytes -= weight(old);
            self.leases.detach(old.lease(), key);
        }
        if new.is_live() {
            self.live_bytes += weight(&new);
            self.leases.attach(new.lease(), key);
        }
        old
    }

    /// A key as it stood when the history began.
    pub(crate) fn begin_with(&mut self, version: Version) {
        self.leases.attach(version.lease(), version.key());
        self.live_bytes += weight(&version);
        match self.keys.find(version.key()) {
            Ok(place) => self.keys.at_mut(place).newest = version,
            Err(place) => self.keys.insert(place, Key { newest: version, change: 0 }),
        }
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
            let Some(change) = self.history.pop(wanted, budget) else { break };
            // Who was deleted, and did not come back, is held for no longer than that is known.
            if !change.new.is_live()
                && let Ok(place) = self.keys.find(change.new.key())
                && self.keys.at_mut(place).change < self.history.first()
            {
                self.keys.remove(place);
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

    /// Whether all is forgotten that is not held by [`Keyspace::hold`].
    pub fn is_at_hold(&self) -> bool {
        self.history.is_at_hold()
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
            let gone = Version::gone(self.revision, &key);
            self.write(&key, |_| gone);
        }
        Ok(Answer::LeaseRevoke(self.revision))
    }
}

/// What holding a version as the newest costs.
pub(crate) fn weight(version: &Version) -> usize {
    FRAME + version.weight()
}

/// What a key-value of these lengths weighs as the newest.
pub(crate) fn weight_of(key: usize, value: usize) -> usize {
    FRAME + version::weight(key, value)
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

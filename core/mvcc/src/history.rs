//! The recent past: every change after a floor, in order. A watcher is a cursor into it.

use alloc::collections::{VecDeque, vec_deque};
use alloc::vec::Vec;
use core::{fmt, mem};

use crate::codec::encode_past;
use crate::keys::Key;
use crate::keyspace::Keyspace;
use crate::model::{Event, KeyRange, Revision};
use crate::version::{Version, weight};

/// How many events one call looks at before it hands the cursor back, matching or not: it bounds
/// how long a reader of a quiet range holds the keyspace.
const SCAN_LIMIT: usize = 65_536;

/// All changes with a revision above the floor (and, of the revision at the floor, what has not
/// gone with the rest of it: nobody reads it any more).
#[derive(Clone, Debug)]
pub(crate) struct History {
    changes: VecDeque<Change>,
    /// The number of the oldest of them; numbers begin with 1.
    first: u64,
    floor: Revision,
    /// The floor may rise up to here.
    hold: Revision,
    /// And no further than the least of these, where somebody reads.
    readers: Vec<Revision>,
    bytes: usize,
}

/// A change. The changes of one key are linked, latest first: what a key was is found from what it
/// is, and forgetting the oldest changes is all that forgetting takes.
#[derive(Clone, Debug)]
pub struct Change {
    revision: Revision,
    /// What came; maybe a deletion.
    pub(crate) new: Version,
    /// What there was before the revision.
    old: Option<Version>,
    /// The number of the change of this key before this one.
    before: u64,
}

/// A piece of history. It never splits one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventBatch {
    /// The changes, oldest first.
    pub events: Vec<Event>,
    /// The next cursor: everything up to it, inclusive, has been seen.
    pub next: Revision,
}

/// Changes in a row, as they are held. It never splits one revision.
#[derive(Debug)]
pub struct Piece<'a> {
    changes: vec_deque::Iter<'a, Change>,
    /// Everything up to it, inclusive, is in it.
    pub upto: Revision,
    /// What its changes weigh.
    pub weight: usize,
}

impl<'a> Piece<'a> {
    /// The changes, oldest first.
    pub fn changes(&self) -> impl Iterator<Item = &'a Change> + use<'a> {
        self.changes.clone()
    }

    /// The first revision that is in it.
    pub fn first(&self) -> Revision {
        self.changes.clone().next().map_or(self.upto, |change| change.revision)
    }
}

/// The asked part of history is no longer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// The oldest revision whose changes are all still known: a watch can start there.
    pub oldest: Revision,
}

impl Keyspace {
    /// The changes of a range with `after < revision <= upto`, until they weigh `budget` bytes (at
    /// least one revision when there is one).
    ///
    /// # Errors
    /// [`Compacted`] when changes after `after` were forgotten.
    pub fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        upto: Revision,
        budget: usize,
    ) -> Result<EventBatch, Compacted> {
        if after.0 + 1 < self.compacted.0 {
            return Err(self.gone());
        }
        self.held(range, after, upto, budget)
    }

    /// [`Keyspace::events`], whatever was compacted: all that is still held.
    ///
    /// # Errors
    /// [`Compacted`] when changes after `after` were forgotten.
    pub fn held(
        &self,
        range: &KeyRange,
        after: Revision,
        upto: Revision,
        budget: usize,
    ) -> Result<EventBatch, Compacted> {
        if after < self.history.floor {
            return Err(self.gone());
        }
        let upto = upto.min(self.revision);
        if after >= upto {
            return Ok(EventBatch { events: Vec::new(), next: after });
        }
        Ok(self.history.collect(range, after, upto, budget))
    }

    /// The keys that changed after a revision, in order.
    ///
    /// # Errors
    /// [`Compacted`] when changes after it were forgotten.
    pub fn touched(
        &self,
        after: Revision,
    ) -> Result<impl Iterator<Item = (Revision, &[u8])>, Compacted> {
        if after < self.history.floor {
            return Err(self.gone());
        }
        Ok(self.history.after(after).map(|change| (change.revision, change.new.key())))
    }

    /// The changes after a revision, until they are `bytes` long; none when changes after it were
    /// forgotten, or there are none.
    pub fn piece(&self, after: Revision, bytes: usize) -> Option<Piece<'_>> {
        if after < self.history.floor || after >= self.revision {
            return None;
        }
        Some(self.history.piece(after, self.revision, bytes))
    }

    fn gone(&self) -> Compacted {
        Compacted { oldest: self.compacted.max(self.history.floor.next()) }
    }

    /// The held history begins after this revision.
    pub fn floor(&self) -> Revision {
        self.history.floor
    }

    /// Bytes the held history weighs.
    pub fn history_bytes(&self) -> usize {
        self.history.bytes
    }
}

impl Default for History {
    fn default() -> Self {
        let (changes, first, floor) = (VecDeque::new(), 1, Revision(0));
        let (hold, readers) = (Revision(u64::MAX), Vec::new());
        Self { changes, first, floor, hold, readers, bytes: 0 }
    }
}

impl History {
    pub(crate) fn starting_at(floor: Revision) -> Self {
        Self { floor, ..Self::default() }
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    /// Revision of the newest change held.
    pub(crate) fn newest(&self) -> Revision {
        self.changes.back().map_or(Revision(0), |change| change.revision)
    }

    /// The number of the oldest change held, or of the next.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Adds what made `new` of `old`, whose own change has the number `before`; its number.
    pub(crate) fn push(&mut self, new: Version, old: Option<Version>, before: u64) -> u64 {
        let revision = new.revision();
        // Watchers see a revision whole: what was before it, not what was within it.
        let within = self.get(before).filter(|change| change.revision == revision);
        let old = within.map_or(old, |change| change.old.clone());
        let change = Change { revision, new, old, before };
        self.bytes += change.weight();
        self.changes.push_back(change);
        self.first + self.changes.len() as u64 - 1
    }

    fn get(&self, number: u64) -> Option<&Change> {
        self.changes.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// What a key was at a revision that is held, unless it was not there.
    pub(crate) fn at<'a>(&'a self, key: &'a Key, at: Revision) -> Option<&'a Version> {
        let Some(mut change) = self.get(key.change) else { return key.live() };
        while change.revision > at {
            match self.get(change.before) {
                Some(before) => change = before,
                None => return change.old.as_ref(),
            }
        }
        Some(&change.new).filter(|version| version.is_live())
    }

    /// Whether the oldest change is to go: it is at or below `wanted`, or there are more than
    /// `budget` bytes; and nobody holds it.
    pub(crate) fn due(&self, wanted: Revision, budget: usize) -> bool {
        let Some(oldest) = self.changes.front() else { return false };
        let wanted = oldest.revision <= wanted || self.bytes > budget;
        let mut held = self.readers.iter().chain([&self.hold]);
        wanted && held.all(|held| oldest.revision <= *held)
    }

    /// The floor that a budget would leave, if nobody read what is below it.
    pub(crate) fn floor_within(&self, budget: usize) -> Revision {
        let mut bytes = 0;
        let is_beyond = |change: &&Change| {
            bytes += change.weight();
            bytes > budget
        };
        let beyond = self.changes.iter().rev().find(is_beyond);
        beyond.map_or(self.floor, |change| change.revision.min(self.hold).max(self.floor))
    }

    pub(crate) fn pop(&mut self, wanted: Revision, budget: usize) -> Option<Change> {
        let change = self.due(wanted, budget).then(|| self.changes.pop_front())??;
        self.bytes -= change.weight();
        self.floor = change.revision;
        self.first += 1;
        Some(change)
    }

    /// The changes above a revision.
    fn after(&self, after: Revision) -> impl Iterator<Item = &Change> {
        let first = self.changes.partition_point(|change| change.revision <= after);
        self.changes.range(first..)
    }

    fn piece(&self, after: Revision, newest: Revision, bytes: usize) -> Piece<'_> {
        let first = self.changes.partition_point(|change| change.revision <= after);
        let (mut end, mut upto, mut weight, mut len) = (first, after, 0, 0);
        for change in self.changes.range(first..) {
            if len >= bytes && change.revision > upto {
                let changes = self.changes.range(first..end);
                return Piece { changes, upto, weight };
            }
            upto = change.revision;
            weight += change.weight();
            len += change.weight() + change.new.value().len();
            end += 1;
        }
        Piece { changes: self.changes.range(first..), upto: newest, weight }
    }

    pub(crate) fn hold(&mut self, revision: Revision) {
        self.hold = revision;
    }

    pub(crate) fn is_at_hold(&self) -> bool {
        self.floor >= self.hold
    }

    pub(crate) fn enter(&mut self, reader: Revision) {
        self.readers.push(reader);
    }

    pub(crate) fn leave(&mut self, reader: Revision) {
        if let Some(at) = self.readers.iter().position(|held| *held == reader) {
            self.readers.swap_remove(at);
        }
    }

    fn collect(
        &self,
        range: &KeyRange,
        after: Revision,
        upto: Revision,
        budget: usize,
    ) -> EventBatch {
        let mut batch = EventBatch { events: Vec::new(), next: upto };
        let mut bytes = 0;
        let mut last = after;
        for (scanned, change) in self.after(after).enumerate() {
            if change.revision > upto {
                break;
            }
            let full = bytes >= budget || scanned >= SCAN_LIMIT;
            if full && scanned > 0 && change.revision > last {
                batch.next = last;
                break;
            }
            last = change.revision;
            if range.contains(change.new.key()) {
                bytes += mem::size_of::<Event>() + change.weight() + change.new.value().len();
                batch.events.push(change.event());
            }
        }
        batch
    }
}

impl Change {
    fn event(&self) -> Event {
        let kv = self.new.kv();
        let key = kv.key.clone();
        let new = self.new.is_live().then_some(kv);
        Event { revision: self.revision, key, new, old: self.old.as_ref().map(Version::kv) }
    }

    /// Adds the bytes of its [`crate::Item::Past`] to others.
    pub fn encode_to(&self, out: &mut Vec<u8>) {
        encode_past(out, self.revision, &self.new, self.old.as_ref());
    }

    fn weight(&self) -> usize {
        let old = self.old.as_ref().map(|old| old.value().len());
        weight_of(self.new.key().len(), self.new.is_live(), old)
    }
}

impl Event {
    /// What holding it costs beyond the newest versions, in bytes.
    pub fn weight(&self) -> usize {
        let old = self.old.as_ref().map(|old| old.value.len());
        weight_of(self.key.len(), self.new.is_some(), old)
    }
}

/// What a change costs that superseded a value of length `old`.
fn weight_of(key: usize, live: bool, old: Option<usize>) -> usize {
    let gone = if live { 0 } else { weight(key, 0) };
    mem::size_of::<Change>() + gone + old.map_or(0, |value| weight(key, value))
}

impl fmt::Display for Compacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the requested history is gone; the oldest readable revision is {}",
            self.oldest.0
        )
    }
}

impl core::error::Error for Compacted {}

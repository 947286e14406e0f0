//! The recent past: every change after a floor, in order. A watcher is a cursor into it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use core::mem::size_of;

use bytes::Bytes;

use crate::keyspace::Keyspace;
use crate::model::{Event, KeyRange, Revision};

/// How many events one call looks at before it hands the cursor back, matching or not: it bounds
/// how long a reader of a quiet range holds the keyspace.
const SCAN_LIMIT: usize = 65_536;

/// All changes with a revision above the floor (and, of the revision at the floor, what has not
/// gone with the rest of it: nobody reads it any more).
#[derive(Clone, Debug)]
pub(crate) struct History {
    events: VecDeque<Event>,
    floor: Revision,
    /// The floor may rise up to here.
    hold: Revision,
    bytes: usize,
}

/// A piece of history. It never splits one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventBatch {
    /// The changes, oldest first.
    pub events: Vec<Event>,
    /// The next cursor: everything up to it, inclusive, has been seen.
    pub next: Revision,
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
    ) -> Result<impl Iterator<Item = (Revision, &Bytes)>, Compacted> {
        if after < self.history.floor {
            return Err(self.gone());
        }
        let first = self.history.events.partition_point(|event| event.revision <= after);
        Ok(self.history.events.range(first..).map(|event| (event.revision, &event.key)))
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
        let (events, floor) = (VecDeque::new(), Revision(0));
        Self { events, floor, hold: Revision(u64::MAX), bytes: 0 }
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
        self.events.back().map_or(Revision(0), |event| event.revision)
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.bytes += event.weight();
        self.events.push_back(event);
    }

    /// Whether the oldest change is to go: it is at or below `wanted`, or there are more than
    /// `budget` bytes; and nobody holds it.
    pub(crate) fn due(&self, wanted: Revision, budget: usize) -> bool {
        let wanted = |event: &Event| event.revision <= wanted || self.bytes > budget;
        self.events.front().is_some_and(|event| wanted(event) && event.revision <= self.hold)
    }

    pub(crate) fn pop(&mut self, wanted: Revision, budget: usize) -> Option<Event> {
        let event = self.due(wanted, budget).then(|| self.events.pop_front())??;
        self.bytes -= event.weight();
        self.floor = event.revision;
        Some(event)
    }

    pub(crate) fn hold(&mut self, revision: Revision) {
        self.hold = revision;
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
        let first = self.events.partition_point(|event| event.revision <= after);
        let mut last = after;
        for (scanned, event) in self.events.range(first..).enumerate() {
            if event.revision > upto {
                break;
            }
            let full = bytes >= budget || scanned >= SCAN_LIMIT;
            if full && scanned > 0 && event.revision > last {
                batch.next = last;
                break;
            }
            last = event.revision;
            if range.contains(&event.key) {
                bytes += event.weight() + event.new.as_ref().map_or(0, |kv| kv.value.len());
                batch.events.push(event.clone());
            }
        }
        batch
    }
}

impl Event {
    /// What holding it costs beyond the newest versions, in bytes.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.old.as_ref().map_or(0, |kv| kv.value.len())
    }
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

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

/// All changes with a revision above the floor.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    events: VecDeque<Event>,
    floor: Revision,
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
    /// The oldest revision that can still be read.
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
        if after < self.history.floor {
            return Err(Compacted { oldest: self.oldest_readable() });
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
            return Err(Compacted { oldest: self.oldest_readable() });
        }
        let first = self.history.events.partition_point(|event| event.revision <= after);
        Ok(self.history.events.range(first..).map(|event| (event.revision, &event.key)))
    }

    /// Bytes the held history weighs.
    pub fn history_bytes(&self) -> usize {
        self.history.bytes
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

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.bytes += weight(&event);
        self.events.push_back(event);
    }

    pub(crate) fn pop_upto(&mut self, floor: Revision) -> Option<Event> {
        if self.events.front()?.revision > floor {
            return None;
        }
        let event = self.events.pop_front()?;
        self.bytes -= weight(&event);
        Some(event)
    }

    pub(crate) fn raise_floor(&mut self, floor: Revision) {
        self.floor = self.floor.max(floor);
    }

    /// The lowest floor above which the history fits into `budget` bytes.
    pub(crate) fn floor_for(&self, budget: usize) -> Revision {
        let mut bytes = self.bytes;
        let mut floor = self.floor;
        for event in &self.events {
            if bytes <= budget {
                break;
            }
            bytes -= weight(event);
            floor = event.revision;
        }
        floor
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
                bytes += weight(event) + event.new.as_ref().map_or(0, |kv| kv.value.len());
                batch.events.push(event.clone());
            }
        }
        batch
    }
}

/// What holding an event costs beyond the newest versions.
fn weight(event: &Event) -> usize {
    size_of::<Event>() + event.key.len() + event.old.as_ref().map_or(0, |kv| kv.value.len())
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

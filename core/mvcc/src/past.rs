//! The state at a revision that is no longer held: a later state, with what came since undone.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::model::{Event, KeyRange, KeyValue};

/// What a range was before the changes this has seen.
#[derive(Clone, Debug)]
pub struct Undo {
    range: KeyRange,
    /// Of each key what its first change replaced.
    before: BTreeMap<Bytes, Option<KeyValue>>,
}

impl Undo {
    /// Nothing seen yet.
    pub fn new(range: KeyRange) -> Self {
        Self { range, before: BTreeMap::new() }
    }

    /// Takes the next change, oldest first.
    pub fn push(&mut self, event: Event) {
        if self.range.contains(&event.key) {
            self.before.entry(event.key).or_insert(event.old);
        }
    }

    /// The key-values before all the changes, in key order, from those after them.
    pub fn finish(self, after: impl IntoIterator<Item = KeyValue>) -> Vec<KeyValue> {
        let mut state: BTreeMap<Bytes, Option<KeyValue>> =
            after.into_iter().map(|kv| (kv.key.clone(), Some(kv))).collect();
        state.extend(self.before);
        state.into_values().flatten().collect()
    }
}

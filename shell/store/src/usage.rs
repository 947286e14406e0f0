//! What a store weighs, and how often it had to say no.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::Store;

/// Counted by the writer.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    refused: AtomicU64,
}

impl Usage {
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a store weighs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// The newest versions, in memory.
    pub live: usize,
    /// The recent past, in memory.
    pub history: usize,
    /// What these two may weigh together.
    pub budget: usize,
    /// The older past, on disk.
    pub archive: u64,
    /// Writes refused so far because they would have gone over the budget.
    pub refused: u64,
}

impl Store {
    /// What it weighs now.
    pub fn weights(&self) -> Weights {
        let (budget, usage) = self.budget();
        let past = self.past();
        let (live, history) =
            self.read(|keyspace, _| (keyspace.live_bytes(), keyspace.history_bytes()));
        let archive = past.archive.as_ref().map_or(0, |archive| archive.bytes());
        let refused = usage.map_or(0, |usage| usage.refused.load(Ordering::Relaxed));
        Weights { live, history, budget, archive, refused }
    }
}

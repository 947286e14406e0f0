//! What a store weighs, and how often it had to say no.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::store::Store;

/// Counted by the writer.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    refused: AtomicU64,
    /// What the store weighed at the last refusal.
    refused_at: AtomicUsize,
    disk_full: AtomicBool,
}

impl Usage {
    pub(crate) fn refuse(&self, held: usize) {
        self.refused_at.store(held, Ordering::Relaxed);
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_disk_full(&self, full: bool) {
        self.disk_full.store(full, Ordering::Relaxed);
    }

    pub(crate) fn disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
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
    /// What memory held at the last of them.
    pub refused_at: usize,
    /// Whether the disk had no room for a write when that was tried last.
    pub disk_full: bool,
}

impl Weights {
    /// Whether it weighs no less than when it last had to refuse a write.
    pub fn is_full(&self) -> bool {
        self.refused > 0 && self.live + self.history >= self.refused_at
    }
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
        let refused_at = usage.map_or(0, |usage| usage.refused_at.load(Ordering::Relaxed));
        let disk_full = usage.is_some_and(Usage::disk_full);
        Weights { live, history, budget, archive, refused, refused_at, disk_full }
    }
}

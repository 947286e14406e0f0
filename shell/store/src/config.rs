//! What a store can be told.

use std::time::Duration;

pub use knarr_mvcc::AutoCompaction;

use crate::memory;

/// Who wrote a file: files of different clusters or members are never mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, random at its birth.
    pub cluster: u64,
    /// The member of the cluster.
    pub member: u64,
}

/// Sizes and bounds. Every size is in bytes.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Given to a new data directory; an existing one keeps its own.
    pub identity: Identity,
    /// Size of a log segment, preallocated. Writes wait while one is zeroed, so it is not large; a
    /// command that needs more gets a larger one.
    pub segment_bytes: usize,
    /// A checkpoint is written after this much log.
    pub checkpoint_bytes: usize,
    /// And not before the log is so long beside the state: writing a larger one takes more.
    pub checkpoint_percent: u64,
    /// Recent history kept in memory for watchers and reads of older revisions.
    pub history_bytes: usize,
    /// Writes waiting for the writer; beyond it callers wait.
    pub queue_bytes: usize,
    /// Whether a command that is alone may be committed by the thread that sends it, which then
    /// waits for a disk that was prompt of late: for processes that have nothing else to do.
    pub senders_commit: bool,
    /// The largest encoded command.
    pub command_bytes: usize,
    /// What state and history may weigh together; what would grow beyond is refused.
    pub memory_bytes: usize,
    /// History on disk.
    pub archive: ArchiveConfig,
    /// When to compact without being told.
    pub auto_compaction: AutoCompaction,
    /// What one batch of a watcher weighs at most (one revision may exceed it).
    pub watch_batch_bytes: usize,
}

/// How much history that memory has let go is kept on disk. What memory holds is not counted.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveConfig {
    /// At most so many bytes (a sixteenth more while a file fills up); 0: none at all.
    pub bytes: u64,
    /// At least so long, if the bytes suffice; zero: none at all.
    pub age: Duration,
}

impl Default for ArchiveConfig {
    /// A day: "what was it yesterday at this time" is what people ask after an incident.
    fn default() -> Self {
        Self { bytes: 1 << 30, age: Duration::from_hours(24) }
    }
}

impl ArchiveConfig {
    /// Nothing is kept.
    pub const OFF: Self = Self { bytes: 0, age: Duration::ZERO };

    pub(crate) fn is_off(&self) -> bool {
        self.bytes == 0 || self.age.is_zero()
    }

    pub(crate) fn age_ms(&self) -> u64 {
        u64::try_from(self.age.as_millis()).unwrap_or(u64::MAX)
    }

    /// When a file is long enough: what is over the limits goes file by file.
    pub(crate) fn volume_bytes(&self) -> u64 {
        (self.bytes / 16).min(64 << 20)
    }

    pub(crate) fn volume_age_ms(&self) -> u64 {
        self.age_ms() / 8
    }
}

impl StoreConfig {
    /// The same with a history that leaves most of the memory to what it is the history of: what
    /// was deleted must not keep the room that it had.
    pub(crate) fn fitted(self) -> Self {
        Self { history_bytes: self.history_bytes.min(self.memory_bytes / 4), ..self }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            identity: Identity::default(),
            segment_bytes: 4 << 20,
            checkpoint_bytes: 64 << 20,
            checkpoint_percent: 25,
            history_bytes: 4 << 20,
            queue_bytes: 32 << 20,
            senders_commit: false,
            command_bytes: 8 << 20,
            memory_bytes: memory::default_budget(),
            archive: ArchiveConfig::default(),
            auto_compaction: AutoCompaction::Off,
            watch_batch_bytes: 1 << 20,
        }
    }
}

//! What a store can be told.

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
    /// Recent history kept in memory for watchers and reads of older revisions.
    pub history_bytes: usize,
    /// Writes waiting for the writer; beyond it callers wait.
    pub queue_bytes: usize,
    /// The largest encoded command.
    pub command_bytes: usize,
    /// What one batch of a watcher weighs at most (one revision may exceed it).
    pub watch_batch_bytes: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            identity: Identity::default(),
            segment_bytes: 4 << 20,
            checkpoint_bytes: 64 << 20,
            history_bytes: 16 << 20,
            queue_bytes: 32 << 20,
            command_bytes: 8 << 20,
            watch_batch_bytes: 1 << 20,
        }
    }
}

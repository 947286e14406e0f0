//! Log and keyspace as one deterministic machine, without threads: the writer thread drives it,
//! and so does the simulator.

use std::io;
use std::sync::{Arc, RwLock};

use knarr_mvcc::{Command, Keyspace, Outcome, Revision};

use crate::checkpoint::{CheckpointJob, checkpoint_name, parse_checkpoint};
use crate::config::{Identity, StoreConfig};
use crate::disk::Disk;
use crate::error::{OpenError, StoreError};
use crate::log::Log;
use crate::record::{FILE_HEADER, Record};
use crate::recovery::recover;
use crate::store::{read_lock, write_lock};

/// On a full disk every so many refused batches ask for a checkpoint, the first one too.
const STARVED_EVERY: u32 = 64;

/// A command and its bytes.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What to apply.
    pub command: Command,
    /// What to log.
    pub bytes: Vec<u8>,
}

/// A recovered store without its thread.
#[derive(Debug)]
pub struct Engine {
    keyspace: Arc<RwLock<Keyspace>>,
    log: Log,
    config: StoreConfig,
    /// Bytes of log that the newest checkpoint does not have.
    log_bytes: u64,
    checkpoint: Checkpoint,
    /// Batches refused for want of space since the last that was not.
    refused: u32,
    /// Whether a checkpoint should make space.
    starved: bool,
    /// Why nothing is written any more.
    failed: Option<Arc<str>>,
}

/// Whether a checkpoint is being written.
#[derive(Debug, PartialEq, Eq)]
enum Checkpoint {
    Idle,
    /// The log's size when it began.
    Running(u64),
}

impl Entry {
    /// Encodes a command.
    pub fn new(command: Command) -> Self {
        Self { bytes: command.encode(), command }
    }
}

impl Engine {
    /// Recovers the state of a directory, or begins a new one.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(disk: Arc<dyn Disk>, config: StoreConfig) -> Result<Self, OpenError> {
        let recovered = recover(disk, &config)?;
        Ok(Self {
            keyspace: Arc::new(RwLock::new(recovered.keyspace)),
            log: recovered.log,
            config,
            log_bytes: recovered.log_bytes,
            checkpoint: Checkpoint::Idle,
            refused: 0,
            starved: false,
            failed: None,
        })
    }

    /// The state; it never holds anything that is not durable.
    pub fn keyspace(&self) -> Arc<RwLock<Keyspace>> {
        self.keyspace.clone()
    }

    /// The newest revision, which is durable.
    pub fn revision(&self) -> Revision {
        read_lock(&self.keyspace).revision()
    }

    /// The term that new records have.
    pub fn term(&self) -> u64 {
        self.log.term
    }

    /// Who this store is.
    pub fn identity(&self) -> Identity {
        self.log.identity
    }

    /// What one batch may cost: a quarter of a segment, so that little of one is left unused.
    pub fn batch_bytes(&self) -> usize {
        self.config.segment_bytes.saturating_sub(FILE_HEADER) / 4
    }

    /// What an entry costs in the log.
    pub fn cost(bytes: &[u8]) -> usize {
        Record::size(bytes.len())
    }

    /// Makes the entries durable with one sync, then applies them in order.
    ///
    /// # Errors
    /// `Full` when there is no room: nothing happened, and it may be tried again. `Failed` when the
    /// disk failed: the engine takes no more writes, because a failed sync says nothing about
    /// what is on the disk; the next start finds out.
    pub fn commit(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, StoreError> {
        if let Some(why) = &self.failed {
            return Err(StoreError::Failed(why.clone()));
        }
        match self.log.reserve(entries.iter().map(|entry| entry.bytes.len())) {
            Ok(()) => self.refused = 0,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.starved |= self.refused.is_multiple_of(STARVED_EVERY);
                self.refused = self.refused.wrapping_add(1);
                return Err(StoreError::Full);
            }
            Err(error) => return Err(self.fail(&error)),
        }
        let first = self.log.next;
        let payloads = entries.iter().map(|entry| &entry.bytes[..]);
        self.log_bytes += self.log.append(payloads).map_err(|error| self.fail(&error))?;
        let mut keyspace = write_lock(&self.keyspace);
        let outcomes =
            (first..).zip(entries).map(|(index, entry)| keyspace.apply(index, &entry.command));
        let outcomes = outcomes.collect();
        keyspace.trim(self.config.history_bytes);
        Ok(outcomes)
    }

    /// Ends the log with a mark, which makes even a broken last record provable damage.
    ///
    /// # Errors
    /// As [`Engine::commit`]; nothing acknowledged is at stake.
    pub fn seal(&mut self) -> Result<(), StoreError> {
        if let Some(why) = &self.failed {
            return Err(StoreError::Failed(why.clone()));
        }
        let seal = |log: &mut Log| {
            log.reserve([0].into_iter())?;
            log.append([&[][..]].into_iter())
        };
        seal(&mut self.log).map(drop).map_err(|error| self.fail(&error))
    }

    /// The checkpoint that is due, to be run anywhere; its result goes to
    /// [`Engine::end_checkpoint`]. On a full disk one is due early: it needs less than it frees.
    pub fn begin_checkpoint(&mut self) -> Option<CheckpointJob> {
        let starved = std::mem::take(&mut self.starved) && self.log.segments.len() > 1;
        let due = starved || self.log_bytes >= self.config.checkpoint_bytes as u64;
        if !due || self.checkpoint != Checkpoint::Idle || self.failed.is_some() {
            return None;
        }
        self.checkpoint = Checkpoint::Running(self.log_bytes);
        let keyspace = read_lock(&self.keyspace);
        let disk = self.log.disk.clone();
        Some(CheckpointJob::new(disk, self.log.identity, self.log.term, &keyspace))
    }

    /// Takes the result of a checkpoint, and removes what it replaces.
    pub fn end_checkpoint(&mut self, result: io::Result<u64>) {
        if let Checkpoint::Running(covered) = self.checkpoint {
            // After a failure the next one is due only when as much log has come again.
            self.log_bytes -= covered;
        }
        self.checkpoint = Checkpoint::Idle;
        let retired = result.and_then(|index| {
            self.log.retire(index)?;
            self.retire_checkpoints(index)
        });
        if let Err(error) = retired {
            tracing::warn!(%error, "the checkpoint did not free space");
        }
    }

    fn retire_checkpoints(&self, newest: u64) -> io::Result<()> {
        let disk = &self.log.disk;
        for name in disk.list()? {
            if parse_checkpoint(&name).is_some_and(|index| index < newest) {
                disk.remove(&name)?;
            }
        }
        debug_assert!(disk.open(&checkpoint_name(newest)).is_ok(), "the newest stays");
        disk.sync_dir()
    }

    fn fail(&mut self, error: &io::Error) -> StoreError {
        tracing::error!(%error, "the disk failed: the store takes no more writes");
        let why: Arc<str> = error.to_string().into();
        self.failed = Some(why.clone());
        StoreError::Failed(why)
    }
}

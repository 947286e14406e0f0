//! Log and keyspace as one deterministic machine, without threads: the writer thread drives it,
//! and so does the simulator.

use std::io;
use std::sync::{Arc, OnceLock, RwLock, Weak};

use knarr_mvcc::{Command, Keyspace, Outcome, Refusal, Revision};

use crate::archive::{Archive, ArchiveJob};
use crate::checkpoint::{CheckpointJob, checkpoint_name, parse_checkpoint};
use crate::config::{Identity, StoreConfig};
use crate::disk::Disk;
use crate::error::{OpenError, StoreError};
use crate::items::Items;
use crate::log::{Log, Segment, SegmentJob};
use crate::pace::{Pace, Tempo};
use crate::past::Past;
use crate::record::{FILE_HEADER, Record};
use crate::recovery::recover;
use crate::spawn::Aside;
use crate::store::{read_lock, write_lock};

/// History may weigh so many times its budget while it is written down.
const HISTORY_LIMIT: usize = 2;
/// History that cannot be written down may weigh so many times its budget before it is given up.
const HISTORY_OVERHANG: usize = 4;
/// On a full disk every so many refused batches ask for a checkpoint, the first one too.
const STARVED_EVERY: u32 = 64;

/// How many changes are forgotten with a batch beside twice its own number: compactions are
/// worked off, and no batch waits for more than that.
const FORGET_PIECE: usize = 64;

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
    archive: Option<Arc<Archive>>,
    archiving: Archiving,
    pace: Pace,
    /// Batches refused for want of space since the last that was not.
    refused: u32,
    /// Whether a checkpoint should make space.
    starved: bool,
    failed: Failure,
}

/// Why nothing is written any more, once that is so.
pub(crate) type Failure = Arc<OnceLock<Arc<str>>>;

/// Whether a checkpoint is being written.
#[derive(Debug, PartialEq, Eq)]
enum Checkpoint {
    Idle,
    /// The log's size when it began.
    Running(u64),
}

/// Whether history is being written down.
#[derive(Debug, PartialEq, Eq)]
enum Archiving {
    /// No; and after a failure not before history weighs so much.
    Idle(usize),
    Running,
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
        let config = config.fitted();
        let recovered = recover(disk, &config)?;
        let mut engine = Self {
            archive: recovered.archive,
            archiving: Archiving::Idle(0),
            pace: Pace::default(),
            keyspace: Arc::new(RwLock::new(recovered.keyspace)),
            log: recovered.log,
            config,
            log_bytes: recovered.log_bytes,
            checkpoint: Checkpoint::Idle,
            refused: 0,
            starved: false,
            failed: Failure::default(),
        };
        engine.hold();
        Ok(engine)
    }

    /// The state and all that is known of its past.
    pub fn past(&self) -> Past {
        Past { keyspace: self.keyspace.clone(), archive: self.archive.clone() }
    }

    pub(crate) fn archive(&self) -> Weak<Archive> {
        self.archive.as_ref().map_or_else(Weak::new, Arc::downgrade)
    }

    pub(crate) fn failure(&self) -> Failure {
        self.failed.clone()
    }

    /// Tells the history how far it may forget: what is on disk.
    fn hold(&mut self) {
        let archived = self.archive.as_ref().map_or(Revision(u64::MAX), |archive| archive.end());
        write_lock(&self.keyspace).hold(archived);
    }

    /// Forgets a piece of what is to be forgotten; whether there is more.
    pub fn forget(&mut self) -> bool {
        write_lock(&self.keyspace).forget(self.config.history_bytes, FORGET_PIECE)
    }

    /// Whether there is room for a command beside `pending` bytes that wait in front of it; if so
    /// they become more.
    pub fn admits(&self, command: &Command, pending: &mut usize) -> bool {
        read_lock(&self.keyspace).admits(command, self.config.memory_bytes, pending)
    }

    /// Refuses a command that may read what is no longer in memory.
    ///
    /// # Errors
    /// [`Refusal::Compacted`].
    pub fn recalls(&self, command: &Command) -> Result<(), Refusal> {
        read_lock(&self.keyspace).recalls(command)
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
        if let Some(why) = self.failed.get() {
            return Err(StoreError::Failed(why.clone()));
        }
        match self.log.reserve(entries.iter().map(|entry| entry.bytes.len())) {
            Ok(()) => self.refused = 0,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let starved = self.refused.is_multiple_of(STARVED_EVERY);
                self.starved |= starved;
                // Old history gives way to new writes.
                if let Some(archive) = self.archive.as_ref().filter(|_| starved)
                    && let Err(error) = archive.shed()
                {
                    tracing::warn!(%error, "old history could not be removed");
                }
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
        let budget = self.config.history_bytes;
        keyspace.forget(budget, FORGET_PIECE + 2 * entries.len());
        // What cannot be forgotten yet waits for the work in the background.
        let over = keyspace.history_bytes() > budget + budget / 2;
        self.pace.set(if over { Tempo::Hurried } else { Tempo::Calm });
        Ok(outcomes)
    }

    /// What has to end before more history is made, which weighs more than it may: it is to be
    /// written down, or held by a checkpoint.
    pub(crate) fn awaits(&self) -> Option<Aside> {
        let keyspace = read_lock(&self.keyspace);
        let limit = HISTORY_LIMIT * self.config.history_bytes;
        let over = |limit| keyspace.history_bytes() > limit;
        // Also what was written, and was not said to be: that may come behind many writes.
        if over(limit) && keyspace.is_at_hold() {
            return Some(Aside::Archive);
        }
        // Half as much as the state, of a large one a quarter: a start reads as much of the log.
        let live = keyspace.live_bytes();
        let held = (live / 4).max(self.config.checkpoint_bytes.min(live / 2));
        over(limit + held).then_some(Aside::Checkpoint)
    }

    /// Whether there is room for a batch, asked of a disk that had none.
    pub fn finds_room(&mut self) -> bool {
        self.log.reserve([self.batch_bytes()].into_iter()).is_ok()
    }

    /// Jobs in the background are waited for: they take no more rests.
    pub fn hurry(&self) {
        self.pace.set(Tempo::Hurried);
    }

    /// Ends the log with a mark, which makes even a broken last record provable damage.
    ///
    /// # Errors
    /// As [`Engine::commit`]; nothing acknowledged is at stake.
    pub fn seal(&mut self) -> Result<(), StoreError> {
        if let Some(why) = self.failed.get() {
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
        let due = starved || self.log_is_long();
        if !due || self.checkpoint != Checkpoint::Idle || self.failed.get().is_some() {
            return None;
        }
        let disk = self.log.disk.clone();
        let items = Items::new(self.keyspace.clone(), self.config.history_bytes);
        let (log, pace) = (&self.log, self.pace.clone());
        let job = CheckpointJob::new(disk, log.identity, log.term, items, pace);
        self.checkpoint = Checkpoint::Running(self.log_bytes);
        Some(job)
    }

    /// Whether there is much log behind the checkpoint.
    fn log_is_long(&self) -> bool {
        let StoreConfig { checkpoint_bytes, checkpoint_percent, .. } = self.config;
        let state = || read_lock(&self.keyspace).live_bytes() as u64;
        self.log_bytes >= checkpoint_bytes as u64
            && self.log_bytes >= state() / 100 * checkpoint_percent
    }

    /// The history that is due to be written down, to be run anywhere; the result goes to
    /// [`Engine::end_archive`].
    pub fn begin_archive(&mut self) -> Option<ArchiveJob> {
        let Archiving::Idle(not_before) = self.archiving else { return None };
        let archive = self.archive.clone().filter(|_| self.failed.get().is_none())?;
        let budget = self.config.history_bytes;
        let keyspace = read_lock(&self.keyspace);
        let (bytes, end) = (keyspace.history_bytes(), archive.end());
        let compacted = keyspace.compacted().0 > end.0 + 1 && keyspace.floor() <= end;
        let over = bytes > budget + budget / 4 && end < keyspace.revision();
        drop(keyspace);
        if bytes < not_before || !(compacted || over) {
            return None;
        }
        self.archiving = Archiving::Running;
        let (keyspace, pace) = (self.keyspace.clone(), self.pace.clone());
        Some(ArchiveJob { archive, keyspace, budget, pace })
    }

    /// Takes the result of writing history down. What could not be written waits in memory, up to
    /// a bound; then it is given up.
    pub fn end_archive(&mut self, result: io::Result<()>) {
        self.archiving = Archiving::Idle(0);
        let (Err(error), Some(archive)) = (result, self.archive.clone()) else {
            return self.hold();
        };
        tracing::warn!(%error, "history could not be written down");
        let (bytes, newest) = {
            let keyspace = read_lock(&self.keyspace);
            (keyspace.history_bytes(), keyspace.revision())
        };
        let budget = self.config.history_bytes;
        let shed = error.kind() == io::ErrorKind::StorageFull && archive.shed().unwrap_or(false);
        if !shed && bytes > HISTORY_OVERHANG * budget {
            tracing::warn!(revision = newest.0, "older history is given up");
            if let Err(error) = archive.reset(newest) {
                tracing::warn!(%error, "old history could not be removed");
            }
        }
        self.archiving = Archiving::Idle(if shed { 0 } else { bytes + budget / 4 });
        self.hold();
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

    /// The segment that comes after the present one, to be made anywhere; the result goes to
    /// [`Engine::end_segment`].
    pub fn begin_segment(&mut self) -> Option<SegmentJob> {
        self.failed.get().is_none().then(|| self.log.begin_segment())?
    }

    /// Takes a segment. One that could not be made is made when it is needed, or refused then.
    pub fn end_segment(&mut self, result: io::Result<Segment>) {
        self.log.end_segment(result);
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
        StoreError::Failed(self.failed.get_or_init(|| why).clone())
    }
}

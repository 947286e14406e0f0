//! Reading the past, wherever it is: in memory what is recent, in the archive what is older.
//!
//! A state that memory no longer has is the oldest one it has, with the archive's changes in
//! between undone; changes are read from the archive up to where memory begins. Nothing is
//! forgotten before it is in the archive, so the two always meet.

use std::ops::ControlFlow;
use std::sync::{Arc, RwLock};

use knarr_mvcc::{
    Event, EventBatch, Item, KeyRange, KeyValue, Keyspace, Mark, Meta, Revision, Undo, Version,
};

use crate::archive::{Access, Archive, BEGINNING};
use crate::config::{ArchiveConfig, StoreConfig};
use crate::disk::Disk;
use crate::error::{OpenError, PastError};
use crate::recovery::{Opened, read};
use crate::store::read_lock;

/// How often files are read again that their owner was changing.
const ATTEMPTS: usize = 5;

/// All that is known of a store's past. Its calls may read files for a while.
#[derive(Clone, Debug)]
pub struct Past {
    pub(crate) keyspace: Arc<RwLock<Keyspace>>,
    pub(crate) archive: Option<Arc<Archive>>,
}

/// A range as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastState {
    /// Of which revision.
    pub revision: Revision,
    /// When that was made, in milliseconds since 1970, if it is known.
    pub wall_ms: Option<u64>,
    /// In key order.
    pub kvs: Vec<KeyValue>,
}

impl Past {
    /// Reads a data directory without changing it, also beside the process that owns it: what was
    /// durable when this began is there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self, OpenError> {
        let mut attempts = 1;
        loop {
            match Self::open_once(disk.clone()) {
                // Files come and go while their owner is at work.
                Err(OpenError::Corrupt { .. } | OpenError::Io { .. }) if attempts < ATTEMPTS => {
                    attempts += 1;
                }
                done => return done,
            }
        }
    }

    fn open_once(disk: Arc<dyn Disk>) -> Result<Self, OpenError> {
        let all = StoreConfig {
            history_bytes: usize::MAX / 16,
            memory_bytes: usize::MAX,
            archive: ArchiveConfig { bytes: u64::MAX, ..ArchiveConfig::default() },
            ..StoreConfig::default()
        };
        let Opened { keyspace, archive, .. } = read(&disk, &all, Access::Reader)?;
        Ok(Self { keyspace: Arc::new(RwLock::new(keyspace)), archive })
    }

    /// The newest revision.
    pub fn newest(&self) -> Revision {
        read_lock(&self.keyspace).revision()
    }

    /// The oldest revision whose state can be told.
    pub fn oldest(&self) -> Revision {
        let archived = self.archive.as_ref().and_then(|archive| archive.oldest());
        let floor = read_lock(&self.keyspace).floor();
        archived.map_or(floor, |archived| archived.min(floor))
    }

    /// The state of a range at a revision, whatever was compacted.
    ///
    /// # Errors
    /// [`PastError`].
    pub fn state(&self, range: &KeyRange, at: Revision) -> Result<PastState, PastError> {
        let keyspace = read_lock(&self.keyspace);
        if at > keyspace.revision() {
            return Err(PastError::Future(keyspace.revision()));
        }
        let (floor, mut kvs) = match at >= keyspace.floor() {
            true => (at, keyspace.held_at(range, at)),
            false => (keyspace.floor(), keyspace.held_at(range, keyspace.floor())),
        };
        drop(keyspace);
        if at < floor {
            let mut undo = Undo::new(range.clone());
            self.archived(at, floor, &mut |event| {
                undo.push(event);
                ControlFlow::Continue(())
            })?;
            kvs = undo.finish(kvs);
        }
        Ok(PastState { revision: at, wall_ms: self.time_of(at)?, kvs })
    }

    /// The whole state at a revision as a snapshot of its own, without a past: for a data directory
    /// that is to go on from there. Leases and settings are those of now, as they have no history.
    ///
    /// # Errors
    /// [`PastError`].
    pub fn items(&self, at: Revision) -> Result<Vec<Item>, PastError> {
        let state = self.state(&KeyRange::prefix(""), at)?;
        let meta = Meta { index: 0, revision: at, compacted: at, floor: at };
        let keyspace = read_lock(&self.keyspace);
        let beside = |item: &Item| {
            matches!(item, Item::Lease { .. } | Item::Settings { .. } | Item::Setting { .. })
        };
        let beside: Vec<Item> = keyspace.snapshot().filter(beside).collect();
        drop(keyspace);
        let mark = state.wall_ms.map(|wall_ms| Item::Mark(Mark { revision: at, wall_ms }));
        let base = state.kvs.iter().map(|kv| Item::Base(Version::of(kv)));
        Ok([Item::Meta(meta)].into_iter().chain(beside).chain(mark).chain(base).collect())
    }

    /// Shows every archived change with `after < revision <= upto`, oldest first.
    fn archived(
        &self,
        after: Revision,
        upto: Revision,
        show: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), PastError> {
        for chunk in self.archive()?.chunks(after)? {
            let chunk = chunk?;
            for event in chunk.events {
                if event.revision > upto {
                    return Ok(());
                }
                if event.revision > after && show(event).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn archive(&self) -> Result<&Archive, PastError> {
        let gone = || PastError::Gone { oldest: read_lock(&self.keyspace).floor(), since: None };
        self.archive.as_deref().ok_or_else(gone)
    }

    /// The changes of a range with `after < revision <= upto`, whatever was compacted, until they
    /// weigh `budget` bytes or much has been looked at.
    ///
    /// # Errors
    /// [`PastError`].
    pub fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        upto: Revision,
        budget: usize,
    ) -> Result<EventBatch, PastError> {
        let (held, floor) = {
            let keyspace = read_lock(&self.keyspace);
            (keyspace.held(range, after, upto, budget), keyspace.floor())
        };
        match held {
            Ok(batch) => Ok(batch),
            Err(_) => self.archive()?.events(range, after, upto.min(floor), budget),
        }
    }

    /// The newest revision made before a moment (to the second, which is how often time is noted).
    ///
    /// # Errors
    /// [`PastError::Gone`] when history begins later.
    pub fn before(&self, wall_ms: u64) -> Result<Revision, PastError> {
        let (marks, newest, floor) = {
            let keyspace = read_lock(&self.keyspace);
            (keyspace.marks().clone(), keyspace.revision(), keyspace.floor())
        };
        let first = marks.iter().next();
        let since = first.map(|first| first.wall_ms);
        let gone = |oldest| Err(PastError::Gone { oldest, since });
        let mut found = None;
        if since.is_none_or(|since| since > wall_ms) {
            let archive = self.archive.as_ref().filter(|archive| archive.oldest().is_some());
            match archive {
                Some(archive) => found = archive.before(wall_ms)?,
                // Nobody knows what was before the first mark, unless nothing was.
                None if since.is_none() || floor > BEGINNING => return gone(floor),
                None => {}
            }
        }
        let found = found.or_else(|| marks.before(wall_ms)).unwrap_or(newest);
        let oldest = self.oldest();
        if found >= oldest { Ok(found) } else { gone(oldest) }
    }

    /// When a revision was made, in milliseconds since 1970; `None` when that was never noted.
    ///
    /// # Errors
    /// [`PastError`] when the archive cannot be read.
    pub fn time_of(&self, revision: Revision) -> Result<Option<u64>, PastError> {
        let (held, floor) = {
            let keyspace = read_lock(&self.keyspace);
            (keyspace.marks().time_of(revision), keyspace.floor())
        };
        let Some(archive) = self.archive.as_ref().filter(|_| revision < floor) else {
            return Ok(held);
        };
        match archive.chunks(revision).map(|mut chunks| chunks.next()) {
            Ok(Some(chunk)) => Ok(chunk?.marks.time_of(revision).or(held)),
            Ok(None) | Err(PastError::Gone { .. }) => Ok(held),
            Err(error) => Err(error),
        }
    }
}

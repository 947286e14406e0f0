//! Backups: snapshots in etcd's format out of a store, and items into a new data directory.

use std::io;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use knarr_etcd_model::Image;
use knarr_etcd_model::bolt::Writer;
use knarr_mvcc::{Item, Keyspace, Restore};
use sha2::{Digest, Sha256};

use crate::checkpoint::CheckpointJob;
use crate::config::StoreConfig;
use crate::disk::Disk;
use crate::error::{BackupError, RestoreError};
use crate::items::Items;
use crate::log::Log;
use crate::pace::{Pace, Tempo};
use crate::recovery::recover;
use crate::store::read_lock;

/// Pieces are at least this long, but for the last two.
const PIECE: usize = 64 << 10;
/// Length of a sha256.
const SUM: usize = 32;

/// A snapshot in etcd's format on its way out: an iterator over the pieces of a file, of which the
/// last is the sha256 of all others. It shares the state's values and needs no lock.
pub struct EtcdSnapshot {
    file: Writer,
    sum: Option<Sha256>,
}

impl EtcdSnapshot {
    /// A snapshot of a state. Takes time for a large one: not on a thread that serves.
    pub fn new(items: impl IntoIterator<Item = Item>) -> Self {
        Self { file: Image::new(items).file(), sum: Some(Sha256::new()) }
    }

    /// Bytes of all pieces together.
    pub fn size(&self) -> u64 {
        self.file.size() + SUM as u64
    }
}

impl Iterator for EtcdSnapshot {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = Vec::new();
        while piece.len() < PIECE
            && let Some(pages) = self.file.next()
        {
            piece.extend(pages);
        }
        if piece.is_empty() {
            return self.sum.take().map(|sum| Bytes::copy_from_slice(&sum.finalize()));
        }
        self.sum.as_mut()?.update(&piece);
        Some(piece.into())
    }
}

/// Whether a file has to end with its sha256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashCheck {
    /// It has to: a snapshot that was saved.
    Required,
    /// It need not: the file `member/snap/db` of a member that was stopped.
    Skipped,
}

/// Reads a snapshot in etcd's format, whoever made it.
///
/// # Errors
/// [`BackupError`].
pub fn read_etcd_snapshot(file: &[u8], check: HashCheck) -> Result<Vec<Item>, BackupError> {
    // Pages are multiples of 512 bytes; a rest of 32 can only be the sum.
    let database = match file.split_last_chunk::<SUM>() {
        Some((database, sum)) if file.len() % 512 == SUM => {
            if check == HashCheck::Required && Sha256::digest(database)[..] != sum[..] {
                return Err(BackupError::Sum);
            }
            database
        }
        _ if check == HashCheck::Required => return Err(BackupError::NoSum),
        _ => file,
    };
    knarr_etcd_model::read(database).map_err(BackupError::Content)
}

/// Makes a new store of the items of a snapshot, durable; gives the state as it was read back. Its
/// identity is that of the configuration; its leases begin anew when it is opened.
///
/// # Errors
/// [`RestoreError`]. Unless it is `NotEmpty`, the directory holds remains that no store opens.
pub fn restore(
    disk: Arc<dyn Disk>,
    config: &StoreConfig,
    items: impl IntoIterator<Item = Item>,
) -> Result<Keyspace, RestoreError> {
    let names = disk.list().map_err(RestoreError::Io)?;
    if names.iter().any(|name| name != crate::disk::LOCK) {
        return Err(RestoreError::NotEmpty);
    }
    let mut state = Restore::new();
    for item in items {
        state.push(began(item)).map_err(RestoreError::Items)?;
    }
    let mut state = state.finish().map_err(RestoreError::Items)?;
    state.trim(config.history_bytes);
    let state = Arc::new(RwLock::new(state));
    write(&disk, config, &state).map_err(RestoreError::Io)?;
    let read = recover(disk, config).map_err(RestoreError::Open)?;
    if !read.keyspace.snapshot().eq(read_lock(&state).snapshot()) {
        return Err(RestoreError::Differs);
    }
    Ok(read.keyspace)
}

/// No log begins with the first entry then: so a lost checkpoint never looks like a new store.
fn began(item: Item) -> Item {
    match item {
        Item::Meta(mut meta) => {
            meta.index = meta.index.clamp(1, u64::MAX >> 1);
            Item::Meta(meta)
        }
        other => other,
    }
}

/// The log comes last: without it the checkpoint is not opened.
fn write(
    disk: &Arc<dyn Disk>,
    config: &StoreConfig,
    state: &Arc<RwLock<Keyspace>>,
) -> io::Result<()> {
    let (pace, items) = (Pace::default(), Items::new(state.clone(), config.history_bytes));
    pace.set(Tempo::Hurried);
    let index = CheckpointJob::new(disk.clone(), config.identity, 1, items, pace).run()?;
    let segment_bytes = config.segment_bytes as u64;
    Log::create(disk.clone(), config.identity, segment_bytes, index + 1).map(drop)
}

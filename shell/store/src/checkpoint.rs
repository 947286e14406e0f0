//! Checkpoints: the full state in one file, so that the log before it can go.
//!
//! Written under a temporary name, synced, renamed, and the directory synced; only then may the log
//! shrink. The file is a header and records as in the log: each payload is a run of items, each
//! with its length (4 bytes) before it; an empty payload ends the file.
//!
//! A checkpoint shows one moment, but is read from the state in short steps while writes go on, as
//! [`Items`] does.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use knarr_mvcc::{Item, Keyspace, Restore};

use crate::ahead::Ahead;
use crate::append::Appender;
use crate::config::{Identity, StoreConfig};
use crate::disk::{Disk, DiskFile};
use crate::error::OpenError;
use crate::items::Items;
use crate::log::{TEMPORARY, parse_indexed};
use crate::pace::{Pace, SYNC_EVERY};
use crate::record::{FILE_HEADER, FileHeader, Magic, RECORD_HEADER, Record};

const CHECKPOINT: &str = "checkpoint-";
/// A record is closed once its payload is this long.
const CHUNK: usize = 64 << 10;
/// A file is read in pieces of this size.
const PIECE: usize = 1 << 20;

/// Name of the checkpoint after an index.
pub(crate) fn checkpoint_name(index: u64) -> String {
    format!("{CHECKPOINT}{index:016x}")
}

/// The index a checkpoint's name says.
pub(crate) fn parse_checkpoint(name: &str) -> Option<u64> {
    parse_indexed(name, CHECKPOINT)
}

/// A checkpoint to be written. It reads the keyspace in short steps, so that any thread may
/// [`CheckpointJob::run`] it while the store goes on.
#[derive(Debug)]
pub struct CheckpointJob {
    disk: Arc<dyn Disk>,
    identity: Identity,
    term: u64,
    items: Items,
    pace: Pace,
}

impl CheckpointJob {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        identity: Identity,
        term: u64,
        items: Items,
        pace: Pace,
    ) -> Self {
        Self { disk, identity, term, items, pace }
    }

    /// Writes the file and makes it durable; the index it stands for.
    ///
    /// # Errors
    /// The disk's; the log is as it was, and a later checkpoint may succeed.
    pub fn run(mut self) -> io::Result<u64> {
        let index = self.items.meta().index;
        let temporary = format!("{TEMPORARY}checkpoint");
        let done = self.write(&temporary).and_then(|()| {
            self.disk.rename(&temporary, &checkpoint_name(index))?;
            self.disk.sync_dir()
        });
        if done.is_err() {
            // The space matters more than a second error.
            let _ = self.disk.remove(&temporary);
        }
        done.map(|()| index)
    }

    fn write(&mut self, temporary: &str) -> io::Result<()> {
        let mut out = Output::new(self.disk.create(temporary)?)?;
        let (identity, index) = (self.identity, self.items.meta().index);
        let header = FileHeader { magic: Magic::Checkpoint, identity, index };
        out.file.put().extend_from_slice(&header.encode());
        let mut start = Record::begin(out.file.put());
        let mut number = 1;
        for item in &mut self.items {
            let bytes = out.file.put();
            write_item(bytes, |out| item.encode_to(out));
            if bytes.len() - start >= CHUNK {
                Record::seal(bytes, start, number, self.term, 0);
                number += 1;
                out.rest(&self.pace)?;
                start = Record::begin(out.file.put());
            }
        }
        let bytes = out.file.put();
        if bytes.len() > start + RECORD_HEADER {
            Record::seal(bytes, start, number, self.term, 0);
            number += 1;
            start = Record::begin(bytes);
        }
        Record::seal(bytes, start, number, self.term, 0);
        out.file.write()?;
        out.file.sync()
    }
}

/// Adds an item to a payload.
pub(crate) fn write_item(payload: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
    let start = payload.len() + 4;
    payload.resize(start, 0);
    encode(payload);
    let len = (payload.len() - start) as u32;
    payload[start - 4..start].copy_from_slice(&len.to_le_bytes());
}

/// A file that is written in pieces.
struct Output {
    file: Appender,
    /// So much of it is durable.
    synced: u64,
    /// When the next piece was begun.
    start: Instant,
}

impl Output {
    fn new(file: Box<dyn DiskFile>) -> io::Result<Self> {
        Ok(Self { file: Appender::open(file, 0)?, synced: 0, start: Instant::now() })
    }

    /// Writes a piece and rests, once there is one.
    fn rest(&mut self, pace: &Pace) -> io::Result<()> {
        if self.file.pending() >= pace.piece() {
            self.file.write()?;
            if self.file.end() - self.synced >= SYNC_EVERY {
                self.file.sync()?;
                self.synced = self.file.end();
            }
            pace.rest(self.start);
            self.start = Instant::now();
        }
        Ok(())
    }
}

/// What a checkpoint held.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) keyspace: Keyspace,
    pub(crate) identity: Identity,
    pub(crate) term: u64,
}

/// Reads a checkpoint back, a record at a time: it may be as large as the memory.
pub(crate) fn load(disk: &dyn Disk, index: u64, config: &StoreConfig) -> Result<Loaded, OpenError> {
    let budget = config.memory_bytes;
    // What was let in under this budget fits again, and so does history that waits for its archive.
    let limit = budget.saturating_add(budget / 8).saturating_add(8 * config.history_bytes);
    let name = checkpoint_name(index);
    let failed = |source| OpenError::Io { file: name.clone(), source };
    let damaged = |offset: u64, what: &str| OpenError::corrupt(&name, offset, what);
    let file = disk.open(&name).map_err(failed)?;
    let mut input = Input::open(file).map_err(failed)?;
    let header = input.take(FILE_HEADER).map_err(failed)?;
    let header = FileHeader::decode(header, Magic::Checkpoint)
        .map_err(|error| OpenError::header(&name, error))?;
    if header.index != index {
        return Err(damaged(32, "the index is not that of the name"));
    }
    let mut restore = Restore::new();
    for number in 1.. {
        let offset = input.offset;
        let record = input.record().map_err(failed)?.filter(|record| record.index == number);
        let record = record.ok_or_else(|| damaged(offset, "the record's checksum is wrong"))?;
        if !record.payload.is_empty() {
            let push = |item| restore.push(item).map_err(|error| error.to_string());
            read_items(record.payload, push).map_err(|what| damaged(offset, &what))?;
            if restore.held_bytes() > limit {
                return Err(OpenError::TooLarge { file: name, budget });
            }
            continue;
        }
        let term = record.term;
        let keyspace = restore.finish().map_err(|error| damaged(offset, &error.to_string()))?;
        if keyspace.index() != index {
            return Err(damaged(FILE_HEADER as u64, "the state is not that of the name"));
        }
        return Ok(Loaded { keyspace, identity: header.identity, term });
    }
    unreachable!("a file has an end")
}

/// A file that is read from the front.
struct Input {
    pieces: Ahead,
    /// What was read, from `at` on not taken yet, which is at `offset` in the file.
    bytes: Vec<u8>,
    at: usize,
    offset: u64,
}

impl Input {
    fn open(mut file: Box<dyn DiskFile>) -> io::Result<Self> {
        let len = file.len()?;
        file.direct()?;
        let mut offsets = (0..len).step_by(PIECE);
        let pieces = Ahead::begin(move |piece| {
            let offset = offsets.next()?;
            let size = (len - offset).min(PIECE as u64) as usize;
            Some(file.read_at(offset, piece.room(size)))
        })?;
        Ok(Self { pieces, bytes: Vec::new(), at: 0, offset: 0 })
    }

    /// The next `len` bytes, fewer where the file ends. They are not passed.
    fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        while self.bytes.len() - self.at < len {
            let Some(piece) = self.pieces.next()? else { break };
            self.bytes.drain(..self.at);
            self.at = 0;
            self.bytes.extend_from_slice(piece);
        }
        Ok(&self.bytes[self.at..self.bytes.len().min(self.at + len)])
    }

    /// The next `len` bytes, fewer where the file ends.
    fn take(&mut self, len: usize) -> io::Result<&[u8]> {
        let taken = self.peek(len)?.len();
        self.at += taken;
        self.offset += taken as u64;
        Ok(&self.bytes[self.at - taken..self.at])
    }

    /// The next record, if a valid one is there.
    fn record(&mut self) -> io::Result<Option<Record<'_>>> {
        let header = self.peek(RECORD_HEADER)?.first_chunk::<RECORD_HEADER>();
        let Some(size) = header.map(Record::size_from) else { return Ok(None) };
        Ok(Record::decode(self.take(size)?))
    }
}

/// Reads the items of a payload.
pub(crate) fn read_items(
    mut payload: &[u8],
    mut take: impl FnMut(Item) -> Result<(), String>,
) -> Result<(), String> {
    while let Some((len, rest)) = payload.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let (item, rest) = rest.split_at_checked(len).ok_or("an item is cut")?;
        take(Item::decode(item).map_err(|error| error.to_string())?)?;
        payload = rest;
    }
    if payload.is_empty() { Ok(()) } else { Err("an item is cut".into()) }
}

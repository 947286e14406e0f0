//! History that memory has let go: files of the past.
//!
//! `hist-<first revision>` is a header and records as in the log; each payload is a run of items as
//! in a checkpoint: the marks that date the changes, then the changes with what they replaced. A
//! record says which revisions it covers: above its term, up to its index. All this is derived from
//! the log, off the path of writes, so nothing here may stop a start: what is damaged is reported
//! and costs history. The one rule: nothing is forgotten before it is durable here, so that the
//! archive always reaches the history in memory (and that of every checkpoint).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use knarr_mvcc::{Event, EventBatch, Item, KeyRange, Keyspace, Mark, Marks, Piece, Revision};

use crate::append::Appender;
use crate::checkpoint::{read_items, write_item};
use crate::config::{ArchiveConfig, Identity};
use crate::disk::{Disk, DiskFile};
use crate::error::PastError;
use crate::log::{TEMPORARY, parse_indexed};
use crate::pace::{Pace, SYNC_EVERY};
use crate::record::{FILE_HEADER, FileHeader, Magic, RECORD_HEADER, Record};
use crate::store::read_lock;

const VOLUME: &str = "hist-";
/// How many chunks one call looks at before it hands the cursor back.
const SCAN_LIMIT: usize = 64;

/// The revision of an empty store.
pub(crate) const BEGINNING: Revision = Revision(1);

fn volume_name(first: Revision) -> String {
    format!("{VOLUME}{:016x}", first.0)
}

fn parse_volume(name: &str) -> Option<Revision> {
    parse_indexed(name, VOLUME).map(Revision)
}

/// Whether a directory's owner opens it, or somebody who must not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Owner,
    Reader,
}

/// The files of the past, for one writer and any number of readers.
#[derive(Debug)]
pub(crate) struct Archive {
    disk: Arc<dyn Disk>,
    identity: Identity,
    config: ArchiveConfig,
    shelf: Mutex<Shelf>,
}

/// What is there and durable.
#[derive(Debug)]
struct Shelf {
    /// Oldest first, without gaps between them.
    volumes: Vec<Volume>,
    /// Everything up to here is in them, or gone.
    end: Revision,
}

/// One file.
#[derive(Clone, Debug)]
struct Volume {
    /// It begins after this revision.
    after: Revision,
    /// When its first change was made, if that is known.
    begins: Option<u64>,
    len: u64,
}

/// Some consecutive changes.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) upto: Revision,
    pub(crate) marks: Marks,
    pub(crate) events: Vec<Event>,
}

impl Archive {
    /// Opens the files of a directory whose history in memory begins after `floor`.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        identity: Identity,
        config: ArchiveConfig,
        floor: Revision,
        access: Access,
    ) -> io::Result<Self> {
        let shelf = Mutex::new(Shelf { volumes: Vec::new(), end: floor });
        let archive = Self { disk, identity, config, shelf };
        let mut names: Vec<Revision> =
            archive.disk.list()?.iter().filter_map(|name| parse_volume(name)).collect();
        names.sort_unstable();
        let last = names.last().copied();
        for first in names {
            let tail = if Some(first) == last { Some(access) } else { None };
            match archive.survey(first, tail) {
                Ok((volume, end, torn)) => {
                    if torn > 0 && tail == Some(Access::Owner) {
                        archive.cut(&volume, torn)?;
                    }
                    archive.lock().join(volume, end);
                }
                Err(error) => {
                    tracing::warn!(%error, "history up to here is lost");
                    archive.lock().volumes.clear();
                }
            }
        }
        let mut shelf = archive.lock();
        if shelf.volumes.is_empty() || shelf.end < floor {
            if let Some(last) = shelf.volumes.last() {
                let error = PastError::Damaged { file: last.name(), offset: last.len };
                tracing::warn!(%error, floor = floor.0, "history up to here is lost");
            }
            *shelf = Shelf { volumes: Vec::new(), end: floor };
        }
        drop(shelf);
        Ok(archive)
    }

    /// Reads how far a file goes, and how much of something else follows. Of the last one every
    /// byte is checked.
    fn survey(
        &self,
        first: Revision,
        last: Option<Access>,
    ) -> Result<(Volume, Revision, u64), PastError> {
        let after = Revision(first.0.saturating_sub(1));
        let len = self.disk.open(&volume_name(first)).and_then(|file| file.len());
        let len = len.map_err(|error| PastError::io(&volume_name(first), &error))?;
        let mut reader = self.reader(Volume { after, begins: None, len })?;
        reader.check_header(self.identity)?;
        let begins = reader.chunk().ok().flatten().and_then(|chunk| chunk.began(after));
        reader.offset = FILE_HEADER as u64;
        let mut end = after;
        while let Some((covers, size)) = reader.peek_header()? {
            if covers.0 != end || last.is_some() && reader.record()?.is_none() {
                break;
            }
            end = covers.1;
            reader.offset += size;
        }
        let offset = reader.offset;
        let torn = if reader.is_zero_from(offset)? { 0 } else { len - offset };
        Ok((Volume { after, begins, len: offset }, end, torn))
    }

    /// Zeroes a write that never ended, so that its remains never look valid behind later ones.
    fn cut(&self, volume: &Volume, torn: u64) -> io::Result<()> {
        let (file, offset) = (volume.name(), volume.len);
        tracing::warn!(file, offset, "cutting off history, which is written again");
        let mut file = self.disk.open(&file)?;
        let torn = usize::try_from(torn).map_err(io::Error::other)?;
        file.write_at(offset, &vec![0; torn])?;
        file.sync_data()
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to this revision is durable here, or gone.
    pub(crate) fn end(&self) -> Revision {
        self.lock().end
    }

    /// The oldest revision whose state can be told, if memory's history begins at the end.
    pub(crate) fn oldest(&self) -> Option<Revision> {
        self.lock().volumes.first().map(|volume| volume.after)
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().volumes.iter().map(|volume| volume.len).sum()
    }

    /// Gives up what is there: history begins anew after `floor`.
    pub(crate) fn reset(&self, floor: Revision) -> io::Result<()> {
        *self.lock() = Shelf { volumes: Vec::new(), end: floor };
        self.remove_before(Revision(u64::MAX))
    }

    /// Makes the next changes durable with one sync: those that `next` adds to records, one after
    /// the other.
    pub(crate) fn append(
        &self,
        mut next: impl FnMut(Revision, &mut Vec<u8>) -> Option<Added>,
    ) -> io::Result<()> {
        let (mut after, mut bytes, mut written) = (self.end(), Vec::new(), 0);
        let mut tail: Option<(Volume, Appender)> = None;
        while written < SYNC_EVERY && tail.as_ref().is_none_or(|(volume, _)| !self.is_long(volume))
        {
            bytes.clear();
            let start = Record::begin(&mut bytes);
            let Some(added) = next(after, &mut bytes) else { break };
            Record::seal(&mut bytes, start, added.upto.0, after.0, after.0);
            let (volume, file) = match &mut tail {
                Some(tail) => tail,
                None => {
                    let volume = self.current(added.began, after)?;
                    let file = Appender::open(self.disk.open(&volume.name())?, volume.len)?;
                    tail.insert((volume, file))
                }
            };
            file.put().extend_from_slice(&bytes);
            written += file.write()?;
            (volume.len, after) = (file.end(), added.upto);
        }
        let Some((volume, mut file)) = tail else { return Ok(()) };
        file.sync()?;
        let mut shelf = self.lock();
        if let Some(last) = shelf.volumes.last_mut() {
            *last = volume;
        }
        shelf.end = after;
        Ok(())
    }

    fn is_long(&self, volume: &Volume) -> bool {
        volume.len > self.config.volume_bytes()
    }

    /// The file to go on in; a new one when the last is long or old enough.
    fn current(&self, begins: Option<u64>, after: Revision) -> io::Result<Volume> {
        let last = self.lock().volumes.last().cloned();
        let age = |v: &Volume| begins.unwrap_or(0).saturating_sub(v.begins.unwrap_or(0));
        let full = |v: &Volume| self.is_long(v) || age(v) > self.config.volume_age_ms();
        if let Some(mut last) = last.filter(|last| !full(last)) {
            if last.len == FILE_HEADER as u64 {
                last.begins = begins;
            }
            return Ok(last);
        }
        self.create(after)?;
        let volume = Volume { after, begins, len: FILE_HEADER as u64 };
        self.lock().volumes.push(volume.clone());
        self.retire(begins)?;
        Ok(volume)
    }

    fn create(&self, after: Revision) -> io::Result<()> {
        let temporary = format!("{TEMPORARY}hist");
        let first = Revision(after.0 + 1);
        let (magic, identity, index) = (Magic::History, self.identity, first.0);
        let mut file = Appender::open(self.disk.create(&temporary)?, 0)?;
        file.put().extend_from_slice(&FileHeader { magic, identity, index }.encode());
        file.write()?;
        file.sync()?;
        self.disk.rename(&temporary, &volume_name(first))?;
        self.disk.sync_dir()
    }

    /// Removes the files that are over the limits, and those before a gap.
    fn retire(&self, now: Option<u64>) -> io::Result<()> {
        let mut shelf = self.lock();
        let bytes = |shelf: &Shelf| shelf.volumes.iter().map(|v| v.len).sum::<u64>();
        while let [_, second, ..] = &shelf.volumes[..] {
            let age = now.unwrap_or(0).saturating_sub(second.begins.unwrap_or(u64::MAX));
            if bytes(&shelf) <= self.config.bytes && age <= self.config.age_ms() {
                break;
            }
            shelf.volumes.remove(0);
        }
        let keep = shelf.volumes.first().map_or(shelf.end, |volume| volume.after);
        drop(shelf);
        self.remove_before(keep)
    }

    /// A full disk: the oldest file goes, if it is not the only one; whether there was one.
    pub(crate) fn shed(&self) -> io::Result<bool> {
        let mut shelf = self.lock();
        if shelf.volumes.len() < 2 {
            return Ok(false);
        }
        shelf.volumes.remove(0);
        let keep = shelf.volumes[0].after;
        drop(shelf);
        self.remove_before(keep).map(|()| true)
    }

    fn remove_before(&self, keep: Revision) -> io::Result<()> {
        for name in self.disk.list()? {
            if parse_volume(&name).is_some_and(|first| first <= keep) {
                self.disk.remove(&name)?;
            }
        }
        self.disk.sync_dir()
    }

    fn reader(&self, volume: Volume) -> Result<Reader, PastError> {
        let name = volume.name();
        let file = self.disk.open(&name).map_err(|error| PastError::io(&name, &error))?;
        Ok(Reader { file, volume, offset: FILE_HEADER as u64, bytes: Vec::new() })
    }

    /// The chunks from the one on that has what came after `after`.
    ///
    /// # Errors
    /// [`PastError::Gone`] when they do not go back so far.
    pub(crate) fn chunks(&self, after: Revision) -> Result<Chunks<'_>, PastError> {
        let shelf = self.lock();
        let at = shelf.volumes.partition_point(|volume| volume.after <= after);
        let Some(at) = at.checked_sub(1) else {
            let first = shelf.volumes.first();
            let oldest = first.map_or(shelf.end, |volume| volume.after);
            return Err(PastError::Gone { oldest, since: first.and_then(|v| v.begins) });
        };
        let volumes = shelf.volumes[at..].to_vec();
        drop(shelf);
        Ok(Chunks { archive: self, volumes: volumes.into_iter(), reader: None, after })
    }

    /// The changes of a range with `after < revision <= upto`, as [`Keyspace::events`] has them.
    pub(crate) fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        upto: Revision,
        budget: usize,
    ) -> Result<EventBatch, PastError> {
        let mut batch = EventBatch { events: Vec::new(), next: after };
        let mut bytes = 0;
        for (scanned, chunk) in self.chunks(after)?.enumerate() {
            if bytes >= budget || scanned >= SCAN_LIMIT {
                break;
            }
            let chunk = chunk?;
            batch.next = chunk.upto.min(upto);
            let wanted = |event: &Event| {
                event.revision > after && event.revision <= upto && range.contains(&event.key)
            };
            for event in chunk.events.into_iter().filter(wanted) {
                bytes += event.weight();
                batch.events.push(event);
            }
            if batch.next == upto {
                break;
            }
        }
        Ok(batch)
    }

    /// The newest revision made before a moment, as far as the files know.
    pub(crate) fn before(&self, wall_ms: u64) -> Result<Option<Revision>, PastError> {
        let volumes = self.lock().volumes.clone();
        let begun = |v: &Volume| v.begins.is_some_and(|begins| begins <= wall_ms);
        let Some(first) = volumes.first() else { return Ok(None) };
        let volume = volumes.iter().rfind(|v| begun(v)).unwrap_or(first);
        // Nobody knows what was before the first mark, unless nothing was.
        let mut known = volume.after <= BEGINNING;
        let mut found = None;
        for chunk in self.chunks(volume.after)? {
            let chunk = chunk?;
            known |= chunk.marks.iter().next().is_some_and(|mark| mark.wall_ms <= wall_ms);
            found = chunk.marks.before(wall_ms);
            if found.is_some() {
                break;
            }
        }
        let gone = PastError::Gone { oldest: first.after, since: first.begins };
        if known { Ok(found) } else { Err(gone) }
    }
}

impl Shelf {
    /// Adds the next file; what lies before a gap is of no use.
    fn join(&mut self, volume: Volume, end: Revision) {
        if !self.volumes.is_empty() && volume.after != self.end {
            if let Some(last) = self.volumes.last() {
                let error = PastError::Damaged { file: last.name(), offset: last.len };
                tracing::warn!(%error, "history up to here is lost");
            }
            self.volumes.clear();
        }
        self.volumes.push(volume);
        self.end = end;
    }
}

impl Volume {
    fn name(&self) -> String {
        volume_name(Revision(self.after.0 + 1))
    }
}

impl Chunk {
    /// When its first change was made.
    fn began(&self, after: Revision) -> Option<u64> {
        let first = self.events.first().map_or(Revision(after.0 + 1), |event| event.revision);
        self.marks.time_of(first)
    }
}

/// Reads chunks in order.
#[derive(Debug)]
pub(crate) struct Chunks<'a> {
    archive: &'a Archive,
    volumes: std::vec::IntoIter<Volume>,
    reader: Option<Reader>,
    after: Revision,
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk, PastError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

impl Chunks<'_> {
    fn step(&mut self) -> Result<Option<Chunk>, PastError> {
        loop {
            if self.reader.is_none() {
                let Some(volume) = self.volumes.next() else { return Ok(None) };
                self.reader = Some(self.archive.reader(volume)?);
            }
            let Some(reader) = &mut self.reader else { return Ok(None) };
            // What ends before the cursor is passed over unread.
            while let Some((covers, size)) =
                reader.peek_header()?.filter(|(c, _)| c.1 <= self.after)
            {
                debug_assert!(covers.0 < covers.1, "a chunk covers something");
                reader.offset += size;
            }
            match reader.chunk()? {
                Some(chunk) => return Ok(Some(chunk)),
                None => self.reader = None,
            }
        }
    }
}

/// One file that is read from the front.
#[derive(Debug)]
struct Reader {
    file: Box<dyn DiskFile>,
    volume: Volume,
    offset: u64,
    bytes: Vec<u8>,
}

/// Between which revisions a chunk lies: above the first, up to the second.
type Covers = (Revision, Revision);

impl Reader {
    fn io(&self, error: &io::Error) -> PastError {
        PastError::io(&self.volume.name(), error)
    }

    fn damaged(&self, offset: u64) -> PastError {
        PastError::Damaged { file: self.volume.name(), offset }
    }

    fn fill(&mut self, offset: u64, len: u64) -> Result<(), PastError> {
        let len = usize::try_from(len).map_err(|_| self.damaged(offset))?;
        self.bytes.resize(len, 0);
        self.file.read_at(offset, &mut self.bytes).map_err(|error| self.io(&error))
    }

    fn check_header(&mut self, identity: Identity) -> Result<(), PastError> {
        self.fill(0, self.volume.len.min(FILE_HEADER as u64))?;
        let header = FileHeader::decode(&self.bytes, Magic::History);
        let fits = |h: &FileHeader| h.identity == identity && h.index == self.volume.after.0 + 1;
        header.ok().filter(fits).map(drop).ok_or_else(|| self.damaged(0))
    }

    /// What the next record covers and its size, from its first bytes alone; `None` at the end.
    fn peek_header(&mut self) -> Result<Option<(Covers, u64)>, PastError> {
        let left = self.volume.len.saturating_sub(self.offset);
        if left < RECORD_HEADER as u64 {
            return Ok(None);
        }
        self.fill(self.offset, RECORD_HEADER as u64)?;
        let Some(header) = self.bytes.first_chunk::<RECORD_HEADER>() else { return Ok(None) };
        let (index, term, size) = Record::peek(header);
        let fits = index > term && size as u64 <= left;
        Ok(fits.then_some(((Revision(term), Revision(index)), size as u64)))
    }

    /// The next record, if it is whole; it is not passed.
    fn record(&mut self) -> Result<Option<Record<'_>>, PastError> {
        let Some((_, size)) = self.peek_header()? else { return Ok(None) };
        self.fill(self.offset, size)?;
        Ok(Record::decode(&self.bytes))
    }

    /// The next chunk; `None` at the end.
    fn chunk(&mut self) -> Result<Option<Chunk>, PastError> {
        if self.offset >= self.volume.len {
            return Ok(None);
        }
        let offset = self.offset;
        let damaged = self.damaged(offset);
        let Some(record) = self.record()? else { return Err(damaged) };
        let size = Record::size(record.payload.len());
        let mut chunk = Chunk { upto: Revision(record.index), ..Chunk::default() };
        let read = read_items(record.payload, |item| {
            match item {
                Item::Mark(mark) => chunk.marks.push(mark),
                Item::Past(event) => chunk.events.push(event),
                _ => return Err("a piece of something else".into()),
            }
            Ok(())
        });
        read.map_err(|_| damaged)?;
        self.offset += size as u64;
        Ok(Some(chunk))
    }

    fn is_zero_from(&mut self, offset: u64) -> Result<bool, PastError> {
        self.fill(offset, self.volume.len - offset)?;
        Ok(self.bytes.iter().all(|&byte| byte == 0))
    }
}

/// History to be written down. It reads the keyspace in short steps, so that any thread may
/// [`ArchiveJob::run`] it while the store goes on.
#[derive(Debug)]
pub struct ArchiveJob {
    pub(crate) archive: Arc<Archive>,
    pub(crate) keyspace: Arc<RwLock<Keyspace>>,
    /// How much of it stays in memory only.
    pub(crate) budget: usize,
    pub(crate) pace: Pace,
}

impl ArchiveJob {
    /// Writes a part of what memory is to forget, and makes it durable.
    ///
    /// # Errors
    /// The disk's; what was not written stays in memory.
    pub fn run(self) -> io::Result<()> {
        let mut left = read_lock(&self.keyspace).history_bytes();
        let mut start = Instant::now();
        let next = |after: Revision, out: &mut Vec<u8>| {
            self.pace.rest(start);
            let keyspace = read_lock(&self.keyspace);
            if left <= self.budget && after.0 + 1 >= keyspace.compacted().0 {
                return None;
            }
            let piece = keyspace.piece(after, self.pace.piece())?;
            let began = write_piece(&keyspace, after, &piece, out);
            left = left.saturating_sub(piece.weight);
            start = Instant::now();
            Some(Added { upto: piece.upto, began })
        };
        self.archive.append(next)
    }
}

/// Changes that were added to a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Added {
    upto: Revision,
    /// When the first of them was made, if that is known.
    began: Option<u64>,
}

/// Adds the marks that date changes, and the changes; when the first was made.
fn write_piece(
    keyspace: &Keyspace,
    after: Revision,
    piece: &Piece<'_>,
    out: &mut Vec<u8>,
) -> Option<u64> {
    let marks = keyspace.marks();
    let mut mark = |mark: Mark| write_item(out, |out| Item::Mark(mark).encode_to(out));
    let mut first = None::<Mark>;
    for next in marks.iter().take_while(|mark| mark.revision < piece.upto) {
        if next.revision < after {
            first = Some(next);
        } else {
            first.take().into_iter().for_each(&mut mark);
            mark(next);
        }
    }
    first.into_iter().for_each(mark);
    piece.changes().for_each(|change| write_item(out, |out| change.encode_to(out)));
    marks.time_of(piece.first())
}

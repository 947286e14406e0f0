//! What a start makes of the files: the newest valid checkpoint, then the log behind it.
//!
//! The rule at the end of the last segment: the longest valid prefix is the log. What follows is
//! either zeros (a clean end), or a batch whose sync never returned (cut off and zeroed, so that
//! its remains never look valid behind later records), or — when a later record proves that it was
//! durable — damage, which is refused with file and offset. Damage anywhere else is refused too.

use std::io;
use std::sync::Arc;

use knarr_mvcc::{Command, Keyspace, Revision};

use crate::ahead::Ahead;
use crate::archive::{Access, Archive};
use crate::checkpoint::{Loaded, load, parse_checkpoint};
use crate::config::{Identity, StoreConfig};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::log::{Log, Segment, Spare, TEMPORARY, parse_segment, segment_name};
use crate::record::{FILE_HEADER, FileHeader, HeaderError, Magic, Record};

/// What a start begins with.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) keyspace: Keyspace,
    pub(crate) archive: Option<Arc<Archive>>,
    pub(crate) log: Log,
    /// Bytes of log after the checkpoint.
    pub(crate) log_bytes: u64,
}

/// What the files say, without a change to them (but for the end of the archive).
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) keyspace: Keyspace,
    pub(crate) archive: Option<Arc<Archive>>,
    end: Option<LogEnd>,
    leftovers: Vec<String>,
}

/// Where the log goes on.
#[derive(Debug)]
struct LogEnd {
    identity: Identity,
    term: u64,
    log_bytes: u64,
    segments: Vec<u64>,
    end: End,
    /// Index of the last record.
    last: u64,
}

/// The files by their meaning, indexes ascending.
struct Files {
    segments: Vec<u64>,
    checkpoints: Vec<u64>,
    leftovers: Vec<String>,
}

/// Reads a directory back, or begins a new one.
pub(crate) fn recover(disk: Arc<dyn Disk>, config: &StoreConfig) -> Result<Recovered, OpenError> {
    let opened = read(&disk, config, Access::Owner)?;
    let segment_bytes = config.segment_bytes as u64;
    let (log, log_bytes) = match opened.end {
        None => {
            let log = Log::create(disk, config.identity, segment_bytes, 1);
            (log.map_err(io_error(&segment_name(1)))?, 0)
        }
        Some(end) => {
            let log_bytes = end.log_bytes;
            (end.open(disk, segment_bytes)?, log_bytes)
        }
    };
    clean(&log, &opened.leftovers);
    Ok(Recovered { keyspace: opened.keyspace, archive: opened.archive, log, log_bytes })
}

/// Reads a directory back.
pub(crate) fn read(
    disk: &Arc<dyn Disk>,
    config: &StoreConfig,
    access: Access,
) -> Result<Opened, OpenError> {
    let files = survey(&**disk).map_err(io_error("the data directory"))?;
    if files.segments.is_empty() && files.checkpoints.is_empty() {
        let keyspace = Keyspace::new();
        let archive = open_archive(disk, config.identity, config, keyspace.floor(), access)?;
        return Ok(Opened { keyspace, archive, end: None, leftovers: files.leftovers });
    }
    let mut replay = Replay::begin(&**disk, &files, config)?;
    let needed = files.segments.partition_point(|&first| first <= replay.next());
    let segments = &files.segments[needed.saturating_sub(1)..];
    let identity = replay.identify(&**disk, segments[0])?;
    let archive = open_archive(disk, identity, config, replay.keyspace.floor(), access)?;
    replay.keyspace.hold(archive.as_ref().map_or(Revision(u64::MAX), |archive| archive.end()));
    let mut end = End { offset: 0, torn: Torn::No };
    let mut contents = read_ahead(disk.clone(), segments).map_err(io_error("the log"))?;
    for (at, &first) in segments.iter().enumerate() {
        let place = if at + 1 == segments.len() { Place::Last } else { Place::Inner };
        let bytes = contents.next().map_err(io_error(&segment_name(first)))?;
        end = replay.segment(bytes.unwrap_or_default(), first, place)?;
    }
    let Replay { keyspace, term, log_bytes, last, .. } = replay;
    let (newest, floor) = (keyspace.revision(), keyspace.floor());
    if let Some(archive) = archive.as_ref().filter(|archive| archive.end() > newest) {
        tracing::warn!("the archive knows of changes that never were: it begins anew");
        archive.reset(floor).map_err(io_error("the archive"))?;
    }
    let segments = files.segments;
    let end = Some(LogEnd { identity, term, log_bytes, segments, end, last });
    Ok(Opened { keyspace, archive, end, leftovers: files.leftovers })
}

fn open_archive(
    disk: &Arc<dyn Disk>,
    identity: Identity,
    config: &StoreConfig,
    floor: Revision,
    access: Access,
) -> Result<Option<Arc<Archive>>, OpenError> {
    if config.archive.is_off() {
        return Ok(None);
    }
    let archive = Archive::open(disk.clone(), identity, config.archive, floor, access);
    archive.map(|archive| Some(Arc::new(archive))).map_err(io_error("the archive"))
}

fn survey(disk: &dyn Disk) -> io::Result<Files> {
    let names = disk.list()?;
    let pick = |parse: fn(&str) -> Option<u64>| {
        let mut found: Vec<u64> = names.iter().filter_map(|name| parse(name)).collect();
        found.sort_unstable();
        found
    };
    let segments = pick(parse_segment);
    let checkpoints = pick(parse_checkpoint);
    let leftovers = names.into_iter().filter(|name| name.starts_with(TEMPORARY)).collect();
    Ok(Files { segments, checkpoints, leftovers })
}

/// Leftovers cost only space: a failure here is told, not fatal.
fn clean(log: &Log, leftovers: &[String]) {
    for name in leftovers {
        if let Err(error) = log.disk.remove(name) {
            tracing::warn!(name, %error, "a leftover could not be removed");
        }
    }
}

/// Where in the log a segment stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Inner,
    Last,
}

/// Whether bytes after the end have to be zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Torn {
    No,
    Yes,
}

/// Where a segment's records end.
#[derive(Clone, Copy, Debug)]
struct End {
    offset: usize,
    torn: Torn,
}

/// How much is forgotten for each command that is read.
const REPLAY_PIECE: usize = 1024;

/// The state while the log is read.
struct Replay<'a> {
    keyspace: Keyspace,
    /// The first file read says who wrote them all.
    identity: Option<Identity>,
    term: u64,
    /// Index of the last record read or known to be in the checkpoint.
    last: u64,
    log_bytes: u64,
    config: &'a StoreConfig,
}

impl<'a> Replay<'a> {
    /// Starts at the newest valid checkpoint from which the log goes on.
    fn begin(disk: &dyn Disk, files: &Files, config: &'a StoreConfig) -> Result<Self, OpenError> {
        let Some(&log_starts) = files.segments.first() else {
            return Err(OpenError::corrupt("the log", 0, "all segments are missing"));
        };
        let mut refused = None;
        for &index in files.checkpoints.iter().rev().filter(|&&index| log_starts <= index + 1) {
            match load(disk, index, config) {
                Ok(loaded) => return Ok(Self::at(Some(loaded), config)),
                Err(error @ OpenError::TooLarge { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a checkpoint is not usable");
                    refused.get_or_insert(error);
                }
            }
        }
        if log_starts == 1 {
            return Ok(Self::at(None, config));
        }
        Err(refused.unwrap_or_else(|| {
            OpenError::corrupt(&segment_name(log_starts), 0, "the log before this is missing")
        }))
    }

    fn at(loaded: Option<Loaded>, config: &'a StoreConfig) -> Self {
        let (keyspace, identity, term) = match loaded {
            Some(loaded) => (loaded.keyspace, Some(loaded.identity), loaded.term),
            None => (Keyspace::new(), None, 1),
        };
        let last = keyspace.index();
        Self { keyspace, identity, term, last, log_bytes: 0, config }
    }

    fn next(&self) -> u64 {
        self.last + 1
    }

    /// Who wrote the files: the checkpoint says it, or the first segment that is read.
    fn identify(&mut self, disk: &dyn Disk, first: u64) -> Result<Identity, OpenError> {
        if let Some(identity) = self.identity {
            return Ok(identity);
        }
        let name = segment_name(first);
        let mut header = [0; FILE_HEADER];
        let read = disk.open(&name).and_then(|file| file.read_at(0, &mut header));
        read.map_err(io_error(&name))?;
        let header = FileHeader::decode(&header, Magic::Log)
            .map_err(|error| OpenError::header(&name, error))?;
        Ok(header.identity)
    }

    /// Reads one segment; where its records end.
    fn segment(&mut self, bytes: &[u8], first: u64, place: Place) -> Result<End, OpenError> {
        let name = segment_name(first);
        self.check_header(&name, bytes, first)?;
        // The first segment may begin before the checkpoint ends; later ones must join.
        if first > self.next() {
            return Err(OpenError::corrupt(&name, 0, "the log has a gap before this segment"));
        }
        let mut expected = first;
        let mut offset = FILE_HEADER;
        while let Some(record) = Record::decode(&bytes[offset..]) {
            if record.index != expected {
                return Err(OpenError::corrupt(
                    &name,
                    offset as u64,
                    "the record's index is wrong",
                ));
            }
            self.apply(record).map_err(|what| OpenError::corrupt(&name, offset as u64, &what))?;
            offset += Record::size(record.payload.len());
            expected += 1;
        }
        let torn = judge_tail(&bytes[offset..], expected, place)
            .map_err(|what| OpenError::corrupt(&name, offset as u64, what))?;
        if self.last >= expected {
            return Err(OpenError::corrupt(
                &name,
                offset as u64,
                "acknowledged records are missing",
            ));
        }
        Ok(End { offset, torn })
    }

    fn check_header(&mut self, name: &str, bytes: &[u8], first: u64) -> Result<(), OpenError> {
        let header = FileHeader::decode(bytes, Magic::Log)
            .map_err(|error| OpenError::header(name, error))?;
        if header.index != first {
            return Err(OpenError::corrupt(name, 32, "the index is not that of the name"));
        }
        if *self.identity.get_or_insert(header.identity) != header.identity {
            return Err(OpenError::corrupt(name, 16, "another cluster or member wrote this file"));
        }
        Ok(())
    }

    /// Applies a record, unless the checkpoint has it. An empty one is a mark without a command.
    fn apply(&mut self, record: Record<'_>) -> Result<(), String> {
        if record.index <= self.last {
            return Ok(());
        }
        self.last = record.index;
        self.term = record.term;
        self.log_bytes += Record::size(record.payload.len()) as u64;
        if !record.payload.is_empty() {
            let command = Command::decode(record.payload).map_err(|error| error.to_string())?;
            // What was refused then is refused again; nobody waits for the answer.
            let _ = self.keyspace.apply(record.index, &command);
            self.keyspace.forget(self.config.history_bytes, REPLAY_PIECE);
        }
        Ok(())
    }
}

impl LogEnd {
    /// Opens the last segment for appending, after cutting what was torn.
    fn open(self, disk: Arc<dyn Disk>, segment_bytes: u64) -> Result<Log, OpenError> {
        let end = self.end;
        let name = segment_name(self.segments[self.segments.len() - 1]);
        let open = || {
            let mut file = disk.open(&name)?;
            if end.torn == Torn::Yes {
                tracing::warn!(name, offset = end.offset, "cutting off a write that never ended");
                let rest = usize::try_from(file.len()?).map_err(io::Error::other)? - end.offset;
                file.write_at(end.offset as u64, &vec![0; rest])?;
                file.sync_data()?;
            }
            Segment::open(file, end.offset as u64)
        };
        let segment = open().map_err(io_error(&name))?;
        Ok(Log {
            disk,
            identity: self.identity,
            segment_bytes,
            segments: self.segments,
            segment,
            spare: Spare::Due,
            next: self.last + 1,
            term: self.term,
        })
    }
}

/// Judges what follows the last valid record; `expected` is the index that should be there.
fn judge_tail(tail: &[u8], expected: u64, place: Place) -> Result<Torn, &'static str> {
    if tail.iter().all(|&byte| byte == 0) {
        return Ok(Torn::No);
    }
    let proof = |record: Record<'_>| record.index > expected && record.committed >= expected;
    let damaged =
        (8..tail.len()).step_by(8).any(|at| Record::decode(&tail[at..]).is_some_and(proof));
    if damaged || place == Place::Inner {
        return Err("the record here is broken, but was acknowledged");
    }
    Ok(Torn::Yes)
}

/// The bytes of segments, one after the other.
fn read_ahead(disk: Arc<dyn Disk>, segments: &[u64]) -> io::Result<Ahead> {
    let mut names = Vec::from(segments).into_iter().map(segment_name);
    Ahead::begin(move |bytes| {
        let name = names.next()?;
        let mut read = || {
            let mut file = disk.open(&name)?;
            let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
            file.direct()?;
            file.read_at(0, bytes.room(len))
        };
        Some(read())
    })
}

fn io_error(file: &str) -> impl FnOnce(io::Error) -> OpenError {
    let file = file.to_owned();
    move |source| OpenError::Io { file, source }
}

impl OpenError {
    pub(crate) fn corrupt(file: &str, offset: u64, what: &str) -> Self {
        Self::Corrupt { file: file.into(), offset, what: what.into() }
    }

    pub(crate) fn header(file: &str, error: HeaderError) -> Self {
        match error {
            HeaderError::TooNew(oldest_reader) => Self::TooNew { file: file.into(), oldest_reader },
            HeaderError::Damaged(what) => Self::corrupt(file, 0, what),
        }
    }
}

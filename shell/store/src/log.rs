//! The segmented log: where the next record goes, and when it is durable.
//!
//! Segments are files of one size, zeroed and synced before they get their name, so that an append
//! needs no new space and its sync no metadata. A batch never spans two segments: room for all of
//! it is made before any of it is written, so a full disk refuses a batch and leaves no trace.

use std::io;
use std::sync::Arc;

use crate::append::Appender;
use crate::config::Identity;
use crate::disk::{Disk, DiskFile};
use crate::record::{FILE_HEADER, FileHeader, Magic, Record};

/// While a file is written it has this prefix; a start removes leftovers.
pub(crate) const TEMPORARY: &str = "tmp-";
const SEGMENT: &str = "log-";
/// Segments that have no name yet: one that is needed, and one that will be.
pub(crate) const MADE: &str = "tmp-log";
pub(crate) const SPARE: &str = "tmp-spare";

/// Name of the segment that begins with an index.
pub(crate) fn segment_name(first: u64) -> String {
    format!("{SEGMENT}{first:016x}")
}

/// The first index a segment's name says.
pub(crate) fn parse_segment(name: &str) -> Option<u64> {
    parse_indexed(name, SEGMENT)
}

/// The index in a file name after `prefix`.
pub(crate) fn parse_indexed(name: &str, prefix: &str) -> Option<u64> {
    let hex = name.strip_prefix(prefix).filter(|hex| hex.len() == 16)?;
    u64::from_str_radix(hex, 16).ok()
}

/// The open log. Everything before `next` is durable.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) identity: Identity,
    pub(crate) segment_bytes: u64,
    /// First indexes of all segments, oldest first; never empty.
    pub(crate) segments: Vec<u64>,
    /// The last segment.
    pub(crate) segment: Segment,
    /// The one after it.
    pub(crate) spare: Spare,
    /// The next record's index.
    pub(crate) next: u64,
    pub(crate) term: u64,
}

/// The segment that will be needed next. To make one takes as long as some dozen commits.
#[derive(Debug)]
pub(crate) enum Spare {
    /// It is made once the present one is half full.
    Due,
    Making,
    /// It could not be made: it is not tried again before it is needed.
    Refused,
    Ready(Segment),
}

/// Makes a segment beside the writer.
#[derive(Debug)]
pub struct SegmentJob {
    disk: Arc<dyn Disk>,
    bytes: u64,
}

impl SegmentJob {
    /// Makes it.
    ///
    /// # Errors
    /// The disk's.
    pub fn run(self) -> io::Result<Segment> {
        Segment::make(&*self.disk, SPARE, self.bytes)
    }
}

/// A file that records are appended to.
#[derive(Debug)]
pub struct Segment {
    file: Appender,
    /// Bytes of the file.
    size: u64,
}

impl Segment {
    /// A segment of zeros, under a temporary name.
    fn make(disk: &dyn Disk, temporary: &str, bytes: u64) -> io::Result<Self> {
        let make = || {
            let mut file = Appender::open(disk.create(temporary)?, 0)?;
            let size = file.preallocate(bytes)?;
            file.sync()?;
            Ok(Self { file, size })
        };
        make().inspect_err(|_| discard(disk, temporary))
    }

    /// Gives it its header and its name, durably.
    fn begin(mut self, disk: &dyn Disk, temporary: &str, header: FileHeader) -> io::Result<Self> {
        let mut begin = || {
            self.file.put().extend_from_slice(&header.encode());
            self.file.write()?;
            self.file.sync()?;
            disk.rename(temporary, &segment_name(header.index))?;
            disk.sync_dir()
        };
        begin().inspect_err(|_| discard(disk, temporary))?;
        Ok(self)
    }

    /// A segment whose records end at an offset.
    pub(crate) fn open(file: Box<dyn DiskFile>, end: u64) -> io::Result<Self> {
        let size = file.len()?;
        Ok(Self { file: Appender::open(file, end)?, size })
    }
}

impl Log {
    /// A log without records that begins with an index.
    pub(crate) fn create(
        disk: Arc<dyn Disk>,
        identity: Identity,
        segment_bytes: u64,
        first: u64,
    ) -> io::Result<Self> {
        let header = FileHeader { magic: Magic::Log, identity, index: first };
        let segment = Segment::make(&*disk, MADE, segment_bytes)?.begin(&*disk, MADE, header)?;
        Ok(Self {
            disk,
            identity,
            segment_bytes,
            segments: vec![first],
            segment,
            spare: Spare::Due,
            next: first,
            term: 1,
        })
    }

    /// Makes room for payloads of these lengths in one segment, starting a new one if needed.
    ///
    /// # Errors
    /// The disk's; nothing is lost and the call may be repeated.
    pub(crate) fn reserve(&mut self, payloads: impl Iterator<Item = usize>) -> io::Result<()> {
        let size: usize = payloads.map(Record::size).sum();
        if self.segment.file.end() + size as u64 <= self.segment.size {
            return Ok(());
        }
        let bytes = self.segment_bytes.max((FILE_HEADER + size) as u64);
        let header = FileHeader { magic: Magic::Log, identity: self.identity, index: self.next };
        let (segment, temporary) = match std::mem::replace(&mut self.spare, Spare::Due) {
            Spare::Ready(segment) if segment.size >= bytes => (segment, SPARE),
            other => {
                if !matches!(other, Spare::Refused) {
                    self.spare = other;
                }
                (Segment::make(&*self.disk, MADE, bytes)?, MADE)
            }
        };
        self.segment = segment.begin(&*self.disk, temporary, header)?;
        if self.segments.last() != Some(&self.next) {
            self.segments.push(self.next);
        }
        Ok(())
    }

    /// Writes payloads as the next records and syncs once. Room must have been reserved. Returns
    /// the bytes written.
    ///
    /// # Errors
    /// The disk's; the log must not be used any more then, as nobody knows what the disk holds.
    pub(crate) fn append<'a>(
        &mut self,
        payloads: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<u64> {
        let (mut index, term, committed) = (self.next, self.term, self.next - 1);
        let file = &mut self.segment.file;
        for payload in payloads {
            Record { index, term, committed, payload }.encode(file.put());
            index += 1;
        }
        let written = file.write()?;
        file.sync()?;
        self.next = index;
        Ok(written)
    }

    /// The next segment, when it is time to make it.
    pub(crate) fn begin_segment(&mut self) -> Option<SegmentJob> {
        if !matches!(self.spare, Spare::Due) || self.segment.file.end() < self.segment.size / 2 {
            return None;
        }
        self.spare = Spare::Making;
        Some(SegmentJob { disk: self.disk.clone(), bytes: self.segment_bytes })
    }

    /// Takes it.
    pub(crate) fn end_segment(&mut self, result: io::Result<Segment>) {
        match result {
            Ok(segment) => self.spare = Spare::Ready(segment),
            Err(error) => {
                tracing::warn!(%error, "the log's next segment is not made ahead");
                self.spare = Spare::Refused;
            }
        }
    }

    /// Removes the segments that hold nothing after an index, which a checkpoint has.
    pub(crate) fn retire(&mut self, index: u64) -> io::Result<()> {
        let needed = self.segments.partition_point(|&first| first <= index + 1).saturating_sub(1);
        for first in &self.segments[..needed] {
            self.disk.remove(&segment_name(*first))?;
        }
        self.segments.drain(..needed);
        self.disk.sync_dir()
    }
}

/// Gives up a file that failed; the space matters more than a second error.
fn discard(disk: &dyn Disk, temporary: &str) {
    let _ = disk.remove(temporary);
}

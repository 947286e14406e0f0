//! The segmented log: where the next record goes, and when it is durable.
//!
//! Segments are files of one size, zeroed and synced before they get their name, so that an append
//! needs no new space and its sync no metadata. A batch never spans two segments: room for all of
//! it is made before any of it is written, so a full disk refuses a batch and leaves no trace.

use std::io;
use std::sync::Arc;

use crate::config::Identity;
use crate::disk::{Disk, DiskFile};
use crate::record::{FILE_HEADER, FileHeader, Magic, Record};

/// While a file is written it has this prefix; a start removes leftovers.
pub(crate) const TEMPORARY: &str = "tmp-";
const SEGMENT: &str = "log-";

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
    pub(crate) file: Box<dyn DiskFile>,
    /// Its size. A look at the file would cost far more than the call: the kernel keeps the time of
    /// a write to the nanosecond once somebody could have read it, and then each sync writes the
    /// inode too.
    pub(crate) size: u64,
    /// Where its next record goes.
    pub(crate) offset: u64,
    /// The next record's index.
    pub(crate) next: u64,
    pub(crate) term: u64,
    pub(crate) buffer: Vec<u8>,
}

impl Log {
    /// A log without records that begins with an index.
    pub(crate) fn create(
        disk: Arc<dyn Disk>,
        identity: Identity,
        segment_bytes: u64,
        first: u64,
    ) -> io::Result<Self> {
        let file = create_segment(&*disk, identity, segment_bytes, first)?;
        Ok(Self {
            disk,
            identity,
            segment_bytes,
            segments: vec![first],
            file,
            size: segment_bytes,
            offset: FILE_HEADER as u64,
            next: first,
            term: 1,
            buffer: Vec::new(),
        })
    }

    /// Makes room for payloads of these lengths in one segment, starting a new one if needed.
    ///
    /// # Errors
    /// The disk's; nothing is lost and the call may be repeated.
    pub(crate) fn reserve(&mut self, payloads: impl Iterator<Item = usize>) -> io::Result<()> {
        let size: usize = payloads.map(Record::size).sum();
        if self.offset + size as u64 <= self.size {
            return Ok(());
        }
        let bytes = self.segment_bytes.max((FILE_HEADER + size) as u64);
        self.file = create_segment(&*self.disk, self.identity, bytes, self.next)?;
        self.size = bytes;
        self.offset = FILE_HEADER as u64;
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
        self.buffer.clear();
        let mut index = self.next;
        let committed = self.next - 1;
        for payload in payloads {
            Record { index, term: self.term, committed, payload }.encode(&mut self.buffer);
            index += 1;
        }
        self.file.write_at(self.offset, &self.buffer)?;
        self.file.sync_data()?;
        let written = self.buffer.len() as u64;
        self.offset += written;
        self.next = index;
        self.buffer.shrink_to(64 << 10);
        Ok(written)
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

/// Makes a zeroed segment with its header, durable under its name.
fn create_segment(
    disk: &dyn Disk,
    identity: Identity,
    bytes: u64,
    first: u64,
) -> io::Result<Box<dyn DiskFile>> {
    let temporary = format!("{TEMPORARY}log");
    let header = FileHeader { magic: Magic::Log, identity, index: first };
    let fill = || {
        let mut file = disk.create(&temporary)?;
        file.preallocate(bytes)?;
        file.write_at(0, &header.encode())?;
        file.sync_data()?;
        disk.rename(&temporary, &segment_name(first))?;
        disk.sync_dir()?;
        Ok(file)
    };
    fill().inspect_err(|_| {
        // The space matters more than a second error.
        let _ = disk.remove(&temporary);
    })
}

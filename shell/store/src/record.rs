//! File headers and records as bytes. Little endian; crc32 (IEEE) over everything but itself.
//!
//! A file opens with 64 bytes: magic (8), format (4), oldest reader version (4), cluster id (8),
//! member id (8), index (8), zeros (20), crc (4). The index is the first one of a log segment and
//! the last one of a checkpoint; of a file of the past it is the first revision.
//!
//! A record is 40 bytes and its payload, padded to 8: payload length (4), crc (4), index (8), term
//! (8), committed (8), format (4), zeros (4). *Committed* is the last index known durable when the
//! record was written. It is what tells damage from a torn tail: a valid record behind a broken one
//! proves damage only if the broken one was durable before it. A power cut may well keep the later
//! half of one unsynced batch and lose the earlier.

use std::fmt;

use crate::config::Identity;

/// The format this build writes, of files and records alike.
pub(crate) const FORMAT: u32 = 1;
/// The oldest build that may read what this one writes.
const OLDEST_READER: u32 = 1;
/// Size of a file header.
pub(crate) const FILE_HEADER: usize = 64;
/// Size of a record without its payload.
pub(crate) const RECORD_HEADER: usize = 40;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Magic {
    Log,
    Checkpoint,
    History,
}

impl Magic {
    fn bytes(self) -> &'static [u8; 8] {
        match self {
            Self::Log => b"knarrlog",
            Self::Checkpoint => b"knarrckp",
            Self::History => b"knarrhst",
        }
    }
}

/// The opening of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) magic: Magic,
    pub(crate) identity: Identity,
    pub(crate) index: u64,
}

/// Why a file's opening is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// The oldest format that may read it.
    TooNew(u32),
    Damaged(&'static str),
}

impl FileHeader {
    pub(crate) fn encode(&self) -> [u8; FILE_HEADER] {
        let mut out = [0; FILE_HEADER];
        out[..8].copy_from_slice(self.magic.bytes());
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[12..16].copy_from_slice(&OLDEST_READER.to_le_bytes());
        out[16..24].copy_from_slice(&self.identity.cluster.to_le_bytes());
        out[24..32].copy_from_slice(&self.identity.member.to_le_bytes());
        out[32..40].copy_from_slice(&self.index.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8], magic: Magic) -> Result<Self, HeaderError> {
        let bytes = bytes.get(..FILE_HEADER).ok_or(HeaderError::Damaged("the header is cut"))?;
        if &bytes[..8] != magic.bytes() {
            return Err(HeaderError::Damaged("the magic number is wrong"));
        }
        if u32_at(bytes, 60) != crc32fast::hash(&bytes[..60]) {
            return Err(HeaderError::Damaged("the header's checksum is wrong"));
        }
        let oldest_reader = u32_at(bytes, 12);
        if oldest_reader > FORMAT {
            return Err(HeaderError::TooNew(oldest_reader));
        }
        let identity = Identity { cluster: u64_at(bytes, 16), member: u64_at(bytes, 24) };
        Ok(Self { magic, identity, index: u64_at(bytes, 32) })
    }
}

/// One record, its payload borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) committed: u64,
    pub(crate) payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// Bytes a record with a payload of this length takes.
    pub(crate) fn size(payload: usize) -> usize {
        (RECORD_HEADER + payload).next_multiple_of(8)
    }

    /// Bytes the record with this header takes.
    pub(crate) fn size_from(header: &[u8; RECORD_HEADER]) -> usize {
        Self::size(u32_at(header, 0) as usize)
    }

    /// Index, term and size that a header claims.
    pub(crate) fn peek(header: &[u8; RECORD_HEADER]) -> (u64, u64, usize) {
        (u64_at(header, 8), u64_at(header, 16), Self::size_from(header))
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = Self::begin(out);
        out.extend_from_slice(self.payload);
        Self::seal(out, start, self.index, self.term, self.committed);
    }

    /// Makes room for a record's header; the payload is added after it. Where the record begins.
    pub(crate) fn begin(out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.resize(start + RECORD_HEADER, 0);
        start
    }

    /// Completes the record that begins at `start`.
    pub(crate) fn seal(out: &mut Vec<u8>, start: usize, index: u64, term: u64, committed: u64) {
        let payload = out.len() - start - RECORD_HEADER;
        let len = u32::try_from(payload).expect("payloads are far below 4 GiB");
        out.resize(start + Self::size(payload), 0);
        let record = &mut out[start..];
        record[..4].copy_from_slice(&len.to_le_bytes());
        let numbers = [index, term, committed, u64::from(FORMAT)];
        for (place, number) in record[8..RECORD_HEADER].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = checksum(record);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The record at the beginning of `bytes`, if a valid one is there.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.get(..RECORD_HEADER)?;
        let len = usize::try_from(u32_at(header, 0)).ok()?;
        let whole = bytes.get(..Self::size(len))?;
        if u64_at(header, 32) != u64::from(FORMAT) || u32_at(header, 4) != checksum(whole) {
            return None;
        }
        Some(Self {
            index: u64_at(header, 8),
            term: u64_at(header, 16),
            committed: u64_at(header, 24),
            payload: &whole[RECORD_HEADER..RECORD_HEADER + len],
        })
    }
}

fn checksum(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooNew(version) => write!(f, "needs a reader of format {version}"),
            Self::Damaged(what) => f.write_str(what),
        }
    }
}

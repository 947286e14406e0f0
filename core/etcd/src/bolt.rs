//! A bbolt database: one file of pages, in which buckets are trees of pairs in key order.
//!
//! Pages 0 and 1 say where the tree of buckets begins; the one with the higher number of a
//! transaction counts. A page is a header (16 bytes: its number, what it is, how many elements, how
//! many more pages it fills), a table of elements (16 bytes each), and what these point to. All
//! numbers are little-endian.

mod read;
mod write;

use core::fmt;

pub use read::{Bucket, Database, Element, Elements};
pub use write::{Source, Writer};

/// Size of the pages that are written.
const PAGE: usize = 4096;
const HEADER: usize = 16;
/// Size of an entry in a page's table.
const ELEMENT: usize = 16;
const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// What of a meta page's content its checksum covers; the checksum follows.
const META: usize = 56;

/// What a page is.
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const METAS: u16 = 4;
const FREE: u16 = 16;
/// Marks a leaf's element whose value is a bucket.
const NESTED: u32 = 1;

/// Why a file is no such database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// On which page.
    pub page: u64,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} {}", self.page, self.what)
    }
}

impl core::error::Error for Fault {}

/// FNV-1a of 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

//! A file that grows at its end, past the page cache where that can be: what is written is written
//! in whole blocks, so the one that holds the end is kept in memory and written again with what
//! comes behind it. The same bytes: a torn write cannot harm them. Behind the end there are zeros.

use std::io;

use crate::disk::{BLOCK, DiskFile};

/// Memory that is kept for what comes next.
const KEPT: usize = 64 << 10;

/// Appends to a file.
#[derive(Debug)]
pub(crate) struct Appender {
    file: Box<dyn DiskFile>,
    /// Where the next byte goes.
    end: u64,
    /// Writes begin and end at multiples of this.
    block: usize,
    /// What the last block has, and what is not written yet.
    buffer: Vec<u8>,
}

impl Appender {
    /// Appends at an offset; behind it the file has nothing but zeros.
    pub(crate) fn open(mut file: Box<dyn DiskFile>, end: u64) -> io::Result<Self> {
        let mut buffer = vec![0; (end % BLOCK as u64) as usize];
        file.read_at(end - buffer.len() as u64, &mut buffer)?;
        let block = file.direct()?;
        buffer.drain(..buffer.len() / block * block);
        Ok(Self { file, end, block, buffer })
    }

    /// Makes an empty file of allocated zeros, of so many bytes or the next whole blocks: how many
    /// that is.
    pub(crate) fn preallocate(&mut self, len: u64) -> io::Result<u64> {
        let len = len.next_multiple_of(self.block as u64);
        self.file.preallocate(len)?;
        Ok(len)
    }

    /// Where the next byte goes.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// How much was put and not written.
    pub(crate) fn pending(&self) -> usize {
        self.buffer.len() - self.kept()
    }

    fn kept(&self) -> usize {
        (self.end % self.block as u64) as usize
    }

    /// What is to be written: bytes may be added to it.
    pub(crate) fn put(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Writes what was put. Returns how many bytes that is.
    pub(crate) fn write(&mut self) -> io::Result<u64> {
        let (kept, len, written) = (self.kept(), self.buffer.len(), self.pending() as u64);
        self.buffer.resize(len.next_multiple_of(self.block), 0);
        self.file.write_at(self.end - kept as u64, &self.buffer)?;
        self.buffer.truncate(len);
        self.buffer.drain(..len / self.block * self.block);
        self.buffer.shrink_to(KEPT);
        self.end += written;
        Ok(written)
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

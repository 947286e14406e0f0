//! What a store did and how long its disk took, counted where it happens: the disk is looked at
//! from outside, through its own seam.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use knarr_mvcc::{Answer, OpResponse, TxnResponse};

use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::log::{MADE, SPARE, parse_segment};

/// The upper ends of a histogram's buckets but the last, which has none: doubling from 1 ms.
const BUCKETS: usize = 14;

/// Durations, sorted into buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// One more, that took so long.
    pub fn note(&self, took: Duration) {
        let at = (0..BUCKETS).find(|&n| took <= Self::end(n)).unwrap_or(BUCKETS);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn end(bucket: usize) -> Duration {
        Duration::from_millis(1 << bucket)
    }

    /// The bounded buckets: how long at most, and how many took no longer.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut sum = 0;
        self.counts[..BUCKETS].iter().enumerate().map(move |(n, count)| {
            sum += count.load(Ordering::Relaxed);
            (Self::end(n), sum)
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How long they took together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// What it has come to.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

/// What was counted since the store was opened.
#[derive(Debug, Default)]
pub struct Measures {
    /// Syncs of the log: what a write waits for.
    pub log_syncs: Histogram,
    /// Bytes written to the log.
    pub log_bytes: Counter,
    /// Syncs of other files: checkpoints, and history. No write waits for them.
    pub state_syncs: Histogram,
    /// Ranges read.
    pub ranges: Counter,
    /// Keys put.
    pub puts: Counter,
    /// Ranges deleted.
    pub deletes: Counter,
    /// Transactions of more than one operation.
    pub txns: Counter,
    /// Leases granted.
    pub granted: Counter,
    /// Leases renewed.
    pub renewed: Counter,
    /// Commands that were not carried out, and not because the state forbids them.
    pub failed: Counter,
    begun: Counter,
    ended: Counter,
}

/// Counts a command as ended, however its call ends.
pub(crate) struct UnderWay<'a>(&'a Measures);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.ended.add(1);
    }
}

impl Measures {
    /// Commands that wait for their answer.
    pub fn pending(&self) -> u64 {
        // In this order, so that what ends in between does not make it less than none.
        let ended = self.ended.get();
        self.begun.get() - ended
    }

    pub(crate) fn begin(&self) -> UnderWay<'_> {
        self.begun.add(1);
        UnderWay(self)
    }

    pub(crate) fn note(&self, result: &Result<Answer, StoreError>) {
        match result {
            Ok(Answer::Txn(response)) => {
                let counted = self.operations(response);
                self.txns.add(u64::from(counted > 1));
            }
            Ok(Answer::LeaseGrant { .. }) => self.granted.add(1),
            Ok(_) | Err(StoreError::Refused(_)) => {}
            Err(_) => self.failed.add(1),
        }
    }

    fn operations(&self, txn: &TxnResponse) -> usize {
        let operation = |response: &OpResponse| {
            let counter = match response {
                OpResponse::Put(_) => &self.puts,
                OpResponse::Delete(_) => &self.deletes,
                OpResponse::Range(_) => &self.ranges,
                OpResponse::Txn(nested) => return self.operations(nested),
            };
            counter.add(1);
            1
        };
        txn.responses.iter().map(operation).sum()
    }
}

/// A disk whose syncs are timed.
#[derive(Debug)]
pub(crate) struct MeasuredDisk {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) measures: Arc<Measures>,
}

impl MeasuredDisk {
    fn file(&self, name: &str, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        // A segment is made under another name; whoever needs it waits for that too.
        let made = [MADE, SPARE].contains(&name);
        let (is_log, measures) = (made || parse_segment(name).is_some(), self.measures.clone());
        Box::new(MeasuredFile { file, is_log, measures })
    }
}

impl Disk for MeasuredDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(name, self.disk.open(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(name, self.disk.create(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
}

#[derive(Debug)]
struct MeasuredFile {
    file: Box<dyn DiskFile>,
    is_log: bool,
    measures: Arc<Measures>,
}

impl DiskFile for MeasuredFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buf)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.is_log {
            self.measures.log_bytes.add(data.len() as u64);
        }
        self.file.write_at(offset, data)
    }

    fn direct(&mut self) -> io::Result<usize> {
        self.file.direct()
    }

    fn preallocate(&mut self, len: u64) -> io::Result<()> {
        self.file.preallocate(len)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let result = self.file.sync_data();
        let log = &self.measures.log_syncs;
        if self.is_log { log } else { &self.measures.state_syncs }.note(begun.elapsed());
        result
    }
}

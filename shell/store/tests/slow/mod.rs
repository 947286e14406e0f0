//! The simulated disk, with syncs that take a millisecond of real time while that is wanted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use knarr_store::sim::SimDisk;
use knarr_store::{Disk, DiskFile};

const SYNC: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
pub struct SlowDisk {
    pub disk: SimDisk,
    pub is_slow: Arc<AtomicBool>,
}

#[derive(Debug)]
struct SlowFile(Box<dyn DiskFile>, Arc<AtomicBool>);

impl Disk for SlowDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SlowFile(self.disk.open(name)?, self.is_slow.clone())))
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SlowFile(self.disk.create(name)?, self.is_slow.clone())))
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

impl DiskFile for SlowFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
    fn direct(&mut self) -> io::Result<usize> {
        self.0.direct()
    }
    fn preallocate(&mut self, len: u64) -> io::Result<()> {
        self.0.preallocate(len)
    }
    fn sync_data(&mut self) -> io::Result<()> {
        if self.1.load(Ordering::Relaxed) {
            thread::sleep(SYNC);
        }
        self.0.sync_data()
    }
}

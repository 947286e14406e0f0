//! How many durable writes a second 16 clients get of a disk whose fdatasync takes a millisecond.
//!
//! `slow_disk [SECONDS]` prints `N writes/s, M syncs/s`. The disk is the simulated one, so that
//! nothing but the waiting is measured.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measuring program")]

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use knarr_store::mvcc::{LeaseId, Op, Txn};
use knarr_store::sim::SimDisk;
use knarr_store::{Disk, DiskFile, Store, StoreConfig, SystemClock};

const CLIENTS: usize = 16;
const SYNC: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct SlowDisk(SimDisk);

#[derive(Debug)]
struct SlowFile(Box<dyn DiskFile>);

impl Disk for SlowDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SlowFile(self.0.open(name)?)))
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SlowFile(self.0.create(name)?)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
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
    fn preallocate(&mut self, len: u64) -> io::Result<()> {
        self.0.preallocate(len)
    }
    fn sync_data(&mut self) -> io::Result<()> {
        std::thread::sleep(SYNC);
        self.0.sync_data()
    }
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).map_or(3, |word| word.parse().unwrap());
    let disk = SimDisk::default();
    let slow = Arc::new(SlowDisk(disk.clone()));
    let clock = Arc::new(SystemClock::default());
    let store = Store::open(slow, clock, StoreConfig::default()).unwrap();
    let (began, syncs) = (Instant::now(), disk.syncs());
    let ends = began + Duration::from_secs(seconds);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let store = store.clone();
        clients.spawn(async move {
            let mut writes = 0_u64;
            while Instant::now() < ends {
                let (key, value) = (format!("key-{client}").into(), vec![b'v'; 256].into());
                let put = Op::Put { key, value, lease: LeaseId(0) };
                store.txn(Txn { success: vec![put], ..Txn::default() }).await.unwrap();
                writes += 1;
            }
            writes
        });
    }
    let writes: u64 = clients.join_all().await.into_iter().sum();
    let took = began.elapsed().as_secs_f64();
    let (writes, syncs) = (writes as f64 / took, (disk.syncs() - syncs) as f64 / took);
    println!("{writes:.0} writes/s, {syncs:.0} syncs/s");
    store.close().await;
}

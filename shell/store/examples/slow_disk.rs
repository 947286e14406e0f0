//! How many durable writes a second 16 clients get of a disk whose fdatasync takes a millisecond.
//!
//! `slow_disk [SECONDS]` prints `N writes/s, M syncs/s`. The disk is the simulated one, so that
//! nothing but the waiting is measured.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measuring program")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use knarr_store::mvcc::{LeaseId, Op, Txn};
use knarr_store::sim::SimDisk;
use knarr_store::{Store, StoreConfig, SystemClock};

const CLIENTS: usize = 16;
#[path = "../tests/slow/mod.rs"]
mod slow;
use slow::SlowDisk;

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).map_or(3, |word| word.parse().unwrap());
    let disk = SimDisk::default();
    let slow = SlowDisk { disk: disk.clone(), is_slow: Arc::new(true.into()) };
    let clock = Arc::new(SystemClock::default());
    let store = Store::open(Arc::new(slow), clock, StoreConfig::default()).unwrap();
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

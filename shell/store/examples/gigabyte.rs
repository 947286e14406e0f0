//! How a gigabyte of state starts, and what checkpoints and compactions cost the puts beside them.
//!
//! `gigabyte DIR [KEYS]`: a directory on the disk to be measured; it is made, and stays.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, run by hand")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use knarr_store::mvcc::{LeaseId, Op, Txn};
use knarr_store::{ArchiveConfig, RealDisk, Store, StoreConfig, SystemClock};

const CLIENTS: usize = 512;
const VALUE: usize = 1000;

fn open(dir: &Path, config: StoreConfig) -> Store {
    let disk = Arc::new(RealDisk::open(dir).unwrap());
    Store::open(disk, Arc::new(SystemClock::default()), config).unwrap()
}

fn put(number: usize, len: usize) -> Txn {
    let key = format!("/registry/pods/default/pod-{number:08}").into();
    let value = Bytes::from(vec![number as u8; len]);
    Txn { success: vec![Op::Put { key, value, lease: LeaseId(0) }], ..Txn::default() }
}

async fn fill(store: &Store, writes: usize, keys: usize, len: usize) {
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let store = store.clone();
        clients.spawn(async move {
            for number in (client..writes).step_by(CLIENTS) {
                store.txn(put(number % keys, len)).await.unwrap();
            }
        });
    }
    clients.join_all().await;
}

/// One client, one put after the other, for as long as `go` says.
async fn puts(what: &str, store: &Store, mut go: impl FnMut(usize) -> bool) {
    let mut took: Vec<Duration> = Vec::new();
    while go(took.len()) {
        let start = Instant::now();
        store.txn(put(took.len() % 1000, 256)).await.unwrap();
        took.push(start.elapsed());
    }
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000];
    let (p50, p99, max) = (at(500), at(990), at(1000));
    println!("{what}: {} puts, p50 {p50:?}, p99 {p99:?}, max {max:?}", took.len());
}

async fn compact(store: &Store, what: &str) {
    let compacted = store.durable();
    store.compact(compacted).await.unwrap();
    let forgotten = || store.read(|keyspace, _| keyspace.floor().next() >= compacted);
    puts(what, store, |done| done < 500 || !forgotten()).await;
}

fn checkpoints(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|n| n.starts_with("check")).collect()
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let dir = Path::new(&args[1]);
    let keys: usize = args.get(2).map_or(1_000_000, |keys| keys.parse().unwrap());
    let config = StoreConfig::default();
    let store = open(dir, config.clone());
    let start = Instant::now();
    fill(&store, keys, keys, VALUE).await;
    println!("{keys} keys written in {:?}: {:?}", start.elapsed(), store.weights());
    puts("idle", &store, |done| done < 5000).await;
    store.close().await;
    drop(store);

    let start = Instant::now();
    let now = StoreConfig { checkpoint_bytes: 1 << 20, checkpoint_percent: 0, ..config.clone() };
    let store = open(dir, now);
    println!("started in {:?}", start.elapsed());
    let before = checkpoints(dir);
    puts("beside a checkpoint", &store, |_| checkpoints(dir) == before).await;
    store.close().await;
    drop(store);

    let start = Instant::now();
    let config = StoreConfig { history_bytes: 4 << 30, checkpoint_bytes: 4 << 30, ..config };
    let store = open(dir, config.clone());
    println!("started in {:?}", start.elapsed());
    fill(&store, 1_000_000, 1000, 256).await;
    puts("idle again", &store, |done| done < 5000).await;
    compact(&store, "beside the compaction of a million revisions").await;
    println!("{:?}", store.weights());
    store.close().await;
    drop(store);

    let store = open(dir, StoreConfig { archive: ArchiveConfig::OFF, ..config });
    fill(&store, 1_000_000, 1000, 256).await;
    compact(&store, "the same without an archive").await;
    store.close().await;
}

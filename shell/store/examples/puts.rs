//! What a put costs, thread by thread; what a key costs in memory; and what a compaction costs the
//! puts beside it.
//!
//! `puts keys|compaction DIR`: a directory on the disk to be measured; it is made, and removed at
//! the end.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, run by hand")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use knarr_store::mvcc::{LeaseId, Op, Txn};
use knarr_store::{RealDisk, Store, StoreConfig, SystemClock};

const KEYS: usize = 100_000;
const VALUE: usize = 256;
const REVISIONS: usize = 1_000_000;
const IDLE_PUTS: usize = 10_000;

fn open(dir: &Path, config: StoreConfig) -> Store {
    let disk = Arc::new(RealDisk::open(dir).unwrap());
    Store::open(disk, Arc::new(SystemClock::default()), config).unwrap()
}

/// Keys come in no order, as those of etcd's benchmark.
fn put(number: usize, keys: usize) -> Txn {
    let key = format!("/bench/{:08}", number.wrapping_mul(7_368_787) % keys).into();
    let value = Bytes::from(vec![number as u8; VALUE]);
    Txn { success: vec![Op::Put { key, value, lease: LeaseId(0) }], ..Txn::default() }
}

async fn fill(store: &Store, clients: usize, writes: usize, keys: usize) {
    let mut running = tokio::task::JoinSet::new();
    for client in 0..clients {
        let store = store.clone();
        running.spawn(async move {
            for number in (client..writes).step_by(clients) {
                store.txn(put(number, keys)).await.unwrap();
            }
        });
    }
    running.join_all().await;
}

/// Nanoseconds on a processor so far, by the name of the thread.
fn processor() -> BTreeMap<String, u64> {
    let mut used = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let (Ok(name), Ok(stat)) =
            (fs::read_to_string(task.join("comm")), fs::read_to_string(task.join("schedstat")))
        else {
            continue;
        };
        let ns: u64 = stat.split(' ').next().unwrap().parse().unwrap();
        *used.entry(name.trim().to_owned()).or_default() += ns;
    }
    used
}

async fn costs(store: &Store, clients: usize, writes: usize, keys: usize) {
    let (before, start) = (processor(), Instant::now());
    fill(store, clients, writes, keys).await;
    let rate = writes as f64 / start.elapsed().as_secs_f64();
    let used = processor().into_iter().map(|(name, ns)| {
        let ns = ns.saturating_sub(before.get(&name).copied().unwrap_or(0));
        format!("{name} {:.2}", ns as f64 / 1000.0 / writes as f64)
    });
    let used: Vec<String> = used.collect();
    println!("{clients} clients: {rate:.0} puts/s; us of processor a put: {}", used.join(", "));
}

fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// One client, one put after the other, for as long as `go` says.
async fn alone(what: &str, store: &Store, mut go: impl FnMut(usize) -> bool) {
    let mut took: Vec<Duration> = Vec::new();
    while go(took.len()) {
        let start = Instant::now();
        store.txn(put(took.len(), 1000)).await.unwrap();
        took.push(start.elapsed());
    }
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000];
    let (p50, p90, p99, max) = (at(500), at(900), at(990), at(1000));
    println!("{what}: {} puts, p50 {p50:?}, p90 {p90:?}, p99 {p99:?}, max {max:?}", took.len());
}

async fn compaction(dir: &Path) {
    let config = StoreConfig { history_bytes: 4 << 30, ..StoreConfig::default() };
    let store = open(dir, config);
    fill(&store, 512, REVISIONS, 1000).await;
    // What the log let go of is written down first: it is no part of what is measured.
    tokio::time::sleep(Duration::from_secs(5)).await;
    alone("idle", &store, |done| done < IDLE_PUTS).await;
    let compacted = store.durable();
    store.compact(compacted).await.unwrap();
    let start = Instant::now();
    let forgotten = || store.read(|keyspace, _| keyspace.floor().next() >= compacted);
    alone("beside a compaction", &store, |done| done < 500 || !forgotten()).await;
    println!("it took {:?}", start.elapsed());
    alone("after it", &store, |done| done < IDLE_PUTS).await;
    store.close().await;
}

async fn keys(dir: &Path) {
    let store = open(dir, StoreConfig::default());
    costs(&store, 100, 10_000, 100).await;
    let before = resident();
    for _ in 0..3 {
        costs(&store, 100, KEYS, KEYS).await;
    }
    let (grown, weights) = (resident() - before, store.weights());
    println!("{KEYS} keys: {} bytes a key resident; {weights:?}", grown / KEYS);
    for clients in [1000, 1000, 100, 100] {
        costs(&store, clients, KEYS, KEYS).await;
    }
    costs(&store, 1, 10_000, KEYS).await;
    store.close().await;
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let dir = Path::new(&args[2]);
    match &args[1][..] {
        "keys" => keys(dir).await,
        "compaction" => compaction(dir).await,
        other => panic!("{other}: neither keys nor compaction"),
    }
    fs::remove_dir_all(dir).unwrap();
}

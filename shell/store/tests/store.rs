//! The handle as its callers use it.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use knarr_store::mvcc::{
    Compacted, Event, KeyRange, LeaseId, Op, Refusal, Revision, Txn, TxnResponse,
};
use knarr_store::sim::{Fault, SimClock, SimDisk};
use knarr_store::{
    OpenError, RealDisk, Store, StoreConfig, StoreError, SystemClock, Watch, WatchError,
};

fn put(key: &str, value: &[u8]) -> Txn {
    put_with(key, value, LeaseId(0))
}

fn put_with(key: &str, value: &[u8], lease: LeaseId) -> Txn {
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::copy_from_slice(value));
    Txn { success: vec![Op::Put { key, value, lease }], ..Txn::default() }
}

fn value(store: &Store, key: &str) -> Option<Bytes> {
    store.read(|keyspace, at| Some(keyspace.get(key.as_bytes(), at).unwrap()?.value.clone()))
}

fn small() -> StoreConfig {
    StoreConfig { segment_bytes: 64 << 10, checkpoint_bytes: 100 << 10, ..StoreConfig::default() }
}

fn simulated(disk: &SimDisk, clock: &Arc<SimClock>) -> Store {
    Store::open(Arc::new(disk.clone()), clock.clone(), small()).unwrap()
}

fn real(dir: &std::path::Path) -> Result<Store, OpenError> {
    Store::open(Arc::new(RealDisk::open(dir)?), Arc::new(SystemClock::default()), small())
}

async fn keys(watch: &mut Watch) -> Vec<String> {
    let name = |event: &Event| String::from_utf8(event.key.to_vec()).unwrap();
    watch.next().await.unwrap().events.iter().map(name).collect()
}

/// Polls a future once, outside any runtime.
fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_write_is_answered_read_and_watched() {
    let store = Store::in_memory();
    let mut watch = store.watch(KeyRange::prefix("a/"), Revision(0));
    let answer = store.txn(put("a/1", b"x")).await.unwrap();
    assert_eq!(answer.revision, Revision(2));
    assert_eq!(store.durable(), Revision(2));
    assert_eq!(value(&store, "a/1").unwrap(), "x");
    assert_eq!(keys(&mut watch).await, ["a/1"]);
    assert_eq!(watch.progress(), Revision(2));
    store.close().await;
}

#[tokio::test]
async fn a_quiet_watch_still_progresses() {
    let store = Store::in_memory();
    let mut watch = store.watch(KeyRange::prefix("a/"), Revision(0));
    store.txn(put("b", b"x")).await.unwrap();
    assert!(poll_once(&mut Box::pin(watch.next())).is_pending());
    assert_eq!(watch.progress(), Revision(2));
    store.txn(put("a/2", b"x")).await.unwrap();
    assert_eq!(keys(&mut watch).await, ["a/2"]);
}

#[tokio::test]
async fn a_watch_is_read_in_batches_without_gaps() {
    let config = StoreConfig { watch_batch_bytes: 1000, ..small() };
    let disk = Arc::new(SimDisk::default());
    let store = Store::open(disk, Arc::new(SimClock::default()), config).unwrap();
    for number in 0..40 {
        store.txn(put(&format!("k{number}"), b"v")).await.unwrap();
    }
    let mut watch = store.watch(KeyRange::prefix(""), Revision(1));
    let (mut seen, mut batches) = (Vec::new(), 0);
    while seen.len() < 40 {
        seen.extend(keys(&mut watch).await);
        batches += 1;
    }
    assert_eq!(seen, (0..40).map(|number| format!("k{number}")).collect::<Vec<_>>());
    assert!(batches > 5, "{batches} batches");
}

#[tokio::test]
async fn a_watch_from_forgotten_history_is_told() {
    let store = Store::in_memory();
    store.txn(put("a", b"1")).await.unwrap();
    store.txn(put("a", b"2")).await.unwrap();
    store.compact(Revision(3)).await.unwrap();
    let gone = store.watch(KeyRange::single("a"), Revision(1)).next().await;
    assert_eq!(gone, Err(WatchError::Compacted(Compacted { oldest: Revision(3) })));
    let mut watch = store.watch(KeyRange::single("a"), Revision(2));
    assert_eq!(keys(&mut watch).await, ["a"]);
    let refused = store.compact(Revision(3)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(Refusal::Compacted(Revision(3)))));
}

/// While a reader holds the keyspace the writer cannot finish its first batch, so all later
/// writes become one more batch with one more sync.
#[tokio::test]
async fn writers_share_a_sync_and_readers_do_not_wait_for_it() {
    let disk = SimDisk::default();
    let store = simulated(&disk, &Arc::default());
    let before = disk.syncs();
    let mut writes: Vec<_> = (0..100)
        .map(|number| {
            let store = store.clone();
            Box::pin(async move { store.txn(put(&format!("k{number}"), b"v")).await })
        })
        .collect();
    store.read(|_, at| {
        for write in &mut writes {
            assert!(poll_once(write).is_pending());
        }
        assert_eq!(at, Revision(1));
    });
    let mut revisions: Vec<Revision> = Vec::new();
    for write in writes {
        revisions.push(write.await.unwrap().revision);
    }
    assert_eq!(revisions, (2..102).map(Revision).collect::<Vec<_>>());
    assert!(disk.syncs() - before <= 2, "{} syncs for 100 writes", disk.syncs() - before);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("made/on/the/way");
    let store = real(&dir).unwrap();
    let mut last = TxnResponse { revision: Revision(0), succeeded: true, responses: vec![] };
    for number in 0..600_u32 {
        let key = format!("k{}", number % 50);
        last = store.txn(put(&key, &vec![number as u8; 1000])).await.unwrap();
    }
    store.close().await;
    assert!(!dir.join("log-0000000000000001").exists(), "checkpoints free the log");
    let store = real(&dir).unwrap();
    assert_eq!(store.durable(), last.revision);
    assert_eq!(value(&store, "k49").unwrap(), vec![87_u8; 1000]);
    let next = store.txn(put("k0", b"new")).await.unwrap();
    assert_eq!(next.revision.0, last.revision.0 + 1);
    store.close().await;
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let store = real(dir.path()).unwrap();
    let error = real(dir.path()).unwrap_err().to_string();
    let (path, pid) = (dir.path().display(), std::process::id());
    assert_eq!(error, format!("another knarr is running on {path} (pid {pid})"));
    store.close().await;
    real(dir.path()).unwrap().close().await;
}

#[tokio::test]
async fn leases_end_by_the_clock() {
    let (disk, clock) = (SimDisk::default(), Arc::new(SimClock::default()));
    let store = simulated(&disk, &clock);
    let (id, ttl) = store.lease_grant(LeaseId(0), 10).await.unwrap();
    assert_eq!(ttl, 10);
    store.txn(put_with("a", b"1", id)).await.unwrap();
    clock.advance(9_000);
    assert_eq!(store.lease_keep_alive(id).await.unwrap(), Some(10));
    clock.advance(9_000);
    store.wake();
    store.txn(put("b", b"1")).await.unwrap();
    assert!(value(&store, "a").is_some(), "the keep-alive moved the end");
    let mut watch = store.watch(KeyRange::single("a"), store.durable());
    clock.advance(1_000);
    store.wake();
    let batch = watch.next().await.unwrap();
    assert_eq!(batch.events[0].new, None);
    assert_eq!(store.lease_keep_alive(id).await.unwrap(), None);
    assert!(store.lease_revoke(id).await.is_err());
    store.close().await;
}

/// A lease that cannot end now is tried again after a while, not at every turn.
#[tokio::test]
async fn leases_end_when_a_full_disk_has_space_again() {
    let (disk, clock) = (SimDisk::default(), Arc::new(SimClock::default()));
    let store = simulated(&disk, &clock);
    let (id, _) = store.lease_grant(LeaseId(0), 10).await.unwrap();
    store.txn(put_with("a", b"1", id)).await.unwrap();
    disk.set_capacity(disk.used());
    while store.txn(put("k", &[0; 100])).await.is_ok() {}
    clock.advance(20_000);
    for _ in 0..2 {
        store.wake();
        store.txn(put("k", &[0; 100])).await.unwrap_err();
    }
    let before = disk.changes();
    for _ in 0..50 {
        store.wake();
    }
    store.txn(put("k", &[0; 100])).await.unwrap_err();
    assert!(disk.changes() - before < 10, "{} changes", disk.changes() - before);
    disk.set_capacity(u64::MAX);
    let mut watch = store.watch(KeyRange::single("a"), store.durable());
    clock.advance(10_000);
    store.wake();
    assert_eq!(watch.next().await.unwrap().events[0].new, None);
}

#[tokio::test]
async fn leases_start_anew_after_a_restart() {
    let (disk, clock) = (SimDisk::default(), Arc::new(SimClock::default()));
    let store = simulated(&disk, &clock);
    clock.advance(1_000_000);
    store.lease_grant(LeaseId(5), 10).await.unwrap();
    store.txn(put_with("a", b"1", LeaseId(5))).await.unwrap();
    store.close().await;
    let clock = Arc::new(SimClock::default());
    let store = simulated(&disk, &clock);
    let deadline = store.read(|keyspace, _| keyspace.lease(LeaseId(5)).unwrap().deadline);
    assert_eq!(deadline, 10_000);
    assert_eq!(store.lease_revoke(LeaseId(5)).await.unwrap(), Revision(3));
    assert_eq!(value(&store, "a"), None);
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let disk = SimDisk::default();
    let store = simulated(&disk, &Arc::default());
    disk.set_capacity(disk.used());
    let full = loop {
        if let Err(error) = store.txn(put("k", &[0; 10_000])).await {
            break error;
        }
    };
    assert!(matches!(full, StoreError::Full), "{full}");
    let before = store.durable();
    assert!(matches!(store.txn(put("k", &[1; 10_000])).await, Err(StoreError::Full)));
    assert_eq!(store.durable(), before);
    disk.set_capacity(u64::MAX);
    store.txn(put("k", &[2; 10_000])).await.unwrap();
    assert_eq!(value(&store, "k").unwrap()[0], 2);
    store.close().await;
    assert_eq!(value(&simulated(&disk, &Arc::default()), "k").unwrap()[0], 2);
}

#[tokio::test]
async fn a_failed_sync_stops_writes_but_not_reads() {
    let disk = SimDisk::default();
    let store = simulated(&disk, &Arc::default());
    store.txn(put("a", b"1")).await.unwrap();
    disk.set_fault(Fault::SyncFails);
    let error = store.txn(put("a", b"2")).await.unwrap_err();
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    disk.set_fault(Fault::None);
    assert!(matches!(store.txn(put("a", b"3")).await, Err(StoreError::Failed(_))));
    assert_eq!((value(&store, "a").unwrap(), store.durable()), (Bytes::from("1"), Revision(2)));
    store.close().await;
}

/// Many writers on many threads while the power goes: what was answered is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn answers_survive_a_power_cut() {
    let mut answered = 0;
    for seed in 0..40 {
        let (disk, mut writers) = (SimDisk::default(), tokio::task::JoinSet::new());
        let store = simulated(&disk, &Arc::default());
        disk.crash_after(5 + seed * 3);
        for writer in 0..8 {
            let store = store.clone();
            writers.spawn(async move {
                let mut done = Vec::new();
                for number in 0.. {
                    let key = format!("{writer}/{number}");
                    let Ok(answer) = store.txn(put(&key, &[7; 900])).await else { break };
                    done.push((key, answer.revision));
                }
                done
            });
        }
        let done = writers.join_all().await.concat();
        store.close().await;
        disk.crash(seed);
        let store = simulated(&disk, &Arc::default());
        for (key, revision) in &done {
            let found = store.read(|keyspace, at| {
                keyspace.get(key.as_bytes(), at).unwrap().map(|kv| kv.mod_revision)
            });
            assert_eq!(found, Some(*revision), "seed {seed}: {key}");
        }
        answered += done.len();
    }
    assert!(answered > 100, "only {answered} answers");
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let store = Store::in_memory();
    let mut watch = store.watch(KeyRange::prefix(""), Revision(1));
    store.txn(put("a", b"1")).await.unwrap();
    store.close().await;
    store.close().await;
    assert!(matches!(store.txn(put("a", b"2")).await, Err(StoreError::Closed)));
    assert_eq!(keys(&mut watch).await, ["a"]);
    assert_eq!(watch.next().await, Err(WatchError::Closed));
    assert_eq!(value(&store, "a").unwrap(), "1");
}

#[tokio::test]
async fn what_cannot_succeed_costs_no_log() {
    let disk = SimDisk::default();
    let store = simulated(&disk, &Arc::default());
    let before = disk.trace();
    let twice = Txn {
        success: [put("a", b"1").success, put("a", b"2").success].concat(),
        ..Txn::default()
    };
    let refused = store.txn(twice).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(Refusal::DuplicateKey)));
    let large = store.txn(put("a", &vec![0; 9 << 20])).await.unwrap_err();
    assert!(matches!(large, StoreError::TooLarge(..)), "{large}");
    assert_eq!(disk.trace(), before);
}

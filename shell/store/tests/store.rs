//! The handle as its callers use it.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use knarr_store::mvcc::{
    Compacted, Compare, CompareOp, CompareTarget, Event, KeyRange, LeaseId, Op, Query, Refusal,
    Restore, Revision, Txn, TxnResponse,
};
use knarr_store::sim::{Fault, SimClock, SimDisk};
use knarr_store::{
    ArchiveConfig, AutoCompaction, Disk as _, OpenError, Past, PastError, ReadDisk, RealDisk,
    Store, StoreConfig, StoreError, SystemClock, Watch, WatchError,
};

mod slow;
use slow::SlowDisk;

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

/// Sends puts together; whether the sender committed one, and all answers.
async fn send_together(store: &Store, keys: &[&str]) -> (bool, Vec<Revision>) {
    let mut puts: Vec<_> = keys.iter().map(|key| Box::pin(store.txn(put(key, b"x")))).collect();
    let mut begun = Vec::new();
    let (_, committed) = store.together(|| {
        begun.extend(puts.iter_mut().map(poll_once));
        true
    });
    let mut revisions = Vec::new();
    for (mut put, begun) in puts.into_iter().zip(begun) {
        let answer = match begun {
            // The writer's thread was awake still.
            Poll::Ready(answer) => answer,
            Poll::Pending if committed => match poll_once(&mut put) {
                Poll::Ready(answer) => answer,
                Poll::Pending => panic!("it is committed"),
            },
            Poll::Pending => put.await,
        };
        revisions.push(answer.unwrap().revision);
    }
    (committed, revisions)
}

#[tokio::test]
async fn a_lone_command_on_a_prompt_disk_is_committed_by_its_sender() {
    let disk = SlowDisk::default();
    let slow = disk.is_slow.clone();
    let config = StoreConfig { senders_commit: true, ..small() };
    let store = Store::open(Arc::new(disk), Arc::new(SimClock::default()), config).unwrap();
    assert!(!send_together(&store, &["a"]).await.0, "nobody knows the disk yet");
    // The writer's thread may still be at it; how long that takes is nobody's business.
    let lone = async |keys: &'static [&str]| send_together(&store, keys).await;
    while !lone(&["a"]).await.0 {}
    let (committed, revisions) = lone(&["b", "c"]).await;
    assert!(!committed, "two are the writer's thread's");
    assert_eq!(revisions[1], revisions[0].next());
    while !lone(&["a"]).await.0 {}
    for _ in 0..5 {
        assert_eq!(store.together(|| true), (true, false));
    }
    assert!(!lone(&["a"]).await.0, "its sender has other work");
    let mut tries = 0;
    loop {
        for _ in 0..5 {
            assert_eq!(store.together(|| false), (false, false));
        }
        if lone(&["a"]).await.0 {
            break;
        }
        tries += 1;
        assert!(tries < 1000, "who finds nothing to do has time");
        tokio::task::yield_now().await;
    }
    while !lone(&["a"]).await.0 {}
    slow.store(true, Ordering::Relaxed);
    let mut waited = 0;
    for _ in 0..5 {
        waited += u32::from(lone(&["a"]).await.0);
    }
    assert!(waited <= 1, "what was slow is not waited for again");
    slow.store(false, Ordering::Relaxed);
    while !lone(&["a"]).await.0 {}
    store.close().await;
    let mut put = Box::pin(store.txn(put("a", b"x")));
    let refused = |answer| matches!(answer, Poll::Ready(Err(StoreError::Closed)));
    assert_eq!(store.together(|| refused(poll_once(&mut put))), (true, false));
}

/// A process that serves more than the store has no thread to spare.
#[tokio::test]
async fn nobody_waits_for_the_disk_unasked() {
    let store = Store::open(Arc::new(SimDisk::default()), Arc::new(SimClock::default()), small());
    let store = store.unwrap();
    for _ in 0..2000 {
        assert!(!send_together(&store, &["a"]).await.0);
    }
}

/// The writer's thread learns what there is to do after commands that their senders committed.
#[tokio::test]
async fn a_lone_command_leaves_nothing_undone() {
    let clock = Arc::new(SystemClock::default());
    let (history_bytes, archive) = (100_000, ArchiveConfig::OFF);
    let config = StoreConfig { history_bytes, archive, senders_commit: true, ..small() };
    let store = Store::open(Arc::new(SimDisk::default()), clock, config).unwrap();
    // Whether both were committed here.
    let leased = async |id| {
        let mut grant = Box::pin(store.lease_grant(id, 1));
        let (ready, granted) = store.together(|| poll_once(&mut grant).is_ready());
        if !granted && !ready {
            grant.await.unwrap();
        }
        let mut put = Box::pin(store.txn(put_with("leased", b"x", id)));
        granted & store.together(|| poll_once(&mut put).is_ready()).1
    };
    let mut id = LeaseId(1);
    while !leased(id).await {
        // The thread must know of no other.
        store.lease_revoke(id).await.unwrap();
        id.0 += 1;
    }
    let mut watch = store.watch(KeyRange::single("leased"), store.durable());
    let mut ended = false;
    while !ended {
        let mut events = watch.next().await.unwrap().events.into_iter();
        ended = events.any(|event| event.new.is_none() && event.old.unwrap().lease == id);
    }
    // More history than goes with a command.
    let op = |number| put(&format!("{number}"), b"x").success.remove(0);
    loop {
        store.txn(Txn { success: (0..900).map(op).collect(), ..Txn::default() }).await.unwrap();
        while !send_together(&store, &["a"]).await.0 {}
        let delete = Op::Delete { range: KeyRange::prefix("") };
        let txn = Txn { success: vec![delete], ..Txn::default() };
        let mut delete = Box::pin(store.txn(txn));
        match store.together(|| poll_once(&mut delete).is_ready()) {
            (_, true) => break,
            // The writer's thread was awake still.
            (true, false) => {}
            (false, false) => drop(delete.await.unwrap()),
        }
    }
    while store.read(|keyspace, _| keyspace.history_bytes()) > history_bytes {
        tokio::task::yield_now().await;
    }
    store.close().await;
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

/// Nothing beside the writer runs here unless it waits: for history to be written down, and for the
/// checkpoint that holds it.
#[test]
fn history_is_waited_for_when_it_is_made_faster_than_it_can_go() {
    let history_bytes = 50_000;
    // Without checkpoints; with them, and so much state in values of 10 kB, of which so much more
    // may be held: half, as far as checkpoints are smaller than that, or a quarter.
    let cases =
        [(1 << 30, 0, 0), (100 << 10, 0, 0), (100 << 10, 10, 50_000), (100 << 10, 80, 200_000)];
    for (checkpoint_bytes, values, held) in cases {
        let config = StoreConfig { history_bytes, checkpoint_bytes, ..small() };
        let (store, mut pump) =
            Store::simulated(&SimDisk::default(), &Arc::default(), config).unwrap();
        let mut write = |txns: Vec<Txn>| {
            let mut heaviest = 0;
            // What is told to be done comes behind them, when the next of its kind is under way.
            let mut puts: Vec<_> = txns.into_iter().map(|txn| Box::pin(store.txn(txn))).collect();
            puts.iter_mut().for_each(|put| assert!(poll_once(put).is_pending()));
            while pump.step() {
                heaviest = heaviest.max(store.read(|keyspace, _| keyspace.history_bytes()));
            }
            puts.iter_mut().for_each(|put| assert!(poll_once(put).is_ready()));
            heaviest
        };
        for n in 0..values {
            write(vec![put(&format!("s{n}"), &[0; 10_000])]);
        }
        let rounds = (0..4).map(|_| write((0..300).map(|_| put("k", &[0; 1000])).collect()));
        let (heaviest, limit) = (rounds.max().unwrap(), 2 * history_bytes + held);
        assert!(heaviest < limit + 20_000, "{heaviest} bytes of history, not {limit}");
        assert!(heaviest > limit - 20_000, "{heaviest}: it never came to {limit}");
    }
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
    // Down to the last bytes: ending a lease needs fewer than a put.
    while !matches!(store.lease_revoke(LeaseId(9)).await, Err(StoreError::Full)) {}
    clock.advance(20_000);
    for _ in 0..2 {
        store.wake();
        store.txn(put("k", &[0; 100])).await.unwrap_err();
    }
    let before = disk.changes();
    for _ in 0..2000 {
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

/// So little history in memory that nearly all of it is read from disk.
fn forgetful(disk: &SimDisk, clock: &Arc<SimClock>) -> Store {
    let archive = ArchiveConfig { bytes: 1 << 20, ..ArchiveConfig::default() };
    let config = StoreConfig { history_bytes: 2000, watch_batch_bytes: 500, archive, ..small() };
    Store::open(Arc::new(disk.clone()), clock.clone(), config).unwrap()
}

/// Writes so long that memory begins after what was written first, and how far it goes.
async fn fill(store: &Store, clock: &SimClock) -> Revision {
    let mut number = 0;
    loop {
        number += 1;
        clock.advance(100);
        store.txn(put("k", format!("{number}").as_bytes())).await.unwrap();
        let (floor, newest) = store.read(|keyspace, now| (keyspace.floor(), now));
        if floor.0 > 100 {
            return newest;
        }
    }
}

#[tokio::test]
async fn a_watch_begins_on_disk_and_goes_on_in_memory() {
    let (disk, clock) = (SimDisk::default(), Arc::new(SimClock::default()));
    let store = forgetful(&disk, &clock);
    let newest = fill(&store, &clock).await;
    let mut watch = store.watch(KeyRange::single("k"), Revision(1));
    let mut seen = Vec::new();
    while seen.len() < newest.0 as usize - 1 {
        let batch = watch.next().await.unwrap();
        seen.extend(batch.events.iter().map(|event| event.revision.0));
    }
    assert_eq!(seen, (2..=newest.0).collect::<Vec<_>>());
    store.txn(put("k", b"last")).await.unwrap();
    assert_eq!(watch.next().await.unwrap().events[0].revision.0, newest.0 + 1);
    store.close().await;
}

/// As etcd: what was compacted is gone, though looking back still finds it, after a restart too.
#[tokio::test]
async fn compaction_counts_for_queries_and_watches_only() {
    let (disk, clock) = (SimDisk::default(), Arc::new(SimClock::default()));
    let store = forgetful(&disk, &clock);
    let newest = fill(&store, &clock).await;
    let at = |at| Query { at: Revision(at), ..Query::one("k") };
    assert_eq!(store.query(at(5)).await.unwrap().kvs[0].value, "4");
    assert_eq!(store.query(at(newest.0 + 9)).await, Err(PastError::Future(newest)));
    store.compact(Revision(9)).await.unwrap();
    assert_eq!(store.query(at(5)).await, Err(PastError::Compacted(Revision(9))));
    assert_eq!(store.query(at(9)).await.unwrap().kvs[0].value, "8");
    let gone = store.watch(KeyRange::single("k"), Revision(7)).next().await;
    assert!(matches!(gone, Err(WatchError::Compacted(_))), "{gone:?}");
    let mut watch = store.watch(KeyRange::single("k"), Revision(8));
    assert_eq!(watch.next().await.unwrap().events[0].revision, Revision(9));
    store.close().await;
    let store = forgetful(&disk, &clock);
    let past = store.past();
    let state = past.state(&KeyRange::single("k"), Revision(5)).unwrap();
    assert_eq!((state.kvs[0].value.clone(), state.wall_ms), (Bytes::from("4"), Some(100)));
    assert_eq!(past.before(100), Ok(Revision(11)), "the time is noted once a second");
    let mut restore = Restore::new();
    past.items(Revision(5)).unwrap().into_iter().for_each(|item| restore.push(item).unwrap());
    let then = restore.finish().unwrap();
    assert_eq!(
        (then.revision(), then.get(b"k", Revision(5)).unwrap()),
        (Revision(5), Some(state.kvs[0].clone()))
    );
    store.close().await;
}

/// Beside the owner, without its lock, and without a change to its files.
#[tokio::test]
async fn the_past_is_read_beside_a_running_store() {
    let dir = tempfile::tempdir().unwrap();
    let disk = || Arc::new(RealDisk::open(dir.path()).unwrap());
    let config = StoreConfig { history_bytes: 2000, ..small() };
    let store = Store::open(disk(), Arc::new(SimClock::default()), config).unwrap();
    for number in 0..300 {
        store.txn(put("k", format!("{number}").as_bytes())).await.unwrap();
    }
    let past = Past::open(Arc::new(ReadDisk::open(dir.path()).unwrap())).unwrap();
    assert_eq!((past.newest(), past.oldest()), (store.durable(), Revision(0)));
    for at in [2, 100, 301] {
        let state = past.state(&KeyRange::single("k"), Revision(at)).unwrap();
        assert_eq!(state.kvs[0].value, format!("{}", at - 2));
    }
    store.close().await;
}

#[tokio::test]
async fn growth_beyond_the_budget_is_refused_until_there_is_room() {
    let (disk, clock) = (SimDisk::default(), Arc::new(SimClock::default()));
    let archive = ArchiveConfig::OFF;
    let config = StoreConfig { memory_bytes: 200_000, history_bytes: 1000, archive, ..small() };
    let store = Store::open(Arc::new(disk.clone()), clock.clone(), config.clone()).unwrap();
    let mut number = 0;
    let refused = loop {
        number += 1;
        if let Err(error) = store.txn(put(&format!("k{number}"), &[0; 1000])).await {
            break error;
        }
    };
    assert_eq!(refused.to_string(), "mvcc: database space exceeded");
    assert!((100..200).contains(&number), "{number} writes");
    // Down to the last bytes.
    while store.txn(put(&format!("s{number}"), b"x")).await.is_ok() {
        number += 1;
    }
    let index = || store.read(|keyspace, _| keyspace.index());
    let before = index();
    assert!(matches!(store.txn(put("new", b"x")).await, Err(StoreError::NoSpace)));
    assert_eq!(index(), before, "refused before the log");
    assert_eq!(store.weights().refused, 3);
    // What is there may be changed, and deleted.
    store.txn(put("k1", &[1; 1010])).await.unwrap();
    let delete = Op::Delete { range: KeyRange::single("k2") };
    store.txn(Txn { success: vec![delete], ..Txn::default() }).await.unwrap();
    store.compact(store.durable()).await.unwrap();
    while store.txn(put("new", b"x")).await.is_err() {
        tokio::task::yield_now().await;
    }
    store.close().await;
    // The same budget holds it again, a smaller one refuses before it hurts.
    Store::open(Arc::new(disk.clone()), clock.clone(), config.clone()).unwrap().close().await;
    assert!(disk.list().unwrap().iter().any(|name| name.starts_with("checkpoint-")));
    let small = StoreConfig { memory_bytes: 20_000, ..config };
    let error = Store::open(Arc::new(disk), clock, small).unwrap_err();
    assert!(matches!(error, OpenError::TooLarge { budget: 20_000, .. }), "{error}");
}

/// What waits in front of a command may make the room that it needs, or need less than it might.
#[test]
fn who_comes_behind_others_is_judged_by_what_they_leave() {
    let (disk, clock) = (SimDisk::default(), Arc::new(SimClock::default()));
    let (memory_bytes, archive) = (4000, ArchiveConfig::OFF);
    let config = StoreConfig { memory_bytes, history_bytes: 0, archive, ..small() };
    let (store, mut pump) = Store::simulated(&disk, &clock, config).unwrap();
    let delete = |key: &'static str| Op::Delete { range: KeyRange::single(key) };
    let delete = |key| Txn { success: vec![delete(key)], ..Txn::default() };
    let mut together = |txns: Vec<Txn>| {
        let mut waiting: Vec<_> = txns.into_iter().map(|txn| Box::pin(store.txn(txn))).collect();
        assert!(waiting.iter_mut().all(|answer| poll_once(answer).is_pending()));
        while pump.step() {}
        let fits = |answer: &mut _| match poll_once(answer) {
            Poll::Ready(Ok(_)) => true,
            Poll::Ready(Err(StoreError::NoSpace)) => false,
            other => panic!("{other:?}"),
        };
        waiting.iter_mut().map(fits).collect::<Vec<_>>()
    };
    // The same key again and again; there is no room for as many keys.
    assert_eq!(together(vec![put("a", &[0; 1500]); 4]), [true; 4]);
    assert_eq!(together(vec![put("b", &[0; 1500]), put("c", &[0; 1500])]), [true, false]);
    let instead = vec![put("c", &[0; 1500]), delete("b"), put("c", &[0; 1500])];
    assert_eq!(together(instead), [false, true, true]);
    // Two guards of which one must fail, then what fits beside one.
    let target = CompareTarget::Version(0);
    let absent = Compare { range: KeyRange::single("d"), op: CompareOp::Equal, target };
    let create = Txn { compare: vec![absent], ..put("d", &[0; 200]) };
    let last = put("e", &[0; 200]);
    assert_eq!(together(vec![create.clone(), create, last]), [true; 3]);
    assert_eq!(store.weights().refused, 2);
}

#[tokio::test]
async fn the_store_compacts_by_itself() {
    let (disk, clock) = (SimDisk::default(), Arc::new(SimClock::default()));
    let auto_compaction = AutoCompaction::Periodic(10_000);
    let config = StoreConfig { auto_compaction, ..small() };
    let store = Store::open(Arc::new(disk), clock.clone(), config).unwrap();
    for _ in 0..25 {
        clock.advance(1000);
        store.wake();
        store.txn(put("k", b"v")).await.unwrap();
    }
    // Whoever is answered has seen the turn before.
    store.txn(put("k", b"v")).await.unwrap();
    let compacted = store.read(|keyspace, _| keyspace.compacted());
    assert!((8..=13).contains(&compacted.0), "{compacted:?}");
    store.close().await;
}

/// A clock on the wall that goes back dates nothing before what came before.
#[tokio::test]
async fn time_never_goes_back() {
    let (disk, clock) = (SimDisk::default(), Arc::new(SimClock::default()));
    let store = simulated(&disk, &clock);
    for wall in [50_000, 20_000, 60_000] {
        clock.advance(1000);
        clock.set_wall(wall);
        store.txn(put("k", b"v")).await.unwrap();
    }
    let past = store.past();
    let times = [2, 3, 4].map(|at| past.time_of(Revision(at)).unwrap());
    assert_eq!(times, [Some(50_000), Some(50_000), Some(60_000)]);
    store.close().await;
}

//! A state that is read in steps is that of one moment, whatever is written meanwhile.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use knarr_store::mvcc::{Item, KeyRange, LeaseId, Op, Txn};
use knarr_store::sim::{Pump, SimClock, SimDisk};
use knarr_store::{ArchiveConfig, Store, StoreConfig};

/// More than one step reads.
const KEYS: usize = 3000;
const AT_ONCE: usize = 500;

async fn put_all(store: &Store, value: &'static str) {
    let put = |n: usize| Op::Put {
        key: format!("/k/{n:05}").into(),
        value: Bytes::from_static(value.as_bytes()),
        lease: LeaseId(0),
    };
    for from in (0..KEYS).step_by(AT_ONCE) {
        let success = (from..from + AT_ONCE).map(put).collect();
        store.txn(Txn { success, ..Txn::default() }).await.unwrap();
    }
}

/// Lets everything happen until something is done.
async fn until<T>(pump: &mut Pump, done: impl Future<Output = T>) -> T {
    let mut done = pin!(done);
    loop {
        if let Poll::Ready(done) = done.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
        while pump.step() || pump.work() {}
    }
}

#[tokio::test]
async fn a_state_is_read_in_steps_while_it_changes() {
    let config =
        StoreConfig { history_bytes: 0, archive: ArchiveConfig::OFF, ..StoreConfig::default() };
    let (disk, clock) = (SimDisk::default(), Arc::<SimClock>::default());
    let (store, mut pump) = Store::simulated(&disk, &clock, config).unwrap();
    until(&mut pump, put_all(&store, "one")).await;

    let before: Vec<Item> = store.read(|keyspace, _| keyspace.snapshot().collect());
    let mut items = store.items();
    let floor = items.meta().floor;
    let mut read: Vec<Item> = items.by_ref().take(2).collect();
    let changes = async {
        put_all(&store, "two").await;
        let delete = Op::Delete { range: KeyRange::prefix("/k/0") };
        store.txn(Txn { success: vec![delete], ..Txn::default() }).await.unwrap();
        store.compact(store.durable()).await.unwrap();
        put_all(&store, "three").await;
    };
    until(&mut pump, changes).await;
    forget(&mut pump);
    assert!(store.read(|keyspace, _| keyspace.floor()) <= floor.next(), "it is held");
    read.extend(items.by_ref());
    assert_eq!(read.len(), before.len());
    assert!(read == before, "it is the state that was");

    drop(items);
    until(&mut pump, store.compact(store.durable())).await.unwrap();
    forget(&mut pump);
    assert!(store.read(|keyspace, _| keyspace.floor()) > floor.next(), "nothing is held");
}

/// While nobody writes, history goes, piece by piece.
fn forget(pump: &mut Pump) {
    for _ in 0..100 {
        assert!(!pump.step(), "nobody writes");
    }
}

//! A state that is read in steps is that of one moment, whatever is written meanwhile.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::sync::Arc;

use bytes::Bytes;
use knarr_store::mvcc::{Item, KeyRange, LeaseId, Op, Txn};
use knarr_store::sim::{SimClock, SimDisk};
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

#[tokio::test]
async fn a_state_is_read_in_steps_while_it_changes() {
    let config =
        StoreConfig { history_bytes: 0, archive: ArchiveConfig::OFF, ..StoreConfig::default() };
    let disk = Arc::new(SimDisk::default());
    let store = Store::open(disk, Arc::new(SimClock::default()), config).unwrap();
    put_all(&store, "one").await;

    let before: Vec<Item> = store.read(|keyspace, _| keyspace.snapshot().collect());
    let mut items = store.items();
    let floor = items.meta().floor;
    let mut read: Vec<Item> = items.by_ref().take(2).collect();
    put_all(&store, "two").await;
    let delete = Op::Delete { range: KeyRange::prefix("/k/0") };
    store.txn(Txn { success: vec![delete], ..Txn::default() }).await.unwrap();
    store.compact(store.durable()).await.unwrap();
    put_all(&store, "three").await;
    assert!(store.read(|keyspace, _| keyspace.floor()) <= floor.next(), "it is held");
    read.extend(items.by_ref());
    assert_eq!(read.len(), before.len());
    assert!(read == before, "it is the state that was");

    drop(items);
    store.compact(store.durable()).await.unwrap();
    store.close().await;
    assert!(store.read(|keyspace, _| keyspace.floor()) > floor.next(), "nothing is held");
}

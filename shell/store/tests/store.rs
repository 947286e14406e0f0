//! The handle as its callers use it.

use bytes::Bytes;
use knarr_store::Store;
use knarr_store::mvcc::{KeyRange, LeaseId, Op, Revision, Txn};

fn put(key: &str, value: &str) -> Txn {
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
    Txn { success: vec![Op::Put { key, value, lease: LeaseId(0) }], ..Txn::default() }
}

#[tokio::test]
async fn a_write_is_answered_read_and_watched() {
    let store = Store::in_memory();
    let mut watch = store.watch(KeyRange::prefix("a/"), Revision(0));
    let answer = store.txn(put("a/1", "x")).await.unwrap();
    assert_eq!(answer.revision, Revision(2));
    assert_eq!(store.durable(), Revision(2));
    let value = store.read(|ks, at| ks.get(b"a/1", at).unwrap().unwrap().value.clone());
    assert_eq!(value, "x");
    let batch = watch.next().await.unwrap();
    assert_eq!(batch.events.len(), 1);
    assert_eq!(watch.progress(), Revision(2));
    store.close().await;
}

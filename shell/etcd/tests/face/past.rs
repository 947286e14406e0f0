//! What memory has let go: reads and watches go on below it, from disk.

use knarr_mvcc::{LeaseId, Op, Revision, Txn};
use knarr_store::StoreConfig;
use serde_json::json;

use crate::served::{ByHand, Served, quick};

#[tokio::test]
async fn what_memory_let_go_is_told_from_disk() {
    let mut hand = ByHand::new(StoreConfig { history_bytes: 2000, ..StoreConfig::default() });
    let store = hand.store.clone();
    for number in 2..40 {
        let (key, value) = ("a".into(), format!("{number:0500}").into());
        let put = Op::Put { key, value, lease: LeaseId(0) };
        let txn = Txn { success: vec![put], ..Txn::default() };
        hand.until(store.txn(txn)).await.unwrap();
    }
    let floor = store.read(|keyspace, _| keyspace.floor());
    assert!(floor > Revision(20), "{floor:?}");
    let served = Served::new(&store, quick(), None).await;
    let client = served.client();
    let read = async |at: u64| {
        let (code, answer) = client.ask("kv/range", &json!({"key": "YQ==", "revision": at})).await;
        (code, answer["kvs"][0]["mod_revision"].clone(), answer["header"]["revision"].clone())
    };
    assert_eq!(read(3).await, (200, json!("3"), json!("39")));
    let body = json!({"create_request": {"key": "YQ==", "start_revision": "3"}}).to_string();
    let mut watched = client.post("watch", body).await.unwrap();
    let mut next = 3;
    while next < 40 {
        let line: serde_json::Value = serde_json::from_str(&watched.line().await.unwrap()).unwrap();
        for event in line["result"]["events"].as_array().into_iter().flatten() {
            assert_eq!(event["kv"]["mod_revision"], json!(next.to_string()));
            next += 1;
        }
    }
    // What was compacted is gone for clients of etcd, wherever it lies.
    hand.until(store.compact(Revision(10))).await.unwrap();
    assert_eq!(read(9).await.0, 400);
    assert_eq!(read(10).await, (200, json!("10"), json!("39")));
    let body = json!({"create_request": {"key": "YQ==", "start_revision": "9"}}).to_string();
    let mut watched = client.post("watch", body).await.unwrap();
    watched.line().await.unwrap();
    let line: serde_json::Value = serde_json::from_str(&watched.line().await.unwrap()).unwrap();
    assert_eq!(line["result"]["compact_revision"], "10", "from where it can begin");
}

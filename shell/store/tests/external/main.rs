//! What the external backend promises when etcd's members die, hang, or forget.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![allow(clippy::print_stdout, reason = "what it measured")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use knarr_mvcc::*;
use knarr_store::external::wire::Scope;
use knarr_store::external::{ExternalConfig, Tls};
use knarr_store::{Store, StoreConfig, StoreError, WatchError};
use tokio::task::JoinSet;

mod compaction;
#[path = "../contract/etcd.rs"]
mod etcd;
mod road;
mod rotation;

use etcd::Etcd;
use road::Road;

async fn connect(endpoints: Vec<String>, scope: Scope) -> Store {
    let (tls, compact_every) = (Tls::default(), Duration::ZERO);
    let external = ExternalConfig { endpoints, tls, scope, compact_every };
    Store::connect(external, StoreConfig::default()).await.unwrap()
}

async fn store(endpoints: Vec<String>) -> Store {
    connect(endpoints, Scope::everything()).await
}

fn put(key: &str, value: &str) -> Txn {
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
    Txn { success: vec![Op::Put { key, value, lease: LeaseId(0) }], ..Txn::default() }
}

fn get(store: &Store, key: &str) -> Option<KeyValue> {
    store.read(|keyspace, _| keyspace.get(key.as_bytes(), Revision(0)).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_wrote_the_other_reads_at_once() {
    let etcd = Etcd::of(1).await;
    let (one, other) = (store(etcd.endpoints()).await, store(etcd.endpoints()).await);
    for n in 0..200 {
        let revision = one.txn(put("a", &n.to_string())).await.unwrap().revision;
        assert_eq!(get(&one, "a").unwrap().mod_revision, revision, "its own write");
        other.fresh().await.unwrap();
        assert_eq!(get(&other, "a").unwrap().mod_revision, revision, "the other's write");
    }
    for together in [1, 64] {
        let start = Instant::now();
        for _ in 0..200 {
            join_all((0..together).map(|_| other.fresh())).await;
        }
        println!("{together} ask how fresh at once: {:?} a round", start.elapsed() / 200);
    }
}

/// Writers at two servers, a watcher at each; the member that both hang on dies twice and comes
/// back. Every acknowledged write is there, and the watchers saw each revision once and in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_dies_under_load_and_nothing_is_lost_or_doubled() {
    let mut etcd = Etcd::of(3).await;
    let stores = [store(etcd.endpoints()).await, store(etcd.endpoints()).await];
    let start = stores[0].durable().max(stores[1].durable());
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let (store, stop) = (stores[writer % 2].clone(), stop.clone());
        writers.spawn(async move { write(&store, &format!("w{writer}"), &stop).await });
    }
    let watchers = stores.clone().map(|store| tokio::spawn(follow(store, start)));
    for member in [0, 1] {
        tokio::time::sleep(Duration::from_millis(500)).await;
        etcd.kill(member);
        let killed = Instant::now();
        // A write that is answered is one that the watch has brought.
        stores[0].fresh().await.unwrap();
        stores[0].txn(put("after", "")).await.unwrap();
        println!("member {member} killed; written and shown after {:?}", killed.elapsed());
        assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
        etcd.restart(member);
        etcd.answers(member).await;
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    let last = stores[0].txn(put("last", "")).await.unwrap().revision;
    assert!(acknowledged.len() > 100, "only {} writes", acknowledged.len());
    for watcher in watchers {
        let seen = watcher.await.unwrap();
        let revisions: Vec<u64> = seen.keys().copied().collect();
        let all: Vec<u64> = (start.0 + 1..=last.0).collect();
        assert_eq!(revisions, all, "every revision once");
        for (revision, key, value) in &acknowledged {
            assert_eq!(seen[&revision.0], (key.clone(), value.clone()), "at {}", revision.0);
        }
    }
    println!("{} writes acknowledged, {} revisions", acknowledged.len(), last.0 - start.0);
}

/// Writes until told to stop; what was acknowledged.
async fn write(store: &Store, key: &str, stop: &AtomicBool) -> Vec<(Revision, String, String)> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // As the API server does. It keeps writes from a member whose leader died unnoticed, which
        // would lose them and say so only after 5 s.
        store.fresh().await.unwrap();
        match store.txn(put(key, &n.to_string())).await {
            Ok(response) => acknowledged.push((response.revision, key.to_owned(), n.to_string())),
            Err(StoreError::Unknown(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    acknowledged
}

/// Everything by revision, until "last" is written.
async fn follow(store: Store, after: Revision) -> BTreeMap<u64, (String, String)> {
    let mut watch = store.watch(KeyRange::prefix(Bytes::new()), after);
    let mut seen = BTreeMap::new();
    let mut newest = after;
    loop {
        for event in watch.next().await.unwrap().events {
            assert!(event.revision > newest, "{} after {}", event.revision.0, newest.0);
            newest = event.revision;
            let kv = event.new.unwrap();
            let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            let last = kv.key == "last";
            seen.insert(event.revision.0, (text(&kv.key), text(&kv.value)));
            if last {
                return seen;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_not_sent_again() {
    let etcd = Etcd::of(1).await;
    let road = Road::to(etcd.endpoint()).await;
    // The second way is open: a write that is sent again would get through.
    let cut = store(vec![road.endpoint.clone(), etcd.endpoint().to_owned()]).await;
    let judge = store(etcd.endpoints()).await;
    cut.txn(put("a", "1")).await.unwrap();
    judge.fresh().await.unwrap();
    let mut seen = judge.watch(KeyRange::single("a"), judge.durable());
    road.lose_answers();
    let writing = tokio::spawn({
        let cut = cut.clone();
        async move { cut.txn(put("a", "2")).await }
    });
    seen.next().await.unwrap();
    road.cut();
    let error = writing.await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unknown(_)), "{error}");
    cut.fresh().await.unwrap();
    judge.fresh().await.unwrap();
    assert_eq!(get(&cut, "a").unwrap().version, 2, "written once");
    assert_eq!(get(&judge, "a").unwrap().version, 2, "written once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_hangs_is_left_when_somebody_waits() {
    let etcd = Etcd::of(1).await;
    let road = Road::to(etcd.endpoint()).await;
    let hanging = store(vec![road.endpoint.clone(), etcd.endpoint().to_owned()]).await;
    let other = store(etcd.endpoints()).await;
    road.lose_answers();
    other.txn(put("a", "1")).await.unwrap();
    let start = Instant::now();
    hanging.fresh().await.unwrap();
    assert!(get(&hanging, "a").is_some());
    hanging.txn(put("a", "2")).await.unwrap();
    println!("a hanging member is left after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(get(&hanging, "a").unwrap().value, "2");
    // One who comes now does not hang on it either.
    let start = Instant::now();
    let late = store(vec![road.endpoint.clone(), etcd.endpoint().to_owned()]).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(get(&late, "a").unwrap().value, "2");
}

/// All keys come in large answers; whoever is slow with them does not hang.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_may_take_its_time_to_be_loaded() {
    let etcd = Etcd::of(1).await;
    let long = "x".repeat(150_000);
    store(etcd.endpoints()).await.txn(put("a", &long)).await.unwrap();
    let road = Road::to(etcd.endpoint()).await;
    road.narrow();
    let late = store(vec![road.endpoint.clone()]).await;
    assert!(get(&late, "a").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_compacted_meanwhile_ends_the_watches() {
    let etcd = Etcd::of(1).await;
    let road = Road::to(etcd.endpoint()).await;
    let away = store(vec![road.endpoint.clone()]).await;
    let other = store(etcd.endpoints()).await;
    other.txn(put("gone", "1")).await.unwrap();
    away.fresh().await.unwrap();
    let mut watch = away.watch(KeyRange::single("a"), away.durable());
    road.cut();
    let gone = Op::Delete { range: KeyRange::single("gone") };
    other.txn(Txn { success: vec![gone], ..Txn::default() }).await.unwrap();
    let at = other.txn(put("a", "1")).await.unwrap().revision;
    other.txn(put("a", "2")).await.unwrap();
    other.compact(at.next()).await.unwrap();
    road.open();
    assert!(matches!(watch.next().await, Err(WatchError::Compacted(_))));
    away.fresh().await.unwrap();
    assert_eq!(get(&away, "a").unwrap().version, 2);
    assert_eq!(get(&away, "gone"), None, "what was deleted meanwhile is not here either");
    let mut watch = away.watch(KeyRange::single("a"), away.durable());
    other.txn(put("a", "3")).await.unwrap();
    assert_eq!(watch.next().await.unwrap().events.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_others_are_not_ours_but_their_revisions_count() {
    let etcd = Etcd::of(1).await;
    let scope = |theirs: &'static str| Scope {
        ours: "/registry/".into(),
        theirs: theirs.into(),
        ..Scope::everything()
    };
    let one = connect(etcd.endpoints(), scope("/one/")).await;
    let other = connect(etcd.endpoints(), scope("/other/")).await;
    one.txn(put("/registry/a", "one")).await.unwrap();
    let revision = other.txn(put("/registry/a", "other")).await.unwrap().revision;
    one.fresh().await.unwrap();
    assert_eq!(get(&one, "/registry/a").unwrap().value, "one");
    assert_eq!(one.durable(), revision);
    let all = Op::Delete { range: KeyRange::prefix("/registry/") };
    one.txn(Txn { success: vec![all], ..Txn::default() }).await.unwrap();
    other.fresh().await.unwrap();
    assert_eq!(get(&other, "/registry/a").unwrap().value, "other");
    let raw = store(etcd.endpoints()).await;
    assert!(get(&raw, "/other/a").is_some() && get(&raw, "/one/a").is_none());
}

/// At loading, by watch, and in answers: what others wrote is shown as we would have written it.
#[tokio::test(flavor = "multi_thread")]
async fn values_are_turned_on_every_way_in() {
    let etcd = Etcd::of(1).await;
    let raw = store(etcd.endpoints()).await;
    raw.txn(put("a", "foreign")).await.unwrap();
    let canonical = Arc::new(|_: &[u8], value: Bytes| match &value[..] {
        b"foreign" => Bytes::from_static(b"canonical"),
        _ => value,
    });
    let store = connect(etcd.endpoints(), Scope { canonical, ..Scope::everything() }).await;
    raw.txn(put("b", "foreign")).await.unwrap();
    store.fresh().await.unwrap();
    assert_eq!(get(&store, "a").unwrap().value, "canonical");
    assert_eq!(get(&store, "b").unwrap().value, "canonical");
    let answer = store.txn(put("b", "ours")).await.unwrap();
    let OpResponse::Put(Some(before)) = &answer.responses[0] else { panic!("{answer:?}") };
    assert_eq!(before.kv().value, "canonical");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_reached_is_named() {
    let (tls, compact_every) = (Tls::default(), Duration::ZERO);
    let endpoints = vec!["http://127.0.0.1:1".to_owned()];
    let external = ExternalConfig { endpoints, tls, scope: Scope::everything(), compact_every };
    let error = Store::connect(external, StoreConfig::default()).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Unreachable(_)), "{text}");
    assert!(text.contains("http://127.0.0.1:1") && text.contains("onnection refused"), "{text}");
}

//! Upstream's agreement on who compacts, played by two servers on one etcd of three members.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use knarr_etcdpb::etcdserverpb::kv_client::KvClient;
use knarr_etcdpb::etcdserverpb::{CompactionRequest, RangeRequest};

use super::*;

const EVERY: Duration = Duration::from_millis(300);

async fn compacting(endpoints: Vec<String>) -> Store {
    let (tls, scope) = (Tls::default(), Scope::everything());
    let external = ExternalConfig { endpoints, tls, scope, compact_every: EVERY };
    Store::connect(external, StoreConfig::default()).await.unwrap()
}

/// What etcd itself says of a revision; 0 is now.
async fn ask(etcd: &Etcd, member: usize, revision: Revision) -> Result<i64, String> {
    let mut kv = KvClient::connect(etcd.endpoints()[member].clone()).await.unwrap();
    let revision = i64::try_from(revision.0).unwrap();
    let request = RangeRequest { key: "a".into(), revision, ..Default::default() };
    let answer = kv.range(request).await.map_err(|status| status.message().to_owned())?;
    Ok(answer.into_inner().header.unwrap().revision)
}

/// Turns as they come: at which revision of the key, and to where etcd is compacted.
struct Turns(knarr_store::Watch);

impl Turns {
    async fn next(&mut self) -> (KeyValue, Revision) {
        let batch = tokio::time::timeout(Duration::from_secs(20), self.0.next()).await;
        let turn = batch.unwrap().unwrap().events.pop().unwrap().new.unwrap();
        let upto = std::str::from_utf8(&turn.value).unwrap().parse().unwrap();
        (turn, Revision(upto))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_agree_on_one_compaction_an_interval() {
    let mut etcd = Etcd::of(3).await;
    let judge = store(etcd.endpoints()).await;
    let servers = [compacting(etcd.endpoints()).await, compacting(etcd.endpoints()).await];
    let first = servers[0].txn(put("a", "0")).await.unwrap().revision;
    let key = KeyRange::single("compact_rev_key");
    let mut turns = Turns(judge.watch(key, judge.durable()));
    let mut seen = servers[1].watch(KeyRange::single("a"), first.previous());
    let (start, mut last, mut written) = (Instant::now(), Revision(0), vec![first]);
    for turn in 1..=6 {
        let (kv, upto) = turns.next().await;
        assert_eq!(kv.version, turn, "a turn was taken twice");
        assert!(upto >= last && upto < kv.mod_revision, "{upto:?} at {kv:?}");
        last = upto;
        servers[0].fresh().await.unwrap();
        match servers[0].txn(put("a", &turn.to_string())).await {
            Ok(answer) => written.push(answer.revision),
            // The member may have been the leader.
            Err(StoreError::Unknown(_)) => {}
            Err(error) => panic!("{error}"),
        }
        if turn == 3 {
            etcd.kill(2);
        }
    }
    // Whoever takes a turn has waited since the one before.
    assert!(start.elapsed() >= EVERY * 4, "{:?} for six turns", start.elapsed());
    // The first turns compact to nothing, or to what was before all writes.
    assert!(last > first, "{last:?}");
    compacted(&etcd, last).await;
    // A watch that was there has seen it all.
    let mut told = Vec::new();
    while told.last() < written.last() {
        told.extend(seen.next().await.unwrap().events.into_iter().map(|event| event.revision));
    }
    assert!(told.is_sorted() && written.iter().all(|at| told.contains(at)), "{told:?} {written:?}");
    // Who comes after it can neither watch nor read from before.
    let late = compacting(etcd.endpoints()).await;
    assert!(matches!(late.watch(KeyRange::single("a"), first).next().await,
        Err(WatchError::Compacted(gone)) if gone.oldest > first));
    let old = Query { at: first, ..Query::one("a") };
    let answer = late.read(|keyspace, _| keyspace.query(&old));
    assert!(matches!(answer, Err(ReadError::Compacted(_))), "{answer:?}");
    // A server that goes leaves its turns to the others.
    servers[0].close().await;
    for _ in 0..2 {
        let (_, upto) = turns.next().await;
        servers[1].fresh().await.unwrap();
        last = last.max(upto);
    }
    compacted(&etcd, last).await;
}

/// Whoever compacts: a server that has the past answers as etcd does, though it has held it.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_compacted_is_not_read_here_either() {
    let etcd = Etcd::of(1).await;
    let (mirror, writer) = (store(etcd.endpoints()).await, store(etcd.endpoints()).await);
    let first = writer.txn(put("a", "0")).await.unwrap().revision;
    let mut newest = first;
    for number in 1..40 {
        newest = writer.txn(put("a", &number.to_string())).await.unwrap().revision;
    }
    mirror.fresh().await.unwrap();
    let mut compactor = KvClient::connect(etcd.endpoint().to_owned()).await.unwrap();
    let oldest = first.previous();
    for upto in [oldest.0, oldest.0 + 1, oldest.0 + 2, oldest.0 + 20, newest.0 - 1, newest.0] {
        let revision = i64::try_from(upto).unwrap();
        compactor.compact(CompactionRequest { revision, physical: false }).await.unwrap();
        mirror.fresh().await.unwrap();
        let told = |at| ReadError::Compacted(Revision(at));
        for at in oldest.0..=newest.0 {
            let old = Query { at: Revision(at), ..Query::one("a") };
            let here = mirror.read(|keyspace, _| keyspace.query(&old));
            let there = ask(&etcd, 0, Revision(at)).await;
            assert_eq!(here.is_ok(), there.is_ok(), "{at}, compacted at {upto}");
            assert!(here.is_ok() || here == Err(told(upto)), "{at}: {here:?}");
        }
    }
    let gone = mirror.watch(KeyRange::single("a"), first).next().await;
    assert!(matches!(gone, Err(WatchError::Compacted(gone)) if gone.oldest == newest), "{gone:?}");
}

/// Waits until etcd has done what was agreed on.
async fn compacted(etcd: &Etcd, upto: Revision) {
    let gone = futures_util::stream::repeat(()).then(|()| ask(etcd, 0, upto.previous()));
    let gone = gone.skip_while(|answer| std::future::ready(answer.is_ok()));
    let why = tokio::time::timeout(Duration::from_secs(20), std::pin::pin!(gone).next()).await;
    let why = why.unwrap().unwrap().unwrap_err();
    assert_eq!(why, "etcdserver: mvcc: required revision has been compacted");
    ask(etcd, 0, upto).await.unwrap();
}

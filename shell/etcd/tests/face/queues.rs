//! Locks and elections: who comes first is first, and who leaves makes room.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use knarr_mvcc::{KeyRange, LeaseId, Op, Revision, Txn};
use knarr_store::{Store, StoreConfig};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::served::{ByHand, Client, Served, quick};

const PATIENCE: Duration = Duration::from_secs(10);

/// A queue for the name "q", where each of leases 1 to 4 may stand.
struct Queue {
    store: Store,
    served: Served,
}

fn b64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn revision(answer: &Value) -> u64 {
    answer["header"]["revision"].as_str().unwrap().parse().unwrap()
}

impl Queue {
    async fn new() -> Self {
        let store = Store::in_memory();
        let served = Served::new(&store, quick(), None).await;
        let queue = Self { store, served };
        for id in 1..5 {
            queue.ask("lease/grant", json!({"ID": id, "TTL": 600})).await;
        }
        queue
    }

    fn client(&self) -> Client {
        self.served.client()
    }

    async fn ask(&self, path: &str, body: Value) -> Value {
        let (code, answer) = timeout(PATIENCE, self.client().ask(path, &body)).await.unwrap();
        assert_eq!(code, 200, "{path} {body}: {answer}");
        answer
    }

    /// Begins to wait in the queue, and comes back once it stands there.
    async fn stand(&self, path: &'static str, lease: u64, value: &str) -> JoinHandle<(u16, Value)> {
        let key = format!("q/{lease}");
        let mut watch = self.store.watch(KeyRange::single(key.clone()), self.store.durable());
        let body = json!({"name": b64("q"), "lease": lease, "value": b64(value)});
        let mut body = body;
        if path == "lock/lock" {
            body.as_object_mut().unwrap().remove("value");
        }
        let client = self.client();
        let waiting = tokio::spawn(async move { client.ask(path, &body).await });
        timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        waiting
    }

    async fn gone(&self, lease: u64, after: Revision) {
        let mut watch = self.store.watch(KeyRange::single(format!("q/{lease}")), after);
        let batch = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        assert!(batch.events[0].new.is_none());
    }
}

async fn answered(waiting: JoinHandle<(u16, Value)>) -> Value {
    let (code, answer) = timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(code, 200, "{answer}");
    answer
}

#[tokio::test]
async fn a_lock_goes_to_who_waits_longest() {
    let queue = Queue::new().await;
    let first = answered(queue.stand("lock/lock", 3, "").await).await;
    assert_eq!(first["key"], b64("q/3"));
    let second = queue.stand("lock/lock", 2, "").await;
    let third = queue.stand("lock/lock", 4, "").await;
    let fourth = queue.stand("lock/lock", 1, "").await;
    let mut waiting = vec![("q/2", second), ("q/4", third), ("q/1", fourth)].into_iter();
    let mut holder = "q/3";
    for (key, next) in waiting.by_ref() {
        assert!(!next.is_finished());
        let freed = revision(&queue.ask("lock/unlock", json!({"key": b64(holder)})).await);
        let got = answered(next).await;
        assert_eq!(got["key"], b64(key));
        assert!(revision(&got) >= freed, "{key} was there before it was free");
        holder = key;
    }
    // Whoever holds it may ask again.
    let again = queue.ask("lock/lock", json!({"name": b64("q"), "lease": 1})).await;
    assert_eq!(again["key"], b64("q/1"));
}

#[tokio::test]
async fn whose_lease_ends_loses_the_place_and_the_lock() {
    let queue = Queue::new().await;
    answered(queue.stand("lock/lock", 1, "").await).await;
    let second = queue.stand("lock/lock", 2, "").await;
    let third = queue.stand("lock/lock", 3, "").await;
    queue.ask("lease/revoke", json!({"ID": 2})).await;
    let (code, answer) = timeout(PATIENCE, second).await.unwrap().unwrap();
    assert_eq!((code, &answer["message"]), (503, &json!("etcdserver: session expired")));
    assert!(!third.is_finished());
    queue.ask("lease/revoke", json!({"ID": 1})).await;
    assert_eq!(answered(third).await["key"], b64("q/3"));
}

#[tokio::test]
async fn who_hangs_up_leaves_the_queue_but_not_the_lock() {
    let queue = Queue::new().await;
    answered(queue.stand("lock/lock", 1, "").await).await;
    let second = queue.stand("lock/lock", 2, "").await;
    let third = queue.stand("lock/lock", 3, "").await;
    let before = queue.store.durable();
    second.abort();
    queue.gone(2, before).await;
    queue.ask("lock/unlock", json!({"key": b64("q/1")})).await;
    assert_eq!(answered(third).await["key"], b64("q/3"));
    let held = queue.ask("kv/range", json!({"key": b64("q/3")})).await;
    assert_eq!(held["count"], "1", "it stays when the call that got it is over");
}

#[tokio::test]
async fn a_key_made_anew_is_another_place() {
    let mut hand = ByHand::new(StoreConfig::default());
    let store = hand.store.clone();
    let served = Served::new(&store, quick(), None).await;
    let client = served.client();
    hand.until(client.ask("lease/grant", &json!({"ID": 1, "TTL": 600}))).await;
    let lock = |lease: u64| {
        let (client, body) = (client.clone(), json!({"name": b64("q"), "lease": lease}));
        async move { client.ask("lock/lock", &body).await }
    };
    let first = Op::Put { key: "q/0".into(), value: "".into(), lease: LeaseId(0) };
    let anew = Op::Put { key: "q/1".into(), value: "".into(), lease: LeaseId(1) };
    let gone = Op::Delete { range: KeyRange::single("q/1") };
    let txn = |op: Op| store.txn(Txn { success: vec![op], ..Txn::default() });
    hand.until(txn(first)).await.unwrap();
    let waiting = tokio::spawn(lock(1));
    let mut stands = store.watch(KeyRange::single("q/1"), store.durable());
    hand.until(stands.next()).await.unwrap();
    // Both at once, so that nobody sees the key gone.
    let (gone, anew) = hand.until(async { tokio::join!(txn(gone), txn(anew)) }).await;
    assert_eq!(anew.unwrap().revision, gone.unwrap().revision.next());
    let (code, answer) = hand.until(timeout(PATIENCE, waiting)).await.unwrap().unwrap();
    assert_eq!((code, &answer["message"]), (503, &json!("etcdserver: session expired")));
}

#[tokio::test]
async fn the_first_leads_until_it_resigns() {
    let queue = Queue::new().await;
    let client = queue.client();
    let body = json!({"name": b64("q")}).to_string();
    let mut observed = client.post("election/observe", body).await.unwrap();
    let first = answered(queue.stand("election/campaign", 1, "one").await).await;
    let leader = first["leader"].clone();
    assert_eq!(leader["key"], b64("q/1"));
    let second = queue.stand("election/campaign", 2, "two").await;
    let mut told = async || {
        let line = timeout(PATIENCE, observed.line()).await.unwrap().unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        line["result"]["kv"]["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(told().await, b64("one"));
    let value = async || {
        queue.ask("election/leader", json!({"name": b64("q")})).await["kv"]["value"].clone()
    };
    assert_eq!(value().await, b64("one"));
    queue.ask("election/proclaim", json!({"leader": leader, "value": b64("more")})).await;
    assert_eq!(told().await, b64("more"));
    // Campaigning again from the same place says something new.
    let again = json!({"name": b64("q"), "lease": 1, "value": b64("again")});
    let again = queue.ask("election/campaign", again).await;
    assert_eq!(again["leader"], leader);
    assert_eq!(told().await, b64("again"));
    // Who does not lead cannot speak, and who leads no more cannot resign for others.
    let mut stale = leader.clone();
    stale["rev"] = json!("1");
    let body = json!({"leader": stale, "value": b64("lie")});
    let (code, answer) = client.ask("election/proclaim", &body).await;
    assert_eq!((code, &answer["message"]), (500, &json!("election: not leader")));
    queue.ask("election/resign", json!({"leader": stale})).await;
    assert_eq!(value().await, b64("again"));
    assert!(!second.is_finished());
    queue.ask("election/resign", json!({"leader": leader})).await;
    assert_eq!(answered(second).await["leader"]["key"], b64("q/2"));
    assert_eq!(told().await, b64("two"));
    let body = json!({"leader": leader, "value": b64("late")});
    assert_eq!(client.ask("election/proclaim", &body).await.0, 500);
    assert_eq!(value().await, b64("two"));
}

/// The name is not a prefix of names: "q" and "qq" are two queues.
#[tokio::test]
async fn names_do_not_run_into_each_other() {
    let queue = Queue::new().await;
    answered(queue.stand("lock/lock", 1, "").await).await;
    let other = queue.ask("lock/lock", json!({"name": b64("qq"), "lease": 2})).await;
    assert_eq!(other["key"], b64("qq/2"));
    // Without a lease one gets one of its own, for a minute.
    let own = queue.ask("lock/lock", json!({"name": b64("own")})).await;
    let key = BASE64_STANDARD.decode(own["key"].as_str().unwrap()).unwrap();
    let id = String::from_utf8(key).unwrap();
    let id = i64::from_str_radix(id.strip_prefix("own/").unwrap(), 16).unwrap();
    let left = queue.ask("lease/timetolive", json!({"ID": id, "keys": true})).await;
    assert_eq!((&left["grantedTTL"], &left["keys"]), (&json!("60"), &json!([own["key"]])));
}

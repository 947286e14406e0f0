//! Rights that change while something is under way, and words that speak for themselves.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use knarr_etcd::{Face, FaceConfig, TokenKind};
use knarr_etcd_model::auth::{Auth, Edit};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_mvcc::{Command, Revision};
use knarr_store::sim::{Pump, SimDisk};
use knarr_store::{Store, StoreConfig};
use pb::kv_client::KvClient;
use serde_json::json;
use tokio::task::yield_now;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::served::{Client, Served, quick};

/// Root, and Ann who may write `a`.
async fn users(client: &Client) {
    for (path, body) in [
        ("auth/user/add", json!({"name": "root", "password": "r"})),
        ("auth/user/grant", json!({"user": "root", "role": "root"})),
        ("auth/user/add", json!({"name": "ann", "password": "a"})),
        ("auth/role/add", json!({"name": "some"})),
        ("auth/role/grant", json!({"name": "some", "perm": {"permType": 2, "key": "YQ=="}})),
        ("auth/user/grant", json!({"user": "ann", "role": "some"})),
        ("auth/enable", json!({})),
    ] {
        let (code, answer) = client.ask(path, &body).await;
        assert_eq!(code, 200, "{path}: {answer}");
    }
}

async fn log_in(client: &Client, name: &str, password: &str) -> Result<Client, String> {
    let body = json!({ "name": name, "password": password });
    let (_, answer) = client.ask("auth/authenticate", &body).await;
    let token = answer["token"].as_str().ok_or_else(|| answer["message"].to_string())?;
    Ok(Client { token: Some(token.to_owned()), ..client.clone() })
}

/// A store that writes when it is told.
struct ByHand {
    store: Store,
    pump: Pump,
}

impl ByHand {
    /// Lets everything happen until something is done.
    async fn until<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = pin!(done);
        loop {
            if let Poll::Ready(done) = done.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return done;
            }
            while self.pump.step() {}
            yield_now().await;
        }
    }

    /// What Ann's put answers that was judged before a change of rights, and comes after it.
    async fn put_behind(&mut self, channel: &Channel, ann: &str, edit: Edit) -> Result<(), Code> {
        let auth = self.store.read(|keyspace, _| Auth::read(keyspace.settings()));
        let change = Command::Settings(auth.edit(edit).unwrap().unwrap());
        let store = self.store.clone();
        let mut changing = pin!(store.command(change));
        // It waits in the queue.
        assert!(changing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let mut kv = KvClient::new(channel.clone());
        let mut put = Request::new(pb::PutRequest { key: "a".into(), ..Default::default() });
        put.metadata_mut().insert("authorization", ann.parse().unwrap());
        let putting = tokio::spawn(async move { kv.put(put).await });
        yield_now().await;
        // What is asked later on the same connection is read later: the put waits behind.
        KvClient::new(channel.clone()).range(pb::RangeRequest::default()).await.unwrap_err();
        assert!(!putting.is_finished());
        let put = self.until(putting).await.unwrap();
        put.map(drop).map_err(|status| status.code())
    }
}

#[tokio::test]
async fn a_write_is_judged_at_its_place_in_the_log() {
    let (store, pump) =
        Store::simulated(&SimDisk::default(), &Arc::default(), StoreConfig::default()).unwrap();
    let mut hand = ByHand { store: store.clone(), pump };
    let served = Served::new(&store, quick(), None).await;
    let client = served.client();
    hand.until(users(&client)).await;
    let ann = hand.until(log_in(&client, "ann", "a")).await.unwrap().token.unwrap();
    let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    // Somebody else's rights: it happens all the same.
    let other = Edit::RoleAdd("other".into());
    assert_eq!(hand.put_behind(&channel, &ann, other).await, Ok(()));
    assert_eq!(store.durable(), Revision(2));
    let hers = Edit::UserRevoke("ann".into(), "some".into());
    assert_eq!(hand.put_behind(&channel, &ann, hers).await, Err(Code::PermissionDenied));
    assert_eq!(store.durable(), Revision(2), "nothing was written");
}

#[tokio::test]
async fn words_that_speak_for_themselves_are_as_old_as_the_rights() {
    let secret = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    std::fs::write(secret.path(), "secret").unwrap();
    let jwt = |private: bool, ttl: u64| FaceConfig {
        tokens: TokenKind::Jwt {
            algorithm: jsonwebtoken::Algorithm::HS256,
            public: secret.path().to_owned(),
            private: private.then(|| secret.path().to_owned()),
            ttl: Duration::from_secs(ttl),
        },
        ..quick()
    };
    let store = Store::in_memory();
    let served = Served::new(&store, jwt(true, 60), None).await;
    let client = served.client();
    users(&client).await;
    let ann = log_in(&client, "ann", "a").await.unwrap();
    let root = log_in(&client, "root", "r").await.unwrap();
    let put = json!({"key": "YQ=="});
    assert_eq!(ann.ask("kv/put", &put).await.0, 200);
    // Another face of the same store and secret knows them; one without a key gives none.
    let other = Served::new(&store, jwt(false, 60), None).await;
    let there = Client { address: other.address, ..ann.clone() };
    assert_eq!(there.ask("kv/put", &put).await.0, 200);
    assert!(log_in(&other.client(), "ann", "a").await.is_err());
    let role = json!({"name": "new"});
    assert_eq!(root.ask("auth/role/add", &role).await.0, 200);
    for (client, path, body) in
        [(&ann, "kv/put", &put), (&there, "kv/put", &put), (&root, "auth/role/add", &role)]
    {
        let (code, answer) = client.ask(path, body).await;
        assert_eq!(
            (code, &answer["message"]),
            (400, &json!("etcdserver: revision of auth store is old"))
        );
    }
    let ann = log_in(&client, "ann", "a").await.unwrap();
    assert_eq!(ann.ask("kv/put", &put).await.0, 200);
    let root = log_in(&client, "root", "r").await.unwrap();
    assert_eq!(root.ask("auth/disable", &json!({})).await.0, 200);
    assert_eq!(there.ask("kv/put", &put).await.0, 200, "nobody asks for them any more");
}

/// A password can be hashed where it is made up.
#[tokio::test]
async fn a_hashed_password_is_kept_as_it_is() {
    let store = Store::in_memory();
    let served = Served::new(&store, quick(), None).await;
    let client = served.client();
    users(&client).await;
    let root = log_in(&client, "root", "r").await.unwrap();
    let hash = bcrypt::hash("other", 4).unwrap();
    let hash = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, hash);
    let change = json!({"name": "ann", "hashedPassword": hash});
    assert_eq!(root.ask("auth/user/changepw", &change).await.0, 200);
    assert!(log_in(&client, "ann", "a").await.is_err());
    assert!(log_in(&client, "ann", "other").await.is_ok());
    let add = json!({"name": "eva", "hashedPassword": hash});
    assert_eq!(root.ask("auth/user/add", &add).await.0, 200);
    assert!(log_in(&client, "eva", "other").await.is_ok());
}

#[test]
fn keys_that_are_none_are_told() {
    let tokens = TokenKind::Jwt {
        algorithm: jsonwebtoken::Algorithm::RS256,
        public: "/nonexistent".into(),
        private: None,
        ttl: Duration::ZERO,
    };
    let error = Face::new(Store::in_memory(), FaceConfig { tokens, ..quick() }).unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

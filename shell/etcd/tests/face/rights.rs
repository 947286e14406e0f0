//! Rights that change while something is under way, and words that speak for themselves.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use knarr_etcd::{Face, FaceConfig, TokenKind};
use knarr_etcd_model::auth::{Auth, Edit};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_mvcc::{Command, Revision};
use knarr_store::{Store, StoreConfig};
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use serde_json::json;
use tokio::task::yield_now;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::served::{ByHand, Client, Served, quick};

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

/// What a call answers that was judged before a change of rights, and comes after it.
async fn behind<T: Send + 'static>(
    hand: &mut ByHand,
    edit: Edit,
    channel: &Channel,
    call: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<(), Code> {
    let auth = hand.store.read(|keyspace, _| Auth::read(keyspace.settings()));
    let change = Command::Settings(auth.edit(edit).unwrap().unwrap());
    let store = hand.store.clone();
    let mut changing = pin!(store.command(change));
    // It waits in the queue.
    assert!(changing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let calling = tokio::spawn(call);
    yield_now().await;
    // What is asked later on the same connection is read later: the call waits behind.
    KvClient::new(channel.clone()).range(pb::RangeRequest::default()).await.unwrap_err();
    assert!(!calling.is_finished());
    hand.until(calling).await.unwrap().map(drop).map_err(|status| status.code())
}

fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", token.parse().unwrap());
    request
}

#[tokio::test]
async fn a_write_is_judged_at_its_place_in_the_log() {
    let mut hand = ByHand::new(StoreConfig::default());
    let store = hand.store.clone();
    let served = Served::new(&store, quick(), None).await;
    let client = served.client();
    hand.until(users(&client)).await;
    let ann = hand.until(log_in(&client, "ann", "a")).await.unwrap().token.unwrap();
    let root = hand.until(log_in(&client, "root", "r")).await.unwrap().token.unwrap();
    let channel = Channel::from_shared(format!("http://{}", served.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    let put = || {
        let put = pb::PutRequest { key: "a".into(), ..Default::default() };
        let (mut kv, put) = (KvClient::new(channel.clone()), by(&ann, put));
        async move { kv.put(put).await }
    };
    // Somebody else's rights: it happens all the same.
    let other = Edit::RoleAdd("other".into());
    assert_eq!(behind(&mut hand, other, &channel, put()).await, Ok(()));
    assert_eq!(store.durable(), Revision(2));
    let hers = Edit::UserRevoke("ann".into(), "some".into());
    assert_eq!(behind(&mut hand, hers, &channel, put()).await, Err(Code::PermissionDenied));
    assert_eq!(store.durable(), Revision(2), "nothing was written");
    // Changes of rights are judged anew as well.
    let add = |name: &str| {
        let add = by(&root, pb::AuthRoleAddRequest { name: name.into() });
        let mut auth = AuthClient::new(channel.clone());
        async move { auth.role_add(add).await }
    };
    let (one, two) = (Edit::RoleAdd("one".into()), Edit::RoleAdd("two".into()));
    assert_eq!(behind(&mut hand, one, &channel, add("three")).await, Ok(()));
    let taken = Err(Code::FailedPrecondition);
    assert_eq!(behind(&mut hand, two, &channel, add("two")).await, taken);
    let auth = store.read(|keyspace, _| Auth::read(keyspace.settings()));
    let roles: Vec<_> = auth.roles().map(|role| &role.name[..]).collect();
    assert_eq!(roles, ["one", "other", "some", "three", "two"]);
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
    let bearer = Client { token: ann.token.as_ref().map(|t| format!("Bearer {t}")), ..ann.clone() };
    assert_eq!(bearer.ask("kv/put", &put).await.0, 200);
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

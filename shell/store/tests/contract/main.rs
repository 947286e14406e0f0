//! One contract: golden scripts in etcd's words run on the embedded store and by gRPC on its face,
//! on the external backend over that face and over a real etcd, and straight on that etcd, which is
//! the judge of the others. All must print the same.
//!
//! `KNARR_BLESS=1` writes the judge's answers into the scripts.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use knarr_etcd::{Face, FaceConfig, Listener, serve};
use knarr_mvcc::{Event, LeaseId, Op, OpResponse, RangeResult, Revision, Txn};
use knarr_store::external::wire::Scope;
use knarr_store::external::{ExternalConfig, Tls};
use knarr_store::sim::{SimClock, SimDisk};
use knarr_store::{Store, StoreConfig, WatchError};
use tokio::net::TcpListener;
use tokio::sync::watch;

mod etcd;
mod oracle;
#[path = "../../../../core/mvcc/tests/script/mod.rs"]
mod script;

use etcd::Etcd;
use oracle::Oracle;
use script::*;

/// How long a watch may take to bring what has happened.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a script runs on.
enum Subject {
    Store(Store),
    Etcd(Oracle),
}

#[tokio::test]
async fn on_the_embedded_store() {
    judge("embedded", async || (Subject::Store(embedded()), ())).await;
}

#[tokio::test]
async fn on_the_face_of_the_embedded_store() {
    judge("face", async || {
        let (endpoint, served) = face().await;
        (Subject::Etcd(Oracle::connect(&endpoint).await), served)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_another_store_s_face() {
    judge("external on a face", async || {
        let (endpoint, served) = face().await;
        (Subject::Store(external(&endpoint).await), served)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_external_etcd() {
    judge("external", async || {
        let etcd = Etcd::start().await;
        (Subject::Store(external(etcd.endpoint()).await), etcd)
    })
    .await;
}

#[tokio::test]
async fn on_the_etcd_itself() {
    judge("etcd", async || {
        let etcd = Etcd::start().await;
        (Subject::Etcd(Oracle::connect(etcd.endpoint()).await), etcd)
    })
    .await;
}

fn embedded() -> Store {
    let (disk, clock) = (Arc::<SimDisk>::default(), Arc::<SimClock>::default());
    Store::open(disk, clock, StoreConfig::default()).unwrap()
}

/// Where a store of its own is served as etcd, while the sender lives.
async fn face() -> (String, watch::Sender<bool>) {
    let face = Face::new(embedded(), FaceConfig::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (until_dropped, drain) = watch::channel(false);
    tokio::spawn(serve(face, Listener::Tcp(listener, None), drain));
    (endpoint, until_dropped)
}

async fn external(endpoint: &str) -> Store {
    let external = ExternalConfig {
        endpoints: vec![endpoint.to_owned()],
        tls: Tls::default(),
        scope: Scope::everything(),
        compact_every: Duration::ZERO,
    };
    Store::connect(external, StoreConfig::default()).await.unwrap()
}

/// Runs every script on a store of its own, and on what serves it as long as it lives.
async fn judge<Server>(name: &str, new: impl AsyncFn() -> (Subject, Server)) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/contract/golden");
    let mut scripts: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "no scripts in {}", dir.display());
    for path in scripts {
        let (mut subject, _server) = new().await;
        let text = fs::read_to_string(&path).unwrap();
        let actual = play(&mut subject, &text).await;
        if let Subject::Store(store) = &subject {
            store.close().await;
        }
        if name == "etcd" && std::env::var_os("KNARR_BLESS").is_some() {
            fs::write(&path, &actual).unwrap();
            continue;
        }
        let differing = text.lines().zip(actual.lines()).find(|(wanted, is)| wanted != is);
        assert!(text == actual, "{name}: {}: {differing:?} in\n{actual}", path.display());
    }
}

async fn play(subject: &mut Subject, text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            let answer = subject.run(command).await;
            // What comes after is which revision it was, which etcd does not say.
            let answer = answer.unwrap_or_else(|why| {
                format!("refused: {}\n", why.split(" (").next().unwrap_or_default())
            });
            out.push_str(&format!("{line}\n{answer}"));
        } else if line.is_empty() || line.starts_with('#') {
            out.push_str(&format!("{line}\n"));
        }
    }
    out
}

impl Subject {
    async fn run(&mut self, line: &str) -> Result<String, String> {
        let mut words = words(line);
        let number = |at: usize| line.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap();
        let lease = || LeaseId(number(1) as i64);
        match *words.peek().unwrap() {
            "put" | "amend" | "del" | "txn" => self.txn(&mut words).await,
            "get" => self.get(&mut words).await,
            "watch" => self.watch(line).await,
            "compact" => self.compact(Revision(number(1))).await,
            "grant" => self.grant(lease(), number(2) as i64).await,
            "keepalive" => self.keep_alive(lease()).await,
            "revoke" => self.revoke(lease()).await,
            other => panic!("unknown command {other}"),
        }
    }

    async fn txn(&mut self, words: &mut Words<'_>) -> Result<String, String> {
        let txn = txn(words);
        assert_eq!(words.next(), None, "words left over");
        let response = match self {
            Self::Store(store) => store.txn(txn).await.map_err(text)?,
            Self::Etcd(etcd) => etcd.txn(&txn).await?,
        };
        Ok(show_txn(&response))
    }

    /// A store reads its keyspace, as the API server does; by transaction it must find the same.
    async fn get(&mut self, words: &mut Words<'_>) -> Result<String, String> {
        let Op::Range(query) = op(words) else { panic!("not a read") };
        assert_eq!(words.next(), None, "words left over");
        let found: RangeResult = match self {
            Self::Etcd(etcd) => etcd.range(&query).await?,
            Self::Store(store) => {
                let txn = Txn { success: vec![Op::Range(query.clone())], ..Txn::default() };
                let asked = store.txn(txn).await.map(|answer| answer.responses);
                let read = store.read(|keyspace, _| keyspace.query(&query)).map_err(text);
                match &read {
                    Ok(found) => assert_eq!(asked.unwrap(), [OpResponse::Range(found.clone())]),
                    Err(_) => assert!(asked.is_err(), "{query:?}: {asked:?}"),
                }
                read?
            }
        };
        Ok(show_found(&found))
    }

    /// `watch RANGE after=N until=M [alone]`: what changed after N, up to the change at M; `alone`
    /// leaves out what was before.
    async fn watch(&mut self, line: &str) -> Result<String, String> {
        let option = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name)).unwrap();
            Revision(word.parse().unwrap())
        };
        let range = range(line.split_whitespace().nth(1).unwrap());
        let (after, until) = (option("after="), option("until="));
        let events: Vec<Event> = match self {
            Self::Etcd(etcd) => in_time(etcd.watch(&range, after, until)).await?,
            Self::Store(store) => {
                let mut watch = store.watch(range, after);
                let mut events: Vec<Event> = Vec::new();
                while events.last().is_none_or(|event| event.revision < until) {
                    let batch = in_time(watch.next()).await.map_err(|error| match error {
                        WatchError::Compacted(_) => "compacted".to_owned(),
                        error => error.to_string(),
                    })?;
                    events.extend(batch.events);
                }
                events
            }
        };
        let alone = line.ends_with(" alone");
        let shown = events.into_iter().filter(|event| event.revision <= until);
        let shown = shown.map(|event| if alone { Event { old: None, ..event } } else { event });
        Ok(shown.map(|event| show_event(&event)).collect())
    }

    async fn compact(&mut self, revision: Revision) -> Result<String, String> {
        match self {
            Self::Store(store) => store.compact(revision).await.map_err(text)?,
            Self::Etcd(etcd) => etcd.compact(revision).await?,
        }
        Ok("compacted\n".to_owned())
    }

    async fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<String, String> {
        let (id, ttl) = match self {
            Self::Store(store) => store.lease_grant(id, ttl).await.map_err(text)?,
            Self::Etcd(etcd) => etcd.grant(id, ttl).await?,
        };
        Ok(format!("lease {}, {ttl} s\n", id.0))
    }

    async fn keep_alive(&mut self, id: LeaseId) -> Result<String, String> {
        let ttl = match self {
            Self::Store(store) => store.lease_keep_alive(id).await.map_err(text)?,
            Self::Etcd(etcd) => etcd.keep_alive(id).await?,
        };
        Ok(ttl.map_or("gone\n".to_owned(), |ttl| format!("{ttl} s\n")))
    }

    async fn revoke(&mut self, id: LeaseId) -> Result<String, String> {
        let revision = match self {
            Self::Store(store) => store.lease_revoke(id).await.map_err(text)?,
            Self::Etcd(etcd) => etcd.revoke(id).await?,
        };
        Ok(format!("revision {}\n", revision.0))
    }
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}

async fn in_time<T>(doing: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, doing).await.expect("what was watched for has not come")
}

//! The store on an etcd of its own, which several servers may share (`--etcd-servers`).
//!
//! The keyspace is a mirror: reads and watches are served from it, writes are etcd's. A write is
//! answered once the mirror has it, and [`External::fresh`] waits until the mirror has what anybody
//! was answered before, so what is read here is what one store would show.
//!
//! * `peers` – whom to ask; `wire` – in which words; `failure` – what a failed call left behind.
//! * `mirror` – loading and following; `fresh` – how new is new enough, and how old.
//! * `compact` – upstream's agreement on who compacts.
//!
//! Invariant: nothing that may have been written is sent twice.

mod compact;
mod failure;
mod fresh;
mod mirror;
mod peers;
pub mod wire;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::stream;
use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::etcdserverpb::kv_client::KvClient;
use knarr_etcdpb::etcdserverpb::lease_client::LeaseClient;
use knarr_mvcc::{Answer, Command, Keyspace, LeaseId, Revision, Txn, TxnResponse};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::error::StoreError;
use crate::external::mirror::Mirror;
use crate::external::peers::{ANSWER, PATIENCE, Peers, Repeat};
use crate::external::wire::{Scope, revision, signed};
use crate::store::write_lock;
use crate::watch::Hub;

pub use peers::Tls;

/// Where etcd is, and what is ours in it.
#[derive(Clone)]
pub struct ExternalConfig {
    /// Its members' addresses, `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// How we know each other.
    pub tls: Tls,
    /// Which keys are ours.
    pub scope: Scope,
    /// How often etcd is compacted; zero: not by us.
    pub compact_every: Duration,
}

/// The way to etcd, for those who write.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    peers: Arc<Peers>,
    scope: Scope,
}

/// An etcd and the mirror of it.
#[derive(Debug)]
pub(crate) struct External {
    link: Link,
    keyspace: Arc<RwLock<Keyspace>>,
    durable: watch::Receiver<Revision>,
    fresh: mpsc::Sender<fresh::Asker>,
    tasks: Mutex<JoinSet<()>>,
}

/// What the handle needs of a mirror.
pub(crate) struct Connected {
    pub(crate) keyspace: Arc<RwLock<Keyspace>>,
    pub(crate) durable: watch::Receiver<Revision>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) cluster: u64,
    pub(crate) term: u64,
}

impl External {
    /// Loads the mirror and begins to follow.
    pub(crate) async fn connect(
        config: ExternalConfig,
        history_bytes: usize,
    ) -> Result<(Self, Connected), StoreError> {
        let peers = Peers::new(&config.endpoints, &config.tls);
        let peers = Arc::new(peers.map_err(|why| StoreError::Etcd(why.into()))?);
        let (keyspace, header) = mirror::load(&peers, &config.scope).await?;
        let (revision, keys) = (keyspace.revision(), keyspace.held_keys());
        tracing::info!(revision = revision.0, keys, "etcd is loaded");
        let (announce, durable) = watch::channel(revision);
        let keyspace = Arc::new(RwLock::new(keyspace));
        let hub = Arc::<Hub>::default();
        let (cluster, term) = (header.cluster_id, header.raft_term);
        let mirror = Mirror {
            peers: peers.clone(),
            scope: config.scope.clone(),
            cluster,
            keyspace: keyspace.clone(),
            announce,
            hub: hub.clone(),
            history_bytes,
        };
        mirror.publish();
        let link = Link { peers: peers.clone(), scope: config.scope };
        let (fresh, inbox) = fresh::queue();
        let mut tasks = JoinSet::new();
        tasks.spawn(mirror.run());
        tasks.spawn(fresh::run(peers, keyspace.clone(), inbox));
        if !config.compact_every.is_zero() {
            tasks.spawn(compact::run(link.clone(), config.compact_every));
        }
        let connected = Connected { keyspace, durable: durable.clone(), hub, cluster, term };
        let tasks = Mutex::new(tasks);
        let keyspace = connected.keyspace.clone();
        Ok((Self { link, keyspace, durable, fresh, tasks }, connected))
    }

    /// Waits until the mirror has everything that anybody was told before this call.
    pub(crate) async fn fresh(&self) -> Result<(), StoreError> {
        let (asker, answer) = oneshot::channel();
        self.fresh.send(asker).await.map_err(|_| StoreError::Closed)?;
        self.reached(answer.await.map_err(|_| StoreError::Closed)??).await
    }

    /// Waits until the mirror has a revision that etcd has. If that takes long, the member that is
    /// followed may be cut off, and another is.
    async fn reached(&self, revision: Revision) -> Result<(), StoreError> {
        let mut durable = self.durable.clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (turn, ..) = self.link.peers.current();
            let soon = deadline.min(Instant::now() + ANSWER);
            match timeout_at(soon, durable.wait_for(|seen| *seen >= revision)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(StoreError::Closed),
                Err(_) if Instant::now() >= deadline => {
                    let why = format!("etcd's watch has not brought revision {}", revision.0);
                    return Err(StoreError::Unreachable(why.into()));
                }
                Err(_) => self.link.peers.leave(turn),
            }
        }
    }

    /// Carries a command to etcd; answers once the mirror shows what it did.
    pub(crate) async fn submit(&self, command: Command) -> Result<Answer, StoreError> {
        let (answer, at) = match command {
            Command::Txn(txn) => {
                let response = self.link.txn(&txn).await?;
                let at = response.revision;
                (Answer::Txn(response), at)
            }
            Command::Compact { revision } => {
                let at = self.link.compact(revision).await?;
                self.reached(at).await?;
                // What etcd no longer shows is not shown here either.
                let _ = write_lock(&self.keyspace).apply(0, &Command::Compact { revision });
                (Answer::Compact(at), at)
            }
            Command::LeaseGrant { id, ttl_secs, .. } => {
                (self.link.lease_grant(id, ttl_secs).await?, Revision(0))
            }
            Command::LeaseRevoke { id } => {
                let at = self.link.lease_revoke(id).await?;
                (Answer::LeaseRevoke(at), at)
            }
            Command::Settings(_) | Command::Under { .. } | Command::Time { .. } => {
                let why = "etcd keeps its own users, settings and times";
                return Err(StoreError::Etcd(why.into()));
            }
        };
        // It is written, but the caller could not read it.
        self.reached(at).await.map_err(|error| StoreError::Unknown(error.to_string().into()))?;
        Ok(answer)
    }

    /// Renews a lease; its time to live in seconds, or `None` when it is gone.
    pub(crate) async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<i64>, StoreError> {
        let call = |channel| async move {
            let request = stream::iter([pb::LeaseKeepAliveRequest { id: id.0 }]);
            let answers = LeaseClient::new(channel).lease_keep_alive(request).await?;
            let answer = answers.into_inner().message().await?;
            Ok(tonic::Response::new(answer.unwrap_or_default()))
        };
        let answer: pb::LeaseKeepAliveResponse = self.link.peers.ask(Repeat::Always, call).await?;
        Ok(Some(answer.ttl).filter(|ttl| *ttl > 0))
    }

    /// Lets go of etcd.
    pub(crate) async fn close(&self) {
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

impl Link {
    pub(crate) async fn txn(&self, txn: &Txn) -> Result<TxnResponse, StoreError> {
        let repeat = if txn.only_reads() { Repeat::Always } else { Repeat::Undone };
        let request = &self.scope.txn(txn);
        let call = |channel| async move {
            let client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
            { client }.txn(request.clone()).await
        };
        Ok(self.scope.done(self.peers.ask(repeat, call).await?))
    }

    pub(crate) async fn compact(&self, upto: Revision) -> Result<Revision, StoreError> {
        let call = |channel| async move {
            let request = pb::CompactionRequest { revision: signed(upto.0), physical: false };
            KvClient::new(channel).compact(request).await
        };
        let answer: pb::CompactionResponse = self.peers.ask(Repeat::Undone, call).await?;
        Ok(at(answer.header))
    }

    async fn lease_grant(&self, id: LeaseId, ttl: i64) -> Result<Answer, StoreError> {
        let call = |channel| async move {
            LeaseClient::new(channel).lease_grant(pb::LeaseGrantRequest { id: id.0, ttl }).await
        };
        let answer: pb::LeaseGrantResponse = self.peers.ask(Repeat::Undone, call).await?;
        Ok(Answer::LeaseGrant { id: LeaseId(answer.id), ttl_secs: answer.ttl })
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<Revision, StoreError> {
        let call = |channel| async move {
            LeaseClient::new(channel).lease_revoke(pb::LeaseRevokeRequest { id: id.0 }).await
        };
        let answer: pb::LeaseRevokeResponse = self.peers.ask(Repeat::Undone, call).await?;
        Ok(at(answer.header))
    }
}

fn at(header: Option<pb::ResponseHeader>) -> Revision {
    revision(header.unwrap_or_default().revision)
}

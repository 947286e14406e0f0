//! How new the mirror must be: etcd is asked for its revision, once for all who want to know at the
//! same time. An answer serves only those who came before it was asked for.
//!
//! The same question tells how old it may be: it is asked at the oldest revision that can be read
//! here, which etcd refuses once somebody has compacted beyond it. Nothing else would say so: a
//! watch that has caught up is not told, and who compacts need not be one of us.

use std::sync::{Arc, RwLock};

use bytes::Bytes;
use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::etcdserverpb::kv_client::KvClient;
use knarr_mvcc::{Command, Keyspace, Refusal, Revision};
use tokio::sync::{mpsc, oneshot};

use crate::error::StoreError;
use crate::external::peers::{Peers, Repeat};
use crate::external::wire;
use crate::store::{read_lock, write_lock};

/// How many are answered with one question.
const TOGETHER: usize = 1024;

/// One who wants to know.
pub(crate) type Asker = oneshot::Sender<Result<Revision, StoreError>>;

/// The way to ask.
pub(crate) fn queue() -> (mpsc::Sender<Asker>, mpsc::Receiver<Asker>) {
    mpsc::channel(TOGETHER)
}

/// Answers those who ask, until nobody can.
pub(crate) async fn run(
    peers: Arc<Peers>,
    keyspace: Arc<RwLock<Keyspace>>,
    mut inbox: mpsc::Receiver<Asker>,
) {
    let mut askers = Vec::new();
    while inbox.recv_many(&mut askers, TOGETHER).await > 0 {
        let answer = revision(&peers, &keyspace).await;
        for asker in askers.drain(..) {
            // Who left does not want to know any more.
            let _ = asker.send(answer.clone());
        }
    }
}

/// etcd's revision. What it has compacted is not read here either from then on.
async fn revision(peers: &Peers, keyspace: &RwLock<Keyspace>) -> Result<Revision, StoreError> {
    let oldest = read_lock(keyspace).oldest_readable();
    match ask(peers, oldest).await {
        Err(StoreError::Refused(_)) => {}
        done => return done,
    }
    let now = ask(peers, Revision(0)).await?;
    let compacted = search(peers, oldest, now).await?;
    let mut keyspace = write_lock(keyspace);
    // What the mirror does not have yet, it is told of the next time.
    let revision = compacted.min(keyspace.revision());
    let _ = keyspace.apply(0, &Command::Compact { revision });
    Ok(now)
}

/// The oldest revision that etcd has: after one that is `gone`, at the latest one that it `has`.
async fn search(peers: &Peers, gone: Revision, has: Revision) -> Result<Revision, StoreError> {
    let (mut gone, mut has) = (gone.0, has.0);
    while gone + 1 < has {
        let middle = gone.midpoint(has);
        match ask(peers, Revision(middle)).await {
            Ok(_) => has = middle,
            Err(StoreError::Refused(Refusal::Compacted(_))) => gone = middle,
            Err(error) => return Err(error),
        }
    }
    Ok(Revision(has))
}

/// etcd's revision by a linearizable read, at a revision (0: the newest), of a key that nobody has.
pub(crate) async fn ask(peers: &Peers, at: Revision) -> Result<Revision, StoreError> {
    let call = |channel| async move {
        let (key, revision) = (Bytes::from_static(b"\0"), wire::signed(at.0));
        let request = pb::RangeRequest { key, revision, ..Default::default() };
        KvClient::new(channel).range(request).await
    };
    let answer: pb::RangeResponse = peers.ask(Repeat::Always, call).await?;
    Ok(wire::revision(answer.header.unwrap_or_default().revision))
}

//! How new the mirror must be: etcd is asked for its revision, once for all who want to know at the
//! same time. An answer serves only those who came before it was asked for.

use std::sync::Arc;

use bytes::Bytes;
use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::etcdserverpb::kv_client::KvClient;
use knarr_mvcc::Revision;
use tokio::sync::{mpsc, oneshot};

use crate::error::StoreError;
use crate::external::peers::{Peers, Repeat};
use crate::external::wire;

/// How many are answered with one question.
const TOGETHER: usize = 1024;

/// One who wants to know.
pub(crate) type Asker = oneshot::Sender<Result<Revision, StoreError>>;

/// The way to ask.
pub(crate) fn queue() -> (mpsc::Sender<Asker>, mpsc::Receiver<Asker>) {
    mpsc::channel(TOGETHER)
}

/// Answers those who ask, until nobody can.
pub(crate) async fn run(peers: Arc<Peers>, mut inbox: mpsc::Receiver<Asker>) {
    let mut askers = Vec::new();
    while inbox.recv_many(&mut askers, TOGETHER).await > 0 {
        let answer = revision(&peers).await;
        for asker in askers.drain(..) {
            // Who left does not want to know any more.
            let _ = asker.send(answer.clone());
        }
    }
}

/// etcd's revision by a linearizable read of a key that nobody has.
async fn revision(peers: &Peers) -> Result<Revision, StoreError> {
    let call = |channel| async move {
        let key = Bytes::from_static(b"\0");
        KvClient::new(channel).range(pb::RangeRequest { key, ..Default::default() }).await
    };
    let answer: pb::RangeResponse = peers.ask(Repeat::Always, call).await?;
    Ok(wire::revision(answer.header.unwrap_or_default().revision))
}

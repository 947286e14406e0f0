//! The mirror: everything of ours in etcd, loaded once and then followed by one watch.
//!
//! The watch is on *all* of etcd's keys, so that every revision arrives and the mirror's revision
//! is always one that etcd has shown in full. (Refused: a watch on our keys alone, moved on by
//! progress notifications when others write. Those sent on request overtook events in etcd before
//! 3.4.25, Debian's among them, and would have made the mirror claim what it had not seen.)
//!
//! Invariants: a revision is applied whole or not at all; in order; once.

use std::sync::{Arc, RwLock};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use knarr_etcdpb::etcdserverpb::kv_client::KvClient;
use knarr_etcdpb::etcdserverpb::watch_client::WatchClient;
use knarr_etcdpb::etcdserverpb::watch_request::RequestUnion;
use knarr_etcdpb::{etcdserverpb as pb, mvccpb};
use knarr_mvcc::{Item, KeyRange, KeyValue, Keyspace, Meta, Refusal, Restore, Revision, Version};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::error::StoreError;
use crate::external::failure::chain;
use crate::external::fresh;
use crate::external::peers::{ANSWER, Peers, Repeat};
use crate::external::wire::{self, Scope, named, signed};
use crate::store::{read_lock, write_lock};
use crate::watch::Hub;

/// How many keys one page of the loading has.
const PAGE: i64 = 500;

/// What keeps the keyspace as etcd is.
pub(crate) struct Mirror {
    pub(crate) peers: Arc<Peers>,
    pub(crate) scope: Scope,
    pub(crate) cluster: u64,
    pub(crate) keyspace: Arc<RwLock<Keyspace>>,
    pub(crate) announce: watch::Sender<Revision>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) history_bytes: usize,
}

/// However following ends, nobody waits for it any more.
impl Drop for Mirror {
    fn drop(&mut self) {
        self.hub.close();
    }
}

/// Why following ended.
enum End {
    /// Another member may do better.
    Broken(String),
    /// What comes next is no longer there.
    Compacted,
}

/// A revision and what it changed.
type Step = (Revision, Vec<(Bytes, Option<KeyValue>)>);

impl Mirror {
    /// Follows etcd for good.
    pub(crate) async fn run(self) {
        let mut failed = 0;
        loop {
            let (turn, name, channel) = self.peers.current();
            let before = *self.announce.borrow();
            match self.follow(turn, channel).await {
                End::Compacted => self.reload().await,
                End::Broken(why) => {
                    tracing::warn!(member = %name, %why, "etcd's watch ended; going on elsewhere");
                    self.peers.leave(turn);
                    failed = if *self.announce.borrow() == before { failed + 1 } else { 1 };
                    if failed >= self.peers.count() {
                        failed = 0;
                        sleep(ANSWER / 10).await;
                    }
                }
            }
        }
    }

    /// Follows one member, from the mirror's revision on, until that or its turn ends.
    async fn follow(&self, turn: usize, channel: Channel) -> End {
        let left = self.peers.left(turn);
        tokio::pin!(left);
        let mut answers = match timeout(ANSWER, self.open(channel)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(status)) => return End::Broken(chain(&status)),
            Err(_) => return End::Broken("no answer in time".to_owned()),
        };
        let mut pieces = Vec::new();
        loop {
            let answer = tokio::select! {
                answer = answers.message() => answer,
                () = &mut left => return End::Broken("it did not answer somebody".to_owned()),
            };
            let end = match answer {
                Ok(Some(answer)) => self.take(answer, &mut pieces),
                Ok(None) => Some(End::Broken("it ended".to_owned())),
                Err(status) => Some(End::Broken(chain(&status))),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Opens the watch. A member that has lost the others ends it, which it else would not.
    async fn open(&self, channel: Channel) -> Result<Streaming<pb::WatchResponse>, Status> {
        let (key, range_end) = named(&KeyRange::prefix(Bytes::new()));
        let next = read_lock(&self.keyspace).revision().0 + 1;
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: signed(next),
            fragment: true,
            ..pb::WatchCreateRequest::default()
        };
        let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let mut request = Request::new(stream::iter([create]).chain(stream::pending()));
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let client = WatchClient::new(channel);
        Ok({ client }.max_decoding_message_size(usize::MAX).watch(request).await?.into_inner())
    }

    /// Takes an answer of the watch; one that came in pieces counts when its last is there.
    fn take(&self, answer: pb::WatchResponse, pieces: &mut Vec<mvccpb::Event>) -> Option<End> {
        let cluster = answer.header.as_ref().map_or(0, |header| header.cluster_id);
        if cluster != self.cluster {
            let (ours, theirs) = (self.cluster, cluster);
            return Some(End::Broken(format!("it is of cluster {theirs:x}, not {ours:x}")));
        }
        if answer.compact_revision > 0 {
            return Some(End::Compacted);
        }
        if answer.canceled {
            return Some(End::Broken(answer.cancel_reason));
        }
        pieces.extend(answer.events);
        if !answer.fragment {
            self.apply(std::mem::take(pieces));
        }
        None
    }

    fn apply(&self, events: Vec<mvccpb::Event>) {
        let steps = steps(&self.scope, events);
        if steps.is_empty() {
            return;
        }
        let mut keyspace = write_lock(&self.keyspace);
        for (revision, changes) in steps {
            keyspace.mirror(revision, changes);
        }
        keyspace.trim(self.history_bytes);
        drop(keyspace);
        self.publish();
    }

    /// Tells watchers and those who wait for a revision.
    pub(crate) fn publish(&self) {
        let keyspace = read_lock(&self.keyspace);
        self.hub.publish(&keyspace);
        let revision = keyspace.revision();
        self.announce.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
    }

    /// Loads everything anew. Watchers that have not seen what was missed are told that it is gone.
    async fn reload(&self) {
        tracing::warn!("etcd no longer has what the mirror lacks: loading everything anew");
        let fresh = loop {
            match load(&self.peers, &self.scope).await {
                Ok((fresh, _)) => break fresh,
                Err(error) => tracing::warn!(%error, "etcd cannot be loaded; trying again"),
            }
            sleep(ANSWER / 10).await;
        };
        let old = std::mem::replace(&mut *write_lock(&self.keyspace), fresh);
        self.publish();
        // A large one takes long to fall apart.
        tokio::task::spawn_blocking(move || drop(old));
    }
}

/// Events as the revisions they are of.
fn steps(scope: &Scope, events: Vec<mvccpb::Event>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for event in events {
        let deleted = event.r#type() == mvccpb::event::EventType::Delete;
        let Some(kv) = event.kv else { continue };
        let at = wire::revision(kv.mod_revision);
        if steps.last().is_none_or(|(last, _)| *last != at) {
            steps.push((at, Vec::new()));
        }
        let Some((_, changes)) = steps.last_mut() else { continue };
        if deleted {
            changes.extend(scope.key(&kv.key).map(|key| (key, None)));
        } else {
            changes.extend(scope.key_value(kv).map(|kv| (kv.key.clone(), Some(kv))));
        }
    }
    steps
}

/// Loads everything of ours, as of one revision; also gives the header of etcd's answer.
pub(crate) async fn load(
    peers: &Peers,
    scope: &Scope,
) -> Result<(Keyspace, pb::ResponseHeader), StoreError> {
    // A small question finds out whether a member hangs, sooner than a large one.
    fresh::ask(peers, Revision(0)).await?;
    loop {
        match load_once(peers, scope).await {
            // It was compacted between two pages.
            Err(StoreError::Refused(Refusal::Compacted(_))) => {}
            done => return done,
        }
    }
}

async fn load_once(
    peers: &Peers,
    scope: &Scope,
) -> Result<(Keyspace, pb::ResponseHeader), StoreError> {
    let (key, range_end) = named(&scope.range());
    let mut page = pb::RangeRequest { key, range_end, limit: PAGE, ..Default::default() };
    let mut restore = Restore::new();
    let mut first = None;
    loop {
        let request = &page;
        let call = |channel| async move {
            let client = KvClient::new(channel);
            client.max_decoding_message_size(usize::MAX).range(request.clone()).await
        };
        let answer: pb::RangeResponse = peers.ask(Repeat::Large, call).await?;
        let header = answer.header.unwrap_or_default();
        if first.is_none() {
            let revision = wire::revision(header.revision);
            page.revision = header.revision;
            first = Some(header);
            push(&mut restore, Item::Meta(Meta { revision, floor: revision, ..Meta::default() }))?;
        }
        let last = answer.kvs.last().map(|kv| kv.key.clone());
        for kv in answer.kvs.into_iter().filter_map(|kv| scope.key_value(kv)) {
            push(&mut restore, Item::Base(Version::of(&kv)))?;
        }
        match last.filter(|_| answer.more) {
            Some(last) => page.key = [&last[..], b"\0"].concat().into(),
            None => break,
        }
    }
    let keyspace = restore.finish().map_err(|error| StoreError::Etcd(error.to_string().into()))?;
    Ok((keyspace, first.unwrap_or_default()))
}

fn push(restore: &mut Restore, item: Item) -> Result<(), StoreError> {
    restore.push(item).map_err(|error| StoreError::Etcd(error.to_string().into()))
}

//! Straight to an etcd, by gRPC.

use futures_util::stream::{self, StreamExt as _};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::etcdserverpb::kv_client::KvClient;
use knarr_etcdpb::etcdserverpb::lease_client::LeaseClient;
use knarr_etcdpb::etcdserverpb::watch_client::WatchClient;
use knarr_etcdpb::etcdserverpb::watch_request::RequestUnion;
use knarr_etcdpb::mvccpb;
use knarr_mvcc::{Event, KeyRange, LeaseId, Query, RangeResult, Revision, Txn, TxnResponse};
use knarr_store::external::wire::{Scope, named, revision, signed};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// A connection to an etcd.
pub struct Oracle {
    channel: Channel,
    scope: Scope,
}

impl Oracle {
    pub async fn connect(endpoint: &str) -> Self {
        let channel = Endpoint::from_shared(endpoint.to_owned()).unwrap().connect().await.unwrap();
        Self { channel, scope: Scope::everything() }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    fn leases(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    pub async fn txn(&self, txn: &Txn) -> Result<TxnResponse, String> {
        let answer = self.kv().txn(self.scope.txn(txn)).await.map_err(text)?;
        Ok(self.scope.done(answer.into_inner()))
    }

    pub async fn range(&self, query: &Query) -> Result<RangeResult, String> {
        let answer = self.kv().range(self.scope.query(query)).await.map_err(text)?;
        Ok(self.scope.found(answer.into_inner()))
    }

    pub async fn compact(&self, at: Revision) -> Result<(), String> {
        let request = pb::CompactionRequest { revision: signed(at.0), physical: true };
        self.kv().compact(request).await.map(drop).map_err(text)
    }

    pub async fn grant(&self, id: LeaseId, ttl: i64) -> Result<(LeaseId, i64), String> {
        let request = pb::LeaseGrantRequest { id: id.0, ttl };
        let answer = self.leases().lease_grant(request).await.map_err(text)?.into_inner();
        Ok((LeaseId(answer.id), answer.ttl))
    }

    pub async fn keep_alive(&self, id: LeaseId) -> Result<Option<i64>, String> {
        let request = stream::iter([pb::LeaseKeepAliveRequest { id: id.0 }]);
        let answers = self.leases().lease_keep_alive(request).await.map_err(text)?;
        let answer = answers.into_inner().message().await.map_err(text)?.unwrap();
        Ok(Some(answer.ttl).filter(|ttl| *ttl > 0))
    }

    pub async fn revoke(&self, id: LeaseId) -> Result<Revision, String> {
        let request = pb::LeaseRevokeRequest { id: id.0 };
        let answer = self.leases().lease_revoke(request).await.map_err(text)?.into_inner();
        Ok(revision(answer.header.unwrap().revision))
    }

    pub async fn watch(
        &self,
        range: &KeyRange,
        after: Revision,
        until: Revision,
    ) -> Result<Vec<Event>, String> {
        let (key, range_end) = named(range);
        let start_revision = signed(after.0 + 1);
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision,
            prev_kv: true,
            ..Default::default()
        };
        let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = stream::iter([create]).chain(stream::pending());
        let mut client = WatchClient::new(self.channel.clone());
        let mut answers = client.watch(requests).await.map_err(text)?.into_inner();
        let mut events: Vec<Event> = Vec::new();
        while events.last().is_none_or(|event| event.revision < until) {
            let answer = answers.message().await.map_err(text)?.ok_or("closed")?;
            if answer.compact_revision > 0 {
                return Err("compacted".to_owned());
            }
            events.extend(answer.events.into_iter().map(|event| self.event(event)));
        }
        Ok(events)
    }

    fn event(&self, event: mvccpb::Event) -> Event {
        let deleted = event.r#type() == mvccpb::event::EventType::Delete;
        let kv = event.kv.unwrap();
        Event {
            revision: revision(kv.mod_revision),
            key: kv.key.clone(),
            new: self.scope.key_value(kv).filter(|_| !deleted),
            old: event.prev_kv.and_then(|kv| self.scope.key_value(kv)),
        }
    }
}

/// A refusal as our own errors put it.
fn text(status: Status) -> String {
    status.message().trim_start_matches("etcdserver: ").trim_start_matches("mvcc: ").to_owned()
}

//! The Election service: those who campaign stand in a queue, and the first one leads.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use knarr_etcd_model::auth::{Need, Right};
use knarr_etcdpb::v3electionpb as pb;
use knarr_mvcc::{
    Compare, CompareOp, CompareTarget, KeyRange, KeyValue, LeaseId, Op, Order, OrderBy, Query,
    Revision, Txn,
};
use knarr_store::Watch;
use pb::election_server::Election;
use tonic::{Request, Response, Status};

use crate::face::{Caller, Face};
use crate::lock::Waiting;
use crate::refusal::unreadable;
use crate::wire::{Asked, key_value, revision, signed};

/// The service needs to outlive a call for its streams.
#[derive(Clone, Debug)]
pub(crate) struct Elections(pub(crate) Arc<Face>);

impl Face {
    /// Who leads below a name: the oldest key, as of now.
    fn leader(&self, name: &Bytes) -> Result<(Revision, Option<KeyValue>), Status> {
        let query = Query {
            order: Some(Order { by: OrderBy::Create, descending: false }),
            limit: 1,
            ..Query::of(below(name))
        };
        let (now, found) = self.store.read(|keyspace, now| (now, keyspace.query(&query)));
        Ok((now, found.map_err(unreadable)?.kvs.pop()))
    }

    /// Does something with a leader's key, if it still leads.
    async fn as_leader(
        &self,
        caller: &Caller,
        leader: Option<pb::LeaderKey>,
        op: impl FnOnce(&pb::LeaderKey) -> Op,
    ) -> Result<bool, Status> {
        let leader =
            leader.ok_or_else(|| Status::invalid_argument("\"leader\" field must be provided"))?;
        let range = KeyRange::single(leader.key.clone());
        let needs = vec![Need { right: Right::Write, range: range.clone() }];
        let target = CompareTarget::Create(revision(leader.rev));
        let compare = vec![Compare { range, op: CompareOp::Equal, target }];
        let txn = Txn { compare, success: vec![op(&leader)], failure: Vec::new() };
        let leases = vec![LeaseId(leader.lease)];
        Ok(self.run(caller, Asked { txn, needs, leases }).await?.succeeded)
    }
}

fn below(name: &Bytes) -> KeyRange {
    KeyRange::prefix([&name[..], b"/"].concat())
}

fn no_leader() -> Status {
    Status::unknown("election: no leader")
}

#[tonic::async_trait]
impl Election for Elections {
    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Response<pb::CampaignResponse>, Status> {
        let face = &self.0;
        let caller = face.caller(&request)?;
        let pb::CampaignRequest { name, lease, value } = request.into_inner();
        let (place, new) = face.queue_up(&caller, &name, lease, value.clone()).await?;
        let leader = pb::LeaderKey {
            name,
            key: place.key.clone(),
            rev: signed(place.created.0),
            lease: place.lease.0,
        };
        let mut waiting = Waiting::new(face.clone(), caller.clone(), place);
        if !new {
            // Whoever campaigns again says something new from the same place.
            face.as_leader(&caller, Some(leader.clone()), |leader| proclaimed(leader, value))
                .await?;
        }
        let revision = face.first_in_line(waiting.place()).await?;
        waiting.done();
        let header = Some(face.header(revision));
        Ok(Response::new(pb::CampaignResponse { header, leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Response<pb::ProclaimResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let leads = self.0.as_leader(&caller, leader, |leader| proclaimed(leader, value)).await?;
        if !leads {
            return Err(Status::unknown("election: not leader"));
        }
        Ok(Response::new(pb::ProclaimResponse { header: self.0.header_now() }))
    }

    async fn leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<pb::LeaderResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let name = request.into_inner().name;
        self.0.may_read(&caller, &name)?;
        let (now, leader) = self.0.leader(&name)?;
        let kv = Some(key_value(leader.ok_or_else(no_leader)?));
        Ok(Response::new(pb::LeaderResponse { header: Some(self.0.header(now)), kv }))
    }

    type ObserveStream = BoxStream<'static, Result<pb::LeaderResponse, Status>>;

    async fn observe(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = self.0.caller(&request)?;
        let name = request.into_inner().name;
        self.0.may_read(&caller, &name)?;
        let watch = self.0.store.watch(below(&name), self.0.store.durable());
        let observer = Observer { face: self.0.clone(), name, watch, told: None };
        Ok(Response::new(stream::unfold(observer, Observer::next).boxed()))
    }

    async fn resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<Response<pb::ResignResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let delete =
            |leader: &pb::LeaderKey| Op::Delete { range: KeyRange::single(leader.key.clone()) };
        self.0.as_leader(&caller, request.into_inner().leader, delete).await?;
        Ok(Response::new(pb::ResignResponse { header: self.0.header_now() }))
    }
}

impl Face {
    fn may_read(&self, caller: &Caller, name: &Bytes) -> Result<(), Status> {
        self.judge(&self.auth(), caller, &[Need { right: Right::Read, range: below(name) }])
    }
}

fn proclaimed(leader: &pb::LeaderKey, value: Bytes) -> Op {
    Op::Put { key: leader.key.clone(), value, lease: LeaseId(leader.lease) }
}

/// Follows who leads and what they say.
struct Observer {
    face: Arc<Face>,
    name: Bytes,
    watch: Watch,
    /// The revision of what was told last.
    told: Option<Revision>,
}

impl Observer {
    async fn next(mut self) -> Option<(Result<pb::LeaderResponse, Status>, Self)> {
        loop {
            match self.face.leader(&self.name) {
                Err(status) => return Some((Err(status), self)),
                Ok((now, Some(kv))) if self.told != Some(kv.mod_revision) => {
                    self.told = Some(kv.mod_revision);
                    let header = Some(self.face.header(now));
                    let response = pb::LeaderResponse { header, kv: Some(key_value(kv)) };
                    return Some((Ok(response), self));
                }
                Ok(_) => {}
            }
            // The store is closed, or the watch fell off: the stream ends, and is begun anew.
            self.watch.next().await.ok()?;
        }
    }
}

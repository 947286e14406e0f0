//! The Lease service: grants, keep-alives, what is left, and who holds what.

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use knarr_etcd_model::auth::{Need, Right};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_mvcc::{Answer, Command, LeaseId};
use pb::lease_server::Lease;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

use crate::face::Face;
use crate::refusal::failed;
use crate::wire::signed;

/// The shortest life of a lease, in seconds: less than an election takes makes no sense.
const MIN_TTL: i64 = 2;

impl Face {
    async fn kept_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let ttl = self.store.lease_keep_alive(LeaseId(id)).await.map_err(failed)?.unwrap_or(0);
        Ok(pb::LeaseKeepAliveResponse { header: self.header_now(), id, ttl })
    }
}

/// The service needs to outlive a call for its streams.
#[derive(Clone, Debug)]
pub(crate) struct Leases(pub(crate) Arc<Face>);

#[tonic::async_trait]
impl Lease for Leases {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let pb::LeaseGrantRequest { id, ttl } = *request.get_ref();
        let (id, ttl_secs) = (LeaseId(id), ttl.max(MIN_TTL));
        let command = Command::LeaseGrant { id, ttl_secs, now: self.0.store.now() };
        let judge = |auth: &_| self.0.judge(auth, &caller, &[]);
        match self.0.commit(&caller, command, judge).await? {
            Answer::LeaseGrant { id, ttl_secs } => Ok(Response::new(pb::LeaseGrantResponse {
                header: self.0.header_now(),
                id: id.0,
                ttl: ttl_secs,
                error: String::new(),
            })),
            other => unreachable!("a lease grant answered {other:?}"),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let id = LeaseId(request.get_ref().id);
        let judge = |auth: &_| {
            let needs = self.0.lease_needs(id, Right::Write);
            self.0.judge(auth, &caller, &needs)
        };
        match self.0.commit(&caller, Command::LeaseRevoke { id }, judge).await? {
            Answer::LeaseRevoke(revision) => {
                let header = Some(self.0.header(revision));
                Ok(Response::new(pb::LeaseRevokeResponse { header }))
            }
            other => unreachable!("a lease revocation answered {other:?}"),
        }
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let face = self.0.clone();
        let alive = move |asked: Result<pb::LeaseKeepAliveRequest, Status>| {
            let face = face.clone();
            async move { face.kept_alive(asked?.id).await }
        };
        Ok(Response::new(request.into_inner().then(alive).boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let pb::LeaseTimeToLiveRequest { id, keys: wanted } = *request.get_ref();
        let needs: Vec<Need> =
            if wanted { self.0.lease_needs(LeaseId(id), Right::Read) } else { Vec::new() };
        self.0.judge(&self.0.auth(), &caller, &needs)?;
        let header = self.0.header_now();
        let gone = pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() };
        let left = self.0.store.lease_left(LeaseId(id));
        Ok(Response::new(left.map_or(gone, |(millis, granted_ttl)| pb::LeaseTimeToLiveResponse {
            header,
            id,
            ttl: signed(millis / 1000),
            granted_ttl,
            keys: needs.into_iter().map(|need| need.range.start).collect(),
        })))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let caller = self.0.caller(&request)?;
        self.0.judge(&self.0.auth(), &caller, &[])?;
        let status = |lease: &knarr_mvcc::Lease| pb::LeaseStatus { id: lease.id.0 };
        let leases = self.0.store.read(|keyspace, _| keyspace.leases().map(status).collect());
        Ok(Response::new(pb::LeaseLeasesResponse { header: self.0.header_now(), leases }))
    }
}

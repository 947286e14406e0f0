//! The Cluster service. This store is a group of one: it can say so, and tell its own addresses.

use knarr_etcdpb::etcdserverpb as pb;
use knarr_mvcc::Revision;
use pb::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use crate::face::Face;

impl Face {
    pub(crate) fn members(&self) -> Vec<pb::Member> {
        vec![pb::Member {
            id: self.store.identity().member,
            name: self.config.name.clone(),
            peer_ur_ls: self.config.peer_urls.clone(),
            client_ur_ls: self.config.client_urls.clone(),
            is_learner: false,
        }]
    }

    fn administrator<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = self.caller(request)?;
        self.administrates(&self.auth(), &caller)
    }

    fn known(&self, id: u64) -> Result<(), Status> {
        let known = id == self.store.identity().member;
        known.then_some(()).ok_or_else(|| Status::not_found("etcdserver: member not found"))
    }
}

/// What needs a second member.
fn alone(what: &str) -> Status {
    Status::unimplemented(format!("etcdserver: {what}: this store is a group of one member"))
}

#[tonic::async_trait]
impl Cluster for Face {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.administrator(&request)?;
        Err(alone("no member can be added"))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.administrator(&request)?;
        self.known(request.get_ref().id)?;
        Err(Status::failed_precondition(
            "etcdserver: re-configuration failed due to not enough started members",
        ))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.administrator(&request)?;
        self.known(request.get_ref().id)?;
        if request.get_ref().peer_ur_ls != self.config.peer_urls {
            return Err(alone("there are no peers that would dial other URLs"));
        }
        let (header, members) = (self.header_now(), self.members());
        Ok(Response::new(pb::MemberUpdateResponse { header, members }))
    }

    async fn member_list(
        &self,
        _: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        // Members have no revision; etcd says so by none.
        let (header, members) = (Some(self.header(Revision(0))), self.members());
        Ok(Response::new(pb::MemberListResponse { header, members }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.administrator(&request)?;
        self.known(request.get_ref().id)?;
        Err(Status::failed_precondition("etcdserver: can only promote a learner member"))
    }
}

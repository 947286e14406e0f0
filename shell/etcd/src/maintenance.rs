//! The Maintenance service: status, backups, hashes, alarms. What etcd's operators have to do by
//! hand (defragment, disarm) is not needed here, and says so by doing nothing.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use knarr_etcd_model::Image;
use knarr_etcdpb::etcdserverpb as pb;
use knarr_mvcc::Revision;
use pb::maintenance_server::Maintenance;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::face::Face;
use crate::pages::ETCD_VERSION;
use crate::refusal::unreadable;
use crate::wire::{revision, signed};

/// How many pieces of a snapshot wait for its reader.
const PIECES_AHEAD: usize = 4;

/// The service needs to outlive a call for its streams.
#[derive(Clone, Debug)]
pub(crate) struct Keeper(pub(crate) Arc<Face>);

impl Keeper {
    fn administrator<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = self.0.caller(request)?;
        self.0.administrates(&self.0.auth(), &caller)
    }
}

#[tonic::async_trait]
impl Maintenance for Keeper {
    async fn alarm(
        &self,
        request: Request<pb::AlarmRequest>,
    ) -> Result<Response<pb::AlarmResponse>, Status> {
        self.administrator(&request)?;
        Ok(Response::new(pb::AlarmResponse {
            header: self.0.header_now(),
            alarms: self.0.alarms(),
        }))
    }

    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        Ok(Response::new(self.0.status()))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.administrator(&request)?;
        tracing::info!("defragment: nothing to do, space is reclaimed as it becomes free");
        Ok(Response::new(pb::DefragmentResponse { header: self.0.header_now() }))
    }

    async fn hash(
        &self,
        request: Request<pb::HashRequest>,
    ) -> Result<Response<pb::HashResponse>, Status> {
        self.administrator(&request)?;
        let hashed = self.0.hash(0).await?;
        Ok(Response::new(pb::HashResponse { header: self.0.header_now(), hash: hashed.hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        self.administrator(&request)?;
        self.0.hash(request.get_ref().revision).await.map(Response::new)
    }

    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.administrator(&request)?;
        Ok(Response::new(self.0.clone().snapshot().boxed()))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.administrator(&request)?;
        if request.get_ref().target_id != self.0.store.identity().member {
            return Err(Status::failed_precondition("etcdserver: bad leader transferee"));
        }
        Ok(Response::new(pb::MoveLeaderResponse { header: self.0.header_now() }))
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.administrator(&request)?;
        let (code, text) = match request.get_ref().action() {
            pb::downgrade_request::DowngradeAction::Cancel => {
                (tonic::Code::FailedPrecondition, "no inflight downgrade job")
            }
            _ => (tonic::Code::InvalidArgument, "invalid downgrade target version"),
        };
        Err(Status::new(code, format!("etcdserver: {text}")))
    }
}

impl Face {
    /// What is wrong right now; alarms end by themselves.
    pub(crate) fn alarms(&self) -> Vec<pb::AlarmMember> {
        let weights = self.store.weights();
        let full = weights.is_full() || weights.disk_full;
        let alarm = || pb::AlarmMember {
            member_id: self.store.identity().member,
            alarm: pb::AlarmType::Nospace.into(),
        };
        full.then(alarm).into_iter().collect()
    }

    fn status(&self) -> pb::StatusResponse {
        let index = self.store.read(|keyspace, _| keyspace.index());
        let weights = self.store.weights();
        let bytes = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        let errors = self.alarms().into_iter().map(|alarm| {
            format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name())
        });
        pb::StatusResponse {
            header: self.header_now(),
            version: ETCD_VERSION.to_owned(),
            db_size: bytes(weights.live + weights.history),
            db_size_in_use: bytes(weights.live),
            db_size_quota: bytes(weights.budget),
            errors: errors.collect(),
            leader: self.store.identity().member,
            raft_index: index,
            raft_applied_index: index,
            raft_term: self.store.term(),
            storage_version: ETCD_VERSION.rsplit_once('.').map_or("", |(minor, _)| minor).into(),
            ..Default::default()
        }
    }

    /// etcd's checksum over all key-values up to a revision; 0 is now.
    async fn hash(&self, at: i64) -> Result<pb::HashKvResponse, Status> {
        let items = self.store.items();
        let at = items.meta().resolve(revision(at)).map_err(unreadable)?;
        let sum = move || {
            let image = Image::new(items);
            (image.hash_kv(at), image.compacted())
        };
        let summed = tokio::task::spawn_blocking(sum).await;
        let (hash, compacted) = summed.map_err(|error| Status::internal(error.to_string()))?;
        Ok(pb::HashKvResponse {
            header: self.header_now(),
            hash,
            // As etcd has it while nothing was compacted.
            compact_revision: if compacted == Revision(0) { -1 } else { signed(compacted.0) },
            hash_revision: signed(at.0),
        })
    }

    /// The state as it is now, as etcd's own file; a slow reader holds nobody up.
    fn snapshot(
        self: Arc<Self>,
    ) -> impl futures_util::Stream<Item = Result<pb::SnapshotResponse, Status>> {
        let (send, pieces) = mpsc::channel(PIECES_AHEAD);
        tokio::task::spawn_blocking(move || {
            let snapshot = self.store.etcd_snapshot();
            let mut remaining_bytes = snapshot.size();
            for blob in snapshot {
                remaining_bytes -= blob.len() as u64;
                let (header, version) = (self.header_now(), ETCD_VERSION.to_owned());
                let piece = pb::SnapshotResponse { header, remaining_bytes, blob, version };
                if send.blocking_send(Ok(piece)).is_err() {
                    return; // nobody reads on
                }
            }
        });
        ReceiverStream::new(pieces)
    }
}

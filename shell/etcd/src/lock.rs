//! The Lock service: keys below a name, each under a lease; the oldest one owns it.
//!
//! Written as any client would write it, on the other services: a lock is nothing but keys.

use std::sync::Arc;

use bytes::Bytes;
use knarr_etcd_model::auth::{Need, Right};
use knarr_etcdpb::v3lockpb as pb;
use knarr_mvcc::{
    Answer, Command, Compare, CompareOp, CompareTarget, KeyRange, KeyValue, LeaseId, Op,
    OpResponse, Order, OrderBy, Query, Revision, Txn,
};
use pb::lock_server::Lock;
use tonic::{Request, Response, Status};

use crate::face::{Caller, Face};
use crate::refusal::unreadable;
use crate::wire::Asked;

/// How long a lease lives that nobody named, in seconds.
const SESSION_TTL: i64 = 60;

/// A place in the queue for a name.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) prefix: Bytes,
    pub(crate) key: Bytes,
    pub(crate) created: Revision,
    pub(crate) lease: LeaseId,
}

/// The service needs to outlive a call for leases that nobody named.
#[derive(Clone, Debug)]
pub(crate) struct Locks(pub(crate) Arc<Face>);

impl Face {
    /// Takes a place below `name`: the one this lease has already, or a new one at the end.
    /// The value is written where the place is new. Whether it was, comes along.
    pub(crate) async fn queue_up(
        &self,
        caller: &Caller,
        name: &Bytes,
        lease: i64,
        value: Bytes,
    ) -> Result<(Place, bool), Status> {
        let lease = match lease {
            0 => self.session(caller).await?,
            id => LeaseId(id),
        };
        let prefix = Bytes::from([&name[..], b"/"].concat());
        let key = Bytes::from([&prefix[..], format!("{:x}", lease.0).as_bytes()].concat());
        let absent = Compare {
            range: KeyRange::single(key.clone()),
            op: CompareOp::Equal,
            target: CompareTarget::Create(Revision(0)),
        };
        let txn = Txn {
            compare: vec![absent],
            success: vec![Op::Put { key: key.clone(), value, lease }],
            failure: vec![Op::Range(Query::one(key.clone()))],
        };
        let needs = [Right::Read, Right::Write]
            .map(|right| Need { right, range: KeyRange::prefix(prefix.clone()) });
        let asked = Asked { txn, needs: needs.into(), leases: vec![lease] };
        let answer = self.run(caller, asked).await?;
        let created = match answer.responses.into_iter().next() {
            Some(OpResponse::Range(found)) => {
                found.kvs.first().map_or(answer.revision, |kv| kv.create_revision)
            }
            _ => answer.revision,
        };
        Ok((Place { prefix, key, created, lease }, answer.succeeded))
    }

    /// A lease for somebody who named none.
    async fn session(&self, caller: &Caller) -> Result<LeaseId, Status> {
        let command =
            Command::LeaseGrant { id: LeaseId(0), ttl_secs: SESSION_TTL, now: self.store.now() };
        let judge = |auth: &_| self.judge(auth, caller, &[]);
        match self.commit(caller, command, judge).await? {
            Answer::LeaseGrant { id, .. } => Ok(id),
            other => unreachable!("a lease grant answered {other:?}"),
        }
    }

    /// Waits until every older place below the prefix is gone; the revision at which that was so.
    ///
    /// # Errors
    /// When the own place is gone meanwhile: its lease has ended.
    pub(crate) async fn first_in_line(&self, place: &Place) -> Result<Revision, Status> {
        loop {
            let (now, own, older) = self.store.read(|keyspace, now| {
                let own = keyspace.get(&place.key, now).ok().flatten();
                (now, own, keyspace.query(&older_than(place)))
            });
            if own.is_none_or(|own| own.create_revision != place.created) {
                return Err(Status::unavailable("etcdserver: session expired"));
            }
            let Some(ahead) = older.map_err(unreadable)?.kvs.pop() else { return Ok(now) };
            self.gone(&ahead, place, now).await?;
        }
    }

    /// Waits until a key of somebody ahead is deleted, or the own one is.
    async fn gone(&self, ahead: &KeyValue, place: &Place, now: Revision) -> Result<(), Status> {
        let deleted = async |key: Bytes| {
            let mut watch = self.store.watch(KeyRange::single(key), now);
            loop {
                let batch = watch
                    .next()
                    .await
                    .map_err(|error| Status::unavailable(format!("etcdserver: {error}")))?;
                if batch.events.iter().any(|event| event.new.is_none()) {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            done = deleted(ahead.key.clone()) => done,
            done = deleted(place.key.clone()) => done,
        }
    }
}

/// The youngest of those that are older.
fn older_than(place: &Place) -> Query {
    Query {
        created: (Revision(0), place.created.previous()),
        order: Some(Order { by: OrderBy::Create, descending: true }),
        limit: 1,
        ..Query::of(KeyRange::prefix(place.prefix.clone()))
    }
}

#[tonic::async_trait]
impl Lock for Locks {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        let face = &self.0;
        let caller = face.caller(&request)?;
        let pb::LockRequest { name, lease } = request.into_inner();
        let (place, _) = face.queue_up(&caller, &name, lease, Bytes::new()).await?;
        let key = place.key.clone();
        // A caller that leaves gives its place up.
        let mut waiting = Waiting::new(face.clone(), caller, place);
        let revision = face.first_in_line(waiting.place()).await?;
        waiting.done();
        Ok(Response::new(pb::LockResponse { header: Some(face.header(revision)), key }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let key = request.into_inner().key;
        self.0.delete(&caller, key).await?;
        Ok(Response::new(pb::UnlockResponse { header: self.0.header_now() }))
    }
}

impl Face {
    async fn delete(&self, caller: &Caller, key: Bytes) -> Result<(), Status> {
        let range = KeyRange::single(key);
        let needs = vec![Need { right: Right::Write, range: range.clone() }];
        let txn = Txn { success: vec![Op::Delete { range }], ..Txn::default() };
        self.run(caller, Asked { txn, needs, leases: Vec::new() }).await.map(drop)
    }
}

/// Gives a place up when nobody waits at it any more.
pub(crate) struct Waiting {
    face: Arc<Face>,
    caller: Caller,
    place: Option<Place>,
    held: Place,
}

impl Waiting {
    pub(crate) fn new(face: Arc<Face>, caller: Caller, place: Place) -> Self {
        Self { face, caller, held: place.clone(), place: Some(place) }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.held
    }

    /// The place was reached: it stays.
    pub(crate) fn done(&mut self) {
        self.place = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        let (face, caller) = (self.face.clone(), self.caller.clone());
        tokio::spawn(async move {
            if let Err(status) = face.delete(&caller, place.key).await {
                tracing::debug!(%status, "a place in a queue ends with its lease");
            }
        });
    }
}

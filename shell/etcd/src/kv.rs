//! The KV service: range, put, delete, transactions, compaction.

use knarr_etcd_model::auth::{Need, Right};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_mvcc::{Answer, Command, ReadError, TxnResponse};
use pb::kv_server::Kv;
use pb::request_op::Request as Operation;
use pb::response_op::Response as Outcome;
use tonic::{Request, Response, Status};

use crate::face::{Caller, Face};
use crate::refusal::{refused, unreadable, untold};
use crate::wire::{Asked, op_response, query, range_response, revision, txn_response};

impl Face {
    /// Judges a transaction and runs it; off the log where it only reads.
    pub(crate) async fn run(&self, caller: &Caller, asked: Asked) -> Result<TxnResponse, Status> {
        let Asked { txn, needs, leases } = asked;
        if txn.only_reads() {
            self.judge(&self.auth(), caller, &needs)?;
            txn.check().map_err(refused)?;
            return self.store.read(|keyspace, _| keyspace.read_txn(&txn)).map_err(refused);
        }
        let judge = |auth: &_| {
            // Whoever puts a key under a lease could end its other keys with it.
            let held = leases.iter().flat_map(|id| self.lease_needs(*id, Right::Write));
            let all: Vec<Need> = needs.iter().cloned().chain(held).collect();
            self.judge(auth, caller, &all)
        };
        match self.commit(caller, Command::Txn(txn), judge).await? {
            Answer::Txn(response) => Ok(response),
            other => unreachable!("a transaction answered {other:?}"),
        }
    }

    /// Runs one operation as a transaction of its own.
    async fn run_one(&self, caller: &Caller, operation: Operation) -> Result<Outcome, Status> {
        let mut answer = self.run(caller, Asked::one(&operation)?).await?;
        let outcome = answer.responses.pop().expect("one operation has one answer");
        Ok(op_response(self.header(answer.revision), &operation, outcome))
    }
}

#[tonic::async_trait]
impl Kv for Face {
    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let caller = self.caller(&request)?;
        let query = query(request.get_ref())?;
        let need = Need { right: Right::Read, range: query.range.clone() };
        self.judge(&self.auth(), &caller, &[need])?;
        let (revision, found) =
            self.store.read(|keyspace, revision| (revision, keyspace.query(&query)));
        let found = match found {
            // Memory does not go back so far; the disk may.
            Err(ReadError::Compacted(_)) => self.store.query(query).await.map_err(untold)?,
            found => found.map_err(unreadable)?,
        };
        Ok(Response::new(range_response(self.header(revision), found)))
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        let caller = self.caller(&request)?;
        match self.run_one(&caller, Operation::RequestPut(request.into_inner())).await? {
            Outcome::ResponsePut(response) => Ok(Response::new(response)),
            other => unreachable!("a put answered {other:?}"),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let caller = self.caller(&request)?;
        match self.run_one(&caller, Operation::RequestDeleteRange(request.into_inner())).await? {
            Outcome::ResponseDeleteRange(response) => Ok(Response::new(response)),
            other => unreachable!("a deletion answered {other:?}"),
        }
    }

    async fn txn(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let answer = self.run(&caller, Asked::many(&request, self.config.max_txn_ops)?).await?;
        let header = self.header(answer.revision);
        Ok(Response::new(txn_response(header, &request, answer)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let caller = self.caller(&request)?;
        let revision = revision(request.get_ref().revision);
        // Whoever can log in may, as with etcd.
        let judge = |auth: &_| self.judge(auth, &caller, &[]);
        self.commit(&caller, Command::Compact { revision }, judge).await?;
        Ok(Response::new(pb::CompactionResponse { header: self.header_now() }))
    }
}

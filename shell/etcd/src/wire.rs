//! Requests as transactions of the keyspace, and its answers as responses. What a request needs the
//! right to do is collected on the way.

use bytes::Bytes;
use knarr_etcd_model::auth::{Need, Right, range};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::mvccpb;
use knarr_mvcc::{
    Compare, CompareOp, CompareTarget, KeyValue, LeaseId, Op, OpResponse, Order, OrderBy, Part,
    Query, RangeResult, Revision, Txn, TxnResponse,
};
use pb::request_op::Request;
use pb::response_op::Response;

use crate::refusal::Malformed;

/// A transaction and what its sender must be allowed.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) txn: Txn,
    pub(crate) needs: Vec<Need>,
    /// Leases that keys are put under: their other keys must be writable too.
    pub(crate) leases: Vec<LeaseId>,
}

impl Asked {
    /// A transaction of one operation.
    pub(crate) fn one(request: &Request) -> Result<Self, Malformed> {
        let mut asked = Self::default();
        let op = asked.op(request, 0)?;
        asked.txn.success.push(op);
        Ok(asked)
    }

    /// A transaction of at most `limit` operations in each list, of which those nested have what is
    /// left.
    pub(crate) fn many(txn: &pb::TxnRequest, limit: usize) -> Result<Self, Malformed> {
        let mut asked = Self::default();
        asked.txn = asked.txn(txn, limit)?;
        Ok(asked)
    }

    fn need(&mut self, right: Right, key: &Bytes, end: &Bytes) {
        self.needs.push(Need { right, range: range(key.clone(), end.clone()) });
    }

    fn txn(&mut self, txn: &pb::TxnRequest, limit: usize) -> Result<Txn, Malformed> {
        let count = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
        let rest = limit.checked_sub(count).ok_or(Malformed::TooManyOps)?;
        let mut compare = |compare| self.compare(compare);
        Ok(Txn {
            compare: txn.compare.iter().map(&mut compare).collect::<Result<_, _>>()?,
            success: self.ops(&txn.success, rest)?,
            failure: self.ops(&txn.failure, rest)?,
        })
    }

    fn ops(&mut self, ops: &[pb::RequestOp], limit: usize) -> Result<Vec<Op>, Malformed> {
        let mut read =
            |op: &pb::RequestOp| self.op(op.request.as_ref().ok_or(Malformed::NoRequest)?, limit);
        ops.iter().map(&mut read).collect()
    }

    fn op(&mut self, request: &Request, limit: usize) -> Result<Op, Malformed> {
        match request {
            Request::RequestRange(request) => {
                self.need(Right::Read, &request.key, &request.range_end);
                query(request).map(Op::Range)
            }
            Request::RequestPut(request) => self.put(request),
            Request::RequestDeleteRange(request) => {
                let (key, end) = (&request.key, &request.range_end);
                if key.is_empty() {
                    return Err(Malformed::EmptyKey);
                }
                self.need(Right::Write, key, end);
                if request.prev_kv {
                    self.need(Right::Read, key, end);
                }
                Ok(Op::Delete { range: range(key.clone(), end.clone()) })
            }
            Request::RequestTxn(request) => self.txn(request, limit).map(Op::Txn),
        }
    }

    fn put(&mut self, request: &pb::PutRequest) -> Result<Op, Malformed> {
        let key = request.key.clone();
        match request {
            _ if key.is_empty() => return Err(Malformed::EmptyKey),
            _ if request.ignore_value && !request.value.is_empty() => {
                return Err(Malformed::ValueProvided);
            }
            _ if request.ignore_lease && request.lease != 0 => {
                return Err(Malformed::LeaseProvided);
            }
            _ => {}
        }
        self.need(Right::Write, &key, &Bytes::new());
        if request.prev_kv {
            self.need(Right::Read, &key, &Bytes::new());
        }
        let (value, lease) = (request.value.clone(), LeaseId(request.lease));
        if lease != LeaseId(0) {
            self.leases.push(lease);
        }
        Ok(match (request.ignore_value, request.ignore_lease) {
            (false, false) => Op::Put { key, value, lease },
            (keep_value, keep_lease) => Op::Amend {
                key,
                value: (!keep_value).then_some(value),
                lease: (!keep_lease).then_some(lease),
            },
        })
    }

    fn compare(&mut self, compare: &pb::Compare) -> Result<Compare, Malformed> {
        if compare.key.is_empty() {
            return Err(Malformed::EmptyKey);
        }
        self.need(Right::Read, &compare.key, &compare.range_end);
        let op = match compare.result() {
            pb::compare::CompareResult::Equal => CompareOp::Equal,
            pb::compare::CompareResult::Greater => CompareOp::Greater,
            pb::compare::CompareResult::Less => CompareOp::Less,
            pb::compare::CompareResult::NotEqual => CompareOp::NotEqual,
        };
        let range = range(compare.key.clone(), compare.range_end.clone());
        Ok(Compare { range, op, target: target(compare) })
    }
}

/// The right-hand side that fits the named target; one that does not is as none.
fn target(compare: &pb::Compare) -> CompareTarget {
    use pb::compare::{CompareTarget as Named, TargetUnion as Given};
    let given = compare.target_union.as_ref();
    let number = |pick: fn(&Given) -> Option<i64>| given.and_then(pick).unwrap_or_default();
    match compare.target() {
        Named::Version => CompareTarget::Version(unsigned(number(|given| match given {
            Given::Version(n) => Some(*n),
            _ => None,
        }))),
        Named::Create => CompareTarget::Create(revision(number(|given| match given {
            Given::CreateRevision(n) => Some(*n),
            _ => None,
        }))),
        Named::Mod => CompareTarget::Mod(revision(number(|given| match given {
            Given::ModRevision(n) => Some(*n),
            _ => None,
        }))),
        Named::Lease => CompareTarget::Lease(LeaseId(number(|given| match given {
            Given::Lease(n) => Some(*n),
            _ => None,
        }))),
        Named::Value => CompareTarget::Value(match given {
            Some(Given::Value(value)) => value.clone(),
            _ => Bytes::new(),
        }),
    }
}

/// A range request as a query.
pub(crate) fn query(request: &pb::RangeRequest) -> Result<Query, Malformed> {
    if request.key.is_empty() {
        return Err(Malformed::EmptyKey);
    }
    let part = match (request.count_only, request.keys_only) {
        (true, _) => Part::Count,
        (false, true) => Part::Keys,
        (false, false) => Part::Whole,
    };
    Ok(Query {
        at: revision(request.revision),
        limit: usize::try_from(request.limit).unwrap_or(0),
        order: order(request)?,
        modified: (revision(request.min_mod_revision), revision(request.max_mod_revision)),
        created: (revision(request.min_create_revision), revision(request.max_create_revision)),
        part,
        ..Query::of(range(request.key.clone(), request.range_end.clone()))
    })
}

/// The order of the answer; key-values come by key, ascending, by themselves.
fn order(request: &pb::RangeRequest) -> Result<Option<Order>, Malformed> {
    use pb::range_request::{SortOrder, SortTarget};
    let invalid = |_| Malformed::InvalidSortOption;
    let by = match SortTarget::try_from(request.sort_target).map_err(invalid)? {
        SortTarget::Key => OrderBy::Key,
        SortTarget::Version => OrderBy::Version,
        SortTarget::Create => OrderBy::Create,
        SortTarget::Mod => OrderBy::Mod,
        SortTarget::Value => OrderBy::Value,
    };
    let order = SortOrder::try_from(request.sort_order).map_err(invalid)?;
    let descending = order == SortOrder::Descend;
    Ok((by != OrderBy::Key || descending).then_some(Order { by, descending }))
}

/// A revision of a request; what is below zero means the same as zero.
pub(crate) fn revision(number: i64) -> Revision {
    Revision(unsigned(number))
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A number as the wire has it.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A key-value as the wire has it.
pub(crate) fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: signed(kv.create_revision.0),
        mod_revision: signed(kv.mod_revision.0),
        version: signed(kv.version),
        value: kv.value,
        lease: kv.lease.0,
    }
}

/// The answer to a read.
pub(crate) fn range_response(header: pb::ResponseHeader, found: RangeResult) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: found.kvs.into_iter().map(key_value).collect(),
        more: found.more,
        count: i64::try_from(found.count).unwrap_or(i64::MAX),
    }
}

/// The answer to a transaction, by what was asked.
pub(crate) fn txn_response(
    header: pb::ResponseHeader,
    request: &pb::TxnRequest,
    answer: TxnResponse,
) -> pb::TxnResponse {
    let asked = if answer.succeeded { &request.success } else { &request.failure };
    // What is nested says only at which revision.
    let inner = pb::ResponseHeader { revision: header.revision, ..Default::default() };
    let answers = asked.iter().zip(answer.responses);
    let responses = answers.filter_map(|(asked, answer)| {
        let response = op_response(inner, asked.request.as_ref()?, answer);
        Some(pb::ResponseOp { response: Some(response) })
    });
    pb::TxnResponse {
        header: Some(header),
        succeeded: answer.succeeded,
        responses: responses.collect(),
    }
}

/// The answer to one operation, by what was asked: previous key-values only where they were.
pub(crate) fn op_response(
    header: pb::ResponseHeader,
    request: &Request,
    answer: OpResponse,
) -> Response {
    match (request, answer) {
        (Request::RequestPut(asked), OpResponse::Put(old)) => {
            let prev_kv = old.filter(|_| asked.prev_kv).map(|old| key_value(old.kv()));
            Response::ResponsePut(pb::PutResponse { header: Some(header), prev_kv })
        }
        (Request::RequestDeleteRange(asked), OpResponse::Delete(gone)) => {
            let deleted = i64::try_from(gone.len()).unwrap_or(i64::MAX);
            let kept = if asked.prev_kv { gone } else { Vec::new() };
            let prev_kvs = kept.iter().map(|gone| key_value(gone.kv())).collect();
            let header = Some(header);
            Response::ResponseDeleteRange(pb::DeleteRangeResponse { header, deleted, prev_kvs })
        }
        (Request::RequestTxn(asked), OpResponse::Txn(answer)) => {
            let answer = txn_response(header, asked, answer);
            // Of a nested transaction only the operations have a head that says something.
            Response::ResponseTxn(pb::TxnResponse { header: Some(Default::default()), ..answer })
        }
        (_, OpResponse::Range(found)) => Response::ResponseRange(range_response(header, found)),
        (asked, answer) => unreachable!("{asked:?} was answered by {answer:?}"),
    }
}

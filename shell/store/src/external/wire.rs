//! What is asked of etcd and what it answers, in its words: our types to messages and back, keys
//! renamed and values turned on the way.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use knarr_etcdpb::etcdserverpb::compare::{CompareResult, CompareTarget as Target, TargetUnion};
use knarr_etcdpb::etcdserverpb::range_request::{SortOrder, SortTarget};
use knarr_etcdpb::etcdserverpb::request_op::Request;
use knarr_etcdpb::etcdserverpb::response_op::Response;
use knarr_etcdpb::{etcdserverpb as pb, mvccpb};
use knarr_mvcc::{
    Compare, CompareOp, CompareTarget, KeyRange, KeyValue, LeaseId, Op, OpResponse, OrderBy, Part,
    Query, RangeEnd, RangeResult, Revision, Txn, TxnResponse, Version,
};

/// Makes of what others wrote under a key what we would have written.
pub type Canonical = Arc<dyn Fn(&[u8], Bytes) -> Bytes + Send + Sync>;

/// Which keys of etcd are ours, and how they and their values look here.
#[derive(Clone)]
pub struct Scope {
    /// What our keys begin with here.
    pub ours: Bytes,
    /// What they begin with in etcd.
    pub theirs: Bytes,
    /// How their values look here.
    pub canonical: Canonical,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("ours", &self.ours).field("theirs", &self.theirs).finish()
    }
}

impl Scope {
    /// All of etcd's keys as they are.
    pub fn everything() -> Self {
        let canonical = Arc::new(|_: &[u8], value| value);
        Self { ours: Bytes::new(), theirs: Bytes::new(), canonical }
    }

    /// Everything of ours in etcd.
    pub(crate) fn range(&self) -> KeyRange {
        KeyRange::prefix(self.theirs.clone())
    }

    /// One of our keys as it is in etcd.
    fn out(&self, key: &Bytes) -> Bytes {
        rename(key, &self.ours, &self.theirs).unwrap_or_else(|| key.clone())
    }

    /// A key of etcd as it is here, if it is ours.
    pub(crate) fn key(&self, key: &Bytes) -> Option<Bytes> {
        rename(key, &self.theirs, &self.ours)
    }

    /// A key-value of etcd as it is here, if it is ours.
    pub fn key_value(&self, kv: mvccpb::KeyValue) -> Option<KeyValue> {
        let key = self.key(&kv.key)?;
        Some(KeyValue {
            value: (self.canonical)(&key, kv.value),
            key,
            create_revision: revision(kv.create_revision),
            mod_revision: revision(kv.mod_revision),
            version: revision(kv.version).0,
            lease: LeaseId(kv.lease),
        })
    }

    fn key_values(&self, kvs: Vec<mvccpb::KeyValue>) -> Vec<KeyValue> {
        kvs.into_iter().filter_map(|kv| self.key_value(kv)).collect()
    }

    /// A range as etcd names it: key and end. A range over all that is ours stays within it.
    fn bounds(&self, range: &KeyRange) -> (Bytes, Bytes) {
        let all = KeyRange::prefix(self.ours.clone()).end;
        let end = match &range.end {
            RangeEnd::Single => return (self.out(&range.start), Bytes::new()),
            end if *end == RangeEnd::Unbounded || *end == all => self.range().end,
            RangeEnd::Before(end) => RangeEnd::Before(self.out(end)),
            RangeEnd::Unbounded => unreachable!("matched above"),
        };
        let start = match range.start.is_empty() {
            true => self.theirs.clone(),
            false => self.out(&range.start),
        };
        named(&KeyRange { start, end })
    }

    /// A read.
    pub fn query(&self, query: &Query) -> pb::RangeRequest {
        let (key, range_end) = self.bounds(&query.range);
        let order = query.order.map_or(SortOrder::None, |order| match order.descending {
            true => SortOrder::Descend,
            false => SortOrder::Ascend,
        });
        let target = query.order.map_or(SortTarget::Key, |order| match order.by {
            OrderBy::Key => SortTarget::Key,
            OrderBy::Version => SortTarget::Version,
            OrderBy::Create => SortTarget::Create,
            OrderBy::Mod => SortTarget::Mod,
            OrderBy::Value => SortTarget::Value,
        });
        pb::RangeRequest {
            key,
            range_end,
            limit: i64::try_from(query.limit).unwrap_or(i64::MAX),
            revision: signed(query.at.0),
            sort_order: order.into(),
            sort_target: target.into(),
            serializable: false,
            keys_only: query.part == Part::Keys,
            count_only: query.part == Part::Count,
            min_mod_revision: signed(query.modified.0.0),
            max_mod_revision: signed(query.modified.1.0),
            min_create_revision: signed(query.created.0.0),
            max_create_revision: signed(query.created.1.0),
        }
    }

    /// A transaction.
    pub fn txn(&self, txn: &Txn) -> pb::TxnRequest {
        let ops = |ops: &[Op]| ops.iter().map(|op| self.op(op)).collect();
        pb::TxnRequest {
            compare: txn.compare.iter().map(|compare| self.compare(compare)).collect(),
            success: ops(&txn.success),
            failure: ops(&txn.failure),
        }
    }

    fn op(&self, op: &Op) -> pb::RequestOp {
        let request = match op {
            Op::Put { key, value, lease } => Request::RequestPut(pb::PutRequest {
                key: self.out(key),
                value: value.clone(),
                lease: lease.0,
                prev_kv: true,
                ..pb::PutRequest::default()
            }),
            Op::Amend { key, value, lease } => Request::RequestPut(pb::PutRequest {
                key: self.out(key),
                value: value.clone().unwrap_or_default(),
                lease: lease.unwrap_or_default().0,
                prev_kv: true,
                ignore_value: value.is_none(),
                ignore_lease: lease.is_none(),
            }),
            Op::Delete { range } => {
                let (key, range_end) = self.bounds(range);
                let request = pb::DeleteRangeRequest { key, range_end, prev_kv: true };
                Request::RequestDeleteRange(request)
            }
            Op::Range(query) => Request::RequestRange(self.query(query)),
            Op::Txn(txn) => Request::RequestTxn(self.txn(txn)),
        };
        pb::RequestOp { request: Some(request) }
    }

    fn compare(&self, compare: &Compare) -> pb::Compare {
        let (key, range_end) = self.bounds(&compare.range);
        let result = match compare.op {
            CompareOp::Equal => CompareResult::Equal,
            CompareOp::NotEqual => CompareResult::NotEqual,
            CompareOp::Greater => CompareResult::Greater,
            CompareOp::Less => CompareResult::Less,
        };
        let (target, value) = match &compare.target {
            CompareTarget::Version(n) => (Target::Version, TargetUnion::Version(signed(*n))),
            CompareTarget::Create(at) => {
                (Target::Create, TargetUnion::CreateRevision(signed(at.0)))
            }
            CompareTarget::Mod(at) => (Target::Mod, TargetUnion::ModRevision(signed(at.0))),
            CompareTarget::Value(value) => (Target::Value, TargetUnion::Value(value.clone())),
            CompareTarget::Lease(id) => (Target::Lease, TargetUnion::Lease(id.0)),
        };
        pb::Compare {
            result: result.into(),
            target: target.into(),
            key,
            range_end,
            target_union: Some(value),
        }
    }

    /// The answer to a read.
    pub fn found(&self, answer: pb::RangeResponse) -> RangeResult {
        RangeResult {
            kvs: self.key_values(answer.kvs),
            count: usize::try_from(answer.count).unwrap_or(0),
            more: answer.more,
        }
    }

    /// The answer to a transaction.
    pub fn done(&self, answer: pb::TxnResponse) -> TxnResponse {
        let at = answer.header.as_ref().map_or(Revision(0), |header| revision(header.revision));
        self.done_at(answer, at)
    }

    /// etcd leaves the revision out of nested answers; it is that of the whole.
    fn done_at(&self, answer: pb::TxnResponse, at: Revision) -> TxnResponse {
        let responses = answer.responses.into_iter().filter_map(|op| op.response);
        let responses = responses.map(|response| match response {
            Response::ResponsePut(put) => {
                let old = put.prev_kv.and_then(|kv| self.key_value(kv));
                OpResponse::Put(old.as_ref().map(Version::of))
            }
            Response::ResponseDeleteRange(gone) => {
                let gone = self.key_values(gone.prev_kvs);
                OpResponse::Delete(gone.iter().map(Version::of).collect())
            }
            Response::ResponseRange(found) => OpResponse::Range(self.found(found)),
            Response::ResponseTxn(nested) => OpResponse::Txn(self.done_at(nested, at)),
        });
        TxnResponse { revision: at, succeeded: answer.succeeded, responses: responses.collect() }
    }
}

/// A range as etcd names it: a zero byte is the first key, and as an end no end.
pub fn named(range: &KeyRange) -> (Bytes, Bytes) {
    const ZERO: Bytes = Bytes::from_static(b"\0");
    let end = match &range.end {
        RangeEnd::Single => return (range.start.clone(), Bytes::new()),
        RangeEnd::Before(end) => end.clone(),
        RangeEnd::Unbounded => ZERO,
    };
    (if range.start.is_empty() { ZERO } else { range.start.clone() }, end)
}

/// A revision (or a version) as etcd counts: never negative.
pub fn revision(n: i64) -> Revision {
    Revision(u64::try_from(n).unwrap_or(0))
}

/// A number as etcd sends it.
pub fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A key with another beginning.
fn rename(key: &Bytes, from: &Bytes, to: &Bytes) -> Option<Bytes> {
    let rest = key.strip_prefix(&from[..])?;
    if from == to {
        return Some(key.clone());
    }
    Some([to, rest].concat().into())
}

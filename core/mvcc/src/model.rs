//! The words of the keyspace: revisions, key-values, comparisons, operations, events.

use alloc::vec::Vec;
use bytes::Bytes;

/// A point in the one history of the keyspace. 0 is "before anything", the empty store stands at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A lease; 0 is "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value, shared with every reader.
    pub value: Bytes,
    /// Revision at which the key came into being (again).
    pub create_revision: Revision,
    /// Revision of this version.
    pub mod_revision: Revision,
    /// 1 at creation, plus one with each put.
    pub version: u64,
    /// The lease this key ends with.
    pub lease: LeaseId,
}

/// Keys from `start` (inclusive) to `end` (exclusive).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

/// The three ways a range may end (etcd's `range_end`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// Only `start` itself.
    Single,
    /// Up to this key, exclusive.
    Before(Bytes),
    /// To the end of the keyspace.
    Unbounded,
}

/// What a comparison looks at. A missing key compares as version, revisions and lease 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    /// Number of versions since creation.
    Version(u64),
    /// Revision of creation.
    Create(Revision),
    /// Revision of the newest version.
    Mod(Revision),
    /// The bytes; a missing key never equals.
    Value(Bytes),
    /// The lease.
    Lease(LeaseId),
}

/// How a comparison relates the key's side to the given one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `<`
    Less,
}

/// A guard of a transaction: holds when every key of the range satisfies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// `key OP target`.
    pub op: CompareOp,
    /// The right-hand side.
    pub target: CompareTarget,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a new version.
    Put {
        /// Key.
        key: Bytes,
        /// New value.
        value: Bytes,
        /// Lease to attach to; must exist unless 0.
        lease: LeaseId,
    },
    /// Deletes every key of the range.
    Delete {
        /// Which keys.
        range: KeyRange,
    },
    /// Reads, as of this point of the transaction.
    Range {
        /// Which keys.
        range: KeyRange,
        /// At most this many; 0 means all.
        limit: usize,
    },
    /// A nested transaction.
    Txn(Txn),
}

/// If all of `compare` hold then `success`, else `failure`; all writes share one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// Guards, all must hold.
    pub compare: Vec<Compare>,
    /// Done when they hold.
    pub success: Vec<Op>,
    /// Done when they do not.
    pub failure: Vec<Op>,
}

/// What one operation answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResponse {
    /// The version that was replaced, if any.
    Put(Option<KeyValue>),
    /// The versions that were deleted, in key order.
    Delete(Vec<KeyValue>),
    /// What was read.
    Range(Vec<KeyValue>),
    /// The answer of a nested transaction.
    Txn(TxnResponse),
}

/// The answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnResponse {
    /// The store's revision after it.
    pub revision: Revision,
    /// Whether the guards held.
    pub succeeded: bool,
    /// One answer per operation of the branch taken.
    pub responses: Vec<OpResponse>,
}

/// A change of one key as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision that made it.
    pub revision: Revision,
    /// The key.
    pub key: Bytes,
    /// The new version; `None` when the key was deleted.
    pub new: Option<KeyValue>,
    /// The version before, when there was one (and it is still known).
    pub old: Option<KeyValue>,
}

impl KeyRange {
    /// The range of one key.
    pub fn single(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: RangeEnd::Single }
    }

    /// All keys that begin with `prefix`; an empty prefix is the whole keyspace.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start).map_or(RangeEnd::Unbounded, RangeEnd::Before);
        Self { start, end }
    }

    /// Whether `key` lies in this range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => key >= &self.start[..] && key < &end[..],
            RangeEnd::Unbounded => key >= &self.start[..],
        }
    }
}

/// The first key after all keys that begin with `prefix`; `None` when there is none.
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&b| b != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

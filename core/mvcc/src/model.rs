//! The words of the keyspace: revisions, key-values, comparisons, operations, events.

use alloc::vec::Vec;
use bytes::Bytes;

use crate::version::Version;

/// A point in the one history of the keyspace. 0 is "before anything", the empty store stands at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The one after it.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The one before it; 0 has none.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

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

/// What a read looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Which keys.
    pub range: KeyRange,
    /// As of this revision; 0: the newest.
    pub at: Revision,
    /// At most this many, after all else; 0 means all.
    pub limit: usize,
    /// In which order, if not that of the keys.
    pub order: Option<Order>,
    /// Only key-values last changed within these revisions, both inclusive; 0 is no bound.
    pub modified: (Revision, Revision),
    /// Only key-values created within these revisions, both inclusive; 0 is no bound.
    pub created: (Revision, Revision),
    /// How much of what is found.
    pub part: Part,
}

/// An order of key-values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// By what.
    pub by: OrderBy,
    /// Largest first.
    pub descending: bool,
}

/// What key-values can be ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderBy {
    /// The key.
    Key,
    /// Number of versions since creation.
    Version,
    /// Revision of creation.
    Create,
    /// Revision of the newest version.
    Mod,
    /// The value.
    Value,
}

/// How much of the key-values a read gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All.
    #[default]
    Whole,
    /// All but the values.
    Keys,
    /// Only how many there are.
    Count,
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
    /// Changes a key that must be there, and keeps what is `None` (etcd's `ignore_value` and
    /// `ignore_lease`).
    Amend {
        /// Key.
        key: Bytes,
        /// New value.
        value: Option<Bytes>,
        /// Lease to attach to; must exist unless 0.
        lease: Option<LeaseId>,
    },
    /// Reads, as of this point of the transaction.
    Range(Query),
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

/// What a read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResult {
    /// The key-values, at most the asked number.
    pub kvs: Vec<KeyValue>,
    /// How many keys the range holds, limit and bounds aside.
    pub count: usize,
    /// Whether the limit left some out.
    pub more: bool,
}

/// What one operation answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResponse {
    /// The version that was replaced, if any; of a put and of an amendment.
    Put(Option<Version>),
    /// The versions that were deleted, in key order.
    Delete(Vec<Version>),
    /// What was read.
    Range(RangeResult),
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
    /// The version before the revision, when there was one (and it is still known).
    pub old: Option<KeyValue>,
}

impl Query {
    /// Reads a whole range, as it stands.
    pub fn of(range: KeyRange) -> Self {
        Self {
            range,
            at: Revision(0),
            limit: 0,
            order: None,
            modified: (Revision(0), Revision(0)),
            created: (Revision(0), Revision(0)),
            part: Part::Whole,
        }
    }

    /// Reads the key-value of one key, as it stands.
    pub fn one(key: impl Into<Bytes>) -> Self {
        Self::of(KeyRange::single(key))
    }
}

impl Txn {
    /// Whether no branch, however nested, can write.
    pub fn only_reads(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            Op::Range(_) => true,
            Op::Txn(nested) => nested.only_reads(),
            _ => false,
        })
    }
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

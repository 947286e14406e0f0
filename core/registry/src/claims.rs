//! What an object takes out of a pool beside its own key: a cluster IP, a node port.
//!
//! The taking is part of the object's own transaction, guarded by the absence of the key that
//! stands for it; so nothing is given twice and nothing is lost between two writes. A revision is a
//! watcher's only cursor, so a transaction changes at most one object of a resource that can be
//! watched: a second cluster IP is taken by a transaction before (if the write then fails, the
//! address stays behind under the object's name, to be taken by the next attempt or freed by the
//! controller `service-ip-repair`).

use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;
use knarr_mvcc::{Compare, CompareOp, CompareTarget, KeyRange, LeaseId, Op, Revision, Txn};

/// One key that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) key: String,
    pub(crate) value: Bytes,
}

/// What a write takes and frees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Taken by a transaction before.
    pub(crate) before: Vec<Taken>,
    /// Taken with the object.
    pub(crate) take: Vec<Taken>,
    /// Given back with the object, if still at this revision.
    pub(crate) free: Vec<(String, Revision)>,
}

fn single(key: &str) -> KeyRange {
    KeyRange::single(Bytes::copy_from_slice(key.as_bytes()))
}

fn guard(key: &str, target: CompareTarget) -> Compare {
    Compare { range: single(key), op: CompareOp::Equal, target }
}

fn put(taken: &Taken) -> Op {
    let key = Bytes::copy_from_slice(taken.key.as_bytes());
    Op::Put { key, value: taken.value.clone(), lease: LeaseId(0) }
}

impl Claims {
    /// The transaction that has to succeed before the object's own, if there is one.
    pub(crate) fn first(&mut self) -> Option<Txn> {
        let taken = core::mem::take(&mut self.before);
        let guards = taken.iter().map(|taken| guard(&taken.key, CompareTarget::Version(0)));
        let txn = Txn {
            compare: guards.collect(),
            success: taken.iter().map(put).collect(),
            failure: Vec::new(),
        };
        (!taken.is_empty()).then_some(txn)
    }

    /// Adds them to the object's own transaction.
    pub(crate) fn join(&self, txn: &mut Txn) {
        let absent = self.take.iter().map(|taken| guard(&taken.key, CompareTarget::Version(0)));
        txn.compare.extend(absent);
        let owned = self.free.iter().map(|(key, at)| guard(key, CompareTarget::Mod(*at)));
        txn.compare.extend(owned);
        txn.success.extend(self.take.iter().map(put));
        let freed = self.free.iter().map(|(key, _)| Op::Delete { range: single(key) });
        txn.success.extend(freed);
    }
}

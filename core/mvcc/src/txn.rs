//! How a transaction runs: guards first, then the branch taken, all writes at one revision.
//!
//! As in etcd every guard, those of nested transactions included, is judged on the state before
//! the transaction; reads inside it see the writes before them.

use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::command::{Command, Refusal};
use crate::keyspace::Keyspace;
use crate::model::{
    Compare, CompareOp, CompareTarget, LeaseId, Op, OpResponse, Query, RangeResult, Revision, Txn,
    TxnResponse,
};
use crate::version::Version;

/// Which branch each transaction takes, in the order they run.
type Path = Vec<bool>;

impl Keyspace {
    /// Runs a checked transaction.
    pub(crate) fn run_txn(&mut self, txn: &Txn) -> Result<TxnResponse, Refusal> {
        let mut path = Path::new();
        self.decide(txn, &mut path)?;
        let next = Revision(self.revision.0 + 1);
        let before = self.history.newest();
        let mut response = self.run(txn, next, &mut path.into_iter());
        if self.history.newest() != before {
            self.revision = next;
        }
        stamp(&mut response, self.revision);
        Ok(response)
    }

    /// Judges the guards along the way the transaction will take, and refuses what would fail.
    fn decide(&self, txn: &Txn, path: &mut Path) -> Result<(), Refusal> {
        let holds = txn.compare.iter().all(|compare| self.holds(compare));
        path.push(holds);
        branch(txn, holds).iter().try_for_each(|op| match op {
            Op::Put { lease, .. } if !self.leases.attachable(*lease) => Err(Refusal::LeaseNotFound),
            Op::Amend { lease: Some(lease), .. } if !self.leases.attachable(*lease) => {
                Err(Refusal::LeaseNotFound)
            }
            Op::Amend { key, .. } if self.live_key(key).is_none() => Err(Refusal::KeyNotFound),
            Op::Range(query) => self.settled(query.at),
            Op::Txn(nested) => self.decide(nested, path),
            _ => Ok(()),
        })
    }

    /// Whether a revision can be read, as far as the log says so: what memory holds besides is
    /// different on each member and after each start, and must not decide what is written.
    fn settled(&self, at: Revision) -> Result<(), Refusal> {
        match at {
            at if at > self.revision => Err(Refusal::FutureRevision(self.revision)),
            at if at > Revision(0) && at < self.compacted => {
                Err(Refusal::Compacted(self.compacted))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a command that may read what is no longer held here though nobody compacted it. It
    /// must not come into the log: what it reads could not be told.
    ///
    /// # Errors
    /// [`Refusal::Compacted`].
    pub fn recalls(&self, command: &Command) -> Result<(), Refusal> {
        match command {
            Command::Txn(txn) => self.recalls_txn(txn),
            Command::Under { command, .. } => self.recalls(command),
            _ => Ok(()),
        }
    }

    fn recalls_txn(&self, txn: &Txn) -> Result<(), Refusal> {
        let oldest = self.oldest_readable();
        txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
            Op::Range(query)
                if query.at >= self.compacted.max(Revision(1)) && query.at < oldest =>
            {
                Err(Refusal::Compacted(oldest))
            }
            Op::Txn(nested) => self.recalls_txn(nested),
            _ => Ok(()),
        })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut found = self.live(&compare.range).peekable();
        if found.peek().is_none() {
            return compare.holds_for(None);
        }
        found.all(|kv| compare.holds_for(Some(kv)))
    }

    fn run(
        &mut self,
        txn: &Txn,
        revision: Revision,
        path: &mut impl Iterator<Item = bool>,
    ) -> TxnResponse {
        let succeeded = path.next().expect("decide() walked the same transactions");
        let mut responses = Vec::new();
        for op in branch(txn, succeeded) {
            responses.push(match op {
                Op::Put { key, value, lease } => {
                    OpResponse::Put(self.put(revision, key, value, *lease))
                }
                Op::Delete { range } => {
                    let doomed: Vec<Version> = self.live(range).cloned().collect();
                    for version in &doomed {
                        self.write(version.key(), |_| Version::gone(revision, version.key()));
                    }
                    OpResponse::Delete(doomed)
                }
                Op::Amend { key, value, lease } => {
                    let old = self.live_key(key).cloned().expect("decide() found it");
                    let value = value.as_ref().map_or(old.value(), |value| &value[..]);
                    OpResponse::Put(self.put(revision, key, value, lease.unwrap_or(old.lease())))
                }
                Op::Range(query) => OpResponse::Range(self.read_inside(query)),
                Op::Txn(nested) => OpResponse::Txn(self.run(nested, revision, path)),
            });
        }
        TxnResponse { revision, succeeded, responses }
    }

    /// Runs a checked transaction that only reads, as the keyspace stands.
    ///
    /// # Errors
    /// As when it would come from the log.
    pub fn read_txn(&self, txn: &Txn) -> Result<TxnResponse, Refusal> {
        debug_assert!(txn.only_reads(), "writes go through the log");
        self.recalls_txn(txn)?;
        let mut path = Path::new();
        self.decide(txn, &mut path)?;
        Ok(self.look(txn, &mut path.into_iter()))
    }

    fn look(&self, txn: &Txn, path: &mut impl Iterator<Item = bool>) -> TxnResponse {
        let succeeded = path.next().expect("decide() walked the same transactions");
        let answers = branch(txn, succeeded).iter().filter_map(|op| match op {
            Op::Range(query) => Some(OpResponse::Range(self.read_inside(query))),
            Op::Txn(nested) => Some(OpResponse::Txn(self.look(nested, path))),
            _ => None,
        });
        let responses = answers.collect();
        TxnResponse { revision: self.revision, succeeded, responses }
    }

    /// Answers a query that [`Keyspace::decide`] found readable; the newest versions are those
    /// written before it in its transaction.
    fn read_inside(&self, query: &Query) -> RangeResult {
        match query.at {
            Revision(0) => query.answer_with(self.live(&query.range), Version::kv),
            at => query.answer_with(self.versions_at(&query.range, at), Version::kv),
        }
    }

    fn put(
        &mut self,
        revision: Revision,
        key: &[u8],
        value: &[u8],
        lease: LeaseId,
    ) -> Option<Version> {
        self.write(key, |old| Version::put(revision, old, key, value, lease))
    }
}

fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded { &txn.success } else { &txn.failure }
}

/// Writes the final revision into the answer and the answers nested in it.
fn stamp(response: &mut TxnResponse, revision: Revision) {
    response.revision = revision;
    for nested in &mut response.responses {
        if let OpResponse::Txn(nested) = nested {
            stamp(nested, revision);
        }
    }
}

impl Compare {
    /// Judges one key; `None` is a missing one.
    fn holds_for(&self, found: Option<&Version>) -> bool {
        let ordering = match (&self.target, found) {
            (CompareTarget::Value(_), None) => return false,
            (CompareTarget::Value(value), Some(found)) => found.value().cmp(value),
            (CompareTarget::Version(n), found) => found.map_or(0, Version::count).cmp(n),
            (CompareTarget::Create(at), found) => {
                found.map_or(Revision(0), Version::created).cmp(at)
            }
            (CompareTarget::Mod(at), found) => found.map_or(Revision(0), Version::revision).cmp(at),
            (CompareTarget::Lease(id), found) => found.map_or(LeaseId(0), Version::lease).cmp(id),
        };
        match self.op {
            CompareOp::Equal => ordering == Ordering::Equal,
            CompareOp::NotEqual => ordering != Ordering::Equal,
            CompareOp::Greater => ordering == Ordering::Greater,
            CompareOp::Less => ordering == Ordering::Less,
        }
    }
}

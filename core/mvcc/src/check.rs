//! What is refused whatever the state: empty keys, depth, and keys written twice.
//!
//! The rule for "twice" is etcd's `checkIntervals`: within one branch a key may be put once, and
//! may not be put beside a delete that covers it; the two branches of one transaction never meet.
//! A put in one nested transaction followed by a delete in a later one passes, as it does there.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::command::{Command, MAX_LEASE_TTL_SECS, Refusal};
use crate::model::{KeyRange, Op, Txn};

/// How deep transactions may be nested; the outermost is depth 1.
pub const MAX_TXN_DEPTH: usize = 16;

/// The keys a branch puts, and the ranges it deletes.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<&'a KeyRange>,
}

impl Command {
    /// Refuses what can never succeed, before it costs room in the log.
    ///
    /// # Errors
    /// [`Refusal::EmptyKey`], [`Refusal::DuplicateKey`], [`Refusal::TooDeep`],
    /// [`Refusal::LeaseTtlTooLarge`].
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Self::Txn(txn) => txn.check(),
            Self::LeaseGrant { ttl_secs, .. } if *ttl_secs > MAX_LEASE_TTL_SECS => {
                Err(Refusal::LeaseTtlTooLarge)
            }
            Self::Under { command, .. } => command.check(),
            _ => Ok(()),
        }
    }
}

impl Txn {
    /// Refuses what can never succeed: both branches and everything below them.
    ///
    /// # Errors
    /// As [`Command::check`].
    pub fn check(&self) -> Result<(), Refusal> {
        check_shape(self, 1)?;
        for ops in [&self.success, &self.failure] {
            // Most have one operation, which meets no other.
            if ops.len() > 1 || matches!(ops.first(), Some(Op::Txn(_))) {
                check_branch(ops)?;
            }
        }
        Ok(())
    }
}

fn check_shape(txn: &Txn, depth: usize) -> Result<(), Refusal> {
    if depth > MAX_TXN_DEPTH {
        return Err(Refusal::TooDeep);
    }
    txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
        Op::Put { key, .. } | Op::Amend { key, .. } if key.is_empty() => Err(Refusal::EmptyKey),
        Op::Txn(nested) => check_shape(nested, depth + 1),
        _ => Ok(()),
    })
}

fn check_branch(ops: &[Op]) -> Result<Writes<'_>, Refusal> {
    let mut writes = Writes::default();
    writes.deletes.extend(ops.iter().filter_map(|op| match op {
        Op::Delete { range } => Some(range),
        _ => None,
    }));
    for op in ops {
        if let Op::Txn(nested) = op {
            writes.add_nested(nested)?;
        }
    }
    for op in ops {
        if let Op::Put { key, .. } | Op::Amend { key, .. } = op {
            writes.add_put(key)?;
        }
    }
    Ok(writes)
}

impl<'a> Writes<'a> {
    fn add_put(&mut self, key: &'a [u8]) -> Result<(), Refusal> {
        if self.deletes.iter().any(|range| range.contains(key)) || !self.puts.insert(key) {
            return Err(Refusal::DuplicateKey);
        }
        Ok(())
    }

    fn add_nested(&mut self, nested: &'a Txn) -> Result<(), Refusal> {
        let then = check_branch(&nested.success)?;
        let other = check_branch(&nested.failure)?;
        for key in then.puts.union(&other.puts) {
            self.add_put(key)?;
        }
        self.deletes.extend(then.deletes);
        self.deletes.extend(other.deletes);
        Ok(())
    }
}

//! Whether there is room for what a command adds, judged before it costs room in the log.
//!
//! New keys are refused where the budget ends. Keys that are there may grow a sixteenth beyond it:
//! taking an object down begins with changing it (a deletion with grace, a finalizer that goes),
//! and a full store has to be able to empty itself. What only deletes or compacts always passes.

use alloc::vec::Vec;

use bytes::Bytes;

use crate::command::Command;
use crate::keyspace::{FRAME, Keyspace, weight};
use crate::model::{Op, Txn};

/// The share of the budget on top of it, for changes of what is there.
const RESERVE: usize = 16;

/// What a command may add to the newest versions, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Growth {
    bytes: usize,
    fresh: bool,
}

impl Keyspace {
    /// Bytes that are held: the newest versions and the history.
    pub fn held_bytes(&self) -> usize {
        self.live_bytes() + self.history_bytes()
    }

    /// Whether a command fits into a budget of bytes, beside `pending` bytes that were let in and
    /// are not applied yet. What it takes is added to them.
    pub fn admits(&self, command: &Command, budget: usize, pending: &mut usize) -> bool {
        let Some(growth) = self.growth(command) else { return true };
        let limit = if growth.fresh { budget } else { budget.saturating_add(budget / RESERVE) };
        let fits =
            (self.held_bytes().saturating_add(*pending)).saturating_add(growth.bytes) <= limit;
        if fits {
            *pending += growth.bytes;
        }
        fits
    }

    /// `None` when it adds nothing.
    fn growth(&self, command: &Command) -> Option<Growth> {
        match command {
            Command::Txn(txn) => {
                let mut puts = Vec::new();
                collect(txn, &mut puts);
                let growths = puts.into_iter().filter_map(|(key, len)| self.grows(key, len));
                growths
                    .reduce(|a, b| Growth { bytes: a.bytes + b.bytes, fresh: a.fresh || b.fresh })
            }
            Command::Under { command, .. } => self.growth(command),
            Command::LeaseGrant { .. } => Some(Growth { bytes: FRAME, fresh: true }),
            _ => None,
        }
    }

    fn grows(&self, key: &Bytes, len: usize) -> Option<Growth> {
        let now = self.live_key(key).map_or(0, weight);
        let bytes = FRAME + key.len() + len;
        (bytes > now).then(|| Growth { bytes: bytes - now, fresh: now == 0 })
    }
}

/// Every put of a transaction, whichever branches it will take.
fn collect<'a>(txn: &'a Txn, puts: &mut Vec<(&'a Bytes, usize)>) {
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Put { key, value, .. } | Op::Amend { key, value: Some(value), .. } => {
                puts.push((key, value.len()));
            }
            Op::Txn(nested) => collect(nested, puts),
            _ => {}
        }
    }
}

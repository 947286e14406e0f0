//! Whether there is room for what a command adds, judged before it costs room in the log.
//!
//! New keys are refused where the budget ends. Keys that are there may grow a sixteenth beyond it:
//! taking an object down begins with changing it (a deletion with grace, a finalizer that goes),
//! and a full store has to be able to empty itself. What only deletes or compacts always passes.

use crate::command::Command;
use crate::keyspace::{Keyspace, weight, weight_of};
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
        // Most of the time there is room even if every key were new: nothing is looked up then.
        let most = growth(command, &fresh).map_or(0, |growth| growth.bytes);
        let taken = self.held_bytes().saturating_add(*pending);
        if taken.saturating_add(most) <= budget {
            *pending += most;
            return true;
        }
        let grows = |key: &[u8], len| self.grows(key, len);
        let Some(growth) = growth(command, &grows) else { return true };
        let limit = if growth.fresh { budget } else { budget.saturating_add(budget / RESERVE) };
        let fits = taken.saturating_add(growth.bytes) <= limit;
        if fits {
            *pending += growth.bytes;
        }
        fits
    }

    fn grows(&self, key: &[u8], len: usize) -> Option<Growth> {
        let now = self.live_key(key).map_or(0, weight);
        let bytes = weight_of(key.len(), len);
        (bytes > now).then(|| Growth { bytes: bytes - now, fresh: now == 0 })
    }
}

/// What a put adds where its key is not there.
fn fresh(key: &[u8], len: usize) -> Option<Growth> {
    Some(Growth { bytes: weight_of(key.len(), len), fresh: true })
}

/// What a command adds if each of its puts does what `grows` says; `None` when that is nothing.
fn growth(command: &Command, grows: &impl Fn(&[u8], usize) -> Option<Growth>) -> Option<Growth> {
    match command {
        Command::Txn(txn) => growth_of(txn, grows),
        Command::Under { command, .. } => growth(command, grows),
        Command::LeaseGrant { .. } => Some(Growth { bytes: weight_of(0, 0), fresh: true }),
        _ => None,
    }
}

/// What every put of a transaction adds, whichever branches it will take.
fn growth_of(txn: &Txn, grows: &impl Fn(&[u8], usize) -> Option<Growth>) -> Option<Growth> {
    let each = txn.success.iter().chain(&txn.failure).filter_map(|op| match op {
        Op::Put { key, value, .. } | Op::Amend { key, value: Some(value), .. } => {
            grows(key, value.len())
        }
        Op::Txn(nested) => growth_of(nested, grows),
        _ => None,
    });
    each.reduce(|a, b| Growth { bytes: a.bytes + b.bytes, fresh: a.fresh || b.fresh })
}

//! What a state weighs, counted anew each time: whether a store may say that it has no room.

use bytes::Bytes;
use knarr_store::mvcc::*;

use crate::naive::{Model, State};

/// Whether there is room for a command in so many bytes, beside a model's state and all that came
/// from a revision on. A key that is there may grow a sixteenth beyond.
pub fn fits(model: &Model, command: &Command, budget: usize, floor: Revision) -> bool {
    let (_, state) = model.now();
    let live: usize = state.values().map(|kv| weight(&kv.key, &kv.value)).sum();
    let past = model.events.iter().filter(|event| event.revision >= floor);
    let taken = live + past.map(Event::weight).sum::<usize>();
    let (adds, fresh) = growth(state, command);
    taken + adds <= if fresh { budget } else { budget + budget / 16 }
}

/// What a key-value weighs: what is there beside key and value, a store says.
fn weight(key: &[u8], value: &[u8]) -> usize {
    let (name, lease) = (Bytes::from_static(b"k"), LeaseId(0));
    let put = Op::Put { key: name.clone(), value: Bytes::new(), lease };
    let mut one = Keyspace::new();
    one.apply(1, &Command::Txn(Txn { success: vec![put], ..Txn::default() })).unwrap();
    one.live_bytes() - name.len() + key.len() + value.len()
}

/// The most that a command may add, and whether a key or lease may be new.
fn growth(state: &State, command: &Command) -> (usize, bool) {
    match command {
        Command::Txn(txn) => txn_growth(state, txn),
        Command::Under { command, .. } => growth(state, command),
        Command::LeaseGrant { .. } => (weight(&[], &[]), true),
        _ => (0, false),
    }
}

fn txn_growth(state: &State, txn: &Txn) -> (usize, bool) {
    let each = txn.success.iter().chain(&txn.failure).map(|op| match op {
        Op::Put { key, value, .. } => {
            let now = state.get(key).map_or(0, |kv| weight(key, &kv.value));
            (weight(key, value).saturating_sub(now), now == 0)
        }
        Op::Txn(nested) => txn_growth(state, nested),
        _ => (0, false),
    });
    each.fold((0, false), |all, one| (all.0 + one.0, all.1 || one.1))
}

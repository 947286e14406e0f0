//! What the clients of a run ask for: few keys and few leases, so that they meet.

use bytes::Bytes;
use knarr_store::mvcc::*;
use knarr_store::sim::Rng;

fn key(rng: &mut Rng) -> Bytes {
    Bytes::from(format!("k{}", rng.below(6)))
}

pub fn lease(rng: &mut Rng) -> LeaseId {
    LeaseId(1 + rng.below(5) as i64)
}

pub fn range(rng: &mut Rng) -> KeyRange {
    match rng.below(4) {
        0 => KeyRange::prefix(""),
        1 => KeyRange { start: key(rng), end: RangeEnd::Before(key(rng)) },
        2 => KeyRange { start: key(rng), end: RangeEnd::Unbounded },
        _ => KeyRange::single(key(rng)),
    }
}

/// A read of the present, or of a past that may be gone or not there yet.
pub fn query(rng: &mut Rng, now: Revision) -> Query {
    let at = match rng.below(3) {
        0 => Revision((now.0 + 2).saturating_sub(rng.below(14))),
        _ => Revision(0),
    };
    let limit = if rng.one_in(3) { 1 + rng.below(3) as usize } else { 0 };
    let part = [Part::Whole, Part::Whole, Part::Keys, Part::Count][rng.below(4) as usize];
    Query { at, limit, part, ..Query::of(range(rng)) }
}

pub fn command(rng: &mut Rng, now: Revision, clock: u64) -> Command {
    match rng.below(20) {
        0 | 1 => Command::Compact { revision: Revision((now.0 + 1).saturating_sub(rng.below(8))) },
        2 | 3 => {
            let ttl_secs = 1 + rng.below(5) as i64;
            Command::LeaseGrant { id: lease(rng), ttl_secs, now: clock }
        }
        4 => Command::LeaseRevoke { id: lease(rng) },
        5 => {
            let value = (!rng.one_in(3)).then(|| value(rng));
            Command::Settings(Change { expect: rng.below(4), entries: vec![("s".into(), value)] })
        }
        6 => {
            let command = Box::new(Command::Txn(txn(rng, now, 0)));
            Command::Under { settings: rng.below(4), command }
        }
        _ => Command::Txn(txn(rng, now, 0)),
    }
}

/// The end of all keys.
pub fn nothing() -> Command {
    let delete = Op::Delete { range: KeyRange::prefix("") };
    Command::Txn(Txn { success: vec![delete], ..Txn::default() })
}

/// A last write.
pub fn marker() -> Command {
    let put = Op::Put { key: "k0".into(), value: "the end".into(), lease: LeaseId(0) };
    Command::Txn(Txn { success: vec![put], ..Txn::default() })
}

/// Different each time; now and then a long one, so that files fill up.
fn value(rng: &mut Rng) -> Bytes {
    let mut value = format!("{:x}", rng.draw()).into_bytes();
    if rng.one_in(3) {
        value.resize(200 + rng.below(500) as usize, b'.');
    }
    value.into()
}

fn put(rng: &mut Rng) -> Op {
    let lease = if rng.one_in(4) { lease(rng) } else { LeaseId(0) };
    Op::Put { key: key(rng), value: value(rng), lease }
}

fn txn(rng: &mut Rng, now: Revision, depth: u64) -> Txn {
    let mut txn = Txn { success: vec![op(rng, now, depth)], ..Txn::default() };
    if rng.one_in(2) {
        txn.compare.push(compare(rng, now));
        txn.failure.push(op(rng, now, depth));
    }
    if rng.one_in(3) {
        txn.success.push(op(rng, now, depth));
    }
    txn
}

fn op(rng: &mut Rng, now: Revision, depth: u64) -> Op {
    match rng.below(10) {
        0 | 1 => Op::Range(query(rng, now)),
        2 => Op::Delete { range: range(rng) },
        3 => Op::Delete { range: KeyRange::single(key(rng)) },
        4 if depth < 2 => Op::Txn(txn(rng, now, depth + 1)),
        _ => put(rng),
    }
}

fn compare(rng: &mut Rng, now: Revision) -> Compare {
    let target = match rng.below(4) {
        0 => CompareTarget::Mod(Revision(now.0.saturating_sub(rng.below(4)))),
        1 => CompareTarget::Lease(lease(rng)),
        _ => CompareTarget::Version(rng.below(3)),
    };
    let op = [CompareOp::Equal, CompareOp::Less, CompareOp::Greater][rng.below(3) as usize];
    Compare { range: KeyRange::single(key(rng)), op, target }
}

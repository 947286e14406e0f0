//! The checker itself: histories made by hand, which it must refuse, each beside a true one that
//! differs in one word.

use std::slice::from_ref;

use bytes::Bytes;
use knarr_store::mvcc::*;

use crate::check::{Call, FOREVER, Past, Told, What, check};

fn call(called: u64, until: u64, what: What) -> Call {
    Call { called, until, what }
}

fn ok(revision: u64, succeeded: bool, response: OpResponse) -> Option<Outcome> {
    let responses = vec![response];
    Some(Ok(Answer::Txn(TxnResponse { revision: Revision(revision), succeeded, responses })))
}

fn kv(key: &str, value: &str, create: u64, modified: u64, version: u64) -> KeyValue {
    KeyValue {
        key: Bytes::from(key.to_owned()),
        value: Bytes::from(value.to_owned()),
        create_revision: Revision(create),
        mod_revision: Revision(modified),
        version,
        lease: LeaseId(0),
    }
}

fn write(key: &str, value: &str) -> Op {
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
    Op::Put { key, value, lease: LeaseId(0) }
}

fn put(key: &str, value: &str) -> Command {
    Command::Txn(Txn { success: vec![write(key, value)], ..Txn::default() })
}

/// Puts a key that must not be there yet.
fn create(key: &str, value: &str) -> Command {
    let (range, op) = (KeyRange::single(key.to_owned()), CompareOp::Equal);
    let target = CompareTarget::Version(0);
    let read = Op::Range(Query::one(key.to_owned()));
    let compare = vec![Compare { range, op, target }];
    Command::Txn(Txn { compare, success: vec![write(key, value)], failure: vec![read] })
}

/// A put that made a revision.
fn wrote(called: u64, until: u64, key: &str, value: &str, at: u64, old: Option<KeyValue>) -> Call {
    call(
        called,
        until,
        What::Write(put(key, value), ok(at, true, OpResponse::Put(old.as_ref().map(Version::of)))),
    )
}

fn unknown(called: u64, until: u64, key: &str, value: &str) -> Call {
    call(called, until, What::Write(put(key, value), None))
}

fn read(called: u64, until: u64, key: &str, at: u64, kvs: Vec<KeyValue>) -> Call {
    let found = RangeResult { count: kvs.len(), kvs, more: false };
    call(called, until, What::Read(Query::one(key.to_owned()), Ok(found), Revision(at)))
}

fn told(events: &[(u64, &str, Option<KeyValue>, Option<KeyValue>)], upto: u64) -> Told {
    let mut told = Told::new(KeyRange::prefix(""), Revision(1));
    told.events = events
        .iter()
        .cloned()
        .map(|(at, key, new, old)| Event {
            revision: Revision(at),
            key: Bytes::from(key.to_owned()),
            new,
            old,
        })
        .collect();
    told.upto = Revision(upto);
    told
}

#[track_caller]
fn holds(calls: &[Call], told: &[Told]) {
    check(calls, told, Past::Kept).unwrap();
}

#[track_caller]
fn fails(calls: &[Call], told: &[Told]) {
    assert!(check(calls, told, Past::Kept).is_err());
}

#[test]
fn a_stale_read() {
    let write = wrote(0, 1, "a", "x", 2, None);
    holds(&[write.clone(), read(2, 3, "a", 2, vec![kv("a", "x", 2, 2, 1)])], &[]);
    fails(&[write.clone(), read(2, 3, "a", 1, vec![])], &[]);
    // While the write runs either is right.
    holds(&[wrote(0, 4, "a", "x", 2, None), read(2, 3, "a", 1, vec![])], &[]);
    // But not in this order.
    let (new, old) = (read(1, 2, "a", 2, vec![kv("a", "x", 2, 2, 1)]), read(3, 4, "a", 1, vec![]));
    fails(&[wrote(0, 5, "a", "x", 2, None), new, old], &[]);
}

#[test]
fn a_lost_write() {
    let first = wrote(0, 1, "a", "x", 2, None);
    let x = kv("a", "x", 2, 2, 1);
    holds(&[first.clone(), wrote(2, 3, "a", "y", 3, Some(x.clone()))], &[]);
    fails(&[first.clone(), wrote(2, 3, "a", "y", 2, None)], &[]);
    fails(&[first.clone(), wrote(2, 3, "a", "y", 3, None)], &[]);
    // Counted, but somebody else's previous value.
    fails(&[first, wrote(2, 3, "a", "y", 4, Some(x))], &[]);
}

#[test]
fn two_winners() {
    let won = |called, value, at| {
        call(called, 9, What::Write(create("a", value), ok(at, true, OpResponse::Put(None))))
    };
    let found = RangeResult { kvs: vec![kv("a", "x", 2, 2, 1)], count: 1, more: false };
    let lost = What::Write(create("a", "y"), ok(2, false, OpResponse::Range(found)));
    holds(&[won(0, "x", 2), call(1, 9, lost.clone())], &[]);
    fails(&[won(0, "x", 2), won(1, "y", 3)], &[]);
    fails(&[won(0, "x", 2), won(1, "y", 2)], &[]);
    // Nobody can lose before there is a winner.
    fails(&[call(0, 1, lost), won(2, "x", 2)], &[]);
}

#[test]
fn a_write_that_comes_back() {
    let absent = |from| read(from, from + 1, "a", 1, vec![]);
    let present = |from| read(from, from + 1, "a", 2, vec![kv("a", "x", 2, 2, 1)]);
    holds(&[unknown(0, 9, "a", "x"), absent(1), present(3)], &[]);
    holds(&[unknown(0, 9, "a", "x"), absent(1)], &[]);
    // The server that had it died at 2.
    holds(&[unknown(0, 2, "a", "x"), present(3)], &[]);
    fails(&[unknown(0, 2, "a", "x"), absent(3), present(5)], &[]);
    fails(&[unknown(0, FOREVER, "a", "x"), present(1), absent(3)], &[]);
}

#[test]
fn half_a_transaction() {
    let both = Txn { success: vec![write("a", "x"), write("b", "x")], ..Txn::default() };
    let both = call(0, FOREVER, What::Write(Command::Txn(both), None));
    let a = read(1, 2, "a", 2, vec![kv("a", "x", 2, 2, 1)]);
    holds(&[both.clone(), a.clone(), read(3, 4, "b", 2, vec![kv("b", "x", 2, 2, 1)])], &[]);
    fails(&[both, a, read(3, 4, "b", 2, vec![])], &[]);
}

#[test]
fn a_watch_with_a_gap() {
    let x = kv("a", "x", 2, 2, 1);
    let calls = [wrote(0, 1, "a", "x", 2, None), wrote(2, 3, "b", "y", 3, None)];
    let (first, second) = ((2, "a", Some(x), None), (3, "b", Some(kv("b", "y", 3, 3, 1)), None));
    holds(&calls, &[told(&[first.clone(), second.clone()], 3)]);
    holds(&calls, &[told(from_ref(&first), 2)]);
    // Progress says that there is nothing more up to 3.
    fails(&calls, &[told(from_ref(&first), 3)]);
    fails(&calls, &[told(from_ref(&second), 3)]);
    fails(&calls, &[told(&[first.clone(), first, second], 3)]);
}

#[test]
fn a_watch_that_tells_what_was_not() {
    let x = kv("a", "x", 2, 2, 1);
    let calls = [wrote(0, 1, "a", "x", 2, None), wrote(2, 3, "a", "y", 3, Some(x.clone()))];
    let first = (2, "a", Some(x.clone()), None);
    let second = |old| (3, "a", Some(kv("a", "y", 2, 3, 2)), old);
    holds(&calls, &[told(&[first.clone(), second(Some(x))], 3)]);
    fails(&calls, &[told(&[first.clone(), second(None)], 3)]);
    fails(&calls, &[told(&[first, (3, "a", None, None)], 3)]);
}

#[test]
fn a_watch_that_knows_the_future() {
    let saw = |at| call(2, 3, What::Saw(Revision(at)));
    holds(&[wrote(0, 1, "a", "x", 2, None), saw(2)], &[]);
    fails(&[wrote(4, 5, "a", "x", 2, None), saw(2)], &[]);
}

#[test]
fn a_batch_out_of_order() {
    let event = |at| {
        let new = Some(kv("a", "x", 2, at, 1));
        Event { revision: Revision(at), key: "a".into(), new, old: None }
    };
    let batch = |events: &[u64], next| EventBatch {
        events: events.iter().map(|at| event(*at)).collect(),
        next: Revision(next),
    };
    let fresh = || Told::new(KeyRange::prefix(""), Revision(1));
    assert_eq!(fresh().batch(batch(&[2, 3], 3)), Ok(()));
    assert!(fresh().batch(batch(&[3, 2], 3)).is_err(), "back");
    assert!(fresh().batch(batch(&[1], 3)).is_err(), "from before it began");
    assert!(fresh().batch(batch(&[2, 3], 2)).is_err(), "ahead of its own progress");
    let mut told = fresh();
    told.batch(batch(&[2], 2)).unwrap();
    assert!(told.clone().batch(batch(&[2], 2)).is_err(), "twice, or a revision in two pieces");
    told.progress(Revision(5)).unwrap();
    assert!(told.clone().progress(Revision(4)).is_err(), "progress goes back");
    assert!(told.batch(batch(&[5], 6)).is_err(), "after progress said there was none");
}

#[test]
fn compaction_that_was_not() {
    let compact = call(
        4,
        5,
        What::Write(
            Command::Compact { revision: Revision(3) },
            Some(Ok(Answer::Compact(Revision(3)))),
        ),
    );
    let x = kv("a", "x", 2, 2, 1);
    let calls = [wrote(0, 1, "a", "x", 2, None), wrote(2, 3, "a", "y", 3, Some(x)), compact];
    let gone = |called, after, oldest| {
        call(called, called + 1, What::Gone(Revision(after), Revision(oldest)))
    };
    let with = |last| [&calls[..], &[last]].concat();
    holds(&with(gone(6, 1, 3)), &[]);
    // Before it was asked for; of what is left; at a revision nobody named.
    fails(&with(gone(3, 1, 3)), &[]);
    fails(&with(gone(6, 2, 3)), &[]);
    fails(&with(gone(6, 0, 2)), &[]);
    let old = Query { at: Revision(2), ..Query::one("a") };
    let answer = |answer| with(call(6, 7, What::Read(old.clone(), answer, Revision(3))));
    holds(&answer(Err(ReadError::Compacted(Revision(3)))), &[]);
    let found = RangeResult { kvs: vec![kv("a", "x", 2, 2, 1)], count: 1, more: false };
    fails(&answer(Ok(found)), &[]);
}

#[test]
fn a_lease_that_ended_too_early() {
    let id = LeaseId(7);
    let grant = What::Write(
        Command::LeaseGrant { id, ttl_secs: 5, now: 0 },
        Some(Ok(Answer::LeaseGrant { id, ttl_secs: 5 })),
    );
    let ends = |called| call(called, FOREVER, What::Write(Command::LeaseRevoke { id }, None));
    let gone = call(4, 5, What::Leases(vec![]));
    holds(&[call(0, 1, grant.clone()), ends(3), gone.clone()], &[]);
    fails(&[call(0, 1, grant.clone()), ends(6), gone.clone()], &[]);
    fails(&[call(0, 1, grant.clone()), gone], &[]);
    fails(&[call(0, 1, grant), call(4, 5, What::Alive(id, false))], &[]);
}

#[test]
fn a_past_that_was_not() {
    let x = kv("a", "x", 2, 2, 1);
    let calls = [wrote(0, 1, "a", "x", 2, None), wrote(2, 3, "a", "y", 3, Some(x.clone()))];
    let with = |what| [&calls[..], &[call(4, 5, what)]].concat();
    let old =
        |at, kvs: &[KeyValue]| with(What::Old(KeyRange::single("a"), Revision(at), kvs.to_vec()));
    holds(&old(2, from_ref(&x)), &[]);
    holds(&old(1, &[]), &[]);
    // Of another revision; forgotten; of the future.
    fails(&old(3, from_ref(&x)), &[]);
    fails(&old(2, &[]), &[]);
    fails(&old(4, &[kv("a", "y", 2, 3, 2)]), &[]);
    // Nothing was to be lost.
    fails(&with(What::Lost(Revision(2), Revision(3))), &[]);
}

#[test]
fn compaction_by_itself_that_was_too_much() {
    let x = kv("a", "x", 2, 2, 1);
    let calls = [wrote(0, 1, "a", "x", 2, None), wrote(2, 3, "a", "y", 3, Some(x))];
    let old = Query { at: Revision(1), ..Query::one("a") };
    let gone = Err(ReadError::Compacted(Revision(2)));
    let read = call(6, 7, What::Read(old, gone, Revision(3)));
    let kept = |kept| {
        let auto = call(1, 5, What::Auto(Revision(2), kept));
        [&calls[..], &[auto, read.clone()]].concat()
    };
    holds(&kept(Some(1)), &[]);
    holds(&kept(Some(0)), &[]);
    holds(&kept(None), &[]);
    fails(&kept(Some(2)), &[]);
    fails(&[&calls[..], from_ref(&read)].concat(), &[]);
}

#[test]
fn a_refusal_though_there_was_room() {
    let mut one = Keyspace::new();
    one.apply(1, &put("a", "x")).unwrap();
    let one = one.live_bytes();
    let full = |key, value, budget, floor| {
        let refused = What::NoRoom(put(key, value), budget, Revision(floor));
        [wrote(0, 1, "a", "x", 2, None), call(2, 3, refused)]
    };
    fails(&full("b", "y", 2 * one, 3), &[]);
    holds(&full("b", "y", 2 * one - 1, 3), &[]);
    // With the history of the first write there was not.
    holds(&full("b", "y", 2 * one, 2), &[]);
    // What is there may grow beyond.
    fails(&full("a", "xyz", one, 3), &[]);
    holds(&full("a", "x and a sixteenth more", one, 3), &[]);
}

//! The keyspace against the naive model, and the codec against itself and against garbage.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use bytes::Bytes;
use knarr_mvcc::*;
use proptest::collection::vec;
use proptest::prelude::*;

mod naive;
use naive::Model;

fn key() -> impl Strategy<Value = Bytes> {
    "[abc]{1,2}".prop_map(Bytes::from)
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::single),
        (key(), key()).prop_map(|(start, end)| KeyRange { start, end: RangeEnd::Before(end) }),
        key().prop_map(|start| KeyRange { start, end: RangeEnd::Unbounded }),
        "[abc]{0,1}".prop_map(KeyRange::prefix),
    ]
}

fn target() -> impl Strategy<Value = CompareTarget> {
    prop_oneof![
        (0..4u64).prop_map(CompareTarget::Version),
        (0..9u64).prop_map(|at| CompareTarget::Create(Revision(at))),
        (0..9u64).prop_map(|at| CompareTarget::Mod(Revision(at))),
        "[xy]{0,1}".prop_map(|value| CompareTarget::Value(value.into())),
        (-1..2i64).prop_map(|id| CompareTarget::Lease(LeaseId(id))),
    ]
}

fn compare() -> impl Strategy<Value = Compare> {
    let op = prop_oneof![
        Just(CompareOp::Equal),
        Just(CompareOp::NotEqual),
        Just(CompareOp::Greater),
        Just(CompareOp::Less),
    ];
    (range(), op, target()).prop_map(|(range, op, target)| Compare { range, op, target })
}

fn query() -> impl Strategy<Value = Query> {
    let by = prop_oneof![
        Just(OrderBy::Key),
        Just(OrderBy::Version),
        Just(OrderBy::Create),
        Just(OrderBy::Mod),
        Just(OrderBy::Value),
    ];
    let order = proptest::option::of(
        (by, any::<bool>()).prop_map(|(by, descending)| Order { by, descending }),
    );
    let bounds = || (0..6u64, 0..6u64).prop_map(|(from, to)| (Revision(from), Revision(to)));
    let bounds = || prop_oneof![2 => Just((Revision(0), Revision(0))), 1 => bounds()];
    let part = prop_oneof![3 => Just(Part::Whole), 1 => Just(Part::Keys), 1 => Just(Part::Count)];
    (range(), 0..3usize, order, bounds(), bounds(), part).prop_map(
        |(range, limit, order, modified, created, part)| Query {
            limit,
            order,
            modified,
            created,
            part,
            ..Query::of(range)
        },
    )
}

/// Leases in transactions are tested by script; unknown ones would refuse nearly all of these.
fn txn() -> impl Strategy<Value = Txn> {
    let leaf = prop_oneof![
        3 => (key(), "[xy]{0,2}").prop_map(|(key, value)| {
            Op::Put { key, value: value.into(), lease: LeaseId(0) }
        }),
        1 => range().prop_map(|range| Op::Delete { range }),
        1 => query().prop_map(Op::Range),
    ];
    let op = leaf.prop_recursive(3, 12, 3, |op| {
        (vec(compare(), 0..2), vec(op.clone(), 0..3), vec(op, 0..3))
            .prop_map(|(compare, success, failure)| Op::Txn(Txn { compare, success, failure }))
    });
    (vec(compare(), 0..2), vec(op.clone(), 0..4), vec(op, 0..2))
        .prop_map(|(compare, success, failure)| Txn { compare, success, failure })
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Txn),
    Compact(u64),
    Trim(usize),
    Forget(usize, usize),
    /// With so many bytes of history, and that above a revision in any case.
    Restart(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => txn().prop_map(Step::Txn),
        1 => (0..20u64).prop_map(Step::Compact),
        1 => (0..4000usize).prop_map(Step::Trim),
        1 => (0..4000usize, 0..5usize).prop_map(|(budget, limit)| Step::Forget(budget, limit)),
        2 => (0..1000usize, 0..10u64).prop_map(|(budget, hold)| Step::Restart(budget, hold)),
    ]
}

fn restart(keyspace: &mut Keyspace, budget: usize) -> Keyspace {
    let mut restore = Restore::new();
    let mut walk = keyspace.begin_walk(budget);
    while let Some(items) = keyspace.walk_on(&mut walk) {
        for item in items {
            restore.push(Item::decode(&item.encode()).unwrap()).unwrap();
        }
    }
    keyspace.end_walk(&walk);
    restore.finish().unwrap()
}

fn same(keyspace: &Keyspace, model: &Model) {
    let all = KeyRange::prefix("");
    let (newest, _) = model.now();
    assert_eq!(keyspace.revision(), newest);
    let oldest = keyspace.oldest_readable();
    assert!(oldest >= model.aside.compacted);
    for at in oldest.0.max(1)..=newest.0 {
        let expected: Vec<KeyValue> = model.at(Revision(at)).values().cloned().collect();
        let found = keyspace.range(&all, Revision(at), 0).unwrap();
        assert_eq!(found.kvs, expected, "at {at}");
    }
    if oldest.0 > 1 {
        let error = keyspace.range(&all, Revision(oldest.0 - 1), 0);
        assert_eq!(error, Err(ReadError::Compacted(oldest)));
    }
    for at in oldest.0.max(1)..newest.0 {
        let mut undo = Undo::new(all.clone());
        let since = keyspace.events(&all, Revision(at), newest, usize::MAX).unwrap();
        since.events.into_iter().for_each(|event| undo.push(event));
        let expected: Vec<KeyValue> = model.at(Revision(at)).values().cloned().collect();
        assert_eq!(undo.finish(keyspace.range(&all, newest, 0).unwrap().kvs), expected, "at {at}");
    }
    let mut cursor = oldest;
    let mut seen = Vec::new();
    while cursor < newest {
        let batch = keyspace.events(&all, cursor, newest, 300).unwrap();
        assert!(batch.next > cursor, "a batch makes progress");
        cursor = batch.next;
        seen.extend(batch.events);
    }
    let expected: Vec<Event> =
        model.events.iter().filter(|event| event.revision > oldest).cloned().collect();
    assert_eq!(seen, expected);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250, failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_keyspace_is_the_model(steps in vec(step(), 1..25)) {
        let mut model = Model::new();
        let mut keyspace = Keyspace::new();
        for (index, step) in (1..).zip(steps) {
            match step {
                Step::Txn(txn) => {
                    let command = Command::Txn(txn);
                    prop_assert_eq!(keyspace.apply(index, &command), model.apply(&command));
                }
                Step::Compact(at) => {
                    let compact = Command::Compact { revision: Revision(at) };
                    prop_assert_eq!(keyspace.apply(index, &compact), model.apply(&compact));
                }
                Step::Trim(budget) => {
                    keyspace.trim(budget);
                    prop_assert!(keyspace.history_bytes() <= budget);
                }
                Step::Forget(budget, limit) => {
                    let before = keyspace.history_bytes();
                    let more = keyspace.forget(budget, limit);
                    prop_assert!(more || keyspace.history_bytes() <= budget);
                    prop_assert!(limit == 0 || !more || keyspace.history_bytes() < before);
                }
                Step::Restart(budget, hold) => {
                    let before = keyspace.floor();
                    keyspace.hold(Revision(hold));
                    let restarted = restart(&mut keyspace, budget);
                    let floor = restarted.floor();
                    prop_assert!(floor >= before && floor <= Revision(hold).max(before));
                    let held = floor.0 >= hold;
                    prop_assert!(held || restarted.history_bytes() <= budget);
                    keyspace = restarted;
                }
            }
            same(&keyspace, &model);
        }
    }

    #[test]
    fn commands_survive_their_bytes(txn in txn(), id: i64, ttl_secs: i64, now: u64, at: u64) {
        let commands = [
            Command::Txn(txn),
            Command::Compact { revision: Revision(at) },
            Command::LeaseGrant { id: LeaseId(id), ttl_secs, now },
            Command::LeaseRevoke { id: LeaseId(id) },
            Command::Settings(Change {
                expect: now,
                entries: vec![("a".into(), None), ("b".into(), Some("c".into()))],
            }),
            Command::Under {
                settings: at,
                command: Box::new(Command::LeaseRevoke { id: LeaseId(id) }),
            },
            Command::Time { wall_ms: now },
        ];
        for command in commands {
            let bytes = command.encode();
            prop_assert_eq!(Command::decode(&bytes), Ok(command));
            for cut in 0..bytes.len() {
                prop_assert!(Command::decode(&bytes[..cut]).is_err());
            }
            let longer = [&bytes[..], &[0]].concat();
            prop_assert_eq!(Command::decode(&longer), Err(CodecError::Trailing));
        }
    }

    #[test]
    fn changed_bytes_never_panic(txn in txn(), at: prop::sample::Index, byte: u8) {
        let mut bytes = Command::Txn(txn).encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert!(Command::decode(&command.encode()).is_ok());
            let _ = Keyspace::new().apply(1, &command);
        }
    }

    #[test]
    fn garbage_never_panics(mut bytes in vec(any::<u8>(), 0..200)) {
        let _ = Command::decode(&bytes);
        bytes.insert(0, 1);
        let _ = Command::decode(&bytes);
        let _ = Item::decode(&bytes);
    }
}

#[test]
fn nesting_has_a_limit() {
    let nest = |depth| {
        (1..depth)
            .fold(Txn::default(), |txn, _| Txn { success: vec![Op::Txn(txn)], ..Txn::default() })
    };
    let deepest = Command::Txn(nest(MAX_TXN_DEPTH));
    assert_eq!(deepest.check(), Ok(()));
    assert_eq!(Command::decode(&deepest.encode()), Ok(deepest));
    let deeper = Command::Txn(nest(MAX_TXN_DEPTH + 1));
    assert_eq!(deeper.check(), Err(Refusal::TooDeep));
    assert_eq!(Command::decode(&deeper.encode()), Err(CodecError::TooDeep));
}

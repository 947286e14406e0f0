//! Many keys: where they are kept must not show.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;

use bytes::Bytes;
use knarr_mvcc::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// Long beginnings in common, short differences, ends at any place, zeros.
fn key() -> impl Strategy<Value = Bytes> {
    let registry = (0..3u8, 0..400u32).prop_map(|(kind, n)| format!("/registry/{kind}s/{n:04}"));
    let short = vec(prop_oneof![Just(0u8), Just(b'a'), Just(0xff)], 1..12);
    prop_oneof![4 => registry.prop_map(Bytes::from), 1 => short.prop_map(Bytes::from)]
}

#[derive(Clone, Debug)]
enum Step {
    Put(Bytes),
    /// So many keys after one another.
    Run(Bytes, u32),
    Delete(KeyRange),
    Forget,
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::single),
        (key(), key()).prop_map(|(start, end)| KeyRange { start, end: RangeEnd::Before(end) }),
        key().prop_map(|key| KeyRange::prefix(key.slice(..key.len() - 1))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => key().prop_map(Step::Put),
        2 => (key(), 1..800u32).prop_map(|(key, many)| Step::Run(key, many)),
        2 => range().prop_map(Step::Delete),
        1 => Just(Step::Forget),
    ]
}

fn keys(keyspace: &Keyspace, range: &KeyRange) -> Vec<Bytes> {
    keyspace.iter(range, Revision(0)).unwrap().map(|kv| kv.key).collect()
}

fn apply(keyspace: &mut Keyspace, op: Op) {
    let txn = Txn { success: vec![op], ..Txn::default() };
    keyspace.apply(keyspace.index() + 1, &Command::Txn(txn)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn they_are_all_there_and_in_order(
        steps in vec(step(), 1..400),
        ranges in vec(range(), 40),
    ) {
        let (mut keyspace, mut model) = (Keyspace::new(), BTreeMap::new());
        let put = |keyspace: &mut Keyspace, model: &mut BTreeMap<_, _>, key: Bytes| {
            let value = Bytes::from(model.len().to_string());
            model.insert(key.clone(), value.clone());
            apply(keyspace, Op::Put { key, value, lease: LeaseId(0) });
        };
        for step in steps {
            match step {
                Step::Put(key) => put(&mut keyspace, &mut model, key),
                Step::Run(key, many) => (0..many).for_each(|n| {
                    put(&mut keyspace, &mut model, [&key[..], &n.to_be_bytes()].concat().into());
                }),
                Step::Delete(range) => {
                    model.retain(|key, _| !range.contains(key));
                    apply(&mut keyspace, Op::Delete { range });
                }
                Step::Forget => {
                    keyspace.trim(0);
                    prop_assert_eq!(keyspace.held_keys(), model.len());
                }
            }
        }
        for range in ranges.iter().chain([&KeyRange::prefix("")]) {
            let all: Vec<Bytes> = model.keys().filter(|key| range.contains(key)).cloned().collect();
            prop_assert_eq!(keys(&keyspace, range), all.clone());
            let back = keyspace.iter(range, Revision(0)).unwrap().rev().map(|kv| kv.key);
            prop_assert_eq!(back.collect::<Vec<_>>(), all.into_iter().rev().collect::<Vec<_>>());
        }
        for (key, value) in &model {
            let found = keyspace.get(key, Revision(0)).unwrap().map(|kv| kv.value);
            prop_assert_eq!(found.as_ref(), Some(value));
        }
    }
}

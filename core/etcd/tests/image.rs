//! States of random histories, through etcd's format and back.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;

use bytes::Bytes;
use knarr_etcd_model::bolt::{Database, Element, Source, Writer};
use knarr_etcd_model::{Image, read};
use knarr_mvcc::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn key() -> impl Strategy<Value = Bytes> {
    (0..6_u8).prop_map(|n| Bytes::from(vec![b'a' + n]))
}

fn command() -> impl Strategy<Value = Command> {
    let put = (key(), vec(any::<u8>(), 0..40), 0..3_i64).prop_map(|(key, value, lease)| Op::Put {
        key,
        value: value.into(),
        lease: LeaseId(lease),
    });
    let delete = key().prop_map(|key| Op::Delete { range: KeyRange::single(key) });
    let ops = vec(prop_oneof![3 => put, 1 => delete], 1..4);
    prop_oneof![
        8 => ops.prop_map(|success| Command::Txn(Txn { success, ..Txn::default() })),
        1 => (1..40_u64).prop_map(|at| Command::Compact { revision: Revision(at) }),
        1 => (1..3_i64, 1..99_i64)
            .prop_map(|(id, ttl_secs)| Command::LeaseGrant { id: LeaseId(id), ttl_secs, now: 0 }),
        1 => (1..3_i64).prop_map(|id| Command::LeaseRevoke { id: LeaseId(id) }),
    ]
}

fn keyspace(commands: &[Command], trim: Option<usize>) -> Keyspace {
    let mut keyspace = Keyspace::new();
    for (index, command) in (1..).zip(commands) {
        let _ = keyspace.apply(index, command);
    }
    trim.into_iter().for_each(|budget| keyspace.trim(budget));
    keyspace
}

fn file(keyspace: &Keyspace) -> Vec<u8> {
    Image::new(keyspace.snapshot()).file().flatten().collect()
}

fn restored(items: Vec<Item>) -> Keyspace {
    let mut restore = Restore::new();
    items.into_iter().for_each(|item| restore.push(item).unwrap());
    restore.finish().unwrap()
}

fn all(keyspace: &Keyspace, at: Revision) -> Vec<KeyValue> {
    keyspace.range(&KeyRange::prefix(Bytes::new()), at, 0).unwrap().kvs
}

fn changes(keyspace: &Keyspace, after: Revision) -> Vec<(Revision, Bytes, Option<KeyValue>)> {
    let all = KeyRange::prefix(Bytes::new());
    let batch = keyspace.events(&all, after, keyspace.revision(), usize::MAX).unwrap();
    batch.events.into_iter().map(|event| (event.revision, event.key, event.new)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_state_survives_the_way_through_etcds_format(
        commands in vec(command(), 0..60),
        trim in proptest::option::of(0..2000_usize),
    ) {
        let before = keyspace(&commands, trim);
        let items = read(&file(&before)).unwrap();
        let after = restored(items.clone());
        prop_assert_eq!(after.index(), before.index());
        prop_assert_eq!(after.revision(), before.revision());
        prop_assert_eq!(after.compacted(), before.oldest_readable());
        for at in before.oldest_readable().0.max(1)..=before.revision().0 {
            prop_assert_eq!(all(&after, Revision(at)), all(&before, Revision(at)));
        }
        let since = before.oldest_readable();
        prop_assert_eq!(changes(&after, since), changes(&before, since));
        let leases = |keyspace: &Keyspace| -> Vec<_> {
            keyspace.leases().map(|l| (l.id, l.ttl_secs, l.keys.clone())).collect()
        };
        prop_assert_eq!(leases(&after), leases(&before));
        // What was read says what was written, down to etcd's sum of it.
        let again = Image::new(items);
        let first = Image::new(before.snapshot());
        for at in before.oldest_readable().0.max(1)..=before.revision().0 {
            prop_assert_eq!(again.hash_kv(Revision(at)), first.hash_kv(Revision(at)));
        }
    }

    #[test]
    fn no_damage_is_fatal(
        commands in vec(command(), 0..60),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
    ) {
        let mut bytes = file(&keyspace(&commands, None));
        for (place, flip) in flips {
            // Most of a page is empty: what is written there begins it.
            let place = place.index(bytes.len() / 4);
            let place = place / 1024 * 4096 + place % 1024;
            bytes[place] ^= flip;
        }
        if let Ok(items) = read(&bytes) {
            let mut restore = Restore::new();
            let _ = items.into_iter().try_for_each(|item| restore.push(item));
        }
    }
}

#[test]
fn settings_are_pairs_of_the_buckets_they_are_named_after() {
    let setting = |key: &'static str, value: &'static str| (key.into(), Some(value.into()));
    let entries = vec![
        setting("auth/authEnabled", "\x01"),
        setting("authRoles/root", "r"),
        setting("authUsers/alice", "a"),
        setting("authUsers/b/ob", "b"),
    ];
    // Names of the buckets that have another meaning are not ours to fill.
    let foreign = vec![setting("meta/consistent_index", "x"), setting("nowhere", "x")];
    let change = |entries| Command::Settings(Change { expect: 0, entries });
    let before = keyspace(&[change([foreign, entries.clone()].concat())], None);
    let after = restored(read(&file(&before)).unwrap());
    let held = after.settings().iter(&[]).map(|(key, value)| (key.clone(), Some(value.clone())));
    assert_eq!(held.collect::<Vec<_>>(), entries);
    assert_eq!(after.settings().version(), 1);
}

/// A file with one pair more, or another one.
fn with(file: &[u8], bucket: &str, key: &str, value: Bytes) -> Vec<u8> {
    let mut buckets = Vec::new();
    for element in Database::open(file).unwrap().root().elements() {
        let Element::Bucket(name, found) = element.unwrap() else { continue };
        let pair = |pair: Result<(&[u8], &[u8]), _>| {
            let (key, value) = pair.unwrap();
            (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
        };
        let mut pairs: BTreeMap<Bytes, Bytes> = found.pairs().map(pair).collect();
        if name == bucket.as_bytes() {
            pairs.insert(key.to_owned().into(), value.clone());
        }
        let pairs: Vec<(Bytes, Bytes)> = pairs.into_iter().collect();
        buckets.push((Bytes::copy_from_slice(name), Box::new(pairs) as Box<dyn Source>));
    }
    Writer::new(buckets).flatten().collect()
}

/// Two names for one page say nothing that is wrong by itself.
#[test]
fn buckets_that_share_their_entries_are_refused() {
    let change = Change { expect: 0, entries: vec![("authUsers/a".into(), Some("x".into()))] };
    let file = file(&keyspace(&[Command::Settings(change)], None));
    let user = Bytes::from(vec![b'u'; 100_000]);
    let mut file = with(&file, "authUsers", "a", user.clone());
    assert!(read(&file).is_ok());
    // The name of a bucket, and where its tree begins, lie together: the other's leads there too.
    let at = |name: &str| file.windows(name.len()).rposition(|w| w == name.as_bytes()).unwrap();
    let (users, roles) = (at("authUsers") + 9, at("authRoles") + 9);
    file.copy_within(users..users + 8, roles);
    assert_eq!(read(&file), Err(knarr_etcd_model::ReadError::Twice));
}

#[test]
fn a_compaction_under_way_counts_as_done() {
    let put = |value: &'static str| {
        let put = Op::Put { key: "k".into(), value: value.into(), lease: LeaseId(0) };
        Command::Txn(Txn { success: vec![put], ..Txn::default() })
    };
    let file = file(&keyspace(&[put("1"), put("2"), put("3")], None));
    // What etcd has between the two marks: old versions, and only the first mark.
    let mark = [&3_u64.to_be_bytes()[..], b"_", &[0; 8]].concat();
    let file = with(&file, "meta", "scheduledCompactRev", mark.into());
    let after = restored(read(&file).unwrap());
    assert_eq!(after.compacted(), Revision(3));
    assert_eq!(all(&after, Revision(3))[0].value, "2");
    assert_eq!(all(&after, Revision(4))[0].value, "3");
    assert!(after.get(b"k", Revision(2)).is_err());
}

#[test]
fn entries_without_a_meaning_are_refused() {
    let file = file(&Keyspace::new());
    let refused = |bucket: &str, key: &str, value: &'static str| {
        read(&with(&file, bucket, key, value.into())).unwrap_err().to_string()
    };
    let told = |bucket| format!("an entry of the bucket {bucket} has no meaning");
    let second = "\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0";
    assert_eq!(refused("key", "short", ""), told("key"));
    assert_eq!(refused("key", &format!("{second}x"), ""), told("key"));
    assert_eq!(refused("key", second, "\x0a"), told("key"));
    assert_eq!(refused("key", second, "\x18\x03"), told("key"));
    assert_eq!(refused("lease", "x", "\x0a"), told("lease"));
    assert_eq!(refused("meta", "consistent_index", "1"), told("meta"));
    assert_eq!(refused("meta", "finishedCompactRev", "1"), told("meta"));
    let empty: Vec<u8> = Writer::new([]).flatten().collect();
    assert_eq!(read(&empty).unwrap_err().to_string(), "this is no state of etcd: no bucket meta");
}

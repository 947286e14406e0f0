//! A state out in etcd's format and into a new directory, with power cuts on the way.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::sync::Arc;

use bytes::Bytes;
use knarr_store::mvcc::{Command, Item, LeaseId, Op, Revision, Txn};
use knarr_store::sim::SimDisk;
use knarr_store::{
    BackupError, Disk as _, Engine, Entry, EtcdSnapshot, HashCheck, Identity, RestoreError,
    StoreConfig, read_etcd_snapshot, restore,
};

fn config(cluster: u64) -> StoreConfig {
    let identity = Identity { cluster, member: 1 };
    StoreConfig { identity, segment_bytes: 4096, ..StoreConfig::default() }
}

fn items(engine: &Engine) -> Vec<Item> {
    engine.keyspace().read().unwrap().snapshot().collect()
}

/// A state with leases, deletions, large values and a compaction.
fn filled() -> Engine {
    let mut engine = Engine::open(Arc::new(SimDisk::default()), config(1)).unwrap();
    let lease = LeaseId(7);
    let mut commands = vec![Command::LeaseGrant { id: lease, ttl_secs: 60, now: 0 }];
    for number in 0..50_u64 {
        let key = Bytes::from(format!("key-{}", number % 20));
        let put = Op::Put { key: key.clone(), value: vec![1; 3000].into(), lease };
        let delete = Op::Delete {
            range: knarr_store::mvcc::KeyRange::single(format!("key-{}", number % 7)),
        };
        let success = if number % 5 == 4 { vec![delete] } else { vec![put] };
        commands.push(Command::Txn(Txn { success, ..Txn::default() }));
    }
    commands.push(Command::Compact { revision: Revision(20) });
    let entries: Vec<Entry> = commands.into_iter().map(Entry::new).collect();
    for outcome in entries.chunks(1).flat_map(|entry| engine.commit(entry).unwrap()) {
        outcome.unwrap();
    }
    engine
}

fn saved(engine: &Engine) -> Vec<u8> {
    let snapshot = EtcdSnapshot::new(items(engine));
    let size = snapshot.size();
    let file = snapshot.collect::<Vec<Bytes>>().concat();
    assert_eq!(file.len() as u64, size, "the size was known before");
    file
}

#[test]
fn a_saved_state_is_restored_under_a_new_identity() {
    let before = filled();
    let contents = read_etcd_snapshot(&saved(&before), HashCheck::Required).unwrap();
    let disk = SimDisk::default();
    restore(Arc::new(disk.clone()), &config(2), contents).unwrap();
    // What it said is durable is so.
    disk.crash(1);
    let mut after = Engine::open(Arc::new(disk), config(3)).unwrap();
    assert_eq!(after.identity().cluster, 2);
    assert_eq!(after.revision(), before.revision());
    let (old, new) = (items(&before), items(&after));
    let values = |items: &[Item]| -> Vec<Item> {
        items.iter().filter(|item| matches!(item, Item::Change { .. })).cloned().collect()
    };
    let since = |changes: Vec<Item>| -> Vec<Item> {
        let late =
            |item: &Item| matches!(item, Item::Change { revision, .. } if *revision > Revision(20));
        changes.into_iter().filter(late).collect()
    };
    assert_eq!(since(values(&new)), since(values(&old)));
    // And it goes on.
    let put = Op::Put { key: "more".into(), value: "x".into(), lease: LeaseId(7) };
    let more = Entry::new(Command::Txn(Txn { success: vec![put], ..Txn::default() }));
    after.commit(&[more]).unwrap().remove(0).unwrap();
    assert_eq!(after.revision().0, before.revision().0 + 1);
}

#[test]
fn nothing_is_restored_over_anything() {
    let disk = SimDisk::default();
    drop(Engine::open(Arc::new(disk.clone()), config(1)).unwrap());
    let names = disk.list().unwrap();
    let refused = restore(Arc::new(disk.clone()), &config(2), items(&filled()));
    assert!(matches!(refused, Err(RestoreError::NotEmpty)), "{refused:?}");
    assert_eq!(disk.list().unwrap(), names);
}

#[test]
fn an_interrupted_restore_is_never_taken_for_a_store() {
    let state = items(&filled());
    let whole = SimDisk::default();
    restore(Arc::new(whole.clone()), &config(2), state.clone()).unwrap();
    for seed in 0..whole.changes() * 4 {
        let disk = SimDisk::default();
        disk.crash_after(seed % whole.changes());
        let done = restore(Arc::new(disk.clone()), &config(2), state.clone());
        disk.crash(seed);
        let named = disk.list().unwrap().iter().any(|name| !name.starts_with("tmp-"));
        match Engine::open(Arc::new(disk), config(3)) {
            // Nothing of it, or all of it.
            Ok(engine) if named => assert_eq!(items(&engine), items_after(&whole), "seed {seed}"),
            Ok(engine) => assert_eq!(engine.revision(), Revision(1), "seed {seed}"),
            Err(_) => assert!(done.is_err(), "seed {seed}"),
        }
    }
}

#[test]
fn a_restored_store_that_loses_its_checkpoint_is_refused() {
    let mut state = items(&filled());
    if let Some(Item::Meta(meta)) = state.first_mut() {
        meta.index = 0;
    }
    let disk = SimDisk::default();
    restore(Arc::new(disk.clone()), &config(2), state).unwrap();
    let checkpoint = disk.list().unwrap().into_iter().find(|name| name.contains("checkpoint"));
    disk.flip(&checkpoint.unwrap(), 200, 1);
    // An empty store in its place would be the worst answer.
    assert!(Engine::open(Arc::new(disk), config(3)).is_err());
}

fn items_after(disk: &SimDisk) -> Vec<Item> {
    items(&Engine::open(Arc::new(disk.clone()), config(2)).unwrap())
}

#[test]
fn a_file_is_held_to_its_sum() {
    let file = saved(&filled());
    let read = |file: &[u8], check| read_etcd_snapshot(file, check).map(drop);
    let mut flipped = file.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cut = &file[..file.len() - 32];
    assert_eq!(read(&flipped, HashCheck::Required), Err(BackupError::Sum));
    assert_eq!(read(cut, HashCheck::Required), Err(BackupError::NoSum));
    assert_eq!(read(&file[..100], HashCheck::Required), Err(BackupError::NoSum));
    assert_eq!(read(&flipped, HashCheck::Skipped), Ok(()));
    assert_eq!(read(cut, HashCheck::Skipped), Ok(()));
}

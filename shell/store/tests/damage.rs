//! Bytes that change after they were acknowledged: refused with file and offset, never guessed at.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::sync::Arc;

use bytes::Bytes;
use knarr_store::mvcc::{Command, KeyRange, LeaseId, Op, RangeResult, Revision, Txn};
use knarr_store::sim::{Rng, SimDisk};
use knarr_store::{
    ArchiveConfig, Disk as _, Engine, Entry, Identity, OpenError, PastError, StoreConfig,
};

/// Size of a record without a command.
const MARK: usize = 40;

fn config() -> StoreConfig {
    StoreConfig { segment_bytes: 4096, checkpoint_bytes: 8000, ..StoreConfig::default() }
}

fn open(disk: &SimDisk) -> Result<Engine, OpenError> {
    Engine::open(Arc::new(disk.clone()), config())
}

fn put(number: u64) -> Entry {
    let key = Bytes::from(format!("key-{number}"));
    let value = Bytes::from(vec![number as u8; 40 + (number as usize * 37) % 300]);
    let put = Op::Put { key, value, lease: LeaseId(0) };
    Entry::new(Command::Txn(Txn { success: vec![put], ..Txn::default() }))
}

fn all(engine: &Engine) -> RangeResult {
    engine.keyspace().read().unwrap().range(&KeyRange::prefix(""), Revision(0), 0).unwrap()
}

fn write(engine: &mut Engine, numbers: std::ops::Range<u64>) {
    for number in numbers {
        engine.commit(&[put(number)]).unwrap().remove(0).unwrap();
    }
}

/// A closed store with a checkpoint and several segments, and what it holds.
fn filled() -> (SimDisk, RangeResult) {
    let disk = SimDisk::default();
    let mut engine = open(&disk).unwrap();
    write(&mut engine, 0..60);
    let job = engine.begin_checkpoint().unwrap();
    write(&mut engine, 60..80);
    engine.end_checkpoint(job.run());
    write(&mut engine, 80..100);
    engine.seal().unwrap();
    let held = all(&engine);
    (disk, held)
}

fn read(disk: &SimDisk, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn any_flipped_byte_is_refused_or_harmless() {
    let (mut disk, held) = filled();
    let names = disk.list().unwrap();
    assert!(names.iter().any(|name| name.starts_with("checkpoint-")));
    assert!(names.iter().filter(|name| name.starts_with("log-")).count() > 2, "{names:?}");
    for name in &names {
        let bytes = read(&disk, name);
        for offset in (0..bytes.len()).step_by(7) {
            disk.flip(name, offset, 0x20);
            match open(&disk) {
                // Only the log's closing mark, which holds no command, and an unused rest.
                Ok(engine) => {
                    let mark = if Some(name) == names.last() { MARK } else { 0 };
                    let rest = &bytes[bytes.len().min(offset + mark)..];
                    assert!(rest.iter().all(|&byte| byte == 0), "{name} at {offset}");
                    assert!(mark > 0 || name.starts_with("checkpoint-"), "{name} at {offset}");
                    assert_eq!(all(&engine), held, "{name} at {offset}");
                    disk = filled().0;
                }
                Err(OpenError::Corrupt { file, offset: at, .. }) => {
                    assert_eq!(&file, name);
                    assert!(at as usize <= offset, "{name}: {at} reported for {offset}");
                    disk.flip(name, offset, 0x20);
                }
                Err(error) => panic!("{name} at {offset}: {error}"),
            }
        }
    }
}

#[test]
fn the_error_names_file_and_offset() {
    let (disk, _) = filled();
    let name = disk.list().unwrap().into_iter().rfind(|name| name.starts_with("log-")).unwrap();
    disk.flip(&name, 70, 1);
    let error = open(&disk).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{name} is damaged at offset 64: {}",
            "the record here is broken, but was acknowledged"
        )
    );
}

/// Whoever looks again, as when the damage is undone, is not told that somebody else is there.
#[test]
fn a_refused_start_holds_nothing() {
    let (disk, _) = filled();
    let first = disk.list().unwrap().into_iter().find(|name| name.starts_with("log-")).unwrap();
    disk.flip(&first, 70, 1);
    for _ in 0..20 {
        let disk = Arc::new(disk.clone());
        Engine::open(disk.clone(), config()).unwrap_err();
        assert_eq!(Arc::strong_count(&disk), 1);
    }
}

/// All but the last segment: a log without its end looks like a shorter log.
#[test]
fn a_missing_file_is_refused() {
    let (disk, _) = filled();
    let mut names = disk.list().unwrap();
    names.pop();
    for name in names {
        let (disk, _) = filled();
        disk.remove(&name).unwrap();
        assert!(matches!(open(&disk), Err(OpenError::Corrupt { .. })), "without {name}");
    }
}

#[test]
fn files_of_two_clusters_are_not_mixed() {
    let (disk, _) = filled();
    let other = SimDisk::default();
    let identity = Identity { cluster: 7, member: 1 };
    let mut engine =
        Engine::open(Arc::new(other.clone()), StoreConfig { identity, ..config() }).unwrap();
    assert_eq!(engine.identity(), identity);
    write(&mut engine, 0..100);
    let names = disk.list().unwrap();
    let last = names.iter().rfind(|name| name.starts_with("log-")).unwrap();
    copy(&other, &other.list().unwrap()[0], &disk, last);
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    drop(engine);
    let again = Engine::open(Arc::new(other), config()).unwrap();
    assert_eq!(again.identity(), identity, "an existing directory keeps its identity");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = SimDisk::default();
    drop(open(&disk).unwrap());
    let name = disk.list().unwrap().remove(0);
    let mut header = vec![0; 64];
    let mut file = disk.open(&name).unwrap();
    file.read_at(0, &mut header).unwrap();
    header[12] = 9;
    let crc = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    file.write_at(0, &header).unwrap();
    let error = open(&disk).unwrap_err().to_string();
    assert_eq!(error, format!("{name} needs a knarr that reads format 9 or newer"));
}

/// A record that was never acknowledged goes, and its remains never come back behind later ones.
#[test]
fn a_torn_tail_is_cut_for_good() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let disk = SimDisk::default();
        let mut engine = open(&disk).unwrap();
        write(&mut engine, 0..5);
        disk.crash_after(1 + rng.below(2));
        let batch: Vec<Entry> = (5..12).map(put).collect();
        assert!(engine.commit(&batch).is_err());
        disk.crash(rng.draw());
        let mut engine = open(&disk).unwrap();
        let kept = all(&engine).count;
        assert!((5..=12).contains(&kept));
        // A shorter record over the torn one: old bytes must not follow it.
        engine.commit(&[put(0)]).unwrap();
        let now = all(&engine);
        drop(engine);
        assert_eq!(all(&open(&disk).unwrap()), now, "seed {seed}");
    }
}

/// A disk without room for another segment, but for a checkpoint: the log makes way by itself.
#[test]
fn a_checkpoint_frees_a_full_disk() {
    let disk = SimDisk::default();
    // The history goes into a checkpoint too.
    let (archive, history_bytes) = (ArchiveConfig::OFF, 1000);
    let config =
        StoreConfig { segment_bytes: 4096, history_bytes, archive, ..StoreConfig::default() };
    let mut engine = Engine::open(Arc::new(disk.clone()), config).unwrap();
    disk.set_capacity(5 * 4096 + 2000);
    while engine.commit(&[put(1)]).is_ok() {
        assert!(engine.begin_checkpoint().is_none(), "not due by its size");
    }
    let held = all(&engine);
    let job = engine.begin_checkpoint().expect("due for want of space");
    assert!(engine.begin_checkpoint().is_none(), "one at a time");
    engine.end_checkpoint(job.run());
    engine.commit(&[put(2)]).unwrap().remove(0).unwrap();
    drop(engine);
    assert_eq!(all(&open(&disk).unwrap()).count, held.count + 1);
}

/// Whoever commits does not wait for zeros to be written, but where the disk had no room for the
/// next segment: then one is made when it is needed.
#[test]
fn the_next_segment_is_made_ahead() {
    let disk = SimDisk::default();
    let mut engine = Engine::open(Arc::new(disk.clone()), config()).unwrap();
    let segments = || disk.files().iter().filter(|(name, _)| name.starts_with("log-")).count();
    for can_be_made in [true, false, true] {
        let (before, job) = (
            segments(),
            loop {
                match engine.begin_segment() {
                    Some(job) => break job,
                    None => write(&mut engine, 0..1),
                }
            },
        );
        write(&mut engine, 0..1);
        assert_eq!(segments(), before, "due in the middle of one");
        assert!(engine.begin_segment().is_none(), "one at a time");
        disk.set_capacity(if can_be_made { u64::MAX } else { disk.used() });
        engine.end_segment(job.run());
        disk.set_capacity(u64::MAX);
        let mut changes = 0;
        while segments() == before {
            assert!(engine.begin_segment().is_none(), "it is there, or waits until it is needed");
            let begun = disk.changes();
            write(&mut engine, 0..1);
            changes = disk.changes() - begun;
        }
        // A record is written and synced, before it the header, the name and the directory; and
        // what was not made ahead is a file, with its zeros and their sync.
        assert_eq!(changes, if can_be_made { 6 } else { 9 });
    }
    let held = all(&engine);
    drop(engine);
    assert_eq!(all(&open(&disk).unwrap()), held);
}

/// A large state is not written down again for a little log.
#[test]
fn a_checkpoint_waits_for_its_share_of_the_state() {
    let mut due = Vec::new();
    for checkpoint_percent in [0, 50] {
        let config = StoreConfig { checkpoint_percent, ..config() };
        let mut engine = Engine::open(Arc::new(SimDisk::default()), config).unwrap();
        write(&mut engine, 0..200);
        let job = engine.begin_checkpoint().expect("the log is half as long as the state");
        engine.end_checkpoint(job.run());
        let mut more = 0;
        while engine.begin_checkpoint().is_none() {
            write(&mut engine, 0..1);
            more += 1;
        }
        due.push(more);
    }
    assert!(due[1] > 2 * due[0], "{due:?}");
}

/// A valid record at another's place in a checkpoint.
#[test]
fn a_checkpoint_is_read_in_order() {
    let disk = SimDisk::default();
    let config = StoreConfig { segment_bytes: 64 << 10, checkpoint_bytes: 1, ..config() };
    let mut engine = Engine::open(Arc::new(disk.clone()), config).unwrap();
    for number in 0..60 {
        let (key, value) = (format!("key-{number:02}").into(), vec![number; 4000].into());
        let put = Op::Put { key, value, lease: LeaseId(0) };
        let txn = Txn { success: vec![put], ..Txn::default() };
        engine.commit(&[Entry::new(Command::Txn(txn))]).unwrap().remove(0).unwrap();
    }
    let job = engine.begin_checkpoint().unwrap();
    engine.end_checkpoint(job.run());
    drop(engine);
    let name = disk.list().unwrap().remove(0);
    let bytes = read(&disk, &name);
    let next = |at: usize| {
        let len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        (at + MARK + len).next_multiple_of(8)
    };
    let second = next(64);
    let third = next(second);
    assert_eq!(third - second, next(third) - third, "alike in size");
    let mut file = disk.open(&name).unwrap();
    file.write_at(second as u64, &bytes[third..next(third)]).unwrap();
    match open(&disk) {
        Err(OpenError::Corrupt { file, offset, .. }) => {
            assert_eq!((file, offset), (name, second as u64));
        }
        other => panic!("{other:?}"),
    }
}

/// Whatever a file holds, a start ends with a state or an error.
#[test]
fn garbage_never_panics() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let (disk, _) = filled();
        let names = disk.list().unwrap();
        for _ in 0..1 + rng.below(3) {
            let name = &names[rng.below(names.len() as u64) as usize];
            let offset = rng.below(1 + read(&disk, name).len() as u64);
            let garbage: Vec<u8> = (0..rng.below(200)).map(|_| rng.draw() as u8).collect();
            let mut file = match rng.one_in(4) {
                true => disk.create(name).unwrap(),
                false => disk.open(name).unwrap(),
            };
            file.write_at(offset, &garbage).unwrap();
        }
        let _ = open(&disk);
    }
}

fn copy(from: &SimDisk, source: &str, to: &SimDisk, target: &str) {
    to.create(target).unwrap().write_at(0, &read(from, source)).unwrap();
}

/// Damage to files of the past costs history only, and what is told of it is never wrong.
#[test]
fn a_damaged_past_is_reported_or_harmless() {
    let config = StoreConfig {
        history_bytes: 2000,
        archive: ArchiveConfig { bytes: 60_000, ..ArchiveConfig::default() },
        ..config()
    };
    let open = |disk: &SimDisk| Engine::open(Arc::new(disk.clone()), config.clone()).unwrap();
    let made = || {
        let disk = SimDisk::default();
        let mut engine = open(&disk);
        for number in 0..90 {
            write(&mut engine, number % 7..number % 7 + 1);
            if let Some(job) = engine.begin_archive() {
                engine.end_archive(job.run());
            }
        }
        let job = engine.begin_checkpoint().unwrap();
        engine.end_checkpoint(job.run());
        disk
    };
    let range = KeyRange::prefix("");
    let disk = made();
    let past = open(&disk).past();
    let truth: Vec<_> = (1..=91).map(|at| past.state(&range, Revision(at)).unwrap().kvs).collect();
    let names = disk.list().unwrap();
    let names: Vec<&String> = names.iter().filter(|name| name.starts_with("hist-")).collect();
    assert!(names.len() > 2, "{names:?}");
    let mut reported = 0;
    for name in names {
        for offset in (0..read(&disk, name).len()).step_by(61) {
            let disk = made();
            disk.flip(name, offset, 0x20);
            let engine = open(&disk);
            let past = engine.past();
            assert_eq!(past.newest(), Revision(91));
            for at in [1, 20, 45, 70, 91] {
                match past.state(&range, Revision(at)) {
                    Ok(state) => assert_eq!(state.kvs, truth[at as usize - 1], "{name} {offset}"),
                    Err(PastError::Damaged { file, offset: at }) => {
                        assert_eq!(&file, name);
                        assert!(at as usize <= offset);
                        reported += 1;
                    }
                    Err(PastError::Gone { .. }) => reported += 1,
                    Err(error) => panic!("{name} at {offset}: {error}"),
                }
            }
        }
    }
    assert!(reported > 10, "{reported}");
}

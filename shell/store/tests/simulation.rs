//! Random writes, checkpoints, full disks and power cuts by seed, against the simulated disk.
//!
//! What must hold after every start:
//! * every acknowledged command is there, and every revision a reader was shown;
//! * the state is that of a prefix of the commands in log order, nothing else;
//! * the past is what it was, as far back as it went before, and after a change of the disk too;
//! * the same seed gives the same bytes on the disk, in the same order.
//!
//! A failing seed says how to run it alone: `KNARR_SEED=n`. `KNARR_SEEDS=n` runs more of them.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use bytes::Bytes;
use knarr_store::mvcc::*;
use knarr_store::sim::{Fault, Rng, SimDisk};
use knarr_store::{
    ArchiveConfig, ArchiveJob, CheckpointJob, Engine, Entry, OpenError, SegmentJob, StoreConfig,
    StoreError,
};

const SEEDS: u64 = 2000;

/// Small files, so that a short run sees segments end and checkpoints replace them.
fn config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 4096,
        checkpoint_bytes: 6000,
        history_bytes: 3000,
        archive: ArchiveConfig { bytes: 40_000, ..ArchiveConfig::default() },
        ..StoreConfig::default()
    }
}

struct Run {
    rng: Rng,
    disk: SimDisk,
    engine: Engine,
    /// What every acknowledged command leads to.
    reference: Keyspace,
    /// Commands whose commit failed: a prefix of them may turn up again.
    in_doubt: Vec<Command>,
    shown: Revision,
    job: Option<CheckpointJob>,
    archive: Option<ArchiveJob>,
    segment: Option<SegmentJob>,
    /// History that could not be written down may have been given up.
    given_up: bool,
    /// What happens besides power cuts.
    lies: Fault,
    seen: Seen,
}

/// That the interesting things do happen.
#[derive(Debug, Default)]
struct Seen {
    cuts: u64,
    cut_while_opening: u64,
    checkpoints: u64,
    archived: u64,
    ahead: u64,
    archive_full: u64,
    read_from_disk: u64,
    retired: u64,
    full: u64,
    sync_failures: u64,
    doubts_kept: u64,
    doubts_lost: u64,
}

impl Run {
    fn new(seed: u64, lies: Fault) -> Self {
        let disk = SimDisk::default();
        let engine = Engine::open(Arc::new(disk.clone()), config()).unwrap();
        disk.set_fault(lies);
        Self {
            rng: Rng::new(seed),
            disk,
            engine,
            reference: Keyspace::new(),
            in_doubt: Vec::new(),
            shown: Revision(1),
            job: None,
            archive: None,
            segment: None,
            given_up: false,
            lies,
            seen: Seen::default(),
        }
    }

    fn play(mut self) -> (u64, Seen) {
        for _ in 0..40 {
            match self.rng.below(16) {
                0 => self.cut(),
                1 | 2 => self.disk.crash_after(1 + self.rng.below(12)),
                3 => self.fill_up(),
                4 if self.lies == Fault::None => self.break_sync(),
                _ => {}
            }
            self.write();
            self.checkpoint();
            self.archive();
            self.segment();
            if self.rng.one_in(12) {
                self.engine.forget();
                self.look_back();
            }
        }
        self.cut();
        (self.disk.trace(), self.seen)
    }

    fn write(&mut self) {
        let commands: Vec<Command> =
            (0..1 + self.rng.below(4)).map(|_| command(&mut self.rng)).collect();
        let entries: Vec<Entry> = commands.iter().cloned().map(Entry::new).collect();
        match self.engine.commit(&entries) {
            Ok(outcomes) => {
                for (command, outcome) in commands.iter().zip(outcomes) {
                    let index = self.reference.index() + 1;
                    assert_eq!(self.reference.apply(index, command), outcome);
                }
                self.look();
            }
            Err(StoreError::Full) => panic!("full with room"),
            Err(_) => {
                self.in_doubt = commands;
                self.look();
                self.cut();
            }
        }
    }

    /// A reader looks: what it sees must be acknowledged, and stays.
    fn look(&mut self) {
        let revision = self.engine.keyspace().read().unwrap().revision();
        assert_eq!(revision, self.reference.revision(), "shown before it was durable");
        self.shown = self.shown.max(revision);
    }

    fn checkpoint(&mut self) {
        self.job = self.job.take().or_else(|| self.engine.begin_checkpoint());
        if self.rng.one_in(2)
            && let Some(job) = self.job.take()
        {
            let result = job.run();
            self.seen.checkpoints += u64::from(result.is_ok());
            self.engine.end_checkpoint(result);
        }
    }

    fn archive(&mut self) {
        self.archive = self.archive.take().or_else(|| self.engine.begin_archive());
        if self.rng.one_in(2)
            && let Some(job) = self.archive.take()
        {
            let result = job.run();
            self.seen.archived += u64::from(result.is_ok());
            let full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
            self.seen.archive_full += u64::from(result.as_ref().is_err_and(full));
            self.given_up |= result.is_err();
            self.engine.end_archive(result);
        }
    }

    fn segment(&mut self) {
        self.segment = self.segment.take().or_else(|| self.engine.begin_segment());
        if self.rng.one_in(2)
            && let Some(job) = self.segment.take()
        {
            let result = job.run();
            self.seen.ahead += u64::from(result.is_ok());
            self.engine.end_segment(result);
        }
    }

    /// Every state and every change as far as the past goes back, compared with the reference,
    /// which forgets nothing.
    fn look_back(&mut self) {
        let past = self.engine.past();
        let (oldest, newest, all) = (past.oldest(), past.newest(), KeyRange::prefix(""));
        self.seen.retired += u64::from(oldest > Revision(0));
        let floor = self.engine.keyspace().read().unwrap().floor();
        let first = oldest.0.max(1);
        let some = (0..2).map(|_| first + self.rng.below(1 + newest.0 - first));
        let some: Vec<u64> = some.chain([first]).collect();
        for at in some.into_iter().map(Revision) {
            let state = past.state(&all, at).unwrap();
            assert_eq!(state.kvs, self.reference.held_at(&all, at), "at {at:?}");
            assert_eq!(state.wall_ms, self.reference.marks().time_of(at), "at {at:?}");
            self.seen.read_from_disk += u64::from(at < floor);
        }
        let (mut cursor, mut seen) = (oldest, Vec::new());
        while cursor < newest {
            let batch = past.events(&all, cursor, newest, 2000).unwrap();
            assert!(batch.next > cursor, "no progress at {cursor:?}");
            cursor = batch.next;
            seen.extend(batch.events);
        }
        let expected = self.reference.held(&all, oldest, newest, usize::MAX).unwrap().events;
        assert_eq!(seen, expected);
        let wall = self.rng.below(100_000);
        let expected = self.reference.marks().before(wall).unwrap_or(newest);
        match past.before(wall) {
            Ok(found) => assert_eq!(found, expected, "before {wall}"),
            // Before the first time that was ever noted.
            Err(_) if self.reference.marks().iter().next().is_none_or(|m| m.wall_ms > wall) => {}
            Err(_) => assert!(expected <= oldest, "before {wall}: {expected:?}"),
        }
    }

    /// No space: the write is refused as a whole, and works once there is space again.
    fn fill_up(&mut self) {
        self.disk.set_capacity(self.disk.used());
        for _ in 0..8 {
            let value = Bytes::from(vec![b'f'; 900]);
            let put = Op::Put { key: "full".into(), value, lease: LeaseId(0) };
            let command = Command::Txn(Txn { success: vec![put], ..Txn::default() });
            match self.engine.commit(&[Entry::new(command.clone())]) {
                Ok(_) => {
                    let index = self.reference.index() + 1;
                    self.reference.apply(index, &command).unwrap();
                }
                Err(StoreError::Full) => {
                    self.seen.full += 1;
                    self.given_up = true;
                    self.look();
                    self.archive();
                    break;
                }
                Err(_) => {
                    self.in_doubt = vec![command];
                    self.disk.set_capacity(u64::MAX);
                    return self.cut();
                }
            }
        }
        self.disk.set_capacity(u64::MAX);
    }

    /// A failed sync ends all writing until the next start.
    fn break_sync(&mut self) {
        self.disk.set_fault(Fault::SyncFails);
        let command = command(&mut self.rng);
        let entry = [Entry::new(command.clone())];
        assert!(matches!(self.engine.commit(&entry), Err(StoreError::Failed(_))));
        self.disk.set_fault(Fault::None);
        assert!(matches!(self.engine.commit(&entry), Err(StoreError::Failed(_))));
        self.seen.sync_failures += 1;
        self.in_doubt = vec![command];
        self.look();
        self.cut();
    }

    fn cut(&mut self) {
        self.seen.cuts += 1;
        (self.job, self.archive, self.segment) = (None, None, None);
        let oldest = self.engine.past().oldest();
        let floor = self.engine.keyspace().read().unwrap().floor();
        self.disk.crash(self.rng.draw());
        loop {
            self.disk.set_fault(self.lies);
            if self.rng.one_in(3) {
                self.disk.crash_after(1 + self.rng.below(6));
            }
            match Engine::open(Arc::new(self.disk.clone()), config()) {
                Ok(engine) => break self.engine = engine,
                Err(OpenError::Io { .. }) => {
                    self.seen.cut_while_opening += 1;
                    self.disk.crash(self.rng.draw());
                }
                Err(error) => panic!("does not open: {error}"),
            }
        }
        self.compare();
        let now = self.engine.past().oldest();
        let memory_only = self.given_up && oldest == floor;
        assert!(memory_only || now <= oldest, "the past from {oldest:?} on now begins at {now:?}");
        self.look_back();
    }

    fn compare(&mut self) {
        let keyspace = self.engine.keyspace();
        let keyspace = keyspace.read().unwrap();
        let (acknowledged, index) = (self.reference.index(), keyspace.index());
        assert!(index >= acknowledged, "acknowledged commands are lost: {index} < {acknowledged}");
        assert!(keyspace.revision() >= self.shown, "a shown revision is lost");
        let kept = (index - acknowledged) as usize;
        let doubts = std::mem::take(&mut self.in_doubt);
        assert!(kept <= doubts.len(), "commands nobody sent");
        for (index, command) in (acknowledged + 1..).zip(&doubts[..kept]) {
            let _ = self.reference.apply(index, command);
        }
        self.seen.doubts_kept += kept as u64;
        self.seen.doubts_lost += (doubts.len() - kept) as u64;
        same(&keyspace, &self.reference);
    }
}

fn same(actual: &Keyspace, expected: &Keyspace) {
    let all = KeyRange::prefix("");
    assert_eq!(actual.revision(), expected.revision());
    assert_eq!(actual.compacted(), expected.compacted());
    assert!(actual.oldest_readable() >= expected.oldest_readable());
    for at in actual.oldest_readable().0.max(1)..=actual.revision().0 {
        let at = Revision(at);
        assert_eq!(actual.range(&all, at, 0), expected.range(&all, at, 0), "at {at:?}");
    }
    let after = actual.oldest_readable();
    let events = |keyspace: &Keyspace| keyspace.events(&all, after, Revision(u64::MAX), usize::MAX);
    assert_eq!(events(actual), events(expected));
    let leases = |keyspace: &Keyspace| -> Vec<_> {
        keyspace.leases().map(|l| (l.id, l.ttl_secs, l.keys.clone())).collect()
    };
    assert_eq!(leases(actual), leases(expected));
}

fn command(rng: &mut Rng) -> Command {
    let lease = LeaseId(rng.below(4) as i64);
    match rng.below(12) {
        0 => Command::Compact { revision: Revision(rng.below(60)) },
        1 => Command::LeaseGrant { id: lease, ttl_secs: 10, now: 0 },
        2 => Command::LeaseRevoke { id: lease },
        // Back, now and then.
        3 => Command::Time { wall_ms: rng.below(100_000) },
        _ => Command::Txn(txn(rng)),
    }
}

fn txn(rng: &mut Rng) -> Txn {
    let key = |rng: &mut Rng| Bytes::from(format!("k{}", rng.below(9)));
    let put = |rng: &mut Rng| {
        let lease = LeaseId(if rng.one_in(6) { 1 + rng.below(3) as i64 } else { 0 });
        let value = vec![b'a' + rng.below(26) as u8; rng.below(700) as usize];
        Op::Put { key: key(rng), value: value.into(), lease }
    };
    let compare = Compare {
        range: KeyRange::single(key(rng)),
        op: CompareOp::Less,
        target: CompareTarget::Version(1 + rng.below(3)),
    };
    let delete = Op::Delete { range: KeyRange::single(key(rng)) };
    Txn { compare: vec![compare], success: vec![put(rng)], failure: vec![delete] }
}

/// Runs one seed; a failure says how to see it again.
fn seed(seed: u64) -> (u64, Seen) {
    catch_unwind(AssertUnwindSafe(|| Run::new(seed, Fault::None).play())).unwrap_or_else(|panic| {
        eprintln!("replay with: KNARR_SEED={seed} cargo test -p knarr-store --test simulation");
        resume_unwind(panic)
    })
}

fn from_env(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect("a number"))
}

#[test]
fn nothing_acknowledged_is_ever_lost() {
    if let Some(only) = from_env("KNARR_SEED") {
        eprintln!("{:?}", seed(only));
        return;
    }
    let mut total = Seen::default();
    for number in 0..from_env("KNARR_SEEDS").unwrap_or(SEEDS) {
        let (_, seen) = seed(number);
        total.cuts += seen.cuts;
        total.cut_while_opening += seen.cut_while_opening;
        total.checkpoints += seen.checkpoints;
        total.archived += seen.archived;
        total.ahead += seen.ahead;
        total.archive_full += seen.archive_full;
        total.read_from_disk += seen.read_from_disk;
        total.retired += seen.retired;
        total.full += seen.full;
        total.sync_failures += seen.sync_failures;
        total.doubts_kept += seen.doubts_kept;
        total.doubts_lost += seen.doubts_lost;
    }
    eprintln!("{total:?}");
    let all = [
        total.cuts,
        total.cut_while_opening,
        total.checkpoints,
        total.archived,
        total.ahead,
        total.archive_full,
        total.read_from_disk,
        total.retired,
        total.full,
        total.sync_failures,
        total.doubts_kept,
        total.doubts_lost,
    ];
    assert!(all.iter().all(|&count| count > 20), "the runs are too tame: {total:?}");
}

#[test]
fn the_same_seed_writes_the_same_bytes() {
    for number in 0..50 {
        assert_eq!(seed(number).0, seed(number).0, "seed {number}");
    }
    assert_ne!(seed(0).0, seed(1).0);
}

/// The checker itself: on a disk whose syncs do nothing the same runs must fail.
#[test]
fn a_disk_that_lies_is_found_out() {
    let found = (0..20).filter(|&number| {
        catch_unwind(AssertUnwindSafe(|| Run::new(number, Fault::SyncLies).play())).is_err()
    });
    let found = found.count();
    assert!(found >= 15, "only {found} of 20 runs noticed");
}

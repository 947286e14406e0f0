//! The simulated halves of the seams: a disk that forgets, tears, fills up and fails by seed, a
//! clock that moves when told, and a writer that does one thing at a time, when told. For the tests
//! of every crate; nothing here is random or timed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, SystemClock};
use crate::config::StoreConfig;
use crate::disk::{Disk, DiskFile};
use crate::error::OpenError;
use crate::spawn::{Aside, Spawn, Work};
use crate::store::Store;
use crate::writer::Writer;

/// The unit a power cut keeps or loses.
const SECTOR: usize = 512;

/// A small random number generator (splitmix64): one seed, one sequence, for ever.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is at least 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A clock that stands until it is moved.
#[derive(Debug, Default)]
pub struct SimClock {
    now: AtomicU64,
    wall: AtomicU64,
}

impl SimClock {
    /// Moves it on. A store notices at its next message, or after [`Store::wake`].
    pub fn advance(&self, millis: u64) {
        self.now.fetch_add(millis, Ordering::SeqCst);
        self.wall.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets the clock on the wall, forward or back.
    pub fn set_wall(&self, millis: u64) {
        self.wall.store(millis, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    fn wall(&self) -> u64 {
        self.wall.load(Ordering::SeqCst)
    }
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<Platter>>);

/// What the disk does wrong. Nothing by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// fdatasync and directory syncs answer but do nothing.
    SyncLies,
    /// fdatasync fails.
    SyncFails,
}

#[derive(Debug)]
struct Platter {
    /// What the running system sees.
    names: BTreeMap<String, u64>,
    /// What a power cut leaves for sure.
    durable_names: BTreeMap<String, u64>,
    dir_changes: Vec<DirChange>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    capacity: u64,
    fault: Fault,
    /// Changes left until the power goes.
    fuse: Option<u64>,
    /// Files opened before the last power cut are dead.
    boots: u64,
    /// How long an fdatasync takes, in milliseconds, on which clock.
    slow: Option<(Arc<SimClock>, u64)>,
    /// fdatasyncs so far.
    syncs: u64,
    /// Changes of any kind so far, syncs included.
    changes: u64,
    trace: u64,
}

#[derive(Clone, Debug)]
enum DirChange {
    Insert(String, u64),
    Rename(String, String, u64),
    Remove(String),
}

#[derive(Debug, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    Grow(usize),
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
    boot: u64,
    is_direct: bool,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Platter {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dir_changes: Vec::new(),
            inodes: BTreeMap::new(),
            next_inode: 1,
            capacity: u64::MAX,
            fault: Fault::None,
            fuse: None,
            boots: 0,
            slow: None,
            syncs: 0,
            changes: 0,
            trace: 0xcbf2_9ce4_8422_2325,
        })))
    }
}

impl SimDisk {
    /// The power goes: everything synced stays; of the rest each sector, size and directory change
    /// stays or goes by seed. Open files are dead; faults and fuse are gone.
    pub fn crash(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        let mut platter = self.lock();
        platter.note("crash", &[seed], &[]);
        // How much gets through: nothing, about half, or nearly all.
        let odds = [1, 2, 8][rng.below(3) as usize];
        platter.boots += 1;
        platter.fuse = None;
        platter.fault = Fault::None;
        for inode in platter.inodes.values_mut() {
            inode.crash(&mut rng, odds);
        }
        for change in std::mem::take(&mut platter.dir_changes) {
            if survives(&mut rng, odds) {
                change.apply(&mut platter.durable_names);
            }
        }
        platter.names = platter.durable_names.clone();
        platter.forget_unnamed();
    }

    /// Cuts the power at the `changes`-th change from now: it and all later calls fail.
    pub fn crash_after(&self, changes: u64) {
        self.lock().fuse = Some(changes);
    }

    /// Makes the disk misbehave from now on.
    pub fn set_fault(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    /// Lets every fdatasync take so long, on a clock.
    pub fn set_slow(&self, clock: &Arc<SimClock>, millis: u64) {
        self.lock().slow = Some((clock.clone(), millis));
    }

    /// Limits the sum of all file sizes, in bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// How often fdatasync was called.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// How often anything was changed or synced.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Whether it has neither a fault nor a fuse.
    pub fn healthy(&self) -> bool {
        let platter = self.lock();
        platter.fault == Fault::None && platter.fuse.is_none()
    }

    /// All files and their sizes in bytes.
    pub fn files(&self) -> Vec<(String, u64)> {
        let platter = self.lock();
        let size = |inode| platter.inodes[inode].live.len() as u64;
        platter.names.iter().map(|(name, inode)| (name.clone(), size(inode))).collect()
    }

    /// Bytes in all files.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Flips bits of one durable byte, as rot or a stray write would.
    ///
    /// # Panics
    /// When there is no such byte.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        let mut platter = self.lock();
        let inode = platter.names[name];
        let inode = platter.inodes.get_mut(&inode).expect("named files exist");
        inode.live[offset] ^= mask;
        inode.durable[offset] ^= mask;
    }

    /// A hash of every change so far with all its bytes: equal runs have equal hashes.
    pub fn trace(&self) -> u64 {
        self.lock().trace
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: u64, boot: u64) -> Box<dyn DiskFile> {
        Box::new(SimFile { disk: self.clone(), inode, boot, is_direct: false })
    }
}

/// One thing survives with odds of (odds - 1) in odds.
fn survives(rng: &mut Rng, odds: u64) -> bool {
    !rng.one_in(odds)
}

impl Platter {
    /// Mixes a change into the trace (FNV-1a over checksums).
    fn note(&mut self, what: &str, numbers: &[u64], bytes: &[u8]) {
        self.changes += 1;
        let sums = [what.as_bytes(), bytes].map(|part| u64::from(crc32fast::hash(part)));
        for number in sums.iter().chain(numbers) {
            self.trace = (self.trace ^ number).wrapping_mul(0x100_0000_01b3).rotate_left(23);
        }
    }

    /// Counts a change against the fuse.
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            None => Ok(()),
            Some(0) => Err(power_cut()),
            Some(left) => {
                *left -= 1;
                if *left == 0 { Err(power_cut()) } else { Ok(()) }
            }
        }
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|inode| inode.live.len() as u64).sum()
    }

    fn change_dir(&mut self, change: DirChange) -> io::Result<()> {
        let spent = self.spend();
        change.apply(&mut self.names);
        self.dir_changes.push(change);
        spent
    }

    fn forget_unnamed(&mut self) {
        let named: Vec<u64> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode));
    }
}

fn power_cut() -> io::Error {
    io::Error::other("the power is gone")
}

impl DirChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Insert(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl Inode {
    fn push(&mut self, pending: Pending) {
        pending.apply(&mut self.live);
        self.pending.push(pending);
    }

    fn sync(&mut self) {
        for pending in self.pending.drain(..) {
            pending.apply(&mut self.durable);
        }
    }

    fn crash(&mut self, rng: &mut Rng, odds: u64) {
        for pending in self.pending.drain(..) {
            match pending {
                Pending::Grow(len) => {
                    if survives(rng, odds) {
                        Pending::Grow(len).apply(&mut self.durable);
                    }
                }
                Pending::Write(offset, data) => {
                    for (at, sector) in sectors(offset, &data) {
                        if survives(rng, odds) {
                            Pending::Write(at, sector.to_vec()).apply(&mut self.durable);
                        }
                    }
                }
            }
        }
        self.live = self.durable.clone();
    }
}

/// A write cut where the disk's sectors end.
fn sectors(mut offset: usize, mut data: &[u8]) -> Vec<(usize, &[u8])> {
    let mut pieces = Vec::new();
    while !data.is_empty() {
        let (piece, rest) = data.split_at(data.len().min(SECTOR - offset % SECTOR));
        pieces.push((offset, piece));
        offset += piece.len();
        data = rest;
    }
    pieces
}

impl Pending {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Grow(len) => bytes.resize(bytes.len().max(*len), 0),
            Self::Write(offset, data) => {
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(data);
            }
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let platter = self.lock();
        let inode = *platter.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(inode, platter.boots))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut platter = self.lock();
        platter.note("create", &[], name.as_bytes());
        let inode = platter.next_inode;
        platter.next_inode += 1;
        platter.inodes.insert(inode, Inode::default());
        platter.change_dir(DirChange::Insert(name.into(), inode))?;
        platter.forget_unnamed();
        Ok(self.file(inode, platter.boots))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut platter = self.lock();
        platter.note("rename", &[], to.as_bytes());
        let inode = *platter.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        platter.change_dir(DirChange::Rename(from.into(), to.into(), inode))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut platter = self.lock();
        platter.note("remove", &[], name.as_bytes());
        platter.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        platter.change_dir(DirChange::Remove(name.into()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut platter = self.lock();
        platter.note("sync_dir", &[], &[]);
        platter.spend()?;
        if platter.fault == Fault::SyncLies {
            return Ok(());
        }
        platter.durable_names = platter.names.clone();
        platter.dir_changes.clear();
        platter.forget_unnamed();
        Ok(())
    }
}

impl SimFile {
    fn check_whole(&self, offset: u64, len: usize) {
        let whole = |n: usize| n.is_multiple_of(SECTOR);
        assert!(!self.is_direct || whole(offset as usize) && whole(len), "a part of a sector");
    }

    fn with<R>(&self, f: impl FnOnce(&mut Platter, u64) -> io::Result<R>) -> io::Result<R> {
        let mut platter = self.disk.lock();
        if platter.boots != self.boot || !platter.inodes.contains_key(&self.inode) {
            return Err(io::Error::other("the file is gone"));
        }
        f(&mut platter, self.inode)
    }

    fn change(&self, what: &str, pending: Pending) -> io::Result<()> {
        self.with(|platter, id| {
            match &pending {
                Pending::Write(offset, data) => platter.note(what, &[id, *offset as u64], data),
                Pending::Grow(len) => platter.note(what, &[id, *len as u64], &[]),
            }
            let spent = platter.spend();
            let free = platter.capacity.saturating_sub(platter.used());
            let inode = platter.inodes.get_mut(&id).expect("checked above");
            let end = match &pending {
                Pending::Write(offset, data) => offset + data.len(),
                Pending::Grow(len) => *len,
            };
            if end.saturating_sub(inode.live.len()) as u64 > free {
                return Err(io::ErrorKind::StorageFull.into());
            }
            inode.push(pending);
            spent
        })
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        assert!(
            !self.is_direct,
            "a look at a file that is written directly costs each sync a write"
        );
        self.with(|platter, id| Ok(platter.inodes[&id].live.len() as u64))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_whole(offset, buf.len());
        self.with(|platter, id| {
            let offset = offset as usize;
            let bytes = platter.inodes[&id].live.get(offset..offset + buf.len());
            buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_whole(offset, data.len());
        self.change("write", Pending::Write(offset as usize, data.to_vec()))
    }

    fn direct(&mut self) -> io::Result<usize> {
        self.is_direct = self.len()?.is_multiple_of(SECTOR as u64);
        Ok(if self.is_direct { SECTOR } else { 1 })
    }

    fn preallocate(&mut self, len: u64) -> io::Result<()> {
        self.change("preallocate", Pending::Grow(len as usize))
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.with(|platter, id| {
            platter.note("sync", &[id], &[]);
            platter.syncs += 1;
            if let Some((clock, millis)) = &platter.slow {
                clock.advance(*millis);
            }
            platter.spend()?;
            match platter.fault {
                Fault::SyncLies => {}
                Fault::SyncFails => return Err(io::Error::other("the disk is broken")),
                Fault::None => platter.inodes.get_mut(&id).expect("checked above").sync(),
            }
            Ok(())
        })
    }
}

/// The writer of a store, and the work beside it, driven by hand. A pump that is dropped leaves the
/// store as a killed process would: nothing more is written, and nobody is answered.
pub struct Pump {
    writer: Option<Writer>,
    aside: Arc<Later>,
}

/// Work that waits until it is told to run.
#[derive(Default)]
struct Later(Mutex<VecDeque<Work>>);

impl Spawn for Later {
    fn spawn(&self, _: Aside, work: Work) -> io::Result<()> {
        self.lock().push_back(work);
        Ok(())
    }

    fn awaited(&self) {
        while self.work() {}
    }
}

impl Later {
    fn work(&self) -> bool {
        let work = self.lock().pop_front();
        work.map(|work| work()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Work>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pump {
    /// Takes what waits, as the writer's thread would next. False when nothing is to be done, now
    /// or because the store is closed.
    pub fn step(&mut self) -> bool {
        let Some(writer) = &mut self.writer else { return false };
        let Some(message) = writer.poll() else { return false };
        if let Some(done) = writer.turn(message)
            && let Some(writer) = self.writer.take()
        {
            writer.close(done);
        }
        true
    }

    /// Does the oldest work that was put aside, all of it. False when there is none.
    pub fn work(&mut self) -> bool {
        self.aside.work()
    }
}

impl fmt::Debug for Pump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump").finish_non_exhaustive()
    }
}

impl Store {
    /// A store without threads.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn simulated(
        disk: &SimDisk,
        clock: &Arc<SimClock>,
        config: StoreConfig,
    ) -> Result<(Self, Pump), OpenError> {
        let (disk, clock) = (Arc::new(disk.clone()), clock.clone());
        let mut pump = Pump { writer: None, aside: Arc::default() };
        let store = Self::begin(disk, clock, config, pump.aside.clone(), |writer| {
            pump.writer = Some(writer);
            None
        })?;
        Ok((store, pump))
    }

    /// A store on a simulated disk that goes with its last handle, for tests.
    pub fn in_memory() -> Self {
        let config = StoreConfig {
            segment_bytes: 4 << 20,
            command_bytes: 2 << 20,
            checkpoint_bytes: 16 << 20,
            ..StoreConfig::default()
        };
        Self::open(Arc::new(SimDisk::default()), Arc::new(SystemClock::default()), config)
            .expect("an empty simulated disk opens")
    }
}

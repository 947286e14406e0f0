//! One run: everything that happens comes from the seed, one thing at a time.

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use knarr_store::mvcc::*;
use knarr_store::sim::{Fault, Pump, Rng, SimClock, SimDisk};
use knarr_store::{
    ArchiveConfig, AutoCompaction, Bell, Clock as _, OpenError, PastError, Store, StoreConfig,
    StoreError, Watch, WatchError,
};

use tokio::runtime::{Builder, Runtime};

use crate::check::{Call, FOREVER, Past, Told, What, check};
use crate::traffic;

const CLIENTS: usize = 4;
const BELLS: usize = 2;
const STEPS: usize = 220;

type Answering = Pin<Box<dyn Future<Output = Result<Answer, StoreError>>>>;

pub struct Run {
    rng: Rng,
    disk: SimDisk,
    clock: Arc<SimClock>,
    config: StoreConfig,
    past: Past,
    /// What the clock said, and the revision that was reached then.
    reached: Vec<(u64, Revision)>,
    /// How far it was compacted when last seen, and when the writer was last let work.
    compacted: Revision,
    stepped: u64,
    /// Reads of the past ask for a thread that may block; it is waited for at once.
    runtime: Runtime,
    /// What the disk does wrong besides power cuts.
    lies: Fault,
    /// The process, when it runs.
    store: Store,
    pump: Pump,
    /// The disk has failed: somebody will restart it.
    broken: bool,
    time: u64,
    calls: Vec<Call>,
    told: Vec<Told>,
    clients: Vec<Option<(usize, Answering)>>,
    /// Where memory began when they asked.
    floors: [Revision; CLIENTS],
    bells: Vec<Arc<Bell>>,
    watchers: Vec<Watcher>,
    /// Where watches of a process that is gone want to go on.
    resume: Vec<(KeyRange, Revision)>,
    leases: BTreeMap<LeaseId, Ends>,
    pub seen: Seen,
}

/// That the interesting things do happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub answered: u64,
    pub refused: u64,
    pub full: u64,
    pub unknown: u64,
    pub cuts: u64,
    pub cuts_while_opening: u64,
    pub restarts: u64,
    pub flips_refused: u64,
    pub flips_harmless: u64,
    pub batches: u64,
    pub gone: u64,
    pub expiries: u64,
    pub kept_alive: u64,
    pub work: u64,
    pub no_space: u64,
    pub compacted_itself: u64,
    pub old: u64,
    pub old_below_memory: u64,
    pub old_below_compaction: u64,
    pub lost: u64,
}

impl Seen {
    pub fn all(&mut self) -> [&mut u64; 20] {
        [
            &mut self.answered,
            &mut self.refused,
            &mut self.full,
            &mut self.unknown,
            &mut self.cuts,
            &mut self.cuts_while_opening,
            &mut self.restarts,
            &mut self.flips_refused,
            &mut self.flips_harmless,
            &mut self.batches,
            &mut self.gone,
            &mut self.expiries,
            &mut self.kept_alive,
            &mut self.work,
            &mut self.no_space,
            &mut self.compacted_itself,
            &mut self.old,
            &mut self.old_below_memory,
            &mut self.old_below_compaction,
            &mut self.lost,
        ]
    }
}

struct Watcher {
    watch: Watch,
    told: usize,
    /// The bell it shares and its token there, if it has none of its own.
    shared: Option<(usize, u64)>,
}

/// When a lease may end at the earliest.
struct Ends {
    at: u64,
    ttl_millis: u64,
    /// How often it was asked for since: it may come and end as often.
    grants: u64,
    /// The calls that stand for its ends, once they may come.
    calls: Vec<usize>,
}

/// Looks at a future once.
fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

impl Run {
    pub fn new(seed: u64, lies: Fault) -> Self {
        let mut rng = Rng::new(seed);
        let past = [Past::Kept, Past::Kept, Past::OnDisk, Past::Short][rng.below(4) as usize];
        let config = StoreConfig {
            segment_bytes: 4096,
            checkpoint_bytes: 5000,
            command_bytes: 4000,
            history_bytes: if past == Past::Kept { 1 << 20 } else { 2500 },
            // A small memory has little room for history, and gives it up early.
            memory_bytes: if past == Past::Short && rng.one_in(2) { 3000 } else { 1 << 24 },
            watch_batch_bytes: 600,
            archive: match past {
                Past::OnDisk => ArchiveConfig { age: Duration::MAX, ..Default::default() },
                Past::Short if rng.one_in(2) => ArchiveConfig { bytes: 9000, ..Default::default() },
                _ => ArchiveConfig::OFF,
            },
            auto_compaction: match rng.below(8) {
                0 => AutoCompaction::Periodic(2_000 + rng.below(20_000)),
                1 => AutoCompaction::Revisions(rng.below(10)),
                _ => AutoCompaction::Off,
            },
            ..StoreConfig::default()
        };
        let (disk, clock) = (SimDisk::default(), Arc::<SimClock>::default());
        let (store, pump) = Store::simulated(&disk, &clock, config.clone()).unwrap();
        disk.set_fault(lies);
        Self {
            rng,
            disk,
            clock,
            config,
            past,
            reached: vec![(0, Revision(1))],
            compacted: Revision(0),
            stepped: 0,
            runtime: Builder::new_current_thread().build().unwrap(),
            lies,
            store,
            pump,
            broken: false,
            time: 0,
            calls: Vec::new(),
            told: Vec::new(),
            clients: (0..CLIENTS).map(|_| None).collect(),
            floors: [Revision(0); CLIENTS],
            bells: (0..BELLS).map(|_| Arc::default()).collect(),
            watchers: Vec::new(),
            resume: Vec::new(),
            leases: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    /// Plays it to the end, and checks it; a hash of all that was answered, told and written.
    pub fn play(mut self) -> (u64, Seen) {
        for _ in 0..STEPS {
            self.step();
        }
        self.end();
        if let Err(why) = check(&self.calls, &self.told, self.past) {
            if std::env::var_os("KNARR_SEED").is_some() {
                self.calls.iter().for_each(|call| eprintln!("{call:?}"));
                self.told.iter().for_each(|told| eprintln!("{told:?}"));
            }
            panic!("no order of the calls explains it: {why}");
        }
        let mut hasher = DefaultHasher::new();
        let told: Vec<_> = self.told.iter().map(|told| (told.upto, told.events.len())).collect();
        (self.disk.trace(), format!("{:?}", self.calls), told).hash(&mut hasher);
        (hasher.finish(), self.seen)
    }

    fn step(&mut self) {
        match self.rng.below(if self.broken { 44 } else { 40 }) {
            0..12 => self.client(),
            12..20 => _ = self.pump(),
            20 | 21 => self.work(),
            22..25 => self.read(),
            25 if self.archives() => self.look_back(),
            25 => self.list_leases(),
            26 => self.keep_alive(),
            27..29 => self.open_watch(),
            29..34 => self.watch(),
            34 => self.close_watch(),
            35 | 36 => self.pass_time(),
            37 | 38 => self.trouble(),
            39 => self.restart(),
            _ => self.cut(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// Something a client learned at once.
    fn learn(&mut self, what: What) {
        let called = self.tick();
        let until = self.tick();
        self.calls.push(Call { called, until, what });
    }

    fn client(&mut self) {
        let at = self.rng.below(CLIENTS as u64) as usize;
        match self.clients[at].take() {
            // Who waits no longer may still get what it asked for.
            Some(_) if self.rng.one_in(30) => self.seen.unknown += 1,
            Some((call, answering)) => self.poll(at, call, answering),
            None => {
                let now = self.clock.now();
                let (revision, floor) = self.store.read(|keyspace, at| (at, keyspace.floor()));
                self.floors[at] = floor;
                let command = traffic::command(&mut self.rng, revision, now);
                self.granting(&command, now);
                let (call, called) = (self.calls.len(), self.tick());
                let what = What::Write(command.clone(), None);
                self.calls.push(Call { called, until: FOREVER, what });
                let store = self.store.clone();
                let answering = Box::pin(async move { store.command(command).await });
                self.poll(at, call, answering);
            }
        }
    }

    fn poll(&mut self, at: usize, call: usize, mut answering: Answering) {
        let Poll::Ready(answer) = poll(answering.as_mut()) else {
            self.clients[at] = Some((call, answering));
            return;
        };
        let outcome = match answer {
            Ok(answer) => Ok(answer),
            Err(StoreError::Refused(refusal)) => Err(refusal),
            Err(StoreError::Failed(_)) => {
                self.broken = true;
                self.seen.unknown += 1;
                return;
            }
            Err(StoreError::NoSpace) => {
                self.seen.no_space += 1;
                self.calls[call].until = self.tick();
                let what = &mut self.calls[call].what;
                let What::Write(command, _) = what else { unreachable!() };
                let (budget, floor) = (self.config.memory_bytes, self.floors[at]);
                *what = What::NoRoom(command.clone(), budget, floor);
                return;
            }
            // All others say that nothing happened.
            Err(_) => {
                self.seen.full += 1;
                self.calls[call].until = 0;
                return;
            }
        };
        *(if outcome.is_ok() { &mut self.seen.answered } else { &mut self.seen.refused }) += 1;
        self.calls[call].until = self.tick();
        let What::Write(_, answered) = &mut self.calls[call].what else { unreachable!() };
        *answered = Some(outcome);
    }

    /// A lease may end when its time is over, counted from before it was asked for.
    fn granting(&mut self, command: &Command, now: u64) {
        let Command::LeaseGrant { id, ttl_secs, .. } = command else { return };
        let ttl_millis = *ttl_secs as u64 * 1000;
        let at = now + ttl_millis;
        let new = Ends { at, ttl_millis, grants: 0, calls: Vec::new() };
        let ends = self.leases.entry(*id).or_insert(new);
        (ends.at, ends.ttl_millis) = (ends.at.min(at), ends.ttl_millis.min(ttl_millis));
        ends.grants += 1;
    }

    fn pump(&mut self) -> bool {
        let (called, before) = (self.tick(), self.clock.now());
        self.stepped = called;
        let stepped = self.pump.step();
        let now = self.clock.now();
        self.reached.push((before, self.store.durable()));
        self.notice_compaction();
        for (&id, ends) in self.leases.iter_mut().filter(|(_, ends)| ends.at <= now) {
            for _ in 0..std::mem::take(&mut ends.grants) {
                ends.calls.push(self.calls.len());
                let what = What::Write(Command::LeaseRevoke { id }, None);
                self.calls.push(Call { called, until: FOREVER, what });
                self.seen.expiries += 1;
            }
        }
        stepped
    }

    /// Whoever compacts by itself does so now and then, and never too much.
    fn notice_compaction(&mut self) {
        let compacted = self.store.read(|keyspace, _| keyspace.compacted());
        if compacted == std::mem::replace(&mut self.compacted, compacted) {
            return;
        }
        let told = |call: &Call| match &call.what {
            What::Write(Command::Compact { revision }, _) => *revision == compacted,
            _ => false,
        };
        let kept = match self.config.auto_compaction {
            AutoCompaction::Off => return,
            AutoCompaction::Revisions(kept) => Some(kept),
            AutoCompaction::Periodic(period) => {
                let then = self.clock.now().saturating_sub(period);
                let then = self.reached.iter().rev().find(|(at, _)| *at <= then);
                let young = then.is_none_or(|(_, reached)| compacted > *reached);
                assert!(!young || self.calls.iter().any(told), "compacted what was young");
                None
            }
        };
        self.seen.compacted_itself += u64::from(!self.calls.iter().any(told));
        let (called, until) = (self.stepped, self.tick());
        self.calls.push(Call { called, until, what: What::Auto(compacted, kept) });
    }

    fn archives(&self) -> bool {
        self.config.archive.bytes > 0
    }

    /// Reads how it was, whatever was compacted and forgotten since.
    fn look_back(&mut self) {
        let (range, past) = (traffic::range(&mut self.rng), self.store.past());
        let at = Revision(1 + self.rng.below(past.newest().0));
        let what = match past.state(&range, at) {
            Ok(state) => {
                let held = |keyspace: &Keyspace, _| (keyspace.floor(), keyspace.compacted());
                let (floor, compacted) = self.store.read(held);
                self.seen.old += 1;
                self.seen.old_below_memory += u64::from(at < floor);
                self.seen.old_below_compaction += u64::from(at < compacted);
                What::Old(range, at, state.kvs)
            }
            Err(PastError::Gone { oldest, .. }) => {
                self.seen.lost += 1;
                What::Lost(at, oldest)
            }
            Err(error) => panic!("{error}"),
        };
        self.learn(what);
    }

    fn work(&mut self) {
        self.seen.work += u64::from(self.pump.work());
    }

    fn read(&mut self) {
        let query = traffic::query(&mut self.rng, self.store.durable());
        let (mut answer, at) = self.store.read(|keyspace, at| (keyspace.query(&query), at));
        if answer.is_err() && self.archives() {
            // Memory does not go back so far; the disk may.
            answer = match self.runtime.block_on(self.store.query(query.clone())) {
                Ok(found) => Ok(found),
                Err(PastError::Future(newest)) => Err(ReadError::FutureRevision(newest)),
                Err(PastError::Compacted(oldest) | PastError::Gone { oldest, .. }) => {
                    Err(ReadError::Compacted(oldest))
                }
                Err(error) => panic!("{error}"),
            };
        }
        self.learn(What::Read(query, answer, at));
    }

    fn list_leases(&mut self) {
        let list = |keyspace: &Keyspace, _| keyspace.leases().map(|l| (l.id, l.ttl_secs)).collect();
        let leases = self.store.read(list);
        self.learn(What::Leases(leases));
    }

    fn keep_alive(&mut self) {
        let id = traffic::lease(&mut self.rng);
        let Poll::Ready(alive) = poll(Box::pin(self.store.lease_keep_alive(id)).as_mut()) else {
            unreachable!("keep-alives do not wait")
        };
        let alive = alive.unwrap().is_some();
        let (now, time) = (self.clock.now(), self.time);
        if let Some(ends) = self.leases.get_mut(&id) {
            if !alive && ends.at <= now {
                return;
            }
            if alive {
                self.seen.kept_alive += 1;
                ends.at = now + ends.ttl_millis;
                // It did not end, nor will it before then.
                ends.grants += ends.calls.len() as u64;
                ends.calls.drain(..).for_each(|call| self.calls[call].until = time);
            }
        }
        self.learn(What::Alive(id, alive));
    }

    fn open_watch(&mut self) {
        let now = self.store.durable();
        let resumed = self.resume.pop();
        let (range, after) = resumed.unwrap_or_else(|| {
            let after = match self.rng.below(4) {
                0 => now,
                1 => Revision(now.0 + self.rng.below(3)),
                _ => Revision(self.rng.below(now.0 + 1)),
            };
            (traffic::range(&mut self.rng), after)
        });
        let told = self.told.len();
        self.told.push(Told::new(range.clone(), after));
        let shared = self.rng.one_in(2).then(|| (self.rng.below(2) as usize, told as u64));
        let watch = match shared {
            None => self.store.watch(range, after),
            Some((bell, token)) => self.store.watch_with(range, after, &self.bells[bell], token),
        };
        self.watchers.push(Watcher { watch, told, shared });
        // As everybody does: what is there already is read without a bell.
        self.drain(self.watchers.len() - 1);
    }

    /// Somebody who waits for watches looks up.
    fn watch(&mut self) {
        let pick = self.rng.below(BELLS as u64 + 2) as usize;
        if pick < BELLS {
            self.answer_bell(pick);
        } else if !self.watchers.is_empty() {
            let at = self.rng.below(self.watchers.len() as u64) as usize;
            match self.watchers[at].shared {
                None => self.next(at),
                Some(_) => self.progress(at),
            }
        }
    }

    /// Reads what the watches that rang have to tell; false when none did.
    fn answer_bell(&mut self, bell: usize) -> bool {
        let waiting = self.bells[bell].clone();
        let Poll::Ready(tokens) = poll(Box::pin(waiting.wait()).as_mut()) else { return false };
        let mut found = false;
        for token in tokens {
            let rung = |watcher: &Watcher| watcher.shared == Some((bell, token));
            if let Some(at) = self.watchers.iter().position(rung) {
                found = true;
                self.drain(at);
            }
        }
        found
    }

    /// Reads a watch to its end, as one does whose bell rang.
    fn drain(&mut self, at: usize) {
        loop {
            match self.runtime.block_on(self.watchers[at].watch.try_next()) {
                Ok(Some(batch)) => self.batch(at, batch),
                Ok(None) => return self.progress(at),
                Err(error) => return self.over(at, error),
            }
        }
    }

    /// Reads the next batch of a watch with a bell of its own. When there is none it would wait,
    /// and to give up waiting loses nothing.
    fn next(&mut self, at: usize) {
        match self.runtime.block_on(self.watchers[at].watch.try_next()) {
            Ok(Some(batch)) => self.batch(at, batch),
            Ok(None) => {
                assert!(poll(Box::pin(self.watchers[at].watch.next()).as_mut()).is_pending());
            }
            Err(error) => return self.over(at, error),
        }
        self.progress(at);
    }

    fn batch(&mut self, at: usize, batch: EventBatch) {
        self.seen.batches += 1;
        let told = self.watchers[at].told;
        self.told[told].batch(batch).unwrap();
        self.saw(told);
    }

    fn progress(&mut self, at: usize) {
        let (upto, told) = (self.watchers[at].watch.progress(), self.watchers[at].told);
        self.told[told].progress(upto).unwrap();
        self.saw(told);
    }

    /// Whoever was told of a revision knows that it is there; who waits for a later one was not.
    fn saw(&mut self, told: usize) {
        let upto = self.told[told].upto;
        if upto > self.told[told].after {
            self.learn(What::Saw(upto));
        }
    }

    fn over(&mut self, at: usize, error: WatchError) {
        let watcher = self.watchers.swap_remove(at);
        let (range, upto) = (&self.told[watcher.told].range, self.told[watcher.told].upto);
        match error {
            WatchError::Closed => self.resume.push((range.clone(), upto)),
            WatchError::Compacted(gone) => {
                self.seen.gone += 1;
                self.resume.push((range.clone(), gone.oldest.previous()));
                self.learn(What::Gone(upto, gone.oldest));
            }
            WatchError::Past(error) => panic!("{error}"),
        }
    }

    fn close_watch(&mut self) {
        if !self.watchers.is_empty() {
            let at = self.rng.below(self.watchers.len() as u64) as usize;
            let told = &self.told[self.watchers.swap_remove(at).told];
            self.resume.push((told.range.clone(), told.upto));
        }
    }

    fn pass_time(&mut self) {
        let millis = if self.rng.one_in(8) { 86_400_000 } else { self.rng.below(2500) };
        self.clock.advance(millis);
    }

    fn trouble(&mut self) {
        // On a full or broken disk history gives way.
        let gentle = self.past == Past::OnDisk;
        match self.rng.below(5) {
            0 => self.disk.crash_after(1 + self.rng.below(12)),
            1 | 4 if gentle => {}
            1 => self.disk.set_capacity(self.disk.used() + self.rng.below(3000)),
            2 => self.disk.set_capacity(FOREVER),
            3 => self.disk.set_slow(&self.clock, self.rng.below(3) * 700),
            _ if self.lies == Fault::None => self.disk.set_fault(Fault::SyncFails),
            _ => {}
        }
    }

    /// The power goes.
    fn cut(&mut self) {
        self.seen.cuts += 1;
        self.clients.fill_with(|| None);
        self.disk.crash(self.rng.draw());
        self.start();
    }

    /// The process is closed in peace, if the disk lets it.
    fn restart(&mut self) {
        self.disk.set_capacity(FOREVER);
        let store = self.store.clone();
        let mut closing = Box::pin(async move { store.close().await });
        let mut closed = poll(closing.as_mut()).is_ready();
        while self.pump() {
            closed = poll(closing.as_mut()).is_ready();
        }
        assert!(closed, "nobody waits for a closed store");
        for at in 0..CLIENTS {
            if let Some((call, answering)) = self.clients[at].take() {
                self.poll(at, call, answering);
            }
            assert!(self.clients[at].is_none(), "a closed store leaves somebody without an answer");
        }
        for at in (0..self.watchers.len()).rev() {
            if let Some((bell, _)) = self.watchers[at].shared {
                let waiting = self.bells[bell].clone();
                let rung = poll(Box::pin(waiting.wait()).as_mut()).is_ready();
                assert!(rung, "a closed store leaves a watch waiting");
            }
        }
        // What is left to tell comes first, then the end.
        for _ in 0..2 {
            (0..self.watchers.len()).rev().for_each(|at| self.drain(at));
        }
        assert!(self.watchers.is_empty(), "a watch of a closed store goes on");
        if self.broken || !self.disk.healthy() {
            return self.cut();
        }
        self.seen.restarts += 1;
        if self.rng.one_in(2) {
            self.flip();
        }
        self.start();
    }

    /// One bit rots while nothing runs. It is found, or it does not matter.
    fn flip(&mut self) {
        let files = self.disk.files();
        // Rot in files of the past costs no start, but history: `damage` is about that.
        let flips = |(name, len): &(String, u64)| *len > 0 && !name.starts_with("hist-");
        let files: Vec<_> = files.into_iter().filter(flips).collect();
        let (name, len) = &files[self.rng.below(files.len() as u64) as usize];
        let (offset, mask) = (self.rng.below(*len) as usize, 1 << self.rng.below(8));
        self.disk.flip(name, offset, mask);
        match Store::simulated(&self.disk, &self.clock, self.config.clone()) {
            Ok(_) => self.seen.flips_harmless += 1,
            Err(OpenError::Corrupt { .. } | OpenError::TooNew { .. }) => {
                self.seen.flips_refused += 1;
                self.disk.flip(name, offset, mask);
            }
            Err(error) => panic!("after a flip: {error}"),
        }
    }

    /// Starts a process on what the disk has. What was not answered until now never happens later.
    fn start(&mut self) {
        let now = self.tick();
        self.calls.iter_mut().for_each(|call| call.until = call.until.min(now));
        for watcher in std::mem::take(&mut self.watchers) {
            let told = &self.told[watcher.told];
            self.resume.push((told.range.clone(), told.upto));
        }
        self.bells.fill_with(Arc::default);
        self.broken = false;
        self.disk.set_capacity(FOREVER);
        loop {
            self.disk.set_fault(self.lies);
            if self.rng.one_in(4) {
                self.disk.crash_after(1 + self.rng.below(8));
            }
            match Store::simulated(&self.disk, &self.clock, self.config.clone()) {
                Ok((store, pump)) => {
                    (self.store, self.pump) = (store, pump);
                    break;
                }
                Err(OpenError::Io { .. }) => {
                    self.seen.cuts_while_opening += 1;
                    self.disk.crash(self.rng.draw());
                }
                Err(error) => panic!("does not open: {error}"),
            }
        }
        self.reached.push((self.clock.now(), self.store.durable()));
        self.notice_compaction();
        // A new process gives every lease its whole time again.
        let now = self.clock.now();
        for ends in self.leases.values_mut() {
            ends.at = now + ends.ttl_millis;
            ends.grants += ends.calls.drain(..).len() as u64;
        }
    }

    fn idle(&mut self) {
        for _ in 0..40 {
            self.pump();
            self.work();
        }
    }

    /// A command that nothing can refuse.
    fn finish(&mut self, command: Command) {
        let (call, called) = (self.calls.len(), self.tick());
        self.calls.push(Call { called, until: FOREVER, what: What::Write(command.clone(), None) });
        let store = self.store.clone();
        self.poll(0, call, Box::pin(async move { store.command(command).await }));
        self.idle();
        let (call, answering) = self.clients[0].take().unwrap();
        self.poll(0, call, answering);
        let answered = matches!(&self.calls[call].what, What::Write(_, Some(Ok(_))));
        assert!(answered, "{:?} was refused", self.calls[call]);
    }

    /// Everybody gets an answer, every watch catches up, every lease ends, and all is read again.
    fn end(&mut self) {
        self.restart();
        self.disk.crash_after(FOREVER);
        while self.watchers.len() < 6 {
            self.open_watch();
        }
        // A full store can be emptied, and takes new keys then.
        self.finish(traffic::nothing());
        self.clock.advance(1 << 40);
        self.idle();
        self.finish(traffic::marker());
        self.idle();
        self.list_leases();
        assert!(
            matches!(&self.calls.last().unwrap().what, What::Leases(leases) if leases.is_empty())
        );
        for bell in 0..BELLS {
            while self.answer_bell(bell) {}
        }
        for at in (0..self.watchers.len()).rev() {
            match self.watchers[at].shared {
                // Its bell is silent, so it has nothing to tell.
                Some(_) => self.progress(at),
                None => self.drain(at),
            }
        }
        let now = self.store.read(|_, at| at);
        assert_eq!(self.store.durable(), now);
        for watcher in &self.watchers {
            let told = &self.told[watcher.told];
            assert!(told.upto >= now, "a watch of {:?} stands at {:?}", told.range, told.upto);
        }
        let query = Query::of(KeyRange::prefix(""));
        let (answer, at) = self.store.read(|keyspace, at| (keyspace.query(&query), at));
        self.learn(What::Read(query, answer, at));
        for _ in 0..if self.archives() { 4 } else { 0 } {
            self.look_back();
        }
    }
}

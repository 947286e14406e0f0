//! The writer: takes what is waiting as one batch, commits it, answers.
//!
//! It has a thread. A command that comes alone, to a disk that answers at once, is committed by
//! the thread that sends it: waking another and being woken takes longer than the disk does. Only
//! one at a time may touch the log. Should it panic the process aborts: a half-applied batch must
//! not be served, and the log has everything a restart needs.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use knarr_mvcc::{Command, Compactor, Outcome, Revision};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::clock::Clock;
use crate::engine::{Engine, Entry};
use crate::error::StoreError;
use crate::queue::Queue;
use crate::spawn::{Aside, Spawn};
use crate::store::read_lock;
use crate::usage::Usage;
use crate::watch::Hub;

/// How long ended leases wait after the disk refused their end, in milliseconds.
const EXPIRY_RETRY: u64 = 5_000;
/// How often a disk that is full is asked for room, in milliseconds.
const PROBE_EVERY: u64 = 5_000;
/// How often the time is noted, in milliseconds.
const MARK_EVERY: u64 = 1_000;
/// How many leases end with one sync.
const EXPIRY_BATCH: usize = 256;
/// A disk that makes batches durable in this time, so many in a row, may be waited for by threads
/// that have other work.
const PROMPT: Duration = Duration::from_millis(1);
const PROMPT_STREAK: u32 = 8;

/// What the writer is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Commit this.
    Write(Box<Job>),
    /// Look at the clock: something may be due.
    Wake,
    /// This work beside the writer is done, which has a number.
    Done(Aside, u64),
    /// Finish and answer.
    Close(oneshot::Sender<()>),
}

/// A command on its way.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) command: Command,
    pub(crate) bytes: Vec<u8>,
    pub(crate) reply: Reply,
    /// Its share of the queue, free again when it is answered.
    pub(crate) room: u32,
}

/// The thread's state.
pub(crate) struct Writer {
    pub(crate) engine: Engine,
    pub(crate) queue: Arc<Queue>,
    /// What is free of the queue.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) announce: watch::Sender<Revision>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The message that did not fit into the last batch.
    pub(crate) held: Option<Message>,
    pub(crate) workers: Arc<dyn Spawn>,
    /// What is under way there, with its number: waits for the result, and takes it.
    pub(crate) aside: BTreeMap<Aside, (u64, End)>,
    /// How much was begun there.
    pub(crate) begun: u64,
    pub(crate) compactor: Compactor,
    /// When the time is noted again.
    pub(crate) mark_at: u64,
    /// Whether there is history to be forgotten.
    pub(crate) untidy: bool,
    pub(crate) usage: Arc<Usage>,
    /// Before this moment ended leases are not tried again.
    pub(crate) retry_at: u64,
    /// When a disk that is full is asked for room.
    pub(crate) probe_at: u64,
    /// Batches in a row that the disk took promptly.
    pub(crate) prompt: u32,
}

/// Where the writer is found: by its thread, and by a caller with a lone command.
pub(crate) struct Desk(Mutex<Option<Writer>>);

impl Desk {
    /// Starts the writer's thread.
    pub(crate) fn open(writer: Writer) -> (Arc<Self>, thread::JoinHandle<()>) {
        let queue = writer.queue.clone();
        let desk = Arc::new(Self(Mutex::new(Some(writer))));
        let builder = thread::Builder::new().name("knarr-log".into());
        let body = desk.clone();
        let thread = builder.spawn(move || or_abort(|| body.run(&queue)));
        (desk, thread.expect("a process that starts can start one thread"))
    }

    fn run(&self, queue: &Queue) {
        loop {
            let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(writer) = held.as_mut() else { return };
            match writer.poll() {
                Some(message) => {
                    if let Some(done) = writer.turn(message)
                        && let Some(writer) = held.take()
                    {
                        return writer.close(done);
                    }
                }
                None if writer.untidy => {}
                None => {
                    let wake_at = writer.wake_at();
                    let left = wake_at.map(|at| at.saturating_sub(writer.clock.now()));
                    drop(held);
                    queue.wait(left.map(Duration::from_millis));
                }
            }
        }
    }

    /// The writer, if nobody has it and it does not keep a caller long.
    pub(crate) fn at_hand(&self) -> Option<AtHand<'_>> {
        let held = self.0.try_lock().ok()?;
        held.as_ref().is_some_and(Writer::is_prompt).then_some(AtHand(held))
    }
}

/// The writer in the hands of a caller.
pub(crate) struct AtHand<'a>(MutexGuard<'a, Option<Writer>>);

impl AtHand<'_> {
    /// Commits a job. What is left to do then is the thread's, which sleeps as long as it knew.
    pub(crate) fn commit(mut self, job: Box<Job>) {
        let writer = self.0.as_mut().expect("it was there");
        let sleeps_until = writer.wake_at();
        or_abort(|| writer.turn(Message::Write(job)));
        writer.untidy = writer.engine.forget();
        if writer.held.is_some() || writer.untidy || writer.wake_at() != sleeps_until {
            // A queue that is closed has nobody to be woken.
            let _ = writer.queue.send(Message::Wake);
        }
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// Does something that must not be left half done.
fn or_abort<R>(work: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        tracing::error!("the log writer panicked: aborting, the log has the truth");
        process::abort();
    })
}

impl Writer {
    /// Takes one message, and does what is due. Whoever wants the writer closed comes back.
    pub(crate) fn turn(&mut self, message: Message) -> Option<oneshot::Sender<()>> {
        match message {
            Message::Write(job) => self.commit(*job),
            Message::Wake => {}
            Message::Done(what, number) => self.end_of(what, number),
            Message::Close(done) => return Some(done),
        }
        self.untidy = true;
        self.probe();
        self.expire();
        self.compact();
        self.begin();
        self.hold_back();
        None
    }

    fn is_prompt(&self) -> bool {
        self.prompt >= PROMPT_STREAK
    }

    /// Starts what is due and takes long: it has a thread, and writes go on meanwhile.
    fn begin(&mut self) {
        if let Some(job) = self.engine.begin_checkpoint() {
            self.aside(Aside::Checkpoint, || job.run(), Engine::end_checkpoint);
        }
        if let Some(job) = self.engine.begin_archive() {
            self.aside(Aside::Archive, || job.run(), Engine::end_archive);
        }
        if let Some(job) = self.engine.begin_segment() {
            self.aside(Aside::Segment, || job.run(), Engine::end_segment);
        }
    }

    /// Has work done beside this thread; `end` takes the result.
    fn aside<T: Send + 'static>(
        &mut self,
        what: Aside,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
        end: fn(&mut Engine, io::Result<T>),
    ) {
        self.begun += 1;
        let (queue, (tell, result), number) = (self.queue.clone(), mpsc::channel(), self.begun);
        let work = move || {
            // A writer that is closing waits for the result itself, and one that is gone for none.
            let _ = tell.send(job());
            let _ = queue.send(Message::Done(what, number));
        };
        if let Err(error) = self.workers.spawn(what, Box::new(work)) {
            return end(&mut self.engine, Err(error));
        }
        let end = move |engine: &mut Engine| {
            let panicked = || Err(io::Error::other("the thread panicked"));
            end(engine, result.recv().unwrap_or_else(|_| panicked()));
        };
        self.aside.insert(what, (number, Box::new(end)));
    }

    /// What has the number may have been waited for already.
    fn end_of(&mut self, what: Aside, number: u64) {
        if self.aside.get(&what).is_some_and(|(begun, _)| *begun == number) {
            self.end(what);
        }
    }

    fn end(&mut self, what: Aside) {
        if let Some((_, end)) = self.aside.remove(&what) {
            end(&mut self.engine);
        }
    }

    /// Waits where history is made faster than it can go: memory has an end.
    fn hold_back(&mut self) {
        while let Some(what) = self.engine.awaits().filter(|what| self.aside.contains_key(what)) {
            self.workers.awaited();
            self.end(what);
            while self.engine.forget() {}
            self.begin();
        }
    }

    /// Lets everything go before it answers, the lock on the directory included.
    pub(crate) fn close(mut self, done: oneshot::Sender<()>) {
        self.engine.hurry();
        self.workers.awaited();
        for (_, end) in std::mem::take(&mut self.aside).into_values() {
            end(&mut self.engine);
        }
        if let Err(error) = self.engine.seal() {
            tracing::warn!(%error, "the log is closed without its mark");
        }
        drop(self);
        // The one who asked may have left.
        let _ = done.send(());
    }

    /// The next message if there is one, without waiting for it; else a piece of history goes.
    pub(crate) fn poll(&mut self) -> Option<Message> {
        let sent = self.held.take().or_else(|| self.queue.take());
        if sent.is_none() && self.untidy {
            self.untidy = self.engine.forget();
        }
        sent.or_else(|| (self.wake_at()? <= self.clock.now()).then_some(Message::Wake))
    }

    /// When something is due that nobody will send a message for.
    fn wake_at(&self) -> Option<u64> {
        let expiry = read_lock(&self.engine.keyspace()).next_expiry();
        let expiry = expiry.map(|deadline| deadline.max(self.retry_at));
        let probe = self.usage.disk_full().then_some(self.probe_at);
        expiry.into_iter().chain(self.compactor.deadline()).chain(probe).min()
    }

    /// Commits a job and everything that waits behind it and fits.
    fn commit(&mut self, first: Job) {
        let jobs = self.batch(first);
        let taken = jobs.iter().map(|job| job.room as usize).sum();
        let (mut entries, mut replies) = (Vec::with_capacity(jobs.len()), Vec::new());
        for job in jobs {
            if let Err(refusal) = self.engine.recalls(&job.command) {
                // A caller that no longer waits is no error.
                let _ = job.reply.send(Ok(Err(refusal)));
            } else {
                replies.push(job.reply);
                entries.push(Entry { command: job.command, bytes: job.bytes });
            }
        }
        if !entries.is_empty() {
            let begun = Instant::now();
            let results = self.log(entries);
            self.prompt = if begun.elapsed() <= PROMPT { self.prompt.saturating_add(1) } else { 0 };
            self.publish();
            answer(replies, results);
        }
        self.room.add_permits(taken);
    }

    /// A job and what waits behind it and fits beside it. The next one is not refused beside what
    /// waits to be applied, which may make room or weigh less than it might: it is held, and judged
    /// again when it is the first.
    fn batch(&mut self, first: Job) -> Vec<Job> {
        let (mut room, mut pending) = (self.engine.batch_bytes(), 0);
        let (mut jobs, mut next) = (Vec::new(), self.admitted(first, &mut pending));
        while let Some(job) = next.take() {
            room = room.saturating_sub(Engine::cost(&job.bytes));
            jobs.push(job);
            next = self.next_fitting(room, &mut pending);
        }
        jobs
    }

    /// A job, unless there is no room in memory for what it adds.
    fn admitted(&self, job: Job, pending: &mut usize) -> Option<Job> {
        if self.engine.admits(&job.command, pending) {
            return Some(job);
        }
        self.usage.refuse(read_lock(&self.engine.keyspace()).held_bytes());
        self.room.add_permits(job.room as usize);
        let _ = job.reply.send(Err(StoreError::NoSpace));
        None
    }

    /// Commits entries; once a second the time goes in front of them.
    fn log(&mut self, mut entries: Vec<Entry>) -> Result<Vec<Outcome>, StoreError> {
        let now = self.clock.now();
        if now < self.mark_at {
            return self.append(&entries);
        }
        entries.insert(0, Entry::new(Command::Time { wall_ms: self.clock.wall() }));
        let mut outcomes = self.append(&entries)?;
        self.mark_at = now + MARK_EVERY;
        let _ = outcomes.remove(0);
        Ok(outcomes)
    }

    fn append(&mut self, entries: &[Entry]) -> Result<Vec<Outcome>, StoreError> {
        let result = self.engine.commit(entries);
        self.note_room(!matches!(result, Err(StoreError::Full)));
        result
    }

    fn note_room(&mut self, found: bool) {
        self.usage.set_disk_full(!found);
        if !found {
            self.probe_at = self.clock.now() + PROBE_EVERY;
        }
    }

    /// A disk that was full is looked after: who is told that it is may write no more.
    fn probe(&mut self) {
        if self.usage.disk_full() && self.clock.now() >= self.probe_at {
            let found = self.engine.finds_room();
            self.note_room(found);
        }
    }

    /// Compacts when that is due.
    fn compact(&mut self) {
        let now = self.clock.now();
        let Some(revision) = self.compactor.tick(now, self.engine.revision()) else { return };
        match self.log(vec![Entry::new(Command::Compact { revision })]) {
            // That somebody else compacted as far already is as good.
            Ok(_) => {
                self.compactor.done(now, revision);
                tracing::info!(revision = revision.0, "compacted");
            }
            Err(error) => tracing::warn!(%error, "compaction has to wait"),
        }
    }

    fn next_fitting(&mut self, room: usize, pending: &mut usize) -> Option<Job> {
        match self.queue.take()? {
            Message::Write(job)
                if Engine::cost(&job.bytes) <= room
                    && self.engine.admits(&job.command, pending) =>
            {
                Some(*job)
            }
            other => {
                self.held = Some(other);
                None
            }
        }
    }

    /// Revokes the leases that have ended.
    fn expire(&mut self) {
        let now = self.clock.now();
        let ended = read_lock(&self.engine.keyspace()).expired(now);
        if ended.is_empty() || now < self.retry_at {
            return;
        }
        let revoke = |id| Entry::new(Command::LeaseRevoke { id });
        for chunk in ended.chunks(EXPIRY_BATCH) {
            let entries: Vec<Entry> = chunk.iter().copied().map(revoke).collect();
            if let Err(error) = self.log(entries) {
                tracing::error!(%error, "ended leases could not be revoked");
                self.retry_at = now + EXPIRY_RETRY;
                return;
            }
        }
        self.publish();
    }

    fn publish(&self) {
        self.hub.publish(&read_lock(&self.engine.keyspace()));
        let revision = self.engine.revision();
        self.announce.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
    }
}

/// However the thread ends, nobody waits for it any more.
impl Drop for Writer {
    fn drop(&mut self) {
        self.hub.close();
        self.queue.close();
    }
}

type End = Box<dyn FnOnce(&mut Engine) + Send>;
type Reply = oneshot::Sender<Result<Outcome, StoreError>>;

/// A caller that no longer waits is no error.
fn answer(replies: Vec<Reply>, results: Result<Vec<Outcome>, StoreError>) {
    match results {
        Ok(outcomes) => {
            for (reply, outcome) in replies.into_iter().zip(outcomes) {
                let _ = reply.send(Ok(outcome));
            }
        }
        Err(error) => {
            for reply in replies {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

//! The handle everybody holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::thread;

use knarr_mvcc::{
    Answer, Command, Compacted, Compactor, EventBatch, KeyRange, Keyspace, LeaseId, Query,
    RangeResult, ReadError, Revision, Txn, TxnResponse,
};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::archive::Archive;
use crate::backup::EtcdSnapshot;
use crate::clock::{Clock, SystemClock};
use crate::config::{Identity, StoreConfig};
use crate::disk::Disk;
use crate::engine::{Engine, Failure};
use crate::error::{OpenError, PastError, StoreError, WatchError};
use crate::external::{External, ExternalConfig};
use crate::items::Items;
use crate::measure::{MeasuredDisk, Measures};
use crate::past::Past;
use crate::queue::Queue;
use crate::spawn::{Spawn, Threads};
use crate::usage::Usage;
use crate::watch::{Bell, Hub, Watch};
use crate::writer::{Desk, Job, Message, Writer};

/// A handle to the store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What handles share.
#[derive(Debug)]
struct Shared {
    keyspace: Arc<RwLock<Keyspace>>,
    durable: watch::Receiver<Revision>,
    hub: Arc<Hub>,
    term: u64,
    clock: Arc<dyn Clock>,
    config: StoreConfig,
    identity: Identity,
    measures: Arc<Measures>,
    backend: Backend,
}

/// Where writes go.
#[derive(Debug)]
enum Backend {
    Log(Log),
    External(External),
}

/// The way to the log's writer.
#[derive(Debug)]
struct Log {
    /// One permit per KiB of queued commands.
    room: Arc<Semaphore>,
    queue: Arc<Queue>,
    /// Where the writer is, if senders may use it.
    desk: Option<Arc<Desk>>,
    /// The writer's; a closed store lets its files go.
    archive: Weak<Archive>,
    usage: Arc<Usage>,
    failure: Failure,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Store {
    /// Opens the store in a directory, recovers its state, and starts the writer thread.
    ///
    /// # Errors
    /// [`OpenError`]; the files are as they were then.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: StoreConfig,
    ) -> Result<Self, OpenError> {
        Self::begin(disk, clock, config, Arc::new(Threads), |writer| Some(Desk::open(writer)))
    }

    /// The same, with a writer that is run somehow.
    pub(crate) fn begin(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: StoreConfig,
        workers: Arc<dyn Spawn>,
        run: impl FnOnce(Writer) -> Option<(Arc<Desk>, thread::JoinHandle<()>)>,
    ) -> Result<Self, OpenError> {
        let measures = Arc::<Measures>::default();
        let disk = Arc::new(MeasuredDisk { disk, measures: measures.clone() });
        let engine = Engine::open(disk, config.clone())?;
        let keyspace = engine.keyspace();
        write_lock(&keyspace).renew_all(clock.now());
        let identity = engine.identity();
        let (revision, index) = (engine.revision(), read_lock(&keyspace).index());
        tracing::info!(revision = revision.0, index, "the store is open");
        let (archive, usage) = (engine.archive(), Arc::<Usage>::default());
        let failure = engine.failure();
        let now = clock.now();
        let compactor = Compactor::new(config.auto_compaction, now, revision);
        let queue = Arc::<Queue>::default();
        let (announce, durable) = watch::channel(revision);
        let hub = Arc::new(Hub::default());
        hub.publish(&read_lock(&keyspace));
        let term = engine.term();
        let room = Arc::new(Semaphore::new(kib(config.queue_bytes) as usize));
        let writer = Writer {
            engine,
            queue: queue.clone(),
            room: room.clone(),
            announce,
            hub: hub.clone(),
            clock: clock.clone(),
            held: None,
            workers,
            aside: BTreeMap::new(),
            begun: 0,
            compactor,
            mark_at: now,
            untidy: true,
            usage: usage.clone(),
            retry_at: 0,
            probe_at: 0,
            prompt: 0,
        };
        let (desk, writer) = run(writer).unzip();
        let desk = desk.filter(|_| config.senders_commit);
        let writer = Mutex::new(writer);
        let backend = Backend::Log(Log { room, queue, desk, archive, usage, failure, writer });
        let shared =
            Shared { keyspace, durable, hub, term, clock, config, identity, measures, backend };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Mirrors an etcd, which is where writes go from then on. Of `config` only what concerns
    /// memory counts, and the member.
    ///
    /// # Errors
    /// [`StoreError`] when etcd cannot be loaded.
    pub async fn connect(
        external: ExternalConfig,
        config: StoreConfig,
    ) -> Result<Self, StoreError> {
        let (backend, mirror) = External::connect(external, config.history_bytes).await?;
        let (keyspace, durable, hub) = (mirror.keyspace, mirror.durable, mirror.hub);
        let identity = Identity { cluster: mirror.cluster, ..config.identity };
        let (term, clock) = (mirror.term, Arc::new(SystemClock::default()));
        let (backend, measures) = (Backend::External(backend), Arc::default());
        let shared =
            Shared { keyspace, durable, hub, term, clock, config, identity, measures, backend };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether others may write to it too.
    pub fn is_shared(&self) -> bool {
        matches!(self.shared.backend, Backend::External(_))
    }

    /// Waits until reads here show everything that anybody was answered before this call. Alone on
    /// a log they always do.
    ///
    /// # Errors
    /// [`StoreError`] when etcd does not answer.
    pub async fn fresh(&self) -> Result<(), StoreError> {
        match &self.shared.backend {
            Backend::Log(_) => Ok(()),
            Backend::External(external) => external.fresh().await,
        }
    }

    /// Runs a transaction; resolves once it is durable and readers see it. When the call is dropped
    /// after it was queued, the transaction still happens.
    ///
    /// # Errors
    /// [`StoreError`]; after `Failed` and `Unknown` nobody knows the outcome, after all others
    /// nothing happened.
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        match self.command(Command::Txn(txn)).await? {
            Answer::Txn(response) => Ok(response),
            other => unreachable!("a transaction answered {other:?}"),
        }
    }

    /// Gives up the right to read before `revision`.
    ///
    /// # Errors
    /// As [`Store::txn`]; refused when it is compacted already or not there yet.
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.command(Command::Compact { revision }).await.map(drop)
    }

    /// Makes a lease of `ttl_secs` seconds; id 0 lets the store choose. Its id and time to live.
    ///
    /// # Errors
    /// As [`Store::txn`].
    pub async fn lease_grant(
        &self,
        id: LeaseId,
        ttl_secs: i64,
    ) -> Result<(LeaseId, i64), StoreError> {
        let now = self.shared.clock.now();
        match self.command(Command::LeaseGrant { id, ttl_secs, now }).await? {
            Answer::LeaseGrant { id, ttl_secs } => Ok((id, ttl_secs)),
            other => unreachable!("a lease grant answered {other:?}"),
        }
    }

    /// Ends a lease and deletes its keys; the revision after that.
    ///
    /// # Errors
    /// As [`Store::txn`]; refused when there is no such lease.
    pub async fn lease_revoke(&self, id: LeaseId) -> Result<Revision, StoreError> {
        match self.command(Command::LeaseRevoke { id }).await? {
            Answer::LeaseRevoke(revision) => Ok(revision),
            other => unreachable!("a lease revocation answered {other:?}"),
        }
    }

    /// Renews a lease; its time to live in seconds, or `None` when it is gone. Stays off the log.
    ///
    /// # Errors
    /// [`StoreError`] when an etcd does not answer.
    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<i64>, StoreError> {
        let renewed = match &self.shared.backend {
            Backend::Log(_) => {
                let now = self.shared.clock.now();
                write_lock(&self.shared.keyspace).keep_alive(id, now)
            }
            Backend::External(external) => external.lease_keep_alive(id).await?,
        };
        self.shared.measures.renewed.add(u64::from(renewed.is_some()));
        Ok(renewed)
    }

    /// How long a lease lives on, in milliseconds, and what it was granted, in seconds.
    pub fn lease_left(&self, id: LeaseId) -> Option<(u64, i64)> {
        let now = self.shared.clock.now();
        let keyspace = read_lock(&self.shared.keyspace);
        keyspace.lease(id).map(|lease| (lease.deadline.saturating_sub(now), lease.ttl_secs))
    }

    /// Reads the keyspace; the closure also gets the durable revision, which is the newest there
    /// is. It holds a shared lock: collect handles, and encode them after. It must not call the
    /// store again.
    pub fn read<R>(&self, f: impl FnOnce(&Keyspace, Revision) -> R) -> R {
        let keyspace = read_lock(&self.shared.keyspace);
        f(&keyspace, keyspace.revision())
    }

    /// The state as it is, to be read in steps while writes go on.
    pub fn items(&self) -> Items {
        Items::new(self.shared.keyspace.clone(), usize::MAX)
    }

    /// A snapshot in etcd's format of the state as it is. Takes time for a large state.
    pub fn etcd_snapshot(&self) -> EtcdSnapshot {
        EtcdSnapshot::new(self.items())
    }

    /// The newest revision; every one up to it is durable.
    pub fn durable(&self) -> Revision {
        *self.shared.durable.borrow()
    }

    /// A receiver that sees the durable revision grow.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.shared.durable.clone()
    }

    /// Which cluster and member this is.
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// The term of the group's leader.
    pub fn term(&self) -> u64 {
        self.shared.term
    }

    /// The store's clock, in milliseconds since some fixed moment.
    pub fn now(&self) -> u64 {
        self.shared.clock.now()
    }

    /// The changes of a range after a revision, from there on.
    pub fn watch(&self, range: KeyRange, after: Revision) -> Watch {
        Watch::new(self.clone(), range, after, Arc::default(), 0)
    }

    /// The same, for one of several watches that are waited for together: `bell` rings with `token`
    /// when there are changes, and at first when it is asked ([`Watch::try_next`]).
    pub fn watch_with(
        &self,
        range: KeyRange,
        after: Revision,
        bell: &Arc<Bell>,
        token: u64,
    ) -> Watch {
        Watch::new(self.clone(), range, after, bell.clone(), token)
    }

    /// The version of the settings: all that were changed by an answered command have come to pass.
    /// Costs no lock.
    pub fn settings_version(&self) -> u64 {
        self.shared.hub.settings()
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.shared.hub
    }

    /// All that is known of its past. Its calls may read files: on a thread that may block.
    pub fn past(&self) -> Past {
        let archive = match &self.shared.backend {
            Backend::Log(log) => log.archive.upgrade(),
            // What etcd no longer has is gone.
            Backend::External(_) => None,
        };
        Past { keyspace: self.shared.keyspace.clone(), archive }
    }

    /// Answers a query as etcd does, from memory or from disk.
    ///
    /// # Errors
    /// [`PastError`]: the revision was compacted away, is no longer kept, or not there yet.
    pub async fn query(&self, query: Query) -> Result<RangeResult, PastError> {
        self.shared.measures.ranges.add(1);
        let (held, compacted) =
            self.read(|keyspace, _| (keyspace.query(&query), keyspace.compacted()));
        match held {
            Ok(found) => Ok(found),
            Err(ReadError::FutureRevision(now)) => Err(PastError::Future(now)),
            Err(ReadError::Compacted(_)) if query.at < compacted => {
                Err(PastError::Compacted(compacted))
            }
            Err(ReadError::Compacted(_)) => {
                let (range, at) = (query.range.clone(), query.at);
                let state = self.aside(move |past| past.state(&range, at)).await?;
                Ok(query.answer(state.kvs.iter()))
            }
        }
    }

    /// Reads the past on a thread that may block.
    ///
    /// # Errors
    /// Those of the reading.
    pub async fn aside<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Past) -> Result<T, PastError> + Send + 'static,
    ) -> Result<T, PastError> {
        let past = self.past();
        let panicked =
            |error| PastError::Io { file: "the archive".into(), why: format!("{error}") };
        tokio::task::spawn_blocking(move || read(&past)).await.map_err(panicked)?
    }

    /// One batch of changes, as [`Watch::next`] reads it: from memory, or what is older from disk.
    pub(crate) async fn events(
        &self,
        range: &KeyRange,
        after: Revision,
        upto: Revision,
    ) -> Result<EventBatch, WatchError> {
        let budget = self.shared.config.watch_batch_bytes;
        let (held, compacted) = self.read(|keyspace, _| {
            (keyspace.events(range, after, upto, budget), keyspace.compacted())
        });
        match held {
            Ok(batch) => Ok(batch),
            Err(_) if after.0 + 1 < compacted.0 => {
                // The disk may go back further than memory, from where a watch can go on.
                let oldest = compacted.max(self.past().oldest().next());
                Err(WatchError::Compacted(Compacted { oldest }))
            }
            Err(_) => {
                let range = range.clone();
                let read = self.aside(move |past| past.events(&range, after, upto, budget)).await;
                read.map_err(WatchError::from)
            }
        }
    }

    /// What was counted since it was opened.
    pub fn measures(&self) -> &Measures {
        &self.shared.measures
    }

    /// Why nothing is written any more, if the disk failed.
    pub fn failure(&self) -> Option<Arc<str>> {
        match &self.shared.backend {
            Backend::Log(log) => log.failure.get().cloned(),
            Backend::External(_) => None,
        }
    }

    /// How many watches there are.
    pub fn watchers(&self) -> usize {
        self.shared.hub.watchers()
    }

    /// What may be taken, and what was refused.
    pub(crate) fn budget(&self) -> (usize, Option<&Usage>) {
        let usage = match &self.shared.backend {
            Backend::Log(log) => Some(&*log.usage),
            Backend::External(_) => None,
        };
        (self.shared.config.memory_bytes, usage)
    }

    /// Makes the writer look at the clock. Only simulated clocks need it, after they were moved.
    pub fn wake(&self) {
        if let Backend::Log(log) = &self.shared.backend {
            // A closed store has nothing to expire.
            let _ = log.queue.send(Message::Wake);
        }
    }

    /// Finishes the queued writes and lets the data directory go. Dropping the last handle does the
    /// same, but nobody knows when: only after this call may the directory be opened again.
    pub async fn close(&self) {
        match &self.shared.backend {
            Backend::Log(log) => log.close().await,
            Backend::External(external) => external.close().await,
        }
    }

    /// Runs something that sends commands, as many as there are, without waiting for them: the log
    /// takes them together. It says whether it did anything, and so does this; and whether one that
    /// was alone was committed by this thread ([`StoreConfig::senders_commit`]).
    pub fn together(&self, send: impl FnOnce() -> bool) -> (bool, bool) {
        match &self.shared.backend {
            Backend::Log(log) => log.together(send),
            Backend::External(_) => (send(), false),
        }
    }

    /// Runs a command; resolves once it is durable and readers see its effect.
    ///
    /// # Errors
    /// As [`Store::txn`].
    pub async fn command(&self, command: Command) -> Result<Answer, StoreError> {
        command.check().map_err(StoreError::Refused)?;
        let measures = &self.shared.measures;
        let _under_way = measures.begin();
        let result = match &self.shared.backend {
            Backend::Log(log) => log.submit(command, &self.shared.config).await,
            // Boxed: it is large, and writes to a log would carry the room for it.
            Backend::External(external) => Box::pin(external.submit(command)).await,
        };
        measures.note(&result);
        result
    }
}

impl Log {
    fn together(&self, send: impl FnOnce() -> bool) -> (bool, bool) {
        let sending = self.queue.begin();
        let did = send();
        let lone = self.queue.lone(did, || self.desk.as_ref()?.at_hand());
        drop(sending);
        (did, lone.map(|(job, writer)| writer.commit(job)).is_some())
    }

    async fn submit(&self, command: Command, config: &StoreConfig) -> Result<Answer, StoreError> {
        let bytes = command.encode();
        let limit = config.command_bytes;
        if bytes.len() > limit {
            return Err(StoreError::TooLarge(bytes.len(), limit));
        }
        let weight = kib(bytes.len()).min(kib(config.queue_bytes));
        let room = self.room.acquire_many(weight).await.map_err(|_| StoreError::Closed)?;
        // The writer gives it back.
        room.forget();
        let (reply, answer) = oneshot::channel();
        let job = Job { command, bytes, reply, room: weight };
        self.queue.send(Message::Write(Box::new(job)))?;
        let outcome = answer.await.map_err(|_| StoreError::Closed)??;
        outcome.map_err(StoreError::Refused)
    }

    async fn close(&self) {
        let (done, finished) = oneshot::channel();
        if self.queue.send(Message::Close(done)).is_ok() {
            // An error means the writer is gone, which is what was asked for.
            let _ = finished.await;
        }
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It has answered above and only unwinds its stack; panics abort the process.
            let _ = thread.join();
        }
    }
}

/// The last handle closes the store; nobody is left to wait for it.
impl Drop for Log {
    fn drop(&mut self) {
        let (done, _) = oneshot::channel();
        // It may be closed already.
        let _ = self.queue.send(Message::Close(done));
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

pub(crate) fn read_lock(keyspace: &RwLock<Keyspace>) -> RwLockReadGuard<'_, Keyspace> {
    keyspace.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write_lock(keyspace: &RwLock<Keyspace>) -> RwLockWriteGuard<'_, Keyspace> {
    keyspace.write().unwrap_or_else(PoisonError::into_inner)
}

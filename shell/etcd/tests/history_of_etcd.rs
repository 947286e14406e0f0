//! etcd's own record of correctness bugs (the table of its robustness tests), each as a scenario
//! that would show it here: the test whose name ends in the number.
//!
//! | issue | what went wrong there | here |
//! |---|---|---|
//! | 13766 | a crash under load left data and applied index apart | below |
//! | 14370 | a lone member answered before the write was on disk | below |
//! | 14571 | a write was judged by other users and roles on each member | below |
//! | 14685 | a crash during defragmentation lost the applied index | below |
//! | 15220 | progress overtook events on the stream | below |
//! | 15271 | a watch went back in time on a member cut off from others | several members |
//! | 17247 | an event of a transaction came twice | below |
//! | 17529 | a starved stream lost events | below |
//! | 17780 | a crash during compaction made the revision smaller | below |
//! | 18055 | two snapshots in a row made a lagging member panic | several members |
//! | 18089 | compacting at a deletion lost its event | below |
//! | 18667 | members differed in what a transaction could read | below |
//! | 19179 | a watch from the compaction on missed a deletion | below |
//! | 20221 | a watch of the future was told of progress | below |
//! | 20221 | a watch of the future was told old events | below |
//! | 20271 | a page of the database was not the one expected | below |
//! | 20418 | a member that had been paused answered from its past | several members |
//!
//! "Several members" waits for consensus: one member has nobody to differ from or to lag behind.
//! That a watch which is resumed after a crash does not go back, and that no read is stale, the
//! simulation of the store shows for one (`shell/store/tests/linearizable`).
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use knarr_etcd::{Face, FaceConfig, Listener, serve};
use knarr_etcdpb::authpb::{Permission, permission};
use knarr_etcdpb::etcdserverpb as pb;
use knarr_etcdpb::mvccpb::{self, event::EventType};
use knarr_mvcc::{Command, KeyRange, LeaseId, Op, Query, Refusal, Revision, Txn};
use knarr_store::sim::{Pump, SimClock, SimDisk};
use knarr_store::{ArchiveConfig, OpenError, Store, StoreConfig, StoreError};
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::request_op::Request as Operation;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};

/// A face of a store, and a connection to it.
struct Served {
    channel: Channel,
    /// While it lives the face is served.
    _drain: watch::Sender<bool>,
}

impl Served {
    async fn new(store: &Store) -> Self {
        let config = FaceConfig {
            bcrypt_cost: 4,
            progress_interval: Duration::from_millis(1),
            ..FaceConfig::default()
        };
        let face = Face::new(store.clone(), config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, drain) = watch::channel(false);
        tokio::spawn(serve(face, Listener::Tcp(listener, None), drain));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        Self { channel: channel.connect().await.unwrap(), _drain: stop }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        let answer = self.kv().put(put(key, value)).await.unwrap();
        answer.into_inner().header.unwrap().revision
    }

    async fn delete(&self, key: &str) -> i64 {
        let request = pb::DeleteRangeRequest { key: bytes(key), ..Default::default() };
        self.kv().delete_range(request).await.unwrap().into_inner().header.unwrap().revision
    }

    async fn puts(&self, puts: Vec<pb::PutRequest>) {
        let op = |put| pb::RequestOp { request: Some(Operation::RequestPut(put)) };
        let success = puts.into_iter().map(op).collect();
        self.kv().txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
    }

    async fn compact(&self, revision: i64) {
        self.kv().compact(pb::CompactionRequest { revision, physical: true }).await.unwrap();
    }

    async fn stream(&self) -> Watching {
        let (ask, asked) = mpsc::channel(1000);
        let mut watches = WatchClient::new(self.channel.clone());
        let answers = watches.watch(ReceiverStream::new(asked)).await.unwrap().into_inner();
        Watching { ask, answers }
    }
}

/// A watch stream.
struct Watching {
    ask: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Watching {
    async fn ask(&self, request: RequestUnion) {
        self.ask.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    async fn next(&mut self) -> pb::WatchResponse {
        self.answers.message().await.unwrap().unwrap()
    }

    /// Watches everything; the answer to that.
    async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        let all = pb::WatchCreateRequest { key: bytes("\0"), range_end: bytes("\0"), ..request };
        self.ask(RequestUnion::CreateRequest(all)).await;
        loop {
            let answer = self.next().await;
            if answer.created {
                return answer;
            }
        }
    }

    async fn request_progress(&self) {
        self.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    }

    /// The next so many events, or a few more.
    async fn events(&mut self, count: usize) -> Vec<String> {
        let mut told = Vec::new();
        while told.len() < count {
            let response = self.next().await;
            assert!(!response.canceled, "{response:?}");
            told.extend(response.events.iter().map(describe));
        }
        told
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

fn from(start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { start_revision, ..Default::default() }
}

fn describe(event: &mvccpb::Event) -> String {
    let kv = event.kv.as_ref().unwrap();
    let (key, value) = (String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
    match event.r#type() {
        EventType::Put => format!("@{} {key}={value}", kv.mod_revision),
        EventType::Delete => format!("@{} {key} gone", kv.mod_revision),
    }
}

/// Small files, so that little work has segments end and checkpoints made; and no history on disk,
/// so that what memory forgets is gone.
fn config() -> StoreConfig {
    let (segment_bytes, checkpoint_bytes) = (4096, 2000);
    let archive = ArchiveConfig::OFF;
    StoreConfig { segment_bytes, checkpoint_bytes, archive, ..StoreConfig::default() }
}

fn open(disk: &SimDisk, history_bytes: usize) -> Store {
    let config = StoreConfig { history_bytes, ..config() };
    Store::open(Arc::new(disk.clone()), Arc::<SimClock>::default(), config).unwrap()
}

fn write(key: &str, value: &str) -> Op {
    Op::Put { key: bytes(key), value: bytes(value), lease: LeaseId(0) }
}

fn txn(success: Vec<Op>) -> Txn {
    Txn { success, ..Txn::default() }
}

/// A store that is driven by hand, on a disk that the power can be cut from.
struct Machine {
    disk: SimDisk,
    store: Store,
    pump: Pump,
}

impl Machine {
    fn new() -> Self {
        Self::start(SimDisk::default())
    }

    fn start(disk: SimDisk) -> Self {
        let (store, pump) = Store::simulated(&disk, &Arc::default(), config()).unwrap();
        Self { disk, store, pump }
    }

    fn power_cut(self, seed: u64) -> Self {
        self.disk.crash(seed);
        Self::start(self.disk)
    }

    /// Sends commands at once, and works until there is no more to do; where they were done.
    async fn all(&mut self, commands: Vec<Command>) -> Vec<Result<Revision, StoreError>> {
        let send = |command| {
            let store = self.store.clone();
            async move { store.command(command).await.map(|_| store.durable()) }
        };
        let sent: Vec<_> =
            commands.into_iter().map(|command| tokio::spawn(send(command))).collect();
        tokio::task::yield_now().await;
        while self.pump.step() || self.pump.work() {}
        let mut answers = Vec::new();
        for sent in sent {
            answers.push(sent.await.unwrap());
        }
        answers
    }

    async fn put(&mut self, key: &str, value: &str) -> Result<Revision, StoreError> {
        self.all(vec![Command::Txn(txn(vec![write(key, value)]))]).await.remove(0)
    }

    fn value(&self, key: &str) -> Option<Bytes> {
        self.store.read(|keyspace, _| {
            Some(keyspace.get(key.as_bytes(), Revision(0)).unwrap()?.value.clone())
        })
    }
}

#[tokio::test]
async fn a_crash_under_load_13766() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..60 {
        let mut machine = Machine::new();
        let mut answered = BTreeMap::new();
        machine.disk.crash_after(1 + seed);
        for round in 10..22 {
            let value = format!("{round}{}", ".".repeat(300));
            let put = |key| Command::Txn(txn(vec![write(&format!("k{key}"), &value)]));
            let answers = machine.all((0..4).map(put).collect()).await;
            for (key, _) in answers.iter().enumerate().filter(|(_, answer)| answer.is_ok()) {
                answered.insert(format!("k{key}"), bytes(&value));
            }
        }
        let before = machine.store.durable();
        let machine = machine.power_cut(seed);
        for (key, value) in &answered {
            // A later one that was not answered may be there too.
            assert!(machine.value(key).unwrap() >= value, "seed {seed}: {key} fell back");
        }
        // Each revision was made by one put: none is counted twice, or left out.
        let (revision, held) = machine.store.read(|keyspace, revision| {
            let all = KeyRange::prefix("");
            (revision, keyspace.events(&all, Revision(1), revision, usize::MAX).unwrap().events)
        });
        assert!(revision >= before, "seed {seed}");
        let made: Vec<u64> = held.iter().map(|event| event.revision.0).collect();
        assert_eq!(made, (2..=revision.0).collect::<Vec<_>>(), "seed {seed}");
        *(if answered.is_empty() { &mut lost } else { &mut kept }) += 1;
    }
    assert!(lost > 0 && kept > 20, "{lost} {kept}");
}

#[tokio::test]
async fn no_answer_before_the_disk_14370() {
    for fuse in 1..30 {
        for seed in 0..3 {
            let mut machine = Machine::new();
            machine.disk.crash_after(fuse);
            let mut answered = Vec::new();
            for number in 0..10 {
                let key = format!("k{number}");
                answered.extend(machine.put(&key, "x").await.is_ok().then_some(key));
            }
            let machine = machine.power_cut(seed);
            let lost: Vec<_> = answered.iter().filter(|key| machine.value(key).is_none()).collect();
            assert!(lost.is_empty(), "fuse {fuse}, seed {seed}: {lost:?}");
        }
    }
}

/// Users and roles are as they were after a restart, and who may write is decided at the write's
/// place in the log, not by what was known when it came.
#[tokio::test]
async fn auth_counts_at_its_place_14571() {
    let disk = SimDisk::default();
    let store = open(&disk, 1 << 20);
    let served = Served::new(&store).await;
    make_users(&served).await;
    let settings = store.read(|keyspace, _| keyspace.settings().clone());
    let judge = async |served: Served| {
        let mut ann = LoggedIn::new("ann", &served).await;
        assert_eq!(ann.put("a").await, Ok(()));
        assert_eq!(ann.put("b").await, Err(Code::PermissionDenied));
        let nobody = served.kv().put(put("a", "x")).await.unwrap_err();
        assert_eq!(nobody.code(), Code::InvalidArgument);
    };
    judge(served).await;
    store.close().await;
    disk.crash(1);
    let store = open(&disk, 1 << 20);
    assert_eq!(store.read(|keyspace, _| keyspace.settings().clone()), settings);
    judge(Served::new(&store).await).await;
    let command = Box::new(Command::Txn(txn(vec![write("b", "x")])));
    let stale = Command::Under { settings: settings.version() - 1, command };
    let refused = store.command(stale).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(Refusal::SettingsChanged(_))));
}

/// Root, and Ann who may write `a`.
async fn make_users(served: &Served) {
    let mut auth = AuthClient::new(served.channel.clone());
    for name in ["root", "ann"] {
        let (name, password) = (name.to_owned(), "secret".to_owned());
        let user = pb::AuthUserAddRequest { name, password, ..Default::default() };
        auth.user_add(user).await.unwrap();
    }
    auth.role_add(pb::AuthRoleAddRequest { name: "a".into() }).await.unwrap();
    let perm_type = permission::Type::Write.into();
    let perm = Some(Permission { perm_type, key: bytes("a"), range_end: Bytes::new() });
    let grant = pb::AuthRoleGrantPermissionRequest { name: "a".into(), perm };
    auth.role_grant_permission(grant).await.unwrap();
    for (user, role) in [("root", "root"), ("ann", "a")] {
        let grant = pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        auth.user_grant_role(grant).await.unwrap();
    }
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
}

/// Somebody with a token.
struct LoggedIn(KvClient<Channel>, String);

impl LoggedIn {
    async fn new(name: &str, served: &Served) -> Self {
        let request = pb::AuthenticateRequest { name: name.into(), password: "secret".into() };
        let mut auth = AuthClient::new(served.channel.clone());
        Self(served.kv(), auth.authenticate(request).await.unwrap().into_inner().token)
    }

    async fn put(&mut self, key: &str) -> Result<(), Code> {
        let mut request = Request::new(put(key, "x"));
        request.metadata_mut().insert("authorization", self.1.parse().unwrap());
        self.0.put(request).await.map(drop).map_err(|status| status.code())
    }
}

#[tokio::test]
async fn defragmentation_touches_nothing_14685() {
    let disk = SimDisk::default();
    let store = open(&disk, 1 << 20);
    let served = Served::new(&store).await;
    served.put("a", "x").await;
    let before = (store.durable(), disk.trace());
    let mut maintenance = MaintenanceClient::new(served.channel.clone());
    maintenance.defragment(pb::DefragmentRequest {}).await.unwrap();
    assert_eq!((store.durable(), disk.trace()), before);
}

/// Every revision has an event for this watch, so that what progress says can be compared.
#[tokio::test]
async fn progress_comes_after_its_events_15220() {
    let served = Arc::new(Served::new(&Store::in_memory()).await);
    let load = |served: Arc<Served>| async move {
        for number in 0..200 {
            served.put(&format!("k{number}"), &".".repeat(5_000)).await;
        }
    };
    load(served.clone()).await;
    let mut watching = served.stream().await;
    watching.create(pb::WatchCreateRequest { progress_notify: true, ..from(2) }).await;
    let writer = tokio::spawn(load(served));
    let (mut told, mut notified, mut answered) = (1, 0, 0);
    while told < 401 || notified == 0 || answered == 0 {
        watching.request_progress().await;
        let response = watching.next().await;
        for event in &response.events {
            let at = event.kv.as_ref().unwrap().mod_revision;
            assert_eq!(at, told + 1, "lost, doubled or out of order");
            told = at;
        }
        let reached = response.header.unwrap().revision;
        assert_eq!(reached, told, "the head says that all up to there was told");
        notified += u32::from(response.events.is_empty() && response.watch_id == 0);
        answered += u32::from(response.events.is_empty() && response.watch_id == -1);
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_transaction_is_told_once_17247() {
    let served = Served::new(&Store::in_memory()).await;
    let mut watching = served.stream().await;
    watching.create(from(0)).await;
    served.puts(vec![put("a", "x"), put("b", "x")]).await;
    served.put("a", "y").await;
    assert_eq!(watching.events(3).await, ["@2 a=x", "@2 b=x", "@3 a=y"]);
}

/// A client that reads only when far more is to be told than any buffer takes.
#[tokio::test]
async fn a_starved_stream_loses_nothing_17529() {
    let store = Store::in_memory();
    let served = Served::new(&store).await;
    let mut watching = served.stream().await;
    watching.create(from(0)).await;
    let value = ".".repeat(20_000);
    for number in 0..500 {
        store.txn(txn(vec![write(&format!("k{number}"), &value)])).await.unwrap();
    }
    let mut told = 1;
    while told < 501 {
        for event in watching.next().await.events {
            assert_eq!(event.kv.unwrap().mod_revision, told + 1);
            told += 1;
        }
    }
}

/// All keys are deleted and compacted away, so that nothing left names the revision. Whenever the
/// power goes, it does not become smaller.
#[tokio::test]
async fn compaction_keeps_the_revision_17780() {
    for fuse in 1..40 {
        let mut machine = Machine::new();
        for number in 0..8 {
            machine.put(&format!("k{number}"), &".".repeat(200)).await.unwrap();
        }
        let delete = Command::Txn(txn(vec![Op::Delete { range: KeyRange::prefix("") }]));
        let newest = machine.all(vec![delete]).await.remove(0).unwrap();
        machine.disk.crash_after(fuse);
        let compact = Command::Compact { revision: newest };
        let compacted = machine.all(vec![compact]).await.remove(0).is_ok();
        // What is refused leaves its mark in the log, and has checkpoints made.
        for _ in 0..20 {
            let _ = machine.all(vec![Command::Compact { revision: Revision(1) }]).await;
        }
        let machine = machine.power_cut(fuse);
        let (now, at) = machine.store.read(|keyspace, now| (now, keyspace.compacted()));
        assert_eq!(now, newest, "fuse {fuse}");
        assert!(!compacted || at == newest, "fuse {fuse}: an answered compaction is undone");
    }
}

#[tokio::test]
async fn a_deletion_at_the_compaction_is_told_18089() {
    let served = Served::new(&Store::in_memory()).await;
    served.put("a", "x").await;
    let deleted = served.delete("a").await;
    served.put("b", "x").await;
    served.compact(deleted).await;
    let mut watching = served.stream().await;
    watching.create(from(deleted)).await;
    assert_eq!(watching.events(2).await, ["@3 a gone", "@4 b=x"]);
}

#[tokio::test]
async fn a_watch_begins_at_the_compaction_19179() {
    let served = Served::new(&Store::in_memory()).await;
    served.put("a", "x").await;
    let deleted = served.delete("a").await;
    served.compact(deleted).await;
    let mut watching = served.stream().await;
    watching.create(from(deleted)).await;
    assert_eq!(watching.events(1).await, ["@3 a gone"]);
    // One revision earlier it is told that this is gone, and where it can begin.
    assert!(!watching.create(from(deleted - 1)).await.canceled);
    let answer = watching.next().await;
    assert!(answer.canceled);
    assert_eq!((answer.watch_id, answer.compact_revision), (1, deleted));
}

/// Memory may have forgotten what nobody compacted: that must not decide what is written.
#[tokio::test]
async fn the_log_decides_what_can_be_read_18667() {
    let disk = SimDisk::default();
    let old = |at| Op::Range(Query { at: Revision(at), ..Query::one("a") });
    let state = |store: &Store| {
        store.read(|keyspace, at| (at, keyspace.range(&KeyRange::prefix(""), at, 0).unwrap().kvs))
    };
    let store = open(&disk, 1 << 20);
    store.txn(txn(vec![write("a", "x")])).await.unwrap();
    store.txn(txn(vec![write("a", "y")])).await.unwrap();
    let kept = store.txn(txn(vec![old(2), write("b", "kept")])).await.unwrap();
    assert_eq!(kept.revision, Revision(4));
    store.compact(Revision(3)).await.unwrap();
    let refused = store.txn(txn(vec![old(2), write("b", "refused")])).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(Refusal::Compacted(Revision(3)))));
    let before = state(&store);
    store.close().await;
    // Without memory for history the same log leads to the same state; and so it does the other
    // way round, when less was known while it was written.
    let store = open(&disk, 0);
    assert_eq!(state(&store), before);
    store.txn(txn(vec![write("a", "z")])).await.unwrap();
    let refused = store.txn(txn(vec![old(4), write("b", "refused")])).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(Refusal::Compacted(_))), "{refused}");
    let before = state(&store);
    store.close().await;
    assert_eq!(state(&open(&disk, 1 << 20)), before);
}

#[tokio::test]
async fn a_watch_of_the_future_waits_20221() {
    let served = Served::new(&Store::in_memory()).await;
    served.put("a", "1").await;
    let mut watching = served.stream().await;
    watching.create(pb::WatchCreateRequest { progress_notify: true, ..from(5) }).await;
    // While it waits nobody is told of its progress, not even who asks.
    watching.request_progress().await;
    let other = pb::WatchCreateRequest { progress_notify: true, ..from(0) };
    let all = pb::WatchCreateRequest { key: bytes("a"), ..other };
    watching.ask(RequestUnion::CreateRequest(all)).await;
    for _ in 0..4 {
        let quiet = watching.next().await;
        assert_eq!((quiet.watch_id, quiet.events.len()), (1, 0), "{quiet:?}");
    }
    for value in ["2", "3", "4", "5"] {
        served.put("a", value).await;
    }
    let mut told = Vec::new();
    while told.len() < 2 {
        let response = watching.next().await;
        if response.watch_id == 0 {
            assert!(response.header.unwrap().revision >= 5, "{response:?}");
            told.extend(response.events.iter().map(describe));
        }
    }
    assert_eq!(told, ["@5 a=4", "@6 a=5"]);
    watching.request_progress().await;
    while watching.next().await.watch_id != -1 {}
}

/// A start reads every file that it needs, and says where one is damaged; it never goes on with
/// what it did not expect. (Of the last batch, before the mark of a clean end, nobody can say
/// whether its sync returned.)
#[tokio::test]
async fn a_damaged_file_is_refused_20271() {
    let mut machine = Machine::new();
    for number in 0..30 {
        machine.put(&format!("k{number}"), &".".repeat(200)).await.unwrap();
    }
    let (disk, mut refused) = (machine.disk.clone(), 0);
    // What is not finished has no name yet, and goes with the first start.
    let named = disk.files().into_iter().filter(|(name, _)| !name.starts_with("tmp-"));
    for (name, len) in named {
        for offset in (0..len).step_by(97) {
            let offset = usize::try_from(offset).unwrap();
            disk.flip(&name, offset, 0x10);
            match Store::simulated(&disk, &Arc::default(), config()) {
                Err(OpenError::Corrupt { .. } | OpenError::TooNew { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
                Ok((store, _)) => assert!(store.durable() >= Revision(30), "{name} {offset}"),
            }
            disk.flip(&name, offset, 0x10);
        }
    }
    assert!(refused > 10, "only {refused} flips were seen");
}

/// Not in the table: a lease that has ended is not kept alive, even before its keys are gone.
#[tokio::test]
async fn an_ended_lease_is_not_kept_alive() {
    let clock = Arc::<SimClock>::default();
    let store = Store::open(Arc::new(SimDisk::default()), clock.clone(), config()).unwrap();
    let served = Served::new(&store).await;
    let mut leases = LeaseClient::new(served.channel.clone());
    leases.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 5 }).await.unwrap();
    served.kv().put(pb::PutRequest { lease: 7, ..put("a", "x") }).await.unwrap();
    let mut watching = served.stream().await;
    watching.create(from(0)).await;
    let (ask, asked) = mpsc::channel(4);
    ask.send(pb::LeaseKeepAliveRequest { id: 7 }).await.unwrap();
    let mut alive = leases.lease_keep_alive(ReceiverStream::new(asked)).await.unwrap().into_inner();
    assert_eq!(alive.message().await.unwrap().unwrap().ttl, 5);
    clock.advance(5_000);
    ask.send(pb::LeaseKeepAliveRequest { id: 7 }).await.unwrap();
    assert_eq!(alive.message().await.unwrap().unwrap().ttl, 0);
    store.wake();
    assert_eq!(watching.events(1).await, ["@3 a gone"]);
}

/// Not in the table: a revision that is too large for one message comes in pieces, all of it,
/// before anything else.
#[tokio::test]
async fn a_revision_in_pieces_is_told_whole() {
    let store = Store::in_memory();
    let served = Served::new(&store).await;
    let mut watching = served.stream().await;
    let request = pb::WatchCreateRequest { fragment: true, progress_notify: true, ..from(0) };
    watching.create(request).await;
    let value = ".".repeat(40_000);
    let ops = (0..45).map(|key| write(&format!("k{key:02}"), &value)).collect();
    store.txn(txn(ops)).await.unwrap();
    let (mut told, mut pieces) = (Vec::new(), 0);
    while told.len() < 45 {
        let response = watching.next().await;
        if response.events.is_empty() {
            assert!(told.is_empty(), "something else in between");
            continue;
        }
        pieces += 1;
        told.extend(response.events.into_iter().map(|event| event.kv.unwrap()));
        assert_eq!(response.fragment, told.len() < 45);
    }
    // As large as a request may be, and no smaller.
    assert!(pieces == 2 && told.iter().all(|kv| kv.mod_revision == 2));
    assert!(told.is_sorted_by_key(|kv| kv.key.clone()));
}

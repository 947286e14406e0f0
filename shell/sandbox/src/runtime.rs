//! The agent's side of the embedded runtime: CRI's RuntimeService as blocking calls.
//!
//! Configuration is the agent's and lies in the state folder; what happens is the shims', who tell
//! of it on one subscription each. One thread waits for all subscriptions. Nothing is polled, and
//! nothing here outlives the call: an agent that dies leaves the shims and finds them again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as ChildStdio};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use knarr_oci::cri::{self, ContainerState, NamespaceMode, PodSandboxState};
use knarr_oci::generate::{self, ContainerRequest};
use knarr_oci::image::ImageConfig;
use knarr_oci::spec::{NetworkNs, Process, Rootfs, Stdio};

use crate::cgroup::Hierarchies;
use crate::protocol::{self, Exit, Reply, Request};
use crate::state::{self, ContainerRecord, SandboxDir, SandboxRecord};
use crate::watch::Watcher;
use crate::{Error, cleanup, exec};

/// Most events that wait for the agent; then the watching thread waits.
const EVENT_QUEUE: usize = 1024;

/// Where a runtime keeps its state and how it starts shims.
#[derive(Clone, Debug)]
pub struct Config {
    /// State folder; everything below it belongs to this runtime.
    pub state_dir: PathBuf,
    /// Executable and leading arguments of a shim, normally `/proc/self/exe pod-shim`. They are
    /// followed by the arguments of [`crate::shim_main`].
    pub shim: Vec<String>,
}

/// What happened without being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container's first process ended; the status says how.
    ContainerExited(Box<cri::ContainerStatus>),
    /// A sandbox is not ready any more, because its shim died.
    SandboxNotReady(String),
}

/// What `create_container` needs.
pub struct CreateContainer<'a> {
    /// Sandbox it goes into.
    pub sandbox_id: &'a str,
    /// What is asked for.
    pub config: &'a cri::ContainerConfig,
    /// Configuration of the image.
    pub image: &'a ImageConfig,
    /// Read-only layers of the image.
    pub rootfs: Rootfs,
}

/// The embedded runtime. Calls block; share it by `Arc` and call from blocking tasks.
pub struct Runtime {
    inner: Arc<Inner>,
    shim: Vec<String>,
    _watcher: Watcher,
}

/// What calls and the watching thread share.
pub(crate) struct Inner {
    dir: PathBuf,
    hierarchies: Hierarchies,
    state: Mutex<State>,
    events: SyncSender<Event>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Container>,
}

struct Sandbox {
    record: SandboxRecord,
    state: PodSandboxState,
    netns: Option<String>,
    /// The shim, when this agent has started it: to be reaped.
    shim: Option<Child>,
}

struct Container {
    record: ContainerRecord,
    status: cri::ContainerStatus,
}

/// Receiving end of the events; blocking `recv`.
pub type Events = std::sync::mpsc::Receiver<Event>;

/// Names what was done in an error of the kernel.
pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |error| Error::Io(what, error)
}

/// 64 hex digits.
fn new_id() -> Result<String, Error> {
    let mut bytes = [0u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::Io("random id".into(), error.into()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// One request on a connection of its own.
fn ask(dir: &SandboxDir, request: &Request) -> Result<Reply, Error> {
    let socket = protocol::connect(&dir.0).map_err(io_error("connect to the pod shim"))?;
    protocol::send(&socket, request, &[]).map_err(io_error("ask the pod shim"))?;
    hear(&socket)
}

/// The next thing a shim says.
pub(crate) fn hear(socket: &OwnedFd) -> Result<Reply, Error> {
    let heard = protocol::receive(socket).map_err(io_error("hear from the pod shim"))?;
    let gone = || Error::Io("pod shim".into(), io::ErrorKind::UnexpectedEof.into());
    heard.map(|(reply, _)| reply).ok_or_else(gone)
}

/// The error that an answer amounts to.
pub(crate) fn unexpected(reply: &Reply) -> Error {
    match reply {
        Reply::Refused { why } => Error::Invalid(why.clone()),
        Reply::StartFailed { message } => Error::Start(message.clone()),
        Reply::NotRunning => Error::Invalid("the container does not run".into()),
        other => Error::Invalid(format!("unexpected answer of the pod shim: {other:?}")),
    }
}

impl Runtime {
    /// Opens the state folder, adopts what runs, and reports what ended meanwhile as events.
    ///
    /// # Errors
    /// The state folder or the control groups cannot be read.
    pub fn open(config: Config) -> Result<(Runtime, Events), Error> {
        fs::create_dir_all(config.state_dir.join("sandboxes"))
            .map_err(io_error("make the state folder"))?;
        let (events, receiver) = std::sync::mpsc::sync_channel(EVENT_QUEUE);
        let inner = Arc::new(Inner {
            hierarchies: Hierarchies::detect().map_err(io_error("find the control groups"))?,
            dir: config.state_dir,
            state: Mutex::default(),
            events,
        });
        let ids = state::folder_names(&inner.dir.join("sandboxes"));
        for id in &ids {
            inner.load(id)?;
        }
        let watcher = Watcher::start(inner.clone()).map_err(io_error("watch the pod shims"))?;
        for id in ids {
            if inner.lock().sandboxes.contains_key(&id) {
                watcher.adopt(&id);
            }
        }
        Ok((Runtime { inner, shim: config.shim, _watcher: watcher }, receiver))
    }

    /// Makes a sandbox and its shim; its id.
    ///
    /// # Errors
    /// The shim could not start; nothing is left of it.
    pub fn run_pod_sandbox(
        &self,
        config: &cri::PodSandboxConfig,
        netns: NetworkNs,
    ) -> Result<String, Error> {
        let id = new_id()?;
        let spec = generate::sandbox_spec(config, &id, netns)
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let record = SandboxRecord { config: config.clone(), spec, created_at: state::now() };
        let started = self.start_sandbox(&id, record);
        if started.is_err() {
            // The first error counts; what cannot be removed now is found by `cleanup`.
            let _ = cleanup::remove_sandbox(&self.inner.hierarchies, &self.inner.sandbox_dir(&id));
        }
        started.map(|()| id)
    }

    fn start_sandbox(&self, id: &str, record: SandboxRecord) -> Result<(), Error> {
        let dir = self.inner.sandbox_dir(id);
        fs::create_dir_all(dir.0.join("containers"))
            .map_err(io_error("make the sandbox folder"))?;
        state::write(&dir.record(), &record).map_err(io_error("write sandbox.json"))?;
        let limits = record.spec.resources.clone().unwrap_or_default();
        self.inner
            .hierarchies
            .create(&record.spec.cgroup_parent, &limits, &[])
            .map_err(io_error("control group of the Pod"))?;
        let shim = self.spawn_shim(&dir)?;
        let netns = match &record.spec.network {
            NetworkNs::Node => None,
            NetworkNs::Path(path) => Some(path.clone()),
            NetworkNs::New => Some(format!("/proc/{}/ns/net", shim.id())),
        };
        let state = PodSandboxState::Ready;
        let sandbox = Sandbox { record, state, netns, shim: Some(shim) };
        self.inner.lock().sandboxes.insert(id.to_string(), sandbox);
        self._watcher.adopt(id);
        Ok(())
    }

    /// Starts a shim and waits for its word.
    fn spawn_shim(&self, dir: &SandboxDir) -> Result<Child, Error> {
        let (program, args) =
            self.shim.split_first().ok_or_else(|| Error::Invalid("no shim configured".into()))?;
        let mut child = Command::new(program)
            .args(args)
            .arg(&dir.0)
            .arg(std::process::id().to_string())
            .current_dir("/")
            .env_clear()
            .stdin(ChildStdio::null())
            .stdout(ChildStdio::piped())
            .stderr(ChildStdio::null())
            .spawn()
            .map_err(io_error("start the pod shim"))?;
        let mut word = String::new();
        let heard = child.stdout.take().map(|mut out| out.read_to_string(&mut word));
        if let (Some(Ok(_)), "ok") = (heard, word.as_str()) {
            return Ok(child);
        }
        let _ = child.kill();
        let _ = child.wait();
        let why = if word.is_empty() { "it ended without a word".into() } else { word };
        Err(Error::Start(format!("pod shim: {why}")))
    }

    /// Kills the sandbox's containers and ends its shim. Stopping twice is fine.
    ///
    /// # Errors
    /// Processes do not end.
    pub fn stop_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        if self.inner.lock().sandboxes.get(id).is_none_or(|s| s.state == PodSandboxState::NotReady)
        {
            return Ok(());
        }
        let of_sandbox = |c: &Container| c.status.pod_sandbox_id == id;
        let state = self.inner.lock();
        let containers: Vec<String> = state
            .containers
            .iter()
            .filter(|(_, c)| of_sandbox(c))
            .map(|(k, _)| k.clone())
            .collect();
        drop(state);
        for container in containers {
            self.stop_container(&container, Duration::ZERO)?;
        }
        let dir = self.inner.sandbox_dir(id);
        if let Some(sandbox) = self.inner.lock().sandboxes.get_mut(id) {
            sandbox.state = PodSandboxState::NotReady;
        }
        // A shim that does not answer is killed with its group.
        let _ = ask(&dir, &Request::Shutdown);
        self.inner.take_down(id)
    }

    /// Stops a sandbox and removes it with its containers. Removing twice is fine.
    ///
    /// # Errors
    /// Processes do not end, or a folder cannot be removed.
    pub fn remove_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        self.stop_pod_sandbox(id)?;
        let dir = self.inner.sandbox_dir(id);
        cleanup::remove_sandbox(&self.inner.hierarchies, &dir)
            .map_err(io_error("remove the sandbox"))?;
        let mut state = self.inner.lock();
        state.containers.retain(|_, container| container.status.pod_sandbox_id != id);
        state.sandboxes.remove(id);
        Ok(())
    }

    /// The status of a sandbox.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn pod_sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Error> {
        let state = self.inner.lock();
        let sandbox = state.sandboxes.get(id).ok_or_else(|| not_found("sandbox", id))?;
        Ok(sandbox.status(id))
    }

    /// All sandboxes, by id.
    #[must_use]
    pub fn list_pod_sandbox(&self) -> Vec<cri::PodSandboxStatus> {
        self.inner.lock().sandboxes.iter().map(|(id, sandbox)| sandbox.status(id)).collect()
    }

    /// Decides everything about a container and writes it down; its id. Nothing runs yet.
    ///
    /// # Errors
    /// The request contradicts itself.
    pub fn create_container(&self, request: CreateContainer<'_>) -> Result<String, Error> {
        let id = new_id()?;
        let CreateContainer { sandbox_id, config, image, rootfs } = request;
        let sandbox = self.inner.ready_sandbox(sandbox_id)?;
        let dir = self.inner.sandbox_dir(sandbox_id);
        let shm = match sandbox.spec.ipc {
            NamespaceMode::Node => "/dev/shm".into(),
            _ => dir.shm().to_string_lossy().into_owned(),
        };
        let sandbox = &sandbox.config;
        let request = ContainerRequest { id: &id, sandbox, config, image, rootfs, shm: &shm };
        let spec = generate::container_spec(&request)
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let record = ContainerRecord { config: config.clone(), spec, created_at: state::now() };
        let dir = dir.container(&id);
        fs::create_dir_all(&dir.0).map_err(io_error("make the container folder"))?;
        state::write(&dir.record(), &record).map_err(io_error("write container.json"))?;
        let status = record.status(sandbox_id, &id);
        self.inner.lock().containers.insert(id.clone(), Container { record, status });
        Ok(id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// [`Error::Start`] says in the user's words why the program does not run; the container has
    /// exited then, with reason `StartError` and code 128.
    pub fn start_container(&self, id: &str) -> Result<(), Error> {
        let (dir, status) = self.inner.container(id)?;
        if status.state != ContainerState::Created {
            return Err(Error::Invalid(format!("container {id} was started before")));
        }
        match ask(&dir, &Request::Start { id: id.to_string() })? {
            Reply::Started { pid, at } => {
                self.inner.note_start(id, pid, at);
                Ok(())
            }
            Reply::StartFailed { message } => {
                self.inner.note_exit(id, &failed_start(&message));
                Err(Error::Start(message))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a container: its stop signal, and SIGKILL after `timeout`. Returns when it has ended.
    ///
    /// # Errors
    /// The shim does not answer.
    pub fn stop_container(&self, id: &str, timeout: Duration) -> Result<(), Error> {
        let (dir, status) = self.inner.container(id)?;
        if status.state != ContainerState::Running {
            return Ok(());
        }
        let signal = self.inner.lock().containers.get(id).map(|c| c.record.spec.stop_signal);
        let Some(signal) = signal else { return Ok(()) };
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let stop = Request::Stop { id: id.to_string(), signal, timeout_ms };
        match ask(&dir, &stop)? {
            Reply::Exited { exit, .. } => self.inner.note_exit(id, &exit),
            Reply::NotRunning => {}
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }

    /// Stops a container and removes all of it. Removing twice is fine.
    ///
    /// # Errors
    /// It does not end, or its folder cannot be removed.
    pub fn remove_container(&self, id: &str) -> Result<(), Error> {
        let Ok((dir, _)) = self.inner.container(id) else { return Ok(()) };
        self.stop_container(id, Duration::ZERO)?;
        state::remove_dir(&dir.container(id).0).map_err(io_error("remove the container"))?;
        self.inner.lock().containers.remove(id);
        Ok(())
    }

    /// The status of a container.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, Error> {
        self.inner.container(id).map(|(_, status)| status)
    }

    /// All containers, by id.
    #[must_use]
    pub fn list_containers(&self) -> Vec<cri::ContainerStatus> {
        self.inner.lock().containers.values().map(|container| container.status.clone()).collect()
    }

    /// Layers that containers stand on, for the image store's `remove`.
    #[must_use]
    pub fn layers_in_use(&self) -> std::collections::BTreeSet<String> {
        let state = self.inner.lock();
        state.containers.values().flat_map(|c| c.record.spec.rootfs.lower.clone()).collect()
    }

    /// Changes the limits of a container; unset ones stay.
    ///
    /// # Errors
    /// The kernel refuses a limit.
    pub fn update_container_resources(
        &self,
        id: &str,
        resources: &cri::LinuxContainerResources,
    ) -> Result<(), Error> {
        let (dir, status) = self.inner.container(id)?;
        let mut state = self.inner.lock();
        let container = state.containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
        let spec = &mut container.record.spec;
        if status.state == ContainerState::Running {
            self.inner
                .hierarchies
                .update(&spec.cgroup, resources)
                .map_err(io_error("change the limits"))?;
        }
        spec.resources = generate::updated(&spec.resources, resources);
        state::write(&dir.container(id).record(), &container.record)
            .map_err(io_error("write container.json"))
    }

    /// Opens a container's log by its path again, after a rotation.
    ///
    /// # Errors
    /// It does not run, or the file cannot be opened.
    pub fn reopen_container_log(&self, id: &str) -> Result<(), Error> {
        let (dir, _) = self.inner.container(id)?;
        match ask(&dir, &Request::ReopenLog { id: id.to_string() })? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a command in a container and waits for it. A zero `timeout` is none.
    ///
    /// # Errors
    /// [`Error::Start`] when the command cannot be run, [`Error::Timeout`] when it was killed.
    pub fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse, Error> {
        let (dir, process) = self.process_in(id, command, Stdio::Pipes)?;
        let timeout_ms =
            (!timeout.is_zero()).then(|| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let request = Request::Exec { id: id.to_string(), process, timeout_ms };
        exec::run(&dir, &request)
    }

    /// Where the shim of a container is, and what a command in it is to be.
    pub(crate) fn process_in(
        &self,
        id: &str,
        command: &[String],
        stdio: Stdio,
    ) -> Result<(SandboxDir, Box<Process>), Error> {
        let (dir, _) = self.inner.container(id)?;
        let state = self.inner.lock();
        let container = state.containers.get(id).ok_or_else(|| not_found("container", id))?;
        let process = generate::exec_process(&container.record.spec, command, stdio);
        Ok((dir, Box::new(process)))
    }

    /// Where the shim of a container is, and how the container was asked for.
    pub(crate) fn folder_and_config(
        &self,
        id: &str,
    ) -> Result<(SandboxDir, cri::ContainerConfig), Error> {
        let (dir, _) = self.inner.container(id)?;
        let state = self.inner.lock();
        let container = state.containers.get(id).ok_or_else(|| not_found("container", id))?;
        Ok((dir, container.record.config.clone()))
    }
}

fn not_found(kind: &str, id: &str) -> Error {
    Error::NotFound(format!("{kind} {id}"))
}

fn failed_start(message: &str) -> Exit {
    Exit {
        started_at: 0,
        finished_at: state::now(),
        code: 128,
        reason: "StartError".into(),
        message: message.into(),
    }
}

/// What is said of a container whose end nobody saw.
fn unseen_end(started_at: i64) -> Exit {
    Exit {
        started_at,
        finished_at: state::now(),
        code: 137,
        reason: "ContainerStatusUnknown".into(),
        message: "the pod shim died".into(),
    }
}

impl ContainerRecord {
    /// The status of a container that has not been started.
    fn status(&self, sandbox_id: &str, id: &str) -> cri::ContainerStatus {
        cri::ContainerStatus {
            id: id.to_string(),
            pod_sandbox_id: sandbox_id.to_string(),
            metadata: self.config.metadata.clone(),
            created_at: self.created_at,
            image: self.config.image.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            log_path: self.spec.log_path.clone(),
            ..cri::ContainerStatus::default()
        }
    }
}

impl Sandbox {
    fn status(&self, id: &str) -> cri::PodSandboxStatus {
        cri::PodSandboxStatus {
            id: id.to_string(),
            metadata: self.record.config.metadata.clone(),
            state: self.state,
            created_at: self.record.created_at,
            netns: self.netns.clone(),
            labels: self.record.config.labels.clone(),
            annotations: self.record.config.annotations.clone(),
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }

    pub(crate) fn sandbox_dir(&self, id: &str) -> SandboxDir {
        SandboxDir::new(&self.dir, id)
    }

    fn ready_sandbox(&self, id: &str) -> Result<SandboxRecord, Error> {
        let state = self.lock();
        let sandbox = state.sandboxes.get(id).ok_or_else(|| not_found("sandbox", id))?;
        match sandbox.state {
            PodSandboxState::Ready => Ok(sandbox.record.clone()),
            PodSandboxState::NotReady => Err(Error::Invalid(format!("sandbox {id} is not ready"))),
        }
    }

    fn container(&self, id: &str) -> Result<(SandboxDir, cri::ContainerStatus), Error> {
        let state = self.lock();
        let status = &state.containers.get(id).ok_or_else(|| not_found("container", id))?.status;
        Ok((self.sandbox_dir(&status.pod_sandbox_id), status.clone()))
    }

    /// Reads a sandbox and its containers from the state folder; what was being made when an agent
    /// died is removed.
    fn load(&self, id: &str) -> Result<(), Error> {
        let dir = self.sandbox_dir(id);
        let Ok(record) = state::read::<SandboxRecord>(&dir.record()) else {
            return cleanup::remove_sandbox(&self.hierarchies, &dir)
                .map_err(io_error("remove an unfinished sandbox"));
        };
        let netns = match &record.spec.network {
            NetworkNs::Node => None,
            NetworkNs::Path(path) => Some(path.clone()),
            NetworkNs::New => {
                let shim = self.hierarchies.processes(&record.spec.cgroup).first().copied();
                shim.map(|pid| format!("/proc/{pid}/ns/net"))
            }
        };
        let mut state = self.lock();
        for container in dir.container_ids() {
            let folder = dir.container(&container);
            match state::read::<ContainerRecord>(&folder.record()) {
                Ok(record) => {
                    let status = record.status(id, &container);
                    state.containers.insert(container, Container { record, status });
                }
                // It was being made; nobody was told its id.
                Err(_) => state::remove_dir(&folder.0).map_err(io_error("remove a container"))?,
            }
        }
        let state_now = PodSandboxState::Ready;
        let sandbox = Sandbox { record, state: state_now, netns, shim: None };
        state.sandboxes.insert(id.to_string(), sandbox);
        Ok(())
    }

    fn note_start(&self, id: &str, pid: i32, at: i64) {
        if let Some(Container { status, .. }) = self.lock().containers.get_mut(id)
            && status.state == ContainerState::Created
        {
            status.state = ContainerState::Running;
            (status.pid, status.started_at) = (pid, at);
        }
    }

    /// Notes an exit once; the status when it was news.
    fn note_exit(&self, id: &str, exit: &Exit) {
        let mut state = self.lock();
        let Some(Container { status, .. }) = state.containers.get_mut(id) else { return };
        if status.state == ContainerState::Exited {
            return;
        }
        status.state = ContainerState::Exited;
        status.pid = 0;
        (status.started_at, status.finished_at) = (exit.started_at, exit.finished_at);
        status.exit_code = exit.code;
        (status.reason, status.message) = (exit.reason.clone(), exit.message.clone());
        let event = Event::ContainerExited(Box::new(status.clone()));
        drop(state);
        self.report(event);
    }

    fn report(&self, event: Event) {
        // Without a receiver nobody wants to know.
        let _ = self.events.send(event);
    }

    /// A shim said something on its subscription.
    pub(crate) fn heard(&self, sandbox: &str, reply: &Reply) {
        match reply {
            Reply::Exited { id, exit } => self.note_exit(id, exit),
            Reply::Hello { running, .. } => self.reconcile(sandbox, running),
            _ => {}
        }
    }

    /// Compares what runs with what was known: what ended meanwhile has left its `exit.json`.
    fn reconcile(&self, sandbox: &str, running: &[protocol::Running]) {
        for container in running {
            self.note_start(&container.id, container.pid, container.started_at);
        }
        let gone = |id: &String| !running.iter().any(|container| container.id == *id);
        for id in self.containers_of(sandbox).into_iter().filter(gone) {
            let folder = self.sandbox_dir(sandbox).container(&id);
            if let Ok(exit) = state::read::<Exit>(&folder.exit()) {
                self.note_exit(&id, &exit);
            }
        }
    }

    fn containers_of(&self, sandbox: &str) -> Vec<String> {
        let state = self.lock();
        let of_it = state.containers.iter().filter(|(_, c)| c.status.pod_sandbox_id == sandbox);
        of_it.map(|(id, _)| id.clone()).collect()
    }

    /// A shim is gone: kills what it left and tells of the end of its containers.
    pub(crate) fn shim_died(&self, sandbox: &str) {
        let was_ready = {
            let mut state = self.lock();
            let Some(found) = state.sandboxes.get_mut(sandbox) else { return };
            std::mem::replace(&mut found.state, PodSandboxState::NotReady) == PodSandboxState::Ready
        };
        if !was_ready {
            return;
        }
        if let Err(error) = self.take_down(sandbox) {
            tracing::error!(sandbox, %error, "cannot take down a sandbox whose shim died");
        }
        for id in self.containers_of(sandbox) {
            let folder = self.sandbox_dir(sandbox).container(&id);
            let started = state::read::<protocol::Running>(&folder.running());
            let exit = match (state::read::<Exit>(&folder.exit()), &started) {
                (Ok(exit), _) => exit,
                (Err(_), Ok(running)) => unseen_end(running.started_at),
                // Never started: it stays as it was made.
                (Err(_), Err(_)) => continue,
            };
            self.note_exit(&id, &exit);
        }
        self.report(Event::SandboxNotReady(sandbox.to_string()));
    }

    /// Kills whatever is left of a sandbox, reaps its shim, removes its groups and mounts.
    fn take_down(&self, id: &str) -> Result<(), Error> {
        let (spec, shim) = {
            let mut state = self.lock();
            let Some(sandbox) = state.sandboxes.get_mut(id) else { return Ok(()) };
            (sandbox.record.spec.clone(), sandbox.shim.take())
        };
        let dir = self.sandbox_dir(id);
        cleanup::take_down(&self.hierarchies, &dir, &spec)
            .map_err(io_error("take down the sandbox"))?;
        if let Some(mut shim) = shim {
            let _ = shim.wait();
        }
        cleanup::unmount_below(&dir.0).map_err(io_error("unmount"))
    }
}

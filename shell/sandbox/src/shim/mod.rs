//! The shim: one small, single-threaded process per Pod that is the parent of its containers.
//!
//! It holds the Pod's namespaces, forks containers, writes their logs, keeps how they ended, and
//! answers the agent on a socket. It waits in one epoll for everything that can happen and wakes
//! for nothing else. When it dies, all its containers die (`PR_SET_PDEATHSIG`).

mod attach;
mod child;
mod containers;
mod logs;
mod namespaces;
mod rootfs;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use knarr_oci::cri::NamespaceMode;
use rustix::event::epoll;

use crate::cgroup::Hierarchies;
use crate::protocol::{self, Reply, Request};
use crate::state::{self, SandboxDir, SandboxRecord};
use crate::sys::{self, Forked};
use containers::{Container, Exec};
use rootfs::{Doing, Failure};

/// What a descriptor in the epoll stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Listener,
    Signals,
    /// A connection of the agent.
    Client,
    /// An output stream of a container.
    Output {
        container: String,
        stream: usize,
    },
    /// A pipe of an attachment that can be written to again.
    Tap {
        container: String,
        stream: usize,
    },
    /// The socket to a child on its way to the user's program: a container's or an exec's.
    Setup(Starting),
}

/// Which process is starting.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Starting {
    Container(String),
    Exec(i32),
}

/// Names a connection of the agent.
type ClientId = u64;

struct Shim {
    dir: SandboxDir,
    record: SandboxRecord,
    hierarchies: Hierarchies,
    epoll: OwnedFd,
    sources: BTreeMap<u64, Source>,
    next_source: u64,
    clients: BTreeMap<ClientId, OwnedFd>,
    subscribers: Vec<ClientId>,
    containers: BTreeMap<String, Container>,
    /// By process id.
    execs: BTreeMap<i32, Exec>,
    /// First process of the shared process namespace.
    init: Option<Forked>,
    /// The shim's own process namespace.
    own_processes: OwnedFd,
    listener: OwnedFd,
    signals: OwnedFd,
    /// Set by `Shutdown`.
    ending: bool,
}

/// Runs a shim; to be called from `main` before any thread exists.
///
/// `args` are the folder of the sandbox and the process id of the agent. The outcome of the start
/// is written to standard output: `ok`, or the error's text.
#[must_use]
pub fn shim_main(args: &[String]) -> ExitCode {
    let [dir, agent] = args else { return ExitCode::from(2) };
    let started = start(SandboxDir(PathBuf::from(dir)), agent);
    let word = match &started {
        Ok(_) => "ok",
        Err(failure) => failure.as_str(),
    };
    let told = io::stdout().write_all(word.as_bytes()).and_then(|()| io::stdout().flush());
    let (Ok(shim), Ok(())) = (started, told) else { return ExitCode::FAILURE };
    match let_go_of_the_agent().and_then(|()| shim.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// From here on the agent's death is none of the shim's business.
fn let_go_of_the_agent() -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for number in 0..=2 {
        sys::dup_to(null.as_fd(), number)?;
    }
    sys::prctl(libc::PR_SET_PDEATHSIG, 0, 0)
}

fn start(dir: SandboxDir, agent: &str) -> Result<Shim, Failure> {
    // Until the agent is told of success it must not be outlived: it would not know of the shim.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).doing(|| "prctl".into())?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if parent.to_string() != agent {
        return Err("the agent is gone".into());
    }
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).doing(|| "prctl".into())?;
    sys::prctl(libc::PR_SET_NAME, c"knarr-shim".as_ptr() as u64, 0).doing(|| "prctl".into())?;
    rustix::process::setsid().doing(|| "new session".into())?;
    let record: SandboxRecord = state::read(&dir.record()).doing(|| "read sandbox.json".into())?;
    let hierarchies = Hierarchies::detect().doing(|| "find the control groups".into())?;
    let spec = &record.spec;
    let own = i32::try_from(std::process::id()).expect("process ids are 31 bits");
    hierarchies
        .create(&spec.cgroup, &Default::default(), &[])
        .and_then(|()| hierarchies.add(&spec.cgroup, own))
        .doing(|| "control group".into())?;
    // Not below what it is, for want of CAP_SYS_RESOURCE, on some machines.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    namespaces::enter(spec, &dir.shm())?;
    let shared = spec.pid == NamespaceMode::Pod;
    let init = if shared { Some(namespaces::start_init()?) } else { None };
    Shim::new(dir, record, hierarchies, init).doing(|| "start the shim".into())
}

impl Shim {
    fn new(
        dir: SandboxDir,
        record: SandboxRecord,
        hierarchies: Hierarchies,
        init: Option<Forked>,
    ) -> io::Result<Shim> {
        let mut shim = Shim {
            listener: protocol::listen(&dir.0)?,
            signals: sys::signal_fd()?,
            own_processes: fs::File::open("/proc/self/ns/pid")?.into(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            dir,
            record,
            hierarchies,
            init,
            sources: BTreeMap::new(),
            next_source: 0,
            clients: BTreeMap::new(),
            subscribers: Vec::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            ending: false,
        };
        let (listener, signals) = (shim.listener.try_clone()?, shim.signals.try_clone()?);
        shim.watch(&listener, Source::Listener)?;
        shim.watch(&signals, Source::Signals)?;
        Ok(shim)
    }

    fn watch(&mut self, fd: &OwnedFd, source: Source) -> io::Result<u64> {
        self.next_source += 1;
        let data = epoll::EventData::new_u64(self.next_source);
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?;
        self.sources.insert(self.next_source, source);
        Ok(self.next_source)
    }

    fn run(mut self) -> io::Result<()> {
        let mut space = [const { std::mem::MaybeUninit::uninit() }; 32];
        while !self.ending {
            let timeout = self.time_to_next_deadline();
            let timeout = timeout.map(|left| rustix::event::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let ready: Vec<u64> = match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
                Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
                Err(rustix::io::Errno::INTR) => Vec::new(),
                Err(error) => return Err(error.into()),
            };
            for id in ready {
                self.handle(id);
            }
            self.kill_overdue();
        }
        Ok(())
    }

    fn handle(&mut self, id: u64) {
        match self.sources.get(&id).cloned() {
            Some(Source::Listener) => self.accept(),
            Some(Source::Signals) => self.reap(),
            Some(Source::Client) => self.hear(id),
            Some(Source::Output { container, stream }) => self.pump(id, &container, stream),
            Some(Source::Tap { container, stream }) => self.tap_ready(&container, stream),
            Some(Source::Setup(starting)) => self.settle(id, &starting),
            // Its source was dropped while handling an earlier event of the same batch.
            None => {}
        }
    }

    fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        while let Ok(client) = rustix::net::accept_with(&self.listener, flags) {
            if let Ok(id) = self.watch(&client, Source::Client) {
                self.clients.insert(id, client);
            }
        }
    }

    /// Reads one request of a connection, or its end.
    fn hear(&mut self, client: ClientId) {
        let Some(socket) = self.clients.get(&client) else { return };
        match protocol::receive::<serde_json::Value>(socket) {
            Ok(Some((value, fds))) => match serde_json::from_value(value) {
                Ok(request) => self.answer(client, request, fds),
                Err(error) => {
                    let why = format!("protocol version {}: {error}", protocol::VERSION);
                    self.tell(client, &Reply::Refused { why });
                }
            },
            Ok(None) | Err(_) => self.forget_client(client),
        }
    }

    fn answer(&mut self, client: ClientId, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Subscribe => self.subscribe(client),
            Request::Start { id } => self.start_container(client, &id),
            Request::Stop { id, signal, timeout_ms } => {
                self.stop_container(client, &id, signal, Duration::from_millis(timeout_ms));
            }
            Request::ReopenLog { id } => self.reopen_log(client, &id),
            Request::Exec { id, process, timeout_ms } => {
                let deadline = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
                self.exec(client, &id, &process, deadline, fds);
            }
            Request::AttachOutput { id } => self.attach_output(client, &id, fds),
            Request::AttachInput { id, at_end } => self.attach_input(client, &id, at_end),
            Request::Shutdown => self.shut_down(client),
        }
    }

    fn subscribe(&mut self, client: ClientId) {
        self.subscribers.push(client);
        let running = self.containers.iter().filter_map(|(id, container)| container.running(id));
        let hello = Reply::Hello { version: protocol::VERSION, running: running.collect() };
        self.tell(client, &hello);
    }

    fn shut_down(&mut self, client: ClientId) {
        if self.containers.is_empty() {
            self.tell(client, &Reply::Done);
            self.ending = true;
        } else {
            let why = "containers still run".to_string();
            self.tell(client, &Reply::Refused { why });
        }
    }

    fn tell(&mut self, client: ClientId, reply: &Reply) {
        self.tell_with(client, reply, &[]);
    }

    fn tell_with(&mut self, client: ClientId, reply: &Reply, fds: &[OwnedFd]) {
        let Some(socket) = self.clients.get(&client) else { return };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        // An agent that does not read is told nothing more: it reconnects and asks anew.
        let _ = rustix::io::ioctl_fionbio(socket, true);
        let sent = protocol::send(socket, reply, &fds);
        let _ = rustix::io::ioctl_fionbio(socket, false);
        if sent.is_err() {
            self.forget_client(client);
        }
    }

    /// Closing a connection kills the exec that it waits for, and ends its attachment.
    fn forget_client(&mut self, client: ClientId) {
        self.sources.remove(&client);
        self.clients.remove(&client);
        self.detach(client);
        self.subscribers.retain(|id| *id != client);
        let of_client = self.execs.iter().filter(|(_, exec)| exec.client == client);
        of_client.for_each(|(pid, exec)| containers::hang_up(&self.hierarchies, *pid, exec));
    }
}

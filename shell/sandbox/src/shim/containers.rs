//! Containers and execs in the shim: forked, watched, stopped, and how they ended.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use knarr_oci::cri::NamespaceMode;
use knarr_oci::spec::{ContainerSpec, Process, Stdio};
use rustix::pipe::{PipeFlags, pipe_with};

use super::child::{self, Place, Streams, Told};
use super::logs::{Log, More, Output};
use super::namespaces::InProcesses;
use super::rootfs::{self, Doing, Failure};
use super::{ClientId, Shim, Source, Starting};
use crate::cgroup::Hierarchies;
use crate::protocol::{self, Exit, Reply, Running};
use crate::state::{self, ContainerDir, ContainerRecord};
use crate::sys::{self, Forked};

/// A container that runs or is starting.
pub(super) struct Container {
    spec: ContainerSpec,
    dir: ContainerDir,
    process: Forked,
    started_at: i64,
    log: Log,
    pub(super) outputs: [Option<Output>; 2],
    /// The writing end of its standard input, kept so that it does not end.
    pub(super) input: Option<OwnedFd>,
    /// Attachments that take the input with them when they end.
    pub(super) once: Vec<ClientId>,
    setup: Option<Setup>,
    failure: Option<Failure>,
    /// Who is told of the failure, once nothing is left of the child.
    told_of_failure: Option<ClientId>,
    /// Who waits for its end.
    stopping: Vec<ClientId>,
    kill_at: Option<Instant>,
}

/// A child on its way to the user's program.
struct Setup {
    socket: OwnedFd,
    source: u64,
    client: ClientId,
}

/// A process run in a container on request.
pub(super) struct Exec {
    pub(super) client: ClientId,
    cgroup: String,
    setup: Option<Setup>,
    failure: Option<Failure>,
    terminal: Option<OwnedFd>,
    kill_at: Option<Instant>,
    timed_out: bool,
}

impl Container {
    /// What `Hello` says of it; nothing while it is starting.
    pub(super) fn running(&self, id: &str) -> Option<Running> {
        let (id, started_at) = (id.to_string(), self.started_at);
        self.setup.is_none().then_some(Running { id, pid: self.process.pid, started_at })
    }

    /// The master of its terminal, if it has one.
    pub(super) fn terminal(&self) -> Option<&OwnedFd> {
        let has_one = self.spec.process.stdio == Stdio::Terminal;
        self.outputs[0].as_ref().filter(|_| has_one).map(Output::fd)
    }
}

/// Both ends of a container's standard streams.
struct Pipes {
    theirs: Streams,
    outputs: [Option<Output>; 2],
    input: Option<OwnedFd>,
}

fn pipes(stdio: Stdio) -> std::io::Result<Pipes> {
    let mut pipes = Pipes { theirs: None, outputs: [None, None], input: None };
    if stdio == Stdio::Terminal {
        return Ok(pipes);
    }
    let (out, their_out) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err, their_err) = pipe_with(PipeFlags::CLOEXEC)?;
    let their_in = if stdio == Stdio::PipesWithInput {
        let (their_in, input) = pipe_with(PipeFlags::CLOEXEC)?;
        pipes.input = Some(input);
        their_in
    } else {
        fs::File::open("/dev/null")?.into()
    };
    for end in [&out, &err] {
        rustix::io::ioctl_fionbio(end, true)?;
    }
    pipes.theirs = Some([their_in, their_out, their_err]);
    pipes.outputs = [Some(Output::new(out, "stdout")), Some(Output::new(err, "stderr"))];
    Ok(pipes)
}

impl Shim {
    pub(super) fn start_container(&mut self, client: ClientId, id: &str) {
        if self.containers.contains_key(id) {
            let why = format!("container {id} runs already");
            return self.tell(client, &Reply::Refused { why });
        }
        if let Err(message) = self.fork_container(client, id) {
            self.clean_cgroup(id);
            self.tell(client, &Reply::StartFailed { message });
        }
    }

    fn clean_cgroup(&self, id: &str) {
        let cgroup = format!("{}/{id}", self.record.spec.cgroup_parent);
        let _ = self.hierarchies.kill(&cgroup).and_then(|()| self.hierarchies.remove(&cgroup));
    }

    fn fork_container(&mut self, client: ClientId, id: &str) -> Result<(), Failure> {
        let dir = self.dir.container(id);
        let record: ContainerRecord =
            state::read(&dir.record()).doing(|| "read container.json".into())?;
        let spec = record.spec;
        for name in ["rootfs", "upper", "work"] {
            fs::create_dir_all(dir.0.join(name)).doing(|| format!("make {name}"))?;
        }
        let mut rules = spec.device_rules.clone();
        for node in spec.devices.iter().filter(|node| !node.access.is_empty()) {
            rules.push(grant(node)?);
        }
        self.hierarchies
            .create(&spec.cgroup, &spec.resources, &rules)
            .doing(|| "control group".into())?;
        let log = Log::open(&spec.log_path).doing(|| format!("open {}", spec.log_path))?;
        let pipes = pipes(spec.process.stdio).doing(|| "pipes".into())?;
        let (ours, theirs) = protocol::pair().doing(|| "socket".into())?;
        let process = {
            let (_inside, flags) = self.process_namespace(&spec)?;
            match sys::fork(flags | sys::NEWNS).doing(|| "fork".into())? {
                Some(process) => process,
                None => {
                    drop(ours);
                    let hierarchies = &self.hierarchies;
                    let place = Place::New { dir: &dir, spec: &spec, hierarchies };
                    child::run(&theirs, place, &spec.process, pipes.theirs);
                }
            }
        };
        drop((theirs, pipes.theirs));
        let (cgroup, pid) = (spec.cgroup.clone(), process.pid);
        let setup = self.release(ours, client, &cgroup, pid, Starting::Container(id.into()));
        let setup = setup.inspect_err(|_| {
            let _ = sys::signal(process.pidfd.as_fd(), libc::SIGKILL);
        })?;
        let mut container = Container {
            spec,
            dir,
            process,
            started_at: 0,
            log,
            outputs: [None, None],
            input: pipes.input,
            once: Vec::new(),
            setup: Some(setup),
            failure: None,
            told_of_failure: None,
            stopping: Vec::new(),
            kill_at: None,
        };
        for (stream, output) in pipes.outputs.into_iter().enumerate() {
            let source = Source::Output { container: id.into(), stream };
            container.outputs[stream] = output;
            if let Some(output) = &mut container.outputs[stream] {
                output.source = self.watch(output.fd(), source).doing(|| "watch".into())?;
            }
        }
        self.containers.insert(id.to_string(), container);
        Ok(())
    }

    /// Where the process namespace of a new container comes from.
    fn process_namespace(
        &self,
        spec: &ContainerSpec,
    ) -> Result<(Option<InProcesses<'_>>, u64), Failure> {
        let process = match spec.pid {
            NamespaceMode::Container => return Ok((None, sys::NEWPID)),
            NamespaceMode::Node => return Ok((None, 0)),
            NamespaceMode::Pod => self.init.as_ref().ok_or("the Pod shares no processes")?,
            NamespaceMode::Target => {
                let target = self.containers.get(&spec.pid_target);
                &target.ok_or(format!("container {} does not run", spec.pid_target))?.process
            }
        };
        Ok((Some(InProcesses::of(&process.pidfd, &self.own_processes)?), 0))
    }

    /// Puts a child into its control groups and gives it the word to go.
    fn release(
        &mut self,
        socket: OwnedFd,
        client: ClientId,
        cgroup: &str,
        pid: i32,
        starting: Starting,
    ) -> Result<Setup, Failure> {
        self.hierarchies.add(cgroup, pid).doing(|| "control group".into())?;
        let source =
            self.watch(&socket, Source::Setup(starting)).doing(|| "watch the child".into())?;
        protocol::send(&socket, &(), &[]).doing(|| "release the child".into())?;
        Ok(Setup { socket, source, client })
    }

    pub(super) fn pump(&mut self, source: u64, id: &str, stream: usize) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(output) = &mut container.outputs[stream] else { return };
        if output.pump(&mut container.log) == More::Ended {
            container.outputs[stream] = None;
            self.sources.remove(&source);
        }
        self.arrange(id, stream);
    }

    /// Hears what a starting child says; the end of its socket means that the program runs.
    pub(super) fn settle(&mut self, source: u64, starting: &Starting) {
        let setup = match starting {
            Starting::Container(id) => self.containers.get(id).and_then(|c| c.setup.as_ref()),
            Starting::Exec(pid) => self.execs.get(pid).and_then(|e| e.setup.as_ref()),
        };
        let Some(Setup { socket, .. }) = setup else { return };
        match protocol::receive::<Told>(socket) {
            Ok(Some((Told::Terminal, mut fds))) => self.keep_terminal(starting, fds.pop()),
            Ok(Some((Told::Failed(why), _))) => self.note_failure(starting, why),
            Ok(None) | Err(_) => {
                self.sources.remove(&source);
                match starting {
                    Starting::Container(id) => self.container_started(id),
                    Starting::Exec(pid) => self.exec_started(*pid),
                }
            }
        }
    }

    fn keep_terminal(&mut self, starting: &Starting, terminal: Option<OwnedFd>) {
        let Some(terminal) = terminal else { return };
        match starting {
            Starting::Exec(pid) => {
                self.execs.get_mut(pid).expect("it was just found").terminal = Some(terminal);
            }
            Starting::Container(id) => {
                let _ = rustix::io::ioctl_fionbio(&terminal, true);
                let mut output = Output::new(terminal, "stdout");
                let source = Source::Output { container: id.clone(), stream: 0 };
                output.source = self.watch(output.fd(), source).unwrap_or_default();
                let container = self.containers.get_mut(id).expect("it was just found");
                container.outputs[0] = Some(output);
            }
        }
    }

    fn note_failure(&mut self, starting: &Starting, why: Failure) {
        match starting {
            Starting::Container(id) => {
                self.containers.get_mut(id).expect("it was just found").failure = Some(why);
            }
            Starting::Exec(pid) => {
                self.execs.get_mut(pid).expect("it was just found").failure = Some(why);
            }
        }
    }

    /// The child's socket has ended: it runs, unless it said why not or was killed before.
    fn container_started(&mut self, id: &str) {
        let container = self.containers.get_mut(id).expect("it was just found");
        let Some(setup) = container.setup.take() else { return };
        if container.failure.is_some() {
            container.told_of_failure = Some(setup.client);
            return;
        }
        container.started_at = state::now();
        let running = container.running(id).expect("it has been set up");
        let _ = state::write(&container.dir.running(), &running);
        self.tell(setup.client, &Reply::Started { pid: running.pid, at: running.started_at });
    }

    pub(super) fn stop_container(
        &mut self,
        client: ClientId,
        id: &str,
        signal: i32,
        timeout: Duration,
    ) {
        let Some(container) = self.containers.get_mut(id) else {
            return self.tell(client, &Reply::NotRunning);
        };
        container.stopping.push(client);
        let signal = if timeout.is_zero() { libc::SIGKILL } else { signal };
        let _ = sys::signal(container.process.pidfd.as_fd(), signal);
        let deadline = Instant::now() + timeout;
        let sooner = container.kill_at.map_or(deadline, |old| old.min(deadline));
        container.kill_at = (!timeout.is_zero()).then_some(sooner);
    }

    pub(super) fn reopen_log(&mut self, client: ClientId, id: &str) {
        let reply = match self.containers.get_mut(id).map(|container| container.log.reopen()) {
            None => Reply::NotRunning,
            Some(Ok(())) => Reply::Done,
            Some(Err(error)) => Reply::Refused { why: format!("reopen the log: {error}") },
        };
        self.tell(client, &reply);
    }

    pub(super) fn exec(
        &mut self,
        client: ClientId,
        id: &str,
        process: &Process,
        deadline: Option<Instant>,
        fds: Vec<OwnedFd>,
    ) {
        if let Err(message) = self.fork_exec(client, id, process, deadline, fds) {
            self.tell(client, &Reply::StartFailed { message });
        }
    }

    fn fork_exec(
        &mut self,
        client: ClientId,
        id: &str,
        process: &Process,
        kill_at: Option<Instant>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let container = self.containers.get(id).ok_or(format!("container {id} does not run"))?;
        let cgroup = container.spec.cgroup.clone();
        let streams: Streams = <[OwnedFd; 3]>::try_from(fds).ok();
        let (ours, theirs) = protocol::pair().doing(|| "socket".into())?;
        let forked = {
            let target = &container.process.pidfd;
            let joined = target.try_clone().doing(|| "container handle".into())?;
            let _inside = InProcesses::of(target, &self.own_processes)?;
            match sys::fork(0).doing(|| "fork".into())? {
                Some(forked) => forked,
                None => {
                    drop(ours);
                    let place = Place::Existing { container: joined };
                    child::run(&theirs, place, process, streams);
                }
            }
        };
        drop((theirs, streams));
        let setup = self.release(ours, client, &cgroup, forked.pid, Starting::Exec(forked.pid));
        let setup = setup.inspect_err(|_| {
            let _ = sys::signal(forked.pidfd.as_fd(), libc::SIGKILL);
        })?;
        let exec = Exec {
            client,
            cgroup,
            setup: Some(setup),
            failure: None,
            terminal: None,
            kill_at,
            timed_out: false,
        };
        self.execs.insert(forked.pid, exec);
        Ok(())
    }

    fn exec_started(&mut self, pid: i32) {
        let exec = self.execs.get_mut(&pid).expect("it was just found");
        exec.setup = None;
        if exec.failure.is_none() {
            let (client, terminal) = (exec.client, exec.terminal.take());
            let fds: Vec<OwnedFd> = terminal.into_iter().collect();
            self.tell_with(client, &Reply::Started { pid, at: state::now() }, &fds);
        }
    }

    /// Takes every child that has ended.
    pub(super) fn reap(&mut self) {
        let mut info = [0u8; 128];
        while rustix::io::read(&self.signals, &mut info).is_ok() {}
        while let Some(ended) = sys::reap() {
            if self.execs.contains_key(&ended.pid) {
                self.exec_ended(ended.pid, ended.code);
                continue;
            }
            let is_it = |container: &Container| container.process.pid == ended.pid;
            let found = self.containers.iter().find(|(_, container)| is_it(container));
            if let Some(id) = found.map(|(id, _)| id.clone()) {
                self.container_ended(&id, ended.code);
            }
        }
    }

    fn exec_ended(&mut self, pid: i32, code: i32) {
        // What it said before it ended may still wait in its socket.
        while let Some(Setup { source, .. }) = self.execs.get(&pid).and_then(|e| e.setup.as_ref()) {
            self.settle(*source, &Starting::Exec(pid));
        }
        let exec = self.execs.remove(&pid).expect("the caller has found it");
        let reply = match exec.failure {
            Some(message) => Reply::StartFailed { message },
            None => Reply::ExecExited { code, timed_out: exec.timed_out },
        };
        self.tell(exec.client, &reply);
    }

    fn container_ended(&mut self, id: &str, code: i32) {
        while let Some(container) = self.containers.get(id) {
            let Some(Setup { source, .. }) = &container.setup else { break };
            self.settle(*source, &Starting::Container(id.to_string()));
        }
        let mut container = self.containers.remove(id).expect("the caller has found it");
        if container.spec.pid != NamespaceMode::Container {
            // No process namespace of its own has died with its first process.
            let _ = self.hierarchies.kill(&container.spec.cgroup);
        }
        self.sources.retain(|_, source| {
            !matches!(source, Source::Output { container, .. }
                | Source::Tap { container, .. } if container == id)
        });
        for output in container.outputs.iter_mut().filter_map(Option::take) {
            output.drain(&mut container.log);
        }
        let exit = self.how_it_ended(&container, code);
        let _ = self.hierarchies.remove(&container.spec.cgroup);
        let _ = state::write(&container.dir.exit(), &exit);
        if let (Some(client), Some(message)) = (container.told_of_failure, container.failure) {
            self.tell(client, &Reply::StartFailed { message });
        }
        let reply = Reply::Exited { id: id.to_string(), exit };
        let waiting = container.stopping.into_iter().chain(self.subscribers.clone());
        for client in waiting.collect::<Vec<_>>() {
            self.tell(client, &reply);
        }
    }

    fn how_it_ended(&self, container: &Container, code: i32) -> Exit {
        let finished_at = state::now();
        let exit = |code, reason: &str, message: &str| Exit {
            started_at: container.started_at,
            finished_at,
            code,
            reason: reason.into(),
            message: message.into(),
        };
        match &container.failure {
            Some(message) => exit(child::NOT_STARTED, "StartError", message),
            None if self.hierarchies.oom_kills(&container.spec.cgroup) > 0 => {
                exit(code, "OOMKilled", "")
            }
            None if code == 0 => exit(code, "Completed", ""),
            None => exit(code, "Error", ""),
        }
    }

    pub(super) fn time_to_next_deadline(&self) -> Option<Duration> {
        let containers = self.containers.values().filter_map(|container| container.kill_at);
        let execs = self.execs.values().filter_map(|exec| exec.kill_at);
        let next = containers.chain(execs).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    pub(super) fn kill_overdue(&mut self) {
        let now = Instant::now();
        for container in self.containers.values_mut() {
            if container.kill_at.take_if(|at| *at <= now).is_some() {
                let _ = sys::signal(container.process.pidfd.as_fd(), libc::SIGKILL);
            }
        }
        for (pid, exec) in &mut self.execs {
            if exec.kill_at.take_if(|at| *at <= now).is_some() {
                exec.timed_out = true;
                kill_session(*pid);
            }
        }
    }
}

/// Ends an exec that nobody listens to any more: everything in its session hears of it, as when a
/// terminal is closed (what is to outlive that says so, by `nohup`), and its own group is killed.
pub(super) fn hang_up(hierarchies: &Hierarchies, pid: i32, exec: &Exec) {
    let session = rustix::process::Pid::from_raw(pid);
    let ours = |pid: &i32| {
        let pid = rustix::process::Pid::from_raw(*pid);
        pid.is_some() && rustix::process::getsid(pid).ok() == session
    };
    for process in hierarchies.processes(&exec.cgroup).into_iter().filter(ours) {
        let _ = sys::kill(process, libc::SIGHUP);
        let _ = sys::kill(process, libc::SIGCONT);
    }
    kill_session(pid);
}

/// Kills a process that leads a group, with the group; it has not been reaped yet.
pub(super) fn kill_session(pid: i32) {
    // Before it leads a group there is only the process itself.
    let _ = sys::kill(-pid, libc::SIGKILL);
    let _ = sys::kill(pid, libc::SIGKILL);
}

/// The rule that lets a container use a device of the node.
fn grant(node: &knarr_oci::spec::DeviceNode) -> Result<knarr_oci::spec::DeviceRule, Failure> {
    use knarr_oci::spec::{DeviceKind, DeviceRule};
    let (kind, number, _) = rootfs::device_of(node)?;
    let is_block = kind == rustix::fs::FileType::BlockDevice;
    Ok(DeviceRule {
        allow: true,
        kind: if is_block { DeviceKind::Block } else { DeviceKind::Char },
        major: Some(rustix::fs::major(number)),
        minor: Some(rustix::fs::minor(number)),
        access: node.access.clone(),
    })
}

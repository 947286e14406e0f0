//! The way from a fresh fork to the user's program.
//!
//! This runs in the child. It has a socket to the shim: it waits there for the word to go, sends
//! one message when it fails (or a terminal's master when there is one), and execve closes it.

use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use knarr_oci::seccomp::Arch;
use knarr_oci::spec::{ContainerSpec, Process, Stdio};
use knarr_oci::user::{self, Identity};
use serde::{Deserialize, Serialize};

use super::rootfs::{self, Doing, Failure};
use crate::cgroup::Hierarchies;
use crate::protocol;
use crate::state::ContainerDir;
use crate::sys;

/// Most bytes read of /etc/passwd and /etc/group.
const MAX_ACCOUNTS: u64 = 4 << 20;
/// Exit code of a child that never became the user's program.
pub(super) const NOT_STARTED: i32 = 128;

/// What a child tells the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    /// It failed; the text is for the user.
    Failed(String),
    /// A terminal's master is beside this message.
    Terminal,
}

/// Where a child finds its world.
pub(super) enum Place<'a> {
    /// It builds it.
    New { dir: &'a ContainerDir, spec: &'a ContainerSpec, hierarchies: &'a Hierarchies },
    /// It joins that of a running container.
    Existing { container: OwnedFd },
}

/// Standard input, output and error; none for a terminal.
pub(super) type Streams = Option<[OwnedFd; 3]>;

/// Becomes the user's program or ends.
pub(super) fn run(socket: &OwnedFd, place: Place<'_>, process: &Process, streams: Streams) -> ! {
    let failure = match prepare(socket, place, process, streams) {
        Err(failure) => failure,
        Ok(Program { path, args, env }) => {
            let error = sys::execve(&path, &args, &env);
            format!("exec {}: {}", path.to_string_lossy(), lower(&error))
        }
    };
    let _ = protocol::send(socket, &Told::Failed(failure), &[]);
    sys::exit_now(NOT_STARTED)
}

/// Everything execve needs.
struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn prepare(
    socket: &OwnedFd,
    place: Place<'_>,
    process: &Process,
    streams: Streams,
) -> Result<Program, Failure> {
    die_with_the_shim(socket)?;
    sys::reset_signals();
    // The word to go: the shim has put this process into its control groups.
    match protocol::receive::<()>(socket) {
        Ok(Some(_)) => {}
        _ => sys::exit_now(NOT_STARTED),
    }
    set_oom_score(process.oom_score_adj)?;
    // Whoever started the shim may do without huge pages; this program decides for itself. A kernel
    // that does not know them has none to give back.
    let _ = sys::prctl(libc::PR_SET_THP_DISABLE, 0, 0);
    match place {
        Place::New { dir, spec, hierarchies } => rootfs::enter(dir, spec, hierarchies)?,
        Place::Existing { container } => {
            sys::setns(container.as_fd(), libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP)
                .doing(|| "join the container".into())?;
        }
    }
    rustix::process::setsid().doing(|| "new session".into())?;
    take_streams(socket, process.stdio, streams)?;
    let identity = identity(process)?;
    drop_privileges(process, &identity)?;
    die_with_the_shim(socket)?;
    let program = program(process, &identity)?;
    sys::close_on_exec_from(3).doing(|| "close files".into())?;
    Ok(program)
}

/// Asks for SIGKILL when the shim dies, and makes sure that it has not died already.
///
/// Asked again after the change of user, which the kernel lets forget it.
fn die_with_the_shim(socket: &OwnedFd) -> Result<(), Failure> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0)
        .doing(|| "die with the shim".into())?;
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    if fds[0].revents().contains(PollFlags::HUP) {
        sys::exit_now(NOT_STARTED);
    }
    Ok(())
}

/// A score below the current one needs CAP_SYS_RESOURCE; without it the current one stays.
fn set_oom_score(score: i64) -> Result<(), Failure> {
    match fs::write("/proc/self/oom_score_adj", score.to_string()) {
        Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => {
            Err(format!("oom_score_adj {score}: {error}"))
        }
        _ => Ok(()),
    }
}

fn take_streams(socket: &OwnedFd, stdio: Stdio, streams: Streams) -> Result<(), Failure> {
    let streams = match streams {
        Some(streams) => streams,
        None if stdio == Stdio::Terminal => open_terminal(socket)?,
        None => return Err("no standard streams".into()),
    };
    for (stream, number) in streams.iter().zip(0..) {
        sys::dup_to(stream.as_fd(), number).doing(|| format!("standard stream {number}"))?;
    }
    Ok(())
}

/// Opens a pseudo-terminal of the container, gives its master to the shim.
fn open_terminal(socket: &OwnedFd) -> Result<[OwnedFd; 3], Failure> {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let open = || -> std::io::Result<[OwnedFd; 3]> {
        let file = rustix::fs::open(
            "/dev/ptmx",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        grantpt(&file)?;
        unlockpt(&file)?;
        let slave = ioctl_tiocgptpeer(&file, flags)?;
        protocol::send(socket, &Told::Terminal, &[file.as_fd()])?;
        sys::control_terminal(slave.as_fd())?;
        Ok([slave.try_clone()?, slave.try_clone()?, slave])
    };
    open().doing(|| "open a terminal".into())
}

/// Reads a file of the container: a regular one, and not more than a bound.
fn read_accounts(path: &str) -> String {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let Ok(file) = file else { return String::new() };
    let mut bytes = Vec::new();
    if file.metadata().is_ok_and(|meta| meta.is_file()) {
        let _ = file.take(MAX_ACCOUNTS).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn identity(process: &Process) -> Result<Identity, Failure> {
    let (passwd, group) = (read_accounts("/etc/passwd"), read_accounts("/etc/group"));
    user::resolve(&process.user, &passwd, &group)
}

/// Gives up what the process must not have; the order is dictated by what each step needs.
fn drop_privileges(process: &Process, identity: &Identity) -> Result<(), Failure> {
    let sets = process.capabilities;
    for bit in 0..=63 {
        if sets.bounding >> bit & 1 == 0 {
            // Past the last capability of this kernel the call fails, with nothing to drop.
            let _ = sys::prctl(libc::PR_CAPBSET_DROP, bit, 0);
        }
    }
    if process.no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).doing(|| "no_new_privs".into())?;
    } else {
        // Without no_new_privs only an administrator may load a filter: before the user changes.
        load_filter(process)?;
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).doing(|| "keep capabilities".into())?;
    sys::set_identity(identity.uid, identity.gid, &identity.groups)
        .doing(|| format!("become user {}", identity.uid))?;
    enter_cwd(&process.cwd)?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0).doing(|| "keep capabilities".into())?;
    let permitted = if identity.uid == 0 { sets.permitted } else { sets.ambient };
    sys::set_capabilities(held_here(permitted)?, held_here(sets.ambient)?)
        .doing(|| "set capabilities".into())?;
    for bit in (0..=63).filter(|bit| sets.ambient >> bit & 1 == 1) {
        sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, bit)
            .doing(|| format!("raise capability {bit}"))?;
    }
    if process.no_new_privs { load_filter(process) } else { Ok(()) }
}

/// What is left of a set on this machine: root itself may lack some capabilities.
fn held_here(mask: u64) -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status").doing(|| "read /proc".into())?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    let held = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    held.map(|held| held & mask).ok_or_else(|| "read /proc/self/status".into())
}

fn load_filter(process: &Process) -> Result<(), Failure> {
    const ARCH: Arch = if cfg!(target_arch = "aarch64") { Arch::Aarch64 } else { Arch::X86_64 };
    let Some(profile) = &process.seccomp else { return Ok(()) };
    sys::load_seccomp(&profile.compile(ARCH)).doing(|| "load the seccomp filter".into())
}

/// Enters the working folder, with the user's rights; made when missing.
fn enter_cwd(cwd: &str) -> Result<(), Failure> {
    if fs::metadata(cwd).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        let _ = fs::create_dir_all(cwd);
    }
    rustix::process::chdir(cwd).doing(|| format!("chdir to cwd ({cwd:?})"))
}

fn program(process: &Process, identity: &Identity) -> Result<Program, Failure> {
    let name = process.args.first().ok_or("no command specified")?;
    let value = |key: &str| process.env.iter().find_map(|pair| pair.strip_prefix(key));
    let path = find_program(name, value("PATH=").unwrap_or_default())?;
    let mut env = process.env.clone();
    if value("HOME=").is_none_or(str::is_empty) {
        env.retain(|pair| !pair.starts_with("HOME="));
        env.push(format!("HOME={}", identity.home));
    }
    let texts = |texts: &[String]| -> Result<Vec<CString>, Failure> {
        let made = texts.iter().map(|text| CString::new(text.as_str()));
        made.collect::<Result<_, _>>().doing(|| "an argument has a zero byte".into())
    };
    let path = CString::new(path).doing(|| "the path has a zero byte".into())?;
    Ok(Program { path, args: texts(&process.args)?, env: texts(&env)? })
}

/// Finds a program as a shell does; the texts are those that users know from runc.
fn find_program(name: &str, search: &str) -> Result<String, Failure> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_string()),
            Err(why) => Err(format!("exec: {name:?}: {why}")),
        };
    }
    let dirs = search.split(':').map(|dir| if dir.is_empty() { "." } else { dir });
    dirs.map(|dir| format!("{dir}/{name}"))
        .find(|path| executable(path).is_ok())
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

fn executable(path: &str) -> Result<(), String> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    let meta = fs::metadata(path).map_err(|error| format!("stat {path}: {}", lower(&error)))?;
    if meta.is_dir() {
        return Err("is a directory".into());
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).map_err(|error| lower(&error.into()))
}

/// The kernel's words in lower case and without a number, as Go prints them.
fn lower(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

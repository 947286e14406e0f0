//! The system calls that no safe library wraps, each as one small function.
#![allow(unsafe_code)] // raw system calls; every block says why it is sound

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use knarr_oci::seccomp::Instruction;

/// New mount namespace.
pub(crate) const NEWNS: u64 = libc::CLONE_NEWNS as u64;
/// New process namespace.
pub(crate) const NEWPID: u64 = libc::CLONE_NEWPID as u64;

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// A new child process.
pub(crate) struct Forked {
    /// Its id in our process namespace.
    pub(crate) pid: i32,
    /// A handle that never names another process.
    pub(crate) pidfd: OwnedFd,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks with namespace flags. `None` in the child.
///
/// Only for single-threaded processes: the child goes on with a copy of this one.
pub(crate) fn fork(flags: u64) -> io::Result<Option<Forked>> {
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: no stack is given, so this is fork(2) with flags; the caller has one thread, so no
    // lock is held by a thread that the child lacks. `args` outlives the call.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some(Forked { pid: i32::try_from(pid).expect("pids are 32 bits"), pidfd }))
}

/// Leaves the process at once, without running destructors or flushing.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}

/// Puts this process into namespaces: `fd` is a namespace or a pidfd with `kinds`.
pub(crate) fn setns(fd: BorrowedFd<'_>, kinds: i32) -> io::Result<()> {
    // SAFETY: takes two integers.
    check(unsafe { libc::setns(fd.as_raw_fd(), kinds) }.into()).map(drop)
}

/// Leaves namespaces for new ones.
pub(crate) fn unshare(kinds: i32) -> io::Result<()> {
    // SAFETY: takes an integer.
    check(unsafe { libc::unshare(kinds) }.into()).map(drop)
}

/// `prctl` with integer arguments.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> io::Result<()> {
    // SAFETY: only options with integer arguments are passed by this module's callers.
    check(unsafe { libc::prctl(option, a, b, 0u64, 0u64) }.into()).map(drop)
}

/// Sends a signal to the process behind a pidfd.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0)
    })
    .map(drop)
}

/// Makes a process id of our namespace a handle.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("descriptors are 32 bits")) })
}

/// Ends a process by id.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// A child that ended.
pub(crate) struct Reaped {
    pub(crate) pid: i32,
    /// Exit code, or 128 + signal.
    pub(crate) code: i32,
}

/// Takes one ended child, if there is one.
pub(crate) fn reap() -> Option<Reaped> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    let code = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    (pid > 0).then_some(Reaped { pid, code })
}

/// Blocks SIGCHLD and SIGTERM and makes a descriptor that tells of them.
pub(crate) fn signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is read; the result is a new
    // descriptor.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(fd.into())?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Puts signals as a new program expects them: nothing blocked, nothing ignored.
pub(crate) fn reset_signals() {
    // SAFETY: sets default dispositions and an initialised, empty mask.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Waits for children for ever: the first process of a shared process namespace.
pub(crate) fn reap_for_ever() -> ! {
    loop {
        // SAFETY: a null status is allowed; pause only waits.
        unsafe {
            if libc::waitpid(-1, std::ptr::null_mut(), 0) < 0 {
                libc::pause();
            }
        }
    }
}

/// Makes a mode of creation count as it is.
pub(crate) fn clear_umask() {
    // SAFETY: takes an integer, cannot fail.
    unsafe { libc::umask(0) };
}

/// Sets the usual mask again.
pub(crate) fn usual_umask() {
    // SAFETY: takes an integer, cannot fail.
    unsafe { libc::umask(0o022) };
}

/// Becomes a user: groups, group, user, in the order that works.
pub(crate) fn set_identity(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is valid for its length; the rest are integers.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()).into())?;
        check(libc::setresgid(gid, gid, gid).into())?;
        check(libc::setresuid(uid, uid, uid).into())?;
    }
    Ok(())
}

/// Replaces the capability sets of this thread.
pub(crate) fn set_capabilities(permitted: u64, inheritable: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let half = |mask: u64, high: bool| (if high { mask >> 32 } else { mask }) as u32;
    // Two rows of (effective, permitted, inheritable).
    let rows = [false, true]
        .map(|high| [half(permitted, high), half(permitted, high), half(inheritable, high)]);
    // SAFETY: the header and the two rows have the layout of version 3.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), rows.as_ptr()) }).map(drop)
}

/// Loads a filter for this process.
pub(crate) fn load_seccomp(program: &[Instruction]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const Instruction,
    }
    let len = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the filter is too long"))?;
    let program = Program { len, filter: program.as_ptr() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: `Instruction` has the layout of sock_filter and the program outlives the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) }).map(drop)
}

/// Changes a mount: attributes to set and a propagation (0 keeps it), for the tree or its top.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    attributes: u64,
    propagation: u64,
    recursive: Recursion,
) -> io::Result<()> {
    // struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
    let attr = [attributes, 0, propagation, 0u64];
    let depth = if recursive == Recursion::Tree { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::AT_EMPTY_PATH | depth;
    // SAFETY: the path is an empty C string and `attr` has the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    })
    .map(drop)
}

/// How far a change of a mount reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recursion {
    /// Only the mount itself.
    Top,
    /// All mounts below it too.
    Tree,
}

/// Makes a terminal the controlling one of this session.
pub(crate) fn control_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Closes every descriptor from `first` on at execve.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: only marks descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

/// Replaces the program. Returns only when that fails.
pub(crate) fn execve(path: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let list = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|t| t.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (list(args), list(env));
    // SAFETY: both lists end with null and outlive the call, as do the texts they point to.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Puts a descriptor at a number, kept over execve.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // SAFETY: clears the close-on-exec mark of a valid descriptor.
        return check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: `number` is one of the standard streams, which the caller gives up.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: u32) {
    // SAFETY: only for a process that uses no descriptor afterwards.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Loads a device program and lets it judge for a version 2 control group.
pub(crate) fn attach_device_filter(group: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    const PROG_LOAD: i32 = 5;
    const PROG_ATTACH: i32 = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        program: u64,
        license: u64,
        /// Log level and size, log buffer, kernel version and flags: all unused.
        rest: [u64; 3],
    }
    let count = u32::try_from(program.len()).expect("a program has some hundred instructions");
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count,
        program: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 3],
    };
    let size = size_of_val(&load);
    // SAFETY: `load` has the layout of the kernel's attributes for loading, and what it points to
    // outlives the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size) })?;
    // SAFETY: a new descriptor that nobody else owns.
    let loaded = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("32 bits")) };
    let number = |fd: RawFd| u32::try_from(fd).expect("descriptors are not negative");
    let attach =
        [number(group.as_raw_fd()), number(loaded.as_raw_fd()), ATTACH_CGROUP_DEVICE, ALLOW_MULTI];
    let size = size_of_val(&attach);
    // SAFETY: four numbers, as the kernel's attributes for attaching begin.
    check(unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attach.as_ptr(), size) }).map(drop)
}

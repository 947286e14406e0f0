//! The namespaces of a sandbox. The shim lives in them itself, so they last as long as it does,
//! and what it forks is in them without further ado. Its mount namespace stays the node's, so
//! that containers started later see volumes mounted later.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use knarr_oci::cri::NamespaceMode;
use knarr_oci::spec::{NetworkNs, SandboxSpec};

use super::rootfs::{Doing, Failure};
use crate::sys::{self, Forked};

/// Size of a Pod's /dev/shm, as with containerd.
const SHM_SIZE: &str = "mode=1777,size=65536k";

/// Makes or joins everything but the shared process namespace.
pub(super) fn enter(spec: &SandboxSpec, shm: &Path) -> Result<(), Failure> {
    match &spec.network {
        NetworkNs::Node => {}
        NetworkNs::New => {
            sys::unshare(libc::CLONE_NEWNET).doing(|| "new network namespace".into())?;
        }
        NetworkNs::Path(path) => {
            let namespace = fs::File::open(path).doing(|| format!("open {path}"))?;
            sys::setns(namespace.as_fd(), libc::CLONE_NEWNET)
                .doing(|| format!("join the network namespace {path}"))?;
        }
    }
    if spec.ipc != NamespaceMode::Node {
        sys::unshare(libc::CLONE_NEWIPC).doing(|| "new IPC namespace".into())?;
        fs::create_dir_all(shm).doing(|| "make shm".into())?;
        let flags = rustix::mount::MountFlags::NOSUID
            | rustix::mount::MountFlags::NODEV
            | rustix::mount::MountFlags::NOEXEC;
        let options = std::ffi::CString::new(SHM_SIZE).expect("the text has no zero byte");
        rustix::mount::mount("shm", shm, "tmpfs", flags, &*options).doing(|| "mount shm".into())?;
    }
    if let Some(name) = &spec.hostname {
        sys::unshare(libc::CLONE_NEWUTS).doing(|| "new UTS namespace".into())?;
        rustix::system::sethostname(name.as_bytes()).doing(|| format!("host name {name}"))?;
    }
    for (path, value) in &spec.sysctls {
        fs::write(Path::new("/proc/sys").join(path), value)
            .doing(|| format!("sysctl {}", path.replace('/', ".")))?;
    }
    Ok(())
}

/// The first process of the process namespace that the containers of a Pod share.
pub(super) fn start_init() -> Result<Forked, Failure> {
    match sys::fork(sys::NEWPID).doing(|| "new process namespace".into())? {
        Some(forked) => Ok(forked),
        None => {
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0);
            sys::reset_signals();
            sys::close_from(0);
            sys::reap_for_ever()
        }
    }
}

/// A process namespace that the next fork goes into, and out of again afterwards.
pub(super) struct InProcesses<'a> {
    own: &'a OwnedFd,
}

impl InProcesses<'_> {
    /// `process` is a pidfd of a process in the namespace, `own` the shim's namespace.
    pub(super) fn of<'a>(process: &OwnedFd, own: &'a OwnedFd) -> Result<InProcesses<'a>, Failure> {
        sys::setns(process.as_fd(), libc::CLONE_NEWPID)
            .doing(|| "join the process namespace".into())?;
        Ok(InProcesses { own })
    }
}

impl Drop for InProcesses<'_> {
    fn drop(&mut self) {
        sys::setns(self.own.as_fd(), libc::CLONE_NEWPID)
            .expect("a process may always go back to its own process namespace");
    }
}

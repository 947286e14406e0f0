//! Network namespaces that last: each is kept by a mount on a file, whoever lives in it or not.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;

/// The file system that namespaces are of, as `statfs` tells it.
const NSFS: i64 = 0x6e73_6673;

/// A network namespace with a name in the file system.
#[derive(Clone, Debug)]
pub struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// The namespace of that path; made if there is none.
    ///
    /// # Errors
    /// Without the right to make one.
    pub fn open_or_make(path: &Path) -> io::Result<Self> {
        let space = Self { path: path.to_owned() };
        if !space.is_there() {
            File::create(path)?;
            space.make()?;
        }
        Ok(space)
    }

    fn is_there(&self) -> bool {
        rustix::fs::statfs(&self.path).is_ok_and(|found| found.f_type == NSFS)
    }

    fn make(&self) -> io::Result<()> {
        let path = self.path.clone();
        // A thread of its own has a namespace of its own.
        on_thread(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            let own = Path::new("/proc/thread-self/ns/net");
            let none = None::<&Path>;
            Ok(nix::mount::mount(Some(own), &path, none, MsFlags::MS_BIND, none)?)
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a command in it.
    ///
    /// # Errors
    /// When it cannot be entered, or the command does not start.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        let space = File::open(&self.path)?;
        on_thread(move || {
            enter(&space)?;
            command.spawn()
        })
    }

    /// Removes it; those who are still in it keep it.
    ///
    /// # Errors
    /// When it is there and cannot be unmounted.
    pub fn remove(&self) -> io::Result<()> {
        if self.is_there() {
            nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH)?;
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Puts the calling thread into a network namespace.
pub(crate) fn enter(space: &File) -> io::Result<()> {
    let kind = rustix::thread::LinkNameSpaceType::Network;
    Ok(rustix::thread::move_into_link_name_space(space.as_fd(), Some(kind))?)
}

/// A thread that has entered a namespace is of no use to anybody else.
fn on_thread<R: Send + 'static>(
    job: impl FnOnce() -> io::Result<R> + Send + 'static,
) -> io::Result<R> {
    std::thread::spawn(job).join().map_err(|_| io::Error::other("a thread panicked"))?
}

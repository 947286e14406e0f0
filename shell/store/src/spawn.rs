//! The spawn seam: where work runs that the writer does not wait for.

use std::io;
use std::thread;

/// What is done beside the writer, one of each at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Aside {
    Archive,
    Checkpoint,
    Segment,
}

impl Aside {
    /// Its thread's name.
    fn name(self) -> &'static str {
        match self {
            Self::Archive => "knarr-archive",
            Self::Checkpoint => "knarr-checkpoint",
            Self::Segment => "knarr-segment",
        }
    }
}

/// Something to do once.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Runs work beside the one who asks.
pub(crate) trait Spawn: Send + Sync {
    /// Sees to it that work is done, at some time.
    fn spawn(&self, what: Aside, work: Work) -> io::Result<()>;

    /// Somebody is about to wait for all of it.
    fn awaited(&self) {}
}

/// A thread for each.
pub(crate) struct Threads;

impl Spawn for Threads {
    fn spawn(&self, what: Aside, work: Work) -> io::Result<()> {
        thread::Builder::new().name(what.name().into()).spawn(work).map(drop)
    }
}

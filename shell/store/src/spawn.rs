//! The spawn seam: where work runs that the writer does not wait for.

use std::io;
use std::thread;

/// Something to do once.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Runs work beside the one who asks.
pub(crate) trait Spawn: Send + Sync {
    /// Sees to it that work is done, at some time.
    fn spawn(&self, name: &str, work: Work) -> io::Result<()>;
}

/// A thread for each.
pub(crate) struct Threads;

impl Spawn for Threads {
    fn spawn(&self, name: &str, work: Work) -> io::Result<()> {
        thread::Builder::new().name(name.into()).spawn(work).map(drop)
    }
}

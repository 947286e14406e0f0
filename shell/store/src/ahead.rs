//! Files that are read ahead of who takes them in, past the page cache where that can be.
//!
//! The memory of a piece that was taken in is read into again: pages that are new to a process cost
//! as much as what is read into them.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use crate::disk::Aligned;

/// A thread that reads the next piece while the last one is taken in. It ends with this.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// Pieces that were read, and those that were taken in.
    ends: Option<(Receiver<io::Result<Aligned>>, Sender<Aligned>)>,
    piece: Option<Aligned>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// Begins with pieces that `read` makes, until it has no more.
    pub(crate) fn begin(
        mut read: impl FnMut(&mut Aligned) -> Option<io::Result<()>> + Send + 'static,
    ) -> io::Result<Self> {
        let (tell, pieces) = mpsc::channel();
        let (taken, free) = mpsc::channel();
        let work = move || {
            for mut piece in [Aligned::default(), Aligned::default()].into_iter().chain(free) {
                let Some(done) = read(&mut piece) else { return };
                // Who has read enough does not listen any more.
                if tell.send(done.map(|()| piece)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("knarr-read".into()).spawn(work)?;
        Ok(Self { ends: Some((pieces, taken)), piece: None, thread: Some(thread) })
    }

    /// The next piece, if there is one; the one before is taken in then.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let Some((pieces, taken)) = &self.ends else { return Ok(None) };
        if let Some(piece) = self.piece.take() {
            // At the end nobody reads any more.
            let _ = taken.send(piece);
        }
        self.piece = pieces.recv().ok().transpose()?;
        Ok(self.piece.as_ref().map(Aligned::bytes))
    }
}

/// What it reads is let go of, and with that the lock on a directory.
impl Drop for Ahead {
    fn drop(&mut self) {
        self.ends = None;
        if let Some(thread) = self.thread.take() {
            // A panic was told where it happened.
            let _ = thread.join();
        }
    }
}

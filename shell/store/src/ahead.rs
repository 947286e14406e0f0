//! Files that are read ahead of who takes them in, past the page cache where that can be.
//!
//! The memory of a piece that was taken in is read into again: pages that are new to a process cost
//! as much as what is read into them.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use crate::disk::Aligned;

/// A thread that reads the next piece while the last one is taken in.
#[derive(Debug)]
pub(crate) struct Ahead {
    read: Receiver<io::Result<Aligned>>,
    taken: Sender<Aligned>,
    piece: Option<Aligned>,
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
        thread::Builder::new().name("knarr-read".into()).spawn(work)?;
        Ok(Self { read: pieces, taken, piece: None })
    }

    /// The next piece, if there is one; the one before is taken in then.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if let Some(piece) = self.piece.take() {
            // At the end nobody reads any more.
            let _ = self.taken.send(piece);
        }
        self.piece = self.read.recv().ok().transpose()?;
        Ok(self.piece.as_ref().map(Aligned::bytes))
    }
}

//! Work on the disk that must not stand in the way of the log.
//!
//! A device that is told to make one file durable waits for everybody's bytes: who writes much has
//! to do it in small pieces, each made durable before the next, and to leave the device alone for
//! as long as a piece took.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

/// How much is written between two rests, in bytes.
pub(crate) const PIECE: usize = 256 << 10;

/// The pace of one store's work in the background.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace(Arc<AtomicBool>);

impl Pace {
    /// No more rests: somebody waits for the end.
    pub(crate) fn hurry(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Rests for as long as the piece took that began at `start`.
    pub(crate) fn rest(&self, start: Instant) {
        if !self.0.load(Ordering::Relaxed) {
            thread::sleep(start.elapsed());
        }
    }
}

//! Work on the disk that must not stand in the way of the log.
//!
//! A device that is told to make one file durable waits for everybody's bytes: who writes much has
//! to do it in small pieces, each sent to the device before the next, and to leave it alone for as
//! long as a piece took.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

/// How much is written between two rests, in bytes; more in a hurry.
const PIECE: usize = 32 << 10;
const LARGE_PIECE: usize = 256 << 10;
/// How much is sent to the disk before it is made durable, in bytes: a file that grows costs three
/// writes a sync.
pub(crate) const SYNC_EVERY: u64 = 4 << 20;

/// The pace of one store's work in the background.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace(Arc<AtomicBool>);

/// How such work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tempo {
    Calm,
    /// Somebody waits for the end, or memory fills up meanwhile.
    Hurried,
}

impl Pace {
    pub(crate) fn set(&self, tempo: Tempo) {
        self.0.store(tempo == Tempo::Hurried, Ordering::Relaxed);
    }

    fn is_hurried(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// How much is to be sent at once, in bytes.
    pub(crate) fn piece(&self) -> usize {
        if self.is_hurried() { LARGE_PIECE } else { PIECE }
    }

    /// Rests for as long as the piece took that began at `start`.
    pub(crate) fn rest(&self, start: Instant) {
        if !self.is_hurried() {
            thread::sleep(start.elapsed());
        }
    }
}

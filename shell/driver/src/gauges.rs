//! What a ring tells about itself, for whoever serves metrics.

use std::sync::{Mutex, PoisonError};

/// Numbers of one ring, shared between it and those who read them.
#[derive(Debug, Default)]
pub struct Gauges(Mutex<Option<Vec<(&'static str, usize)>>>);

impl Gauges {
    /// Keys waiting, by controller; `None` while the ring does not run, since its lease is somebody
    /// else's.
    pub fn depths(&self) -> Option<Vec<(&'static str, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces what [`Gauges::depths`] says.
    pub fn set(&self, depths: Option<Vec<(&'static str, usize)>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = depths;
    }
}

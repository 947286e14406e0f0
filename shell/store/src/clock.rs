//! The clock seam: lease deadlines are the only use of time here.

use std::fmt::Debug;
use std::time::Instant;

/// A clock that only goes forward.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds since some fixed moment of this process.
    fn now(&self) -> u64;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

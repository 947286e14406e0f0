//! The clock seam: one clock for deadlines, and the one on the wall, which may jump and only dates
//! what happened.

use std::fmt::Debug;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A clock that only goes forward.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds since some fixed moment of this process.
    fn now(&self) -> u64;
    /// Milliseconds since 1970, as the machine believes.
    fn wall(&self) -> u64;
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

    fn wall(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

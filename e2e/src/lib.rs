//! End-to-end tests: the real binary, real Linux, upstream's kubectl. The tests are in `tests/`.
//!
//! Each test has a [`Machine`] of its own: private mount, network and process namespaces and a
//! private folder, all gone when the test ends, however it ends. So tests may use fixed ports, see
//! exactly the processes, mounts, links and packet rules that they caused, and never meet.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod alone;
mod etcd;
mod kubectl;
mod machine;
mod process;
mod snapshot;

pub use alone::alone;
pub use etcd::Etcd;
pub use kubectl::Follow;
pub use machine::{Machine, UP};
pub use process::{Outcome, Running};
pub use snapshot::Snapshot;

/// How long anything may take before a test gives up; generous, as the machine may be busy.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

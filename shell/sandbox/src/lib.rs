//! Pods as Linux processes: namespaces, cgroups, mounts, seccomp, and the shim that holds them.
//!
//! The life of a Pod, as an agent calls it:
//!
//! 1. networking makes a network namespace and names it by a path ([`NetworkNs::Path`]);
//! 2. [`Runtime::run_pod_sandbox`] makes the Pod's control group and starts its shim;
//! 3. for each container [`Runtime::create_container`] (with layers and configuration from the
//!    image store), then [`Runtime::start_container`];
//! 4. exits come as [`Event`]s; [`Runtime::stop_container`] ends one with grace; meanwhile
//!    [`Runtime::exec`] and [`Runtime::attach`] open a [`Session`], [`Runtime::connect`] a socket;
//! 5. [`Runtime::remove_container`], [`Runtime::stop_pod_sandbox`],
//!    [`Runtime::remove_pod_sandbox`]; then networking removes its namespace.
//!
//! Control groups above the Pod's (`/kubepods/…`) are the agent's: see [`Hierarchies`]. The
//! program must call [`shim_main`] before it starts a thread when it is run as `pod-shim`.
//! Refused alternative: one shim per container, whose memory a node pays per container.
//!
//! [`NetworkNs::Path`]: knarr_oci::spec::NetworkNs::Path

pub mod beneath;
mod cgroup;
mod cleanup;
mod exec;
mod protocol;
mod runtime;
mod session;
mod shim;
mod state;
mod sys;
mod watch;

pub use cgroup::Hierarchies;
pub use cleanup::{cleanup, unmount_below};
pub use runtime::{Config, CreateContainer, Event, Events, Runtime};
pub use session::{Session, Wanted};
pub use shim::shim_main;
pub use state::layers_in_use;

/// What went wrong, for the caller.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// There is no sandbox or container of this id.
    NotFound(String),
    /// The request does not fit the state; the text says why.
    Invalid(String),
    /// The container's process could not be started; the text is for the user.
    Start(String),
    /// An exec ran longer than allowed.
    Timeout,
    /// The kernel refused something.
    Io(String, std::io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::NotFound(what) => write!(f, "{what} not found"),
            Error::Invalid(why) | Error::Start(why) => f.write_str(why),
            Error::Timeout => f.write_str("the command timed out"),
            Error::Io(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for Error {}

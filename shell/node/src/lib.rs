//! The node agent: pumps podlife against the runtime, and reports.
//!
//! One task per Pod asks [`knarr_podlife::decide`] what to do, does it, and asks again; it sleeps
//! until its Pod changes, its containers do, or a time that the decision named. What runs belongs
//! to the shims, so an agent that is stopped or killed leaves its Pods running and adopts them
//! when it is back.

mod access;
mod agent;
mod atomic;
mod checks;
mod files;
mod image_gc;
mod insecure;
mod join;
mod life;
mod links;
mod logs;
mod network;
mod pulls;
mod query;
mod refresh;
mod report;
mod serve;
mod streams;
mod worker;

pub use agent::{AgentError, NodeConfig, run};
pub use join::{JoinError, join};
pub use knarr_podlife::image_gc::Policy as ImageGcPolicy;

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use knarr_api::Resource;

pub(crate) const PODS: Resource = Resource::new("v1", "pods");
pub(crate) const NODES: Resource = Resource::new("v1", "nodes");
pub(crate) const EVENTS: Resource = Resource::new("v1", "events");
pub(crate) const LEASES: Resource = Resource::new("coordination.k8s.io/v1", "leases");
pub(crate) const REQUESTS: Resource =
    Resource::new("certificates.k8s.io/v1", "certificatesigningrequests");

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanosecond(since.as_nanos() as i128).unwrap_or(Timestamp::MAX)
}

/// RFC 3339 in whole seconds.
pub(crate) fn stamp(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

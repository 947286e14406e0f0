//! The ring: event, view, queue, row, plan.
//!
//! A controller is a row ([`Controller`]) and a pure function from the [`View`] to a [`Plan`], a
//! value that can be printed, compared and golden-tested. The [`Engine`] decides when a key runs;
//! the driver feeds it watch events and carries out its plans. Every write of a plan goes through
//! the API like anybody's.
//!
//! *Own-writes gate*: a key runs again only when, for every object it wrote, the view has come as
//! far as that write; so no controller ever acts on a picture from before its own last act, and
//! none needs expectations. After an unknown outcome the view is read anew first.
//!
//! The caller's duties: [`Engine::handle`] every watch item in order; carry out each [`Job`] and
//! report to [`Engine::finish`]; call [`Engine::poll`] after each of these and at
//! [`Engine::deadline`].
#![no_std]

extern crate alloc;

mod engine;
mod gate;
mod load;
mod plan;
mod view;

use alloc::string::String;
use alloc::vec::Vec;

use knarr_api::Resource;

pub use engine::{Controller, Engine, Job, Key, Outcome, Wake, Watch};
pub use gate::Written;
pub use load::{Amounts, HostPort, Load, add};
pub use plan::{Event, EventKind, Patch, Plan, Usage, Write};
pub use view::{Change, Facts, Owner, Row, View};

/// A kind that a controller meets by its name only (the garbage collector, the namespace
/// controller).
#[derive(Clone, Debug)]
pub struct KindRow {
    /// `Pod`.
    pub kind: String,
    /// Where its objects are.
    pub resource: Resource,
    /// Whether they live in namespaces.
    pub namespaced: bool,
}

/// What the process that runs the controllers was told.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The CA that clients in the cluster trust, PEM.
    pub root_ca: String,
    /// Where Pod addresses come from, one per family, such as `10.244.0.0/16`.
    pub cluster_cidrs: Vec<String>,
    /// Every kind that can be watched and deleted, each at one version.
    pub kinds: Vec<KindRow>,
    /// How long a node may be silent; `None`: as long as upstream's default.
    pub node_monitor_grace_period: Option<core::time::Duration>,
}

/// What a reconcile function may know beside the view.
#[derive(Clone, Copy, Debug)]
pub struct Ctx<'a> {
    /// The time.
    pub now: jiff::Timestamp,
    /// When this engine began: silence from before then is not silence.
    pub since: jiff::Timestamp,
    /// Fresh randomness for this run.
    pub seed: u64,
    /// What the process was told.
    pub config: &'a Config,
    /// Why the last plan for this key was refused, if it was (lost races are no refusals).
    pub refused: Option<&'a str>,
}

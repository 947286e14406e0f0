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
mod plan;
mod view;

pub use engine::{Controller, Engine, Job, Key, Outcome, Wake, Watch};
pub use gate::Written;
pub use plan::{Event, EventKind, Patch, Plan, Write};
pub use view::{Change, Facts, Owner, Row, View};

/// What a reconcile function may know beside the view.
#[derive(Clone, Copy, Debug)]
pub struct Ctx {
    /// The time.
    pub now: jiff::Timestamp,
    /// Fresh randomness for this run.
    pub seed: u64,
}

//! The revisioned keyspace of opaque values, with etcd's data model.
//!
//! Pure: [`Keyspace::apply`] maps (state, command) to (state, outcome) and nothing else; time comes
//! in through commands. The store shell makes every command durable in the log before it applies
//! it, and replays the log through the same function after a crash, so two members with one log
//! have one state.
//!
//! * `model` – the words; `command` – what the log holds and what it answers; `codec` – its bytes.
//! * `check` – what is refused whatever the state; `txn` – how a transaction runs.
//! * `keyspace` – the versions of every key; `keys` – the newest, in order; `version` – one of
//!   them; `history` – the recent past a watcher reads.
//! * `mirror` – following another store; `lease` – keys that end together; `settings` – facts
//!   beside the keys; `snapshot` – the whole state as a stream of items; `query` – how reads are
//!   answered.
//! * `time` – when revisions were made; `past` – states that are no longer held.
//! * `budget` – whether there is room; `compactor` – when to compact without being told.
#![no_std]

extern crate alloc;

mod budget;
mod check;
mod codec;
mod command;
mod compactor;
mod history;
mod keys;
mod keyspace;
mod lease;
mod mirror;
mod model;
mod past;
mod query;
mod settings;
mod snapshot;
mod time;
mod txn;
mod version;

pub use check::MAX_TXN_DEPTH;
pub use codec::CodecError;
pub use command::{Answer, Command, MAX_LEASE_TTL_SECS, Outcome, Refusal};
pub use compactor::{AutoCompaction, Compactor};
pub use history::{Compacted, EventBatch, Piece};
pub use keyspace::{Keyspace, ReadError};
pub use lease::Lease;
pub use model::*;
pub use past::Undo;
pub use settings::{Change, Settings};
pub use snapshot::{Item, Meta, Restore, RestoreError, Walk};
pub use time::{Mark, Marks};
pub use version::Version;

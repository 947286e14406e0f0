//! The revisioned keyspace of opaque values, with etcd's data model.
//!
//! Pure: [`Keyspace::apply`] maps (state, command) to (state, outcome) and nothing else; time comes
//! in through commands. The store shell writes every command to the log before anybody may see the
//! revision it made, and replays the log through the same function after a crash.
#![no_std]

extern crate alloc;

mod model;

pub use model::*;

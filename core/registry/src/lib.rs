//! The life of one request, as a pure state machine: the only door to the state.
//!
//! [`Call::step`] is handed a [`World`] (an immutable view of everything it may look at) and the
//! [`Answer`] to what it last wanted, and says what it wants next: something only the shell can do
//! ([`Step::Ask`]), a transaction ([`Step::Commit`]), or to be done ([`Step::Reply`]). The stages,
//! in order: request info, authenticate, authorize, decode and default, and then per attempt:
//! apply to the live object, admit, validate, commit. A lost compare starts a new attempt.
//!
//! The caller's duties: step again with the answer to every `Ask` and `Commit`, and show a
//! revision to nobody before the store called it durable.
#![no_std]

extern crate alloc;

mod admission;
mod auth;
pub mod bootstrap;
mod call;
mod claims;
mod convert;
mod delete;
mod discovery;
mod kinds;
mod lens;
mod meta;
mod object;
mod past;
mod patch;
mod rbac;
mod read;
mod request;
mod response;
mod special;
mod stored;
mod streams;
mod table;
mod takeover;
mod views;
mod watch;
mod write;

pub use auth::{Claims, Credential};
pub use call::{Answer, Ask, Call, Config, Step, World};
pub use discovery::{OPENAPI_V2_PROTOBUF, openapi_document};
pub use object::{Snapshot, pieces};
pub use past::{Moment, PastRange, PastRefusal};
pub use request::{Method, Request, RequestInfo, User};
pub use response::{Body, Onward, Passage, Response, Road};
pub use stored::{Stored, Unreadable, canonical, note_of_a_server};
pub use streams::is_proxy;
pub use takeover::{Report, Takeover, Tally, everything};
pub use views::Views;
pub use watch::{EventType, Seen, WatchSpec, WatchStart};

//! CNI's words, from the caller's side: configurations, what a plugin is told, what it answers.
//!
//! Follows the CNI specification 0.3.0 to 1.1.0. A plugin is a program: it is told what to do in
//! its environment and on its standard input, and answers on its standard output. Here is what is
//! said; `shell/cni` runs the programs. The caller's duties: ADD calls the plugins in the list's
//! order and hands each the result of the one before, DEL calls them backwards and hands each the
//! last result; DEL follows a failed ADD too, and may be repeated.
#![no_std]

extern crate alloc;

mod answer;
mod call;
mod list;
mod pod;

pub use answer::{addresses, failure, result};
pub use call::{Attachment, Bandwidth, PortMapping, Verb, Wanted};
pub use list::{List, Plugin, Refused, first};

//! The words of the API: the [`Catalog`] of kinds, [`Status`] answers, selectors, names.
//!
//! Everything here is a value without IO; nothing here knows a particular kind.
#![no_std]

extern crate alloc;

mod catalog;
pub mod ip;
pub mod names;
pub mod quantity;
mod resource;
mod selector;
mod status;

pub use catalog::{Catalog, GroupResource, Kind, ObjectKey, Scope, Subresource};
pub use resource::Resource;
pub use selector::{FieldSelector, LabelSelector, SelectorError};
pub use status::{Cause, Reason, Status};

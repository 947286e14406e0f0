//! The words of the API: the Catalog of kinds, keys, revisions, quantities, selectors, Status.

#![no_std]

extern crate alloc;

pub mod quantity;

//! Image references, image configuration and runtime specifications, as values.

#![no_std]

extern crate alloc;

pub mod cri;
pub mod image;
pub mod seccomp;
pub mod spec;

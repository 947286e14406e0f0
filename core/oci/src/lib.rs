//! Image references, image configuration and runtime specifications, as values.

#![no_std]

extern crate alloc;

pub mod capability;
pub mod cgroup;
pub mod challenge;
pub mod credentials;
pub mod cri;
pub mod device_filter;
pub mod generate;
pub mod image;
pub mod log;
pub mod reference;
pub mod seccomp;
pub mod seccomp_default;
pub mod signal;
pub mod spec;
pub mod user;

//! Image references, image configuration and runtime specifications, as values.

#![no_std]

extern crate alloc;

//! The life of one request, as a pure state machine.

#![no_std]

extern crate alloc;

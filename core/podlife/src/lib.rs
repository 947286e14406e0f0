//! The node's half of a Pod: (pod, observed, now) to actions and status.

#![no_std]

extern crate alloc;

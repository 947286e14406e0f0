//! The ring: event, view, queue, row, plan.

#![no_std]

extern crate alloc;

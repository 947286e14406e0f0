//! One file per controller: doc, a row, a pure function, golden tests.

#![no_std]

extern crate alloc;

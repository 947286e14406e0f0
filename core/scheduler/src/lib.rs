//! Filter, score, bind; and the explanation when nothing fits.

#![no_std]

extern crate alloc;

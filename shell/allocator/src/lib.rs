//! Whose memory a process takes: mimalloc's in a server, the C library's in the shim of a Pod.
//!
//! What one thread takes and another gives back, as every write does, costs mimalloc half of what
//! it costs the C library. A shim has one thread and lives as long as its Pod: there the 0.6 MB
//! that mimalloc begins with would be most of it. Which of both a process is never changes, so that
//! memory always goes back where it came from.
#![allow(unsafe_code, reason = "an allocator hands out raw memory")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_long;
use std::sync::atomic::{AtomicU8, Ordering};

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;
use rustix::fs::{Mode, OFlags, open};

/// The allocator of a binary that is a shim where its first argument is this word.
#[derive(Debug)]
pub struct ByRole(pub &'static str);

impl ByRole {
    /// Free memory goes back to the system soon, where a second is mimalloc's own choice: a store
    /// under load would hold 10 MB for that long, all the time.
    pub fn give_back_soon(&self) {
        if !self.is_shim() {
            // SAFETY: an option may be set at any time; one that is read meanwhile is a number.
            unsafe { mi_option_set(PURGE_DELAY, GIVE_BACK_MS) };
        }
    }
}

/// `mi_option_purge_delay` of mimalloc 3, in milliseconds.
const PURGE_DELAY: mi_option_t = 15;
const GIVE_BACK_MS: c_long = 100;

const SERVER: u8 = 1;
const SHIM: u8 = 2;

/// What this process is; 0 before the first allocation.
static ROLE: AtomicU8 = AtomicU8::new(0);

impl ByRole {
    fn is_shim(&self) -> bool {
        match ROLE.load(Ordering::Relaxed) {
            0 => {
                let role = if first_argument_is(self.0) { SHIM } else { SERVER };
                ROLE.store(role, Ordering::Relaxed);
                role == SHIM
            }
            role => role == SHIM,
        }
    }
}

/// This runs before main and must not allocate.
fn first_argument_is(word: &str) -> bool {
    let mut start = [0; 4096];
    let read = open(c"/proc/self/cmdline", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::read(file, &mut start));
    let words = &start[..read.unwrap_or(0)];
    words.split(|byte| *byte == 0).nth(1) == Some(word.as_bytes())
}

// SAFETY: both are allocators, and a process only ever uses one of them.
unsafe impl GlobalAlloc for ByRole {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { if self.is_shim() { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if self.is_shim() { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on, to the one that gave this memory out.
        unsafe {
            if self.is_shim() {
                System.dealloc(memory, layout)
            } else {
                MiMalloc.dealloc(memory, layout)
            }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on, to the one that gave this memory out.
        unsafe {
            if self.is_shim() {
                System.realloc(memory, layout, size)
            } else {
                MiMalloc.realloc(memory, layout, size)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its number might be another's in another version: this one waits a second by itself.
    #[test]
    fn the_delay_is_the_option_that_is_meant() {
        // SAFETY: only read.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), 1000);
        ByRole("pod-shim").give_back_soon();
        assert_eq!(delay(), GIVE_BACK_MS);
    }

    /// A test is run with arguments.
    #[test]
    fn a_process_knows_its_first_argument() {
        let first = std::env::args().nth(1).unwrap_or_default();
        assert!(first_argument_is(&first), "{first}");
        assert!(!first_argument_is("pod-shim"));
        assert!(!first_argument_is(""));
    }
}

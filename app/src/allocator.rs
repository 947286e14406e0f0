//! Whose memory a process takes: mimalloc's in a server, the C library's in the shim of a Pod.
//!
//! What one thread takes and another gives back, as every write does, costs mimalloc half of what
//! it costs the C library. A shim has one thread and lives as long as its Pod: there the 0.6 MB
//! that mimalloc begins with would be most of it. Which of both a process is never changes, so that
//! memory always goes back where it came from.
#![allow(unsafe_code, reason = "an allocator hands out raw memory")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU8, Ordering};

use mimalloc::MiMalloc;
use rustix::fs::{Mode, OFlags, open};

use crate::POD_SHIM;

/// The allocator of this binary.
pub(crate) struct ByRole;

const SERVER: u8 = 1;
const SHIM: u8 = 2;

/// What this process is; 0 before the first allocation.
static ROLE: AtomicU8 = AtomicU8::new(0);

fn is_shim() -> bool {
    match ROLE.load(Ordering::Relaxed) {
        0 => {
            let role = if runs_as_shim() { SHIM } else { SERVER };
            ROLE.store(role, Ordering::Relaxed);
            role == SHIM
        }
        role => role == SHIM,
    }
}

/// By the first argument; this runs before main and must not allocate.
fn runs_as_shim() -> bool {
    let mut start = [0; 4096];
    let read = open(c"/proc/self/cmdline", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::read(file, &mut start));
    let words = &start[..read.unwrap_or(0)];
    words.split(|byte| *byte == 0).nth(1) == Some(POD_SHIM.as_bytes())
}

// SAFETY: both are allocators, and a process only ever uses one of them.
unsafe impl GlobalAlloc for ByRole {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { if is_shim() { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if is_shim() { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on, to the one that gave this memory out.
        unsafe {
            if is_shim() {
                System.dealloc(memory, layout)
            } else {
                MiMalloc.dealloc(memory, layout)
            }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on, to the one that gave this memory out.
        unsafe {
            if is_shim() {
                System.realloc(memory, layout, size)
            } else {
                MiMalloc.realloc(memory, layout, size)
            }
        }
    }
}

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

use libmimalloc_sys::{
    mi_collect, mi_free, mi_malloc, mi_malloc_aligned, mi_option_set, mi_option_t, mi_realloc,
    mi_realloc_aligned, mi_zalloc, mi_zalloc_aligned,
};
use rustix::fs::{Mode, OFlags, open};

/// The allocator of a binary that is a shim where its first argument is this word.
#[derive(Debug)]
pub struct ByRole(pub &'static str);

impl ByRole {
    /// Free memory goes back to the system soon, where a second is mimalloc's own choice: a store
    /// under load would hold 10 MB for that long, all the time. (Refused: at once. A write costs
    /// more where memory goes back that the next one needs.)
    pub fn give_back_soon(&self) {
        if !self.is_shim() {
            // SAFETY: an option may be set at any time; one that is read meanwhile is a number.
            unsafe { mi_option_set(PURGE_DELAY, GIVE_BACK_MS) };
        }
    }
}

impl ByRole {
    /// Gives back what has been free for long enough. To be called now and then: mimalloc itself
    /// looks only when more is taken.
    pub fn give_back(&self) {
        if !self.is_shim() {
            // SAFETY: it may be called at any time.
            unsafe { mi_collect(false) };
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

/// `MI_MAX_ALIGN_SIZE`: what the C standard promises of every block.
const MAX_ALIGN: usize = 16;

/// Whether mimalloc aligns a block like this without being asked. Asked, it takes a larger block
/// unless a fitting one happens to be free.
fn is_plain(size: usize, align: usize) -> bool {
    align <= MAX_ALIGN && align <= size
}

// SAFETY: both are allocators, and a process only ever uses one of them. What any of mimalloc's
// functions gave out all of them take back.
unsafe impl GlobalAlloc for ByRole {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: the caller's promises are passed on.
        unsafe {
            match (self.is_shim(), is_plain(size, align)) {
                (true, _) => System.alloc(layout),
                (_, true) => mi_malloc(size).cast(),
                (_, false) => mi_malloc_aligned(size, align).cast(),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: the caller's promises are passed on.
        unsafe {
            match (self.is_shim(), is_plain(size, align)) {
                (true, _) => System.alloc_zeroed(layout),
                (_, true) => mi_zalloc(size).cast(),
                (_, false) => mi_zalloc_aligned(size, align).cast(),
            }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on, to the one that gave this memory out.
        unsafe {
            if self.is_shim() { System.dealloc(memory, layout) } else { mi_free(memory.cast()) }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let align = layout.align();
        // SAFETY: the caller's promises are passed on, to the one that gave this memory out.
        unsafe {
            match (self.is_shim(), is_plain(size, align)) {
                (true, _) => System.realloc(memory, layout, size),
                (_, true) => mi_realloc(memory.cast(), size).cast(),
                (_, false) => mi_realloc_aligned(memory.cast(), size, align).cast(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

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

    /// Of every size and alignment, and after it grew.
    #[test]
    fn every_block_is_aligned_and_keeps_what_is_in_it() {
        let server = ByRole("pod-shim");
        let sizes = (1..300).chain([511, 1000, 1024, 1025, 4096, 5000, 70_000, 3 << 20]);
        for (size, align) in sizes.flat_map(|size| (0..8).map(move |bits| (size, 1 << bits))) {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: nothing is read or written but what was asked for, and all of it given back.
            unsafe {
                let zeroed = server.alloc_zeroed(layout);
                assert!(slice::from_raw_parts(zeroed, size).iter().all(|&byte| byte == 0));
                zeroed.write_bytes(7, size);
                // Some find a free block that happens to fit, others have to look for one.
                let others: Vec<*mut u8> = (0..20).map(|_| server.alloc(layout)).collect();
                let grown = server.realloc(zeroed, layout, 2 * size + 1);
                assert!(slice::from_raw_parts(grown, size).iter().all(|&byte| byte == 7));
                let fits = |block: &*mut u8| block.addr().is_multiple_of(align);
                assert!(others.iter().all(fits) && fits(&grown), "{size} {align}");
                others.into_iter().for_each(|block| server.dealloc(block, layout));
                let layout = Layout::from_size_align(2 * size + 1, align).unwrap();
                server.dealloc(grown, layout);
            }
        }
    }

    /// Without being told it would stay for ever.
    #[test]
    fn what_is_free_goes_back() {
        let (server, layout) = (ByRole("pod-shim"), Layout::new::<[u64; 40]>());
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        server.give_back_soon();
        // SAFETY: what is taken is given back.
        unsafe {
            let block = || server.alloc_zeroed(layout).cast::<[u64; 40]>();
            let blocks: Vec<_> = (0..100_000).map(|_| block()).collect();
            blocks.iter().for_each(|block| block.write([1; 40]));
            let full = resident();
            blocks.into_iter().for_each(|block| server.dealloc(block.cast(), layout));
            while resident() > full - (20 << 20) {
                server.give_back();
            }
        }
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

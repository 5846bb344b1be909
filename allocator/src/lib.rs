//! The proxy's memory allocator: mimalloc, which never returns null here.
//!
//! `Box::new(value)` builds a large value on the stack and copies it to the heap. The compiler builds it in place only where it can see that
//! the allocation does not fail, for after a failure the value would have to be dropped. Pingora boxes a future of 13 KB for each request, of
//! which a few hundred bytes are in use when it is boxed; the copy of the rest was a third of the instructions of a request. So this allocator
//! ends the process when memory runs out, which is what Rust does with a null anyway.
//!
//! This is the one crate here with `unsafe` code.

use std::alloc::{GlobalAlloc, Layout, handle_alloc_error};
use std::ffi::c_void;

use libmimalloc_sys::{
    mi_free, mi_malloc, mi_malloc_aligned, mi_realloc, mi_realloc_aligned, mi_zalloc, mi_zalloc_aligned,
};

/// mimalloc as a global allocator that returns memory or ends the process.
pub struct Allocator;

/// What mimalloc aligns every block to, whatever its size.
const WORD: usize = size_of::<usize>();

// SAFETY: mimalloc's functions keep the contract of `GlobalAlloc` but for null, which `present` does not let through. A block of the plain
// functions is aligned to a word at least; those that take an alignment keep it. Nothing here unwinds: `handle_alloc_error` aborts.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and any power of two are fine, and a `Layout` has no other alignment.
        let block = unsafe {
            if layout.align() <= WORD {
                mi_malloc(layout.size())
            } else {
                mi_malloc_aligned(layout.size(), layout.align())
            }
        };
        present(block, layout)
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let block = unsafe {
            if layout.align() <= WORD {
                mi_zalloc(layout.size())
            } else {
                mi_zalloc_aligned(layout.size(), layout.align())
            }
        };
        present(block, layout)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: the caller says that the block is one of ours and is not used again. mimalloc frees all kinds of blocks alike.
        unsafe { mi_free(block.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller says that the block is one of ours, with this layout.
        let block = unsafe {
            if layout.align() <= WORD {
                mi_realloc(block.cast(), size)
            } else {
                mi_realloc_aligned(block.cast(), size, layout.align())
            }
        };
        present(block, layout)
    }
}

/// The block, which is there, or the end of the process.
#[inline]
fn present(block: *mut c_void, layout: Layout) -> *mut u8 {
    if block.is_null() {
        out_of_memory(layout)
    }
    block.cast()
}

#[cold]
#[inline(never)]
fn out_of_memory(layout: Layout) -> ! {
    handle_alloc_error(layout)
}

#[cfg(test)]
mod tests {
    use std::alloc::{alloc, alloc_zeroed, dealloc, realloc};
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[global_allocator]
    static ALLOCATOR: Allocator = Allocator;

    /// Makes the test of the end run out of memory, in a process of its own.
    const RUN_OUT: &str = "ALLOCATOR_TEST_RUN_OUT";

    #[test]
    fn blocks_are_aligned_zeroed_and_keep_what_is_in_them() {
        for align in (0..=13).map(|power| 1 << power) {
            for size in [1, 7, 8, 9, 15, 16, 17, 64, 1000, 4096, 70_000, 3 << 20] {
                let layout = Layout::from_size_align(size, align).expect("a small layout");
                // SAFETY: the sizes are not 0, each block is written within its size, and is freed once with the layout that it has.
                unsafe {
                    let block = alloc(layout);
                    assert_eq!(block.align_offset(align), 0, "{layout:?}");
                    block.write_bytes(7, size);
                    let larger = realloc(block, layout, size * 2);
                    assert_eq!(larger.align_offset(align), 0, "{layout:?} made larger");
                    assert!(
                        std::slice::from_raw_parts(larger, size).iter().all(|byte| *byte == 7),
                        "{layout:?}"
                    );
                    dealloc(
                        larger,
                        Layout::from_size_align(size * 2, align).expect("a small layout"),
                    );
                    let zeroed = alloc_zeroed(layout);
                    assert_eq!(zeroed.align_offset(align), 0, "{layout:?} zeroed");
                    assert!(
                        std::slice::from_raw_parts(zeroed, size).iter().all(|byte| *byte == 0),
                        "{layout:?}"
                    );
                    dealloc(zeroed, layout);
                }
            }
        }
    }

    #[test]
    fn the_process_ends_when_memory_runs_out() {
        let size = isize::MAX as usize / 2;
        if std::env::var_os(RUN_OUT).is_some() {
            let there = Vec::<u8>::new().try_reserve(size).is_ok();
            panic!("{size} bytes: {there}");
        }
        let out = Command::new(std::env::current_exe().expect("this test's path"))
            .args(["--exact", "tests::the_process_ends_when_memory_runs_out", "--nocapture"])
            .env(RUN_OUT, "yes")
            .output()
            .expect("this test runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.signal(), Some(6), "SIGABRT: {said}");
        assert!(
            said.contains(&format!("memory allocation of {size} bytes failed")),
            "{said}"
        );
    }
}

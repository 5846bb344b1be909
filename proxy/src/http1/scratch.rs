//! Lends buffers for the time of a read or a write.
//!
//! Each thread has a few. A connection that waits holds none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use bytes::BytesMut;

/// How much is read at a time, at most.
pub const SCRATCH: usize = 64 << 10;

/// How many a thread keeps: one for each direction, and one to encode into.
const KEPT: usize = 3;

thread_local! {
    static FREE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with a capacity of at least [`SCRATCH`], until it is dropped.
#[derive(Debug)]
pub struct Scratch(BytesMut);

impl Scratch {
    /// Takes one of the thread's.
    pub fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(free.unwrap_or_else(|| BytesMut::with_capacity(SCRATCH)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        buffer.clear();
        FREE.with_borrow_mut(|free| {
            // What has grown, or was cut, is not worth keeping.
            if free.len() < KEPT && (SCRATCH..=2 * SCRATCH).contains(&buffer.capacity()) {
                free.push(buffer);
            }
        });
    }
}

impl Deref for Scratch {
    type Target = BytesMut;

    fn deref(&self) -> &BytesMut {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut BytesMut {
        &mut self.0
    }
}

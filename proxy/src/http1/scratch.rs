//! Lends buffers for the time of a read or a write.
//!
//! Each thread has a few. A connection that waits holds none.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How much is read at a time, at most.
pub const SCRATCH: usize = 64 << 10;

/// Room for that much and for what is written around it: a head, the framing of a chunk.
const CAPACITY: usize = SCRATCH + (4 << 10);

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
        Self(free.unwrap_or_else(|| BytesMut::with_capacity(CAPACITY)))
    }

    /// Appends what is read from `stream`, at most [`SCRATCH`] bytes. Ready with 0 at the end of the stream.
    ///
    /// # Errors
    /// Those of `stream`.
    pub fn poll_read(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        pin!(stream.read_buf(&mut (&mut self.0).limit(SCRATCH))).poll(context)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        buffer.clear();
        FREE.with_borrow_mut(|free| {
            // What has grown, or was cut, is not worth keeping.
            if free.len() < KEPT && (SCRATCH..=CAPACITY).contains(&buffer.capacity()) {
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn no_more_is_read_at_a_time_after_a_buffer_has_grown() {
        let mut context = Context::from_waker(Waker::noop());
        let mut grown = Scratch::take();
        grown.put_bytes(0, CAPACITY + 1);
        drop(grown);
        for _ in 0..=KEPT {
            let mut read = Scratch::take();
            assert!(read.poll_read(&mut tokio::io::repeat(b'a'), &mut context).is_ready());
            assert_eq!(read.len(), SCRATCH);
            // What is written around it fits.
            read.put_bytes(0, CAPACITY - SCRATCH);
            assert_eq!(read.capacity(), CAPACITY);
        }
    }
}

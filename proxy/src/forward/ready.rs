//! Futures of hooks that have nothing to wait for. They have no state, so boxing one takes no allocation.

use std::pin::Pin;
use std::task::{Context, Poll};

use pingora::prelude::Result;

/// Of a hook that can't fail.
pub(super) struct Done;

impl Future for Done {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// Of one that can fail, and does not.
pub(super) struct Passed;

impl Future for Passed {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }
}

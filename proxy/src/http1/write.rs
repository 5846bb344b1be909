//! Writes what is in two places as if it were in one.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// Writes some of `first` and, behind it, of `second` in one system call; returns how many bytes. At least one is not empty.
///
/// # Errors
/// As the stream has them, and when it takes nothing.
pub fn poll_write_both(
    stream: Pin<&mut impl AsyncWrite>,
    context: &mut Context<'_>,
    first: &[u8],
    second: &[u8],
) -> Poll<io::Result<usize>> {
    let written = match (first, second) {
        (only, []) | ([], only) => ready!(stream.poll_write(context, only))?,
        _ => {
            let both = [IoSlice::new(first), IoSlice::new(second)];
            ready!(stream.poll_write_vectored(context, &both))?
        }
    };
    Poll::Ready(if written == 0 {
        Err(io::ErrorKind::WriteZero.into())
    } else {
        Ok(written)
    })
}

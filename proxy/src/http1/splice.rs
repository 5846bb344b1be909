//! Moves bytes from one TCP connection to another within the kernel, without copies (splice(2)).
//!
//! They go through a pipe, of which each thread keeps one. It is always left empty: what the second connection does not take is read
//! into memory, where it is counted and waits as all that is held does.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::http1::scratch::SCRATCH;

/// From how many bytes on this takes less time than copies, which need as many system calls.
pub const WORTHWHILE: u64 = 16 << 10;

thread_local! {
    static PIPE: Cell<Option<Pipe>> = const { Cell::new(None) };
}

/// An empty pipe.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, writer })
    }

    /// Fills it with some of what has come from `from`, `most` bytes of it.
    fn poll_fill(&self, from: &TcpStream, most: usize, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(context))?;
            let came = from.try_io(Interest::READABLE, || {
                Ok(splice(from, None, &self.writer, None, most, SpliceFlags::NONBLOCK)?)
            });
            // As the pipe is empty, it is `from` that has nothing.
            if !matches!(&came, Err(error) if error.kind() == ErrorKind::WouldBlock) {
                return Poll::Ready(came);
            }
        }
    }

    /// Sends what is in it, `count` bytes, as long as `to` takes any. Returns how many.
    fn send(&self, to: &TcpStream, count: usize) -> usize {
        let mut sent = 0;
        while sent < count {
            let more = to.try_io(Interest::WRITABLE, || {
                Ok(splice(
                    &self.reader,
                    None,
                    to,
                    None,
                    count - sent,
                    SpliceFlags::NONBLOCK,
                )?)
            });
            match more {
                Ok(more @ 1..) => sent += more,
                // If `to` has failed, whoever sends it the rest is told.
                _ => break,
            }
        }
        sent
    }

    /// Reads what is in it, `count` bytes.
    fn empty(&self, count: usize) -> io::Result<BytesMut> {
        let mut bytes = BytesMut::zeroed(count);
        let mut read = 0;
        while read < count {
            read += match rustix::io::read(&self.reader, &mut bytes[read..])? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                more => more,
            };
        }
        Ok(bytes)
    }
}

/// What has come, and was moved.
#[derive(Debug)]
pub struct Moved {
    /// How many bytes came.
    pub came: usize,
    /// How many of them were sent.
    pub sent: usize,
    /// The others.
    pub left: BytesMut,
}

/// Moves what has come from `from` to `to`, at most `most` bytes. Ready when anything has come; with none if that can't be moved so, or is
/// the end, which reading tells.
///
/// # Errors
/// Those of `from`, which the kernel tells once; and when what came is lost.
pub fn poll_splice(
    from: &TcpStream,
    to: &TcpStream,
    most: usize,
    context: &mut Context<'_>,
) -> Poll<io::Result<Option<Moved>>> {
    let Some(pipe) = PIPE.take().or_else(|| Pipe::new().ok()) else {
        return Poll::Ready(Ok(None));
    };
    let filled = pipe.poll_fill(from, most.min(SCRATCH), context);
    let moved = match filled {
        Poll::Ready(Ok(came @ 1..)) => {
            let sent = pipe.send(to, came);
            let left = pipe.empty(came - sent)?;
            Poll::Ready(Ok(Some(Moved { came, sent, left })))
        }
        Poll::Ready(Err(error)) if !is_refusal(&error) => Poll::Ready(Err(error)),
        Poll::Ready(_) => Poll::Ready(Ok(None)),
        Poll::Pending => Poll::Pending,
    };
    PIPE.set(Some(pipe));
    moved
}

/// Whether the kernel does not splice here, which says nothing about the connection.
fn is_refusal(error: &io::Error) -> bool {
    use ErrorKind::{InvalidInput, OutOfMemory, PermissionDenied, Unsupported};
    matches!(
        error.kind(),
        InvalidInput | OutOfMemory | PermissionDenied | Unsupported
    )
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use rustix::io::Errno;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().await.unwrap().0)
    }

    async fn try_moved(from: &TcpStream, to: &TcpStream) -> io::Result<Option<Moved>> {
        let moved = poll_fn(|context| poll_splice(from, to, usize::MAX, context));
        tokio::time::timeout(Duration::from_secs(10), moved).await.unwrap()
    }

    async fn moved(from: &TcpStream, to: &TcpStream) -> Option<Moved> {
        try_moved(from, to).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_moved_and_what_is_left_are_what_came() {
        let ((mut origin, from), (mut to, mut client)) = (pair().await, pair().await);
        let body: Vec<u8> = (0..4 << 20).map(|_| fastrand::u8(..)).collect();
        let sent = body.clone();
        tokio::spawn(async move { origin.write_all(&sent).await });
        // Until the kernel takes no more, nobody reads.
        let (mut count, mut left) = (0, BytesMut::new());
        while left.is_empty() {
            let moved = moved(&from, &to).await.unwrap();
            assert_eq!(moved.came, moved.sent + moved.left.len());
            assert!((1..=SCRATCH).contains(&moved.came));
            count += moved.came;
            left = moved.left;
        }
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.map(|_| read)
        });
        loop {
            to.write_all(&left).await.unwrap();
            if count == body.len() {
                break;
            }
            let moved = moved(&from, &to).await.unwrap();
            count += moved.came;
            left = moved.left;
        }
        drop(to);
        assert!(reading.await.unwrap().unwrap() == body);
        assert!(moved(&from, &from).await.is_none(), "its end");
    }

    #[tokio::test]
    async fn no_pipe_is_left_with_what_a_client_did_not_take() {
        let ((mut origin, from), (to, client)) = (pair().await, pair().await);
        client.set_zero_linger().unwrap();
        drop(client);
        to.readable().await.unwrap();
        for said in [b"one", b"two"] {
            origin.write_all(said).await.unwrap();
            let moved = moved(&from, &to).await.unwrap();
            assert_eq!((moved.sent, &moved.left[..]), (0, &said[..]));
        }
    }

    #[tokio::test]
    async fn a_reset_is_told_as_one_and_what_a_kernel_refuses_is_not() {
        let ((origin, from), (to, _client)) = (pair().await, pair().await);
        origin.set_zero_linger().unwrap();
        drop(origin);
        let reset = try_moved(&from, &to).await.unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        for errno in [Errno::INVAL, Errno::NOSYS, Errno::PERM, Errno::NOMEM, Errno::OPNOTSUPP] {
            assert!(is_refusal(&errno.into()), "{errno}");
        }
        for errno in [Errno::CONNRESET, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::PIPE] {
            assert!(!is_refusal(&errno.into()), "{errno}");
        }
    }
}

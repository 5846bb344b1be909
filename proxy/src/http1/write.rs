//! Writes what is in two places as if it were in one.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;

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

/// The same for the last bytes on a connection that is closed behind them. The kernel holds the last segment back, so that the end of the
/// connection goes out in it, and needs none of its own.
///
/// # Errors
/// As the connection has them.
pub fn poll_write_last(
    stream: &TcpStream,
    context: &mut Context<'_>,
    first: &[u8],
    second: &[u8],
) -> Poll<io::Result<usize>> {
    let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
    let send_both = || match (first, second) {
        (only, []) | ([], only) => send(stream, only, flags),
        _ => {
            let both = [IoSlice::new(first), IoSlice::new(second)];
            sendmsg(stream, &both, &mut SendAncillaryBuffer::default(), flags)
        }
    };
    loop {
        ready!(stream.poll_write_ready(context))?;
        let written = stream.try_io(Interest::WRITABLE, || Ok(send_both()?));
        if !matches!(&written, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            return Poll::Ready(written);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::fd::AsRawFd;

    use pingora::protocols::l4::ext::get_tcp_info;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_last_bytes_wait_for_the_end_and_are_lost_by_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut waited = false;
        // The kernel holds them back for a fifth of a second at most, and this test may be held up for longer.
        for _ in 0..100 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            let written = poll_fn(|context| poll_write_last(&server, context, b"head", b"body")).await;
            assert_eq!(written.unwrap(), 8);
            waited |= get_tcp_info(server.as_raw_fd()).unwrap().tcpi_notsent_bytes == 8;
            drop(server);
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, b"headbody");
        }
        assert!(waited);
    }

    #[tokio::test]
    async fn more_than_the_kernel_takes_is_written_in_parts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let body = vec![b'x'; 16 << 20];
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.map(|_| read.len())
        });
        let (mut sent, mut parts) = (0, 0);
        while sent < body.len() {
            sent += poll_fn(|context| poll_write_last(&server, context, b"", &body[sent..]))
                .await
                .unwrap();
            parts += 1;
        }
        drop(server);
        assert_eq!(reading.await.unwrap().unwrap(), body.len());
        assert!(parts > 1);
    }
}

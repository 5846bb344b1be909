//! The client's stream, shut behind the request that is being served.
//!
//! A client may send its next request before it has the answer to the last (pipelining). Pingora, waiting for a client that goes
//! away, would take the first byte of it for a mistake and end the request in flight. So Pingora reads through a [`Gate`], which
//! gives it the bytes of the current request and holds what comes after; that a client has gone away is still seen.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much of later requests is held; the rest waits in the kernel, as a client that sends too fast must.
const MAX_HELD: usize = 16 << 10;

/// A client's stream and how much of it the current request may read.
#[derive(Debug)]
pub struct Gate {
    stream: Stream,
    /// How many bytes of the current request are still to come; `None`: as many as there are.
    left: Option<u64>,
    held: BytesMut,
}

impl Gate {
    /// An open gate in front of `stream`.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            left: None,
            held: BytesMut::new(),
        }
    }

    /// Lets `left` more bytes through, or all there are.
    pub fn limit(&mut self, left: Option<u64>) {
        self.left = left;
    }

    /// Opens the gate and returns what it has held.
    pub fn open(&mut self) -> BytesMut {
        self.left = None;
        std::mem::take(&mut self.held)
    }

    /// Reads ahead while the request is being served. Ready only when the client has gone away.
    fn poll_hold(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held.len() < MAX_HELD {
            let mut bytes = [0; 1024];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
            match read.filled() {
                // Whoever has sent another request still wants its answers.
                [] if !self.held.is_empty() => break,
                [] => return Poll::Ready(Ok(())),
                more => self.held.extend_from_slice(more),
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for Gate {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let Some(left) = gate.left else {
            return Pin::new(&mut gate.stream).poll_read(context, buffer);
        };
        if left == 0 {
            return gate.poll_hold(context);
        }
        let most = buffer.remaining().min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut gate.stream).poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        gate.left = Some(left - read as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Gate {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.stream).await;
    }
}

#[async_trait]
impl Peek for Gate {
    async fn try_peek(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        self.stream.try_peek(bytes).await
    }
}

impl UniqueID for Gate {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Gate {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for Gate {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl GetProxyDigest for Gate {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for Gate {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.stream.set_socket_digest(digest);
    }
}

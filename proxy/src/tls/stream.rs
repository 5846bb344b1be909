//! A client's connection, encrypted or not.
//!
//! A TCP connection has a buffer in the kernel, and what it takes is on its way. An encrypted one has another in front of it, in
//! which something may be left. That is sent before anything else is taken, and whenever somebody reads, as an idle connection does.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// How much may be encrypted and not sent, in bytes: what a client that takes nothing makes the proxy hold beside the kernel's
/// buffers. Two records, so that one system call sends both.
pub const UNSENT: usize = 32 << 10;

/// A connection that is encrypted.
#[derive(Debug)]
pub struct Secure(TlsStream<TcpStream>);

impl Secure {
    /// The connection after its handshake.
    pub fn new(stream: TlsStream<TcpStream>) -> Self {
        Self(stream)
    }

    /// What was agreed on.
    pub fn session(&self) -> &ServerConnection {
        self.0.get_ref().1
    }

    /// Sends what is encrypted already.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.session().wants_write() {
            Pin::new(&mut self.0).poll_flush(context)
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

impl AsyncRead for Secure {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(context, buffer);
        // What was just read may want an answer that nobody else sends: a request to renegotiate is refused.
        if read.is_pending() {
            // If it can't be sent, reading says so too.
            let _ = self.poll_send(context);
        }
        read
    }
}

impl AsyncWrite for Secure {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A client's connection.
#[derive(Debug)]
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// With TLS.
    Secure(Box<Secure>),
}

/// Has the connection itself do what both kinds do.
macro_rules! both {
    ($stream:expr, $name:ident => $result:expr) => {
        match $stream {
            Stream::Plain($name) => $result,
            Stream::Secure($name) => $result,
        }
    };
}

impl Stream {
    /// The TCP connection.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Secure(stream) => stream.0.get_ref().0,
        }
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Secure(_))
    }

    /// Whether its ends have agreed on HTTP/2 (RFC 7301).
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Secure(stream) if stream.session().alpn_protocol() == Some(b"h2"))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        both!(self.get_mut(), stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        both!(self.get_mut(), stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        both!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self.get_mut(), stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(context))
    }
}

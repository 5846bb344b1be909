//! A client's connection as `h2` reads and writes it.
//!
//! `h2` writes whenever there is something to write, and waits for as long as nobody takes it. Here a client that takes nothing, or
//! too little, has the deadlines of a response: however many streams it has, they share one connection, and what waits for
//! it is in memory. And at the end, the connection is closed so that the client can read all that it was sent.
//!
//! `h2` doesn't mind which frame is the first behind a client's preface. RFC 9113, section 3.4, does.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http1::closing::{Linger, poll_linger};
use crate::http1::progress::Limits;
use crate::http1::rate::Rate;
use crate::http1::timer::Timer;
use crate::tls::stream::Stream;

/// Where the kind of the first frame is: behind the preface of 24 bytes, and the frame's length.
const FIRST_KIND: u8 = 24 + 3;

/// The kind of a SETTINGS frame.
const SETTINGS: u8 = 4;

/// A connection.
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    /// What was received before it was known what the client speaks.
    received: BytesMut,
    /// How much `h2` has read, up to the kind of the first frame.
    begun: u8,
    limits: Limits,
    writing: Rate,
    timer: Timer,
    linger: Option<Linger>,
}

impl Io {
    /// The connection `stream`, of which so much has been `received`.
    pub fn new(stream: Stream, received: BytesMut, limits: Limits) -> Self {
        Self {
            stream,
            received,
            begun: 0,
            limits,
            writing: Rate::default(),
            timer: Timer::default(),
            linger: None,
        }
    }

    /// Takes note of the first bytes, piece by piece: an error when the first frame is not SETTINGS.
    fn begin(&mut self, piece: &[u8]) -> io::Result<()> {
        let kind = piece.get(usize::from(FIRST_KIND - self.begun));
        if kind.is_some_and(|kind| *kind != SETTINGS) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the first frame is not SETTINGS",
            ));
        }
        let read = u8::try_from(piece.len()).unwrap_or(u8::MAX);
        self.begun = self.begun.saturating_add(read);
        Ok(())
    }

    /// What becomes of a write: an error when the client takes too little.
    fn judge<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let too_slow = || {
            io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes too little of what it is sent",
            )
        };
        match written {
            Poll::Ready(Ok(written)) if self.writing.keeps(bytes(&written), self.limits.min_rate) => {
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(Err(too_slow())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.writing.wait();
                let since = self.writing.waits_since().unwrap_or_else(Instant::now);
                ready!(self.timer.poll(context, since, self.limits.write_timeout));
                Poll::Ready(Err(too_slow()))
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.received.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        } else {
            let here = this.received.len().min(buffer.remaining());
            buffer.put_slice(&this.received[..here]);
            this.received.advance(here);
            if this.received.is_empty() {
                this.received = BytesMut::new();
            }
        }
        Poll::Ready(if this.begun > FIRST_KIND {
            Ok(())
        } else {
            this.begin(&buffer.filled()[before..])
        })
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.judge(context, written, |written| *written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, bytes);
        this.judge(context, written, |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        this.judge(context, flushed, |()| 0)
    }

    /// Ends our half, and then reads on until the client has what it was sent: closing on one that still sends would destroy what it
    /// has not read.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            let ended = Pin::new(&mut this.stream).poll_shutdown(context);
            // TCP ends at once. TLS first sends what is left.
            ready!(this.judge(context, ended, |()| 0))?;
        }
        let linger = this.linger.get_or_insert_with(Linger::new);
        poll_linger(&mut this.stream, &mut this.timer, linger, context).map(Ok)
    }
}

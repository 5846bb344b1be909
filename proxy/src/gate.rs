//! The client's stream, shut behind the request that is being served.
//!
//! Pingora reads a client through a [`Gate`], for four reasons:
//!
//! - A client may send its next request before it has the answer to the last (pipelining). Pingora, waiting for a client that
//!   goes away, would take the first byte of it for a mistake and end the request in flight. The gate lets the bytes of the
//!   current request through and holds what comes after.
//! - Pingora reads chunked bodies leniently; the gate follows their framing strictly ([`Chunks`]).
//! - Pingora has a deadline for writing a body, but none for a head or a flush, so that a client that does not read would be
//!   waited for as long as it likes. The gate has one for each write.
//! - A client that sends or takes a byte now and then meets every deadline and holds a connection, a backend's too, for as
//!   long as it likes. So there is a minimum for the average, over the time that was spent waiting for the client.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};

use crate::chunks::{BadFraming, Chunks};

/// How much of later requests is held; the rest waits in the kernel, as a client that sends too fast must.
const MAX_HELD: usize = 16 << 10;

/// How long the rest of a request may take to arrive that nobody waits for any more. If it is not there then, the connection
/// closes.
pub const UNWANTED_BODY: Duration = Duration::from_secs(1);

/// How long a client may be waited for, in all, before the minimum rate counts.
const GRACE: Duration = Duration::from_secs(5);

/// What is still to come of the current request.
#[derive(Debug)]
pub enum Rest {
    /// All there is: between requests, and on a connection that may be switched to another protocol.
    All,
    /// So many bytes.
    Length(u64),
    /// Until the last chunk.
    Chunked(Chunks),
}

impl Rest {
    /// Whether the request ends here.
    pub fn ended(&self) -> bool {
        match self {
            Self::All => false,
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.ended(),
        }
    }
}

/// A client's stream and how much of it the current request may read.
#[derive(Debug)]
pub struct Gate {
    stream: Stream,
    rest: Rest,
    /// How much more may be held.
    room: usize,
    held: BytesMut,
    write_timeout: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Bytes a second.
    min_rate: Option<u64>,
    reading: Pace,
    writing: Pace,
}

/// How fast a client is in one direction, in the current request, while it is waited for.
#[derive(Debug, Default)]
struct Pace {
    since: Option<Instant>,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Notes that the client is waited for.
    fn wait(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Notes so many bytes. Returns false when the client is slower than so many a second. What it sends or takes without being
    /// waited for (all of a small body, what fits into the kernel's buffers) does not count for it.
    fn keeps(&mut self, bytes: usize, min_rate: Option<u64>) -> bool {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
            self.bytes += bytes as u64;
        }
        let owed = self.waited.saturating_sub(GRACE).as_secs_f64();
        min_rate.is_none_or(|rate| self.bytes as f64 >= rate as f64 * owed)
    }
}

impl Gate {
    /// An open gate in front of `stream`, whose client may take `write_timeout` before it reads on, and must send and take
    /// `min_rate` bytes a second.
    pub fn new(stream: Stream, write_timeout: Duration, min_rate: Option<u64>) -> Self {
        Self {
            stream,
            rest: Rest::All,
            room: 0,
            held: BytesMut::new(),
            write_timeout,
            stalled: None,
            min_rate,
            reading: Pace::default(),
            writing: Pace::default(),
        }
    }

    /// Shuts the gate behind `rest`. `waiting` bytes of later requests have been read already.
    pub fn shut_behind(&mut self, rest: Rest, waiting: usize) {
        self.rest = rest;
        self.room = MAX_HELD.saturating_sub(waiting);
        self.reading = Pace::default();
        self.writing = Pace::default();
    }

    /// Opens the gate and returns what it has held.
    pub fn open(&mut self) -> BytesMut {
        self.rest = Rest::All;
        std::mem::take(&mut self.held)
    }

    /// Reads the rest of the current request and forgets it.
    ///
    /// # Errors
    /// When it does not come within [`UNWANTED_BODY`], or its framing is broken.
    pub async fn discard(&mut self) -> io::Result<()> {
        let discarded = poll_fn(|context| {
            while !self.rest.ended() {
                let mut room = [MaybeUninit::uninit(); 4096];
                let mut read = ReadBuf::uninit(&mut room);
                ready!(Pin::new(&mut *self).poll_read(context, &mut read))?;
                if read.filled().is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            Poll::Ready(Ok(()))
        });
        timeout(UNWANTED_BODY, discarded).await?
    }

    /// Reads ahead while the request is being served. Ready only when the client has gone away.
    fn poll_hold(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held.len() < self.room {
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

    /// Reads some of the body of the current request. Gives up a client that is too slow.
    fn poll_body(&mut self, context: &mut Context<'_>, part: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, part);
        if read.is_pending() {
            self.reading.wait();
            return Poll::Pending;
        }
        if read.is_ready() && !self.reading.keeps(part.filled().len(), self.min_rate) {
            return Poll::Ready(Err(too_slow()));
        }
        read
    }

    /// Gives up a write that the client lets wait for too long, and a client that takes too little in all.
    fn limit<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let Poll::Ready(written) = written else {
            self.writing.wait();
            let limit = self.write_timeout;
            let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
            ready!(stalled.as_mut().poll(context));
            return Poll::Ready(Err(too_slow()));
        };
        self.stalled = None;
        if written
            .as_ref()
            .is_ok_and(|written| !self.writing.keeps(bytes(written), self.min_rate))
        {
            return Poll::Ready(Err(too_slow()));
        }
        Poll::Ready(written)
    }
}

impl AsyncRead for Gate {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        match &mut gate.rest {
            Rest::All => Pin::new(&mut gate.stream).poll_read(context, buffer),
            rest if rest.ended() => gate.poll_hold(context),
            Rest::Length(left) => {
                let most = buffer.remaining().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
                ready!(gate.poll_body(context, &mut part))?;
                let read = part.filled().len();
                buffer.advance(read);
                if let Rest::Length(left) = &mut gate.rest {
                    *left -= read as u64;
                }
                Poll::Ready(Ok(()))
            }
            Rest::Chunked(_) => {
                let mut part = ReadBuf::new(buffer.initialize_unfilled());
                ready!(gate.poll_body(context, &mut part))?;
                let Rest::Chunked(chunks) = &mut gate.rest else {
                    return Poll::Ready(Ok(()));
                };
                let read = chunks.follow(part.filled()).map_err(|BadFraming| bad_framing())?;
                gate.held.extend_from_slice(&part.filled()[read..]);
                buffer.advance(read);
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// The error that a body with broken framing ends in; [`is_bad_framing`] knows it again.
fn bad_framing() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the chunks of the body are not framed as they must be",
    )
}

/// Whether `error` is a client's broken framing.
pub fn is_bad_framing(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// The error that a client's slowness ends in; [`is_too_slow`] knows it again.
fn too_slow() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// Whether `error` is a client's slowness.
pub fn is_too_slow(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

impl AsyncWrite for Gate {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = Pin::new(&mut gate.stream).poll_write(context, bytes);
        gate.limit(context, written, |bytes| *bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let flushed = Pin::new(&mut gate.stream).poll_flush(context);
        gate.limit(context, flushed, |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let shut = Pin::new(&mut gate.stream).poll_shutdown(context);
        gate.limit(context, shut, |()| 0)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = Pin::new(&mut gate.stream).poll_write_vectored(context, slices);
        gate.limit(context, written, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Gate {
    async fn shutdown(&mut self) {
        // Through our own half, which has the deadline.
        let _ = AsyncWriteExt::shutdown(self).await;
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

//! The client's stream, closed to Pingora behind the end of the current request.
//!
//! Pingora reads a client through a [`Gate`], for five reasons:
//!
//! - A client may send its next request before it has the answer to the last (pipelining). Pingora, watching for a client that
//!   goes away, would treat its first byte as an error and end the request in flight. The gate lets the bytes of the
//!   current request through and holds what comes after.
//! - Pingora reads chunked bodies leniently; the gate follows their framing strictly ([`Chunks`]).
//! - Pingora has a deadline for writing a body, but none for a head or a flush, so a client that does not read could
//!   make it wait for ever. The gate has one for each write.
//! - A client that sends or takes a byte now and then meets every deadline and holds a connection, a backend's too, for as
//!   long as it likes. So there is a minimum for the average, over the time that was spent waiting for the client.
//! - Pingora sets a timer for each read from a backend. The gate sees when the whole request has been read and nothing of a
//!   response comes, so it can detect a silent backend with a [`LazyTimer`].
//!
//! And an idle connection has no buffers: the gate reads past one on the stack, and gathers what is written only until it is sent.
//!
//! What ends a request here reaches Pingora as an error of the client's stream, and [`fault`] knows it again.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};

use crate::http1::chunks::{BadFraming, Chunks};
use crate::http1::lazy_timer::LazyTimer;
use crate::http1::pace::Pace;

/// How much is read at a time, on the stack; most heads fit.
const READ: usize = 4096;

/// Up to this many bytes small pieces of a response are sent together.
const GATHERED: usize = 4096;

/// What a head and a small body take; room for it is made at once.
const SMALL_RESPONSE: usize = 1024;

/// How much of later requests is held; the rest waits in the kernel, as a client that sends too fast must.
const MAX_HELD: usize = 16 << 10;

/// How long the rest of a request may take to arrive that nobody waits for any more. If it is not there then, the connection
/// closes.
pub const UNWANTED_BODY: Duration = Duration::from_secs(1);

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

/// Why a request ends that the gate puts an end to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The chunks of the request are not framed as they must be.
    BadFraming,
    /// The client sends or takes too little.
    SlowClient,
    /// The backend was silent for too long.
    SilentBackend,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadFraming => "the chunks of the body are not framed as they must be",
            Self::SlowClient => "the client is too slow",
            Self::SilentBackend => "the backend said nothing for upstream.read_timeout",
        })
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::other(fault)
    }
}

/// The fault that is behind `error`, an error of a gate.
pub fn fault(error: &(dyn std::error::Error + 'static)) -> Option<Fault> {
    error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref().copied()
}

/// A client's stream and how much of it the current request may read.
#[derive(Debug)]
pub struct Gate {
    stream: Stream,
    rest: Rest,
    /// How much more may be held.
    room: usize,
    held: BytesMut,
    /// Pieces of the response that are not sent yet.
    gathered: BytesMut,
    write_timeout: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Bytes a second.
    min_rate: Option<u64>,
    reading: Pace,
    writing: Pace,
    /// Between requests it measures how long the client is idle, and within one how long the backend is silent.
    timer: LazyTimer,
    /// How long the backend may be silent; `None` where Pingora looks after that.
    patience: Option<Duration>,
    /// Since when the backend is waited for; `None` when it was heard, or the client was waited for, since that was looked at.
    silent_since: Option<Instant>,
    /// The client may be waiting for the backend's word before it sends its body.
    asked_to_wait: bool,
}

/// How the current request is served.
#[derive(Debug)]
pub struct Terms {
    /// What is still to come of it.
    pub rest: Rest,
    /// How many bytes of later requests have been read already.
    pub waiting: usize,
    /// How long the backend may be silent; `None` where Pingora looks after that.
    pub patience: Option<Duration>,
    /// The client may wait for the backend's word before it sends the rest.
    pub expects: bool,
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
            gathered: BytesMut::new(),
            write_timeout,
            stalled: None,
            min_rate,
            reading: Pace::default(),
            writing: Pace::default(),
            timer: LazyTimer::default(),
            patience: None,
            silent_since: None,
            asked_to_wait: false,
        }
    }

    /// Shuts the gate behind the current request, which began at `now`.
    pub fn shut(&mut self, terms: Terms, now: Instant) {
        self.rest = terms.rest;
        self.room = MAX_HELD.saturating_sub(terms.waiting);
        self.patience = terms.patience;
        self.silent_since = Some(now);
        self.asked_to_wait = terms.expects;
        self.reading = Pace::default();
        self.writing = Pace::default();
    }

    /// Reads what there is into `received`, past a buffer on the stack, so that a connection that waits holds none. `None` when
    /// nothing comes any more, or nothing has come until `end`.
    pub fn poll_first(&mut self, context: &mut Context<'_>, received: &mut BytesMut, end: Instant) -> Poll<Option<()>> {
        match self.poll_some(context, received) {
            Poll::Pending => self.timer.poll_until(context, end.into()).map(|()| None),
            read => read,
        }
    }

    /// The same without an end.
    pub fn poll_some(&mut self, context: &mut Context<'_>, received: &mut BytesMut) -> Poll<Option<()>> {
        let mut room = [MaybeUninit::uninit(); READ];
        let mut read = ReadBuf::uninit(&mut room);
        let failed = ready!(Pin::new(self).poll_read(context, &mut read)).is_err();
        received.extend_from_slice(read.filled());
        Poll::Ready((!failed && !read.filled().is_empty()).then_some(()))
    }

    /// Opens the gate and returns what it has held. It holds nothing more, for it may be a long time until the next request.
    pub fn open(&mut self) -> BytesMut {
        self.rest = Rest::All;
        self.patience = None;
        self.gathered = BytesMut::new();
        std::mem::take(&mut self.held)
    }

    /// Reads the rest of the current request and forgets it.
    ///
    /// # Errors
    /// When it does not come within [`UNWANTED_BODY`], or its framing is broken.
    pub async fn discard(&mut self) -> io::Result<()> {
        let discarded = poll_fn(|context| {
            while !self.rest.ended() {
                let mut room = [MaybeUninit::uninit(); READ];
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

    /// Reads ahead while the request is being served. Ready only when the client has gone away, or the backend is silent for too
    /// long.
    fn poll_hold(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held.len() < self.room {
            let mut room = [MaybeUninit::uninit(); READ];
            let mut read = ReadBuf::uninit(&mut room);
            if Pin::new(&mut self.stream).poll_read(context, &mut read)?.is_pending() {
                break;
            }
            match read.filled() {
                // Whoever has sent another request still wants its answers.
                [] if !self.held.is_empty() => break,
                [] => return Poll::Ready(Ok(())),
                more => self.held.extend_from_slice(more),
            }
        }
        self.poll_wait(context)
    }

    /// What there is to do while nothing comes from the client. Ready with an error when the backend is waited for, and is silent for
    /// too long.
    fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nobody flushes a piece of a response that is not the last; but the next may take its time.
        if let Poll::Ready(Err(error)) = self.poll_send_gathered(context) {
            return Poll::Ready(Err(error));
        }
        let Some(patience) = self.patience.filter(|_| self.asked_to_wait || self.rest.ended()) else {
            return Poll::Pending;
        };
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        ready!(self.timer.poll_until(context, (since + patience).into()));
        self.patience = None;
        Poll::Ready(Err(Fault::SilentBackend.into()))
    }

    /// Reads some of the body of the current request. Gives up a client that is too slow.
    fn poll_body(&mut self, context: &mut Context<'_>, part: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, part);
        if read.is_pending() {
            self.reading.wait();
            return self.poll_wait(context);
        }
        self.asked_to_wait = false;
        self.silent_since = None;
        if !self.reading.keeps(part.filled().len(), self.min_rate) {
            return Poll::Ready(Err(Fault::SlowClient.into()));
        }
        read
    }

    /// Gathers small pieces until they are flushed, or more of the response is waited for. One that is too large for that goes out
    /// together with what was gathered, in one system call.
    fn poll_send(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() + bytes.len() <= GATHERED {
            if self.gathered.capacity() == 0 {
                self.gathered.reserve(SMALL_RESPONSE.max(bytes.len()));
            }
            self.gathered.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        while !self.gathered.is_empty() {
            let both = [io::IoSlice::new(&self.gathered), io::IoSlice::new(bytes)];
            let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, &both))?;
            let of_these = sent.saturating_sub(self.gathered.len());
            self.sent_gathered(sent)?;
            if of_these > 0 {
                return Poll::Ready(Ok(of_these));
            }
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    /// Sends what was gathered.
    fn poll_send_gathered(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, &self.gathered))?;
            self.sent_gathered(sent)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Notes that so many bytes were sent, those that were gathered first.
    fn sent_gathered(&mut self, sent: usize) -> io::Result<()> {
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.gathered.advance(sent.min(self.gathered.len()));
        Ok(())
    }

    /// Gives up a write that the client lets wait for too long, and a client that takes too little in all.
    fn limit<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        self.asked_to_wait = false;
        self.silent_since = None;
        let Poll::Ready(written) = written else {
            self.writing.wait();
            let limit = self.write_timeout;
            let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
            ready!(stalled.as_mut().poll(context));
            return Poll::Ready(Err(Fault::SlowClient.into()));
        };
        self.stalled = None;
        if written
            .as_ref()
            .is_ok_and(|written| !self.writing.keeps(bytes(written), self.min_rate))
        {
            return Poll::Ready(Err(Fault::SlowClient.into()));
        }
        Poll::Ready(written)
    }
}

impl Drop for Gate {
    /// A response that breaks off leaves what has come of it.
    fn drop(&mut self) {
        let _ = self.poll_send_gathered(&mut Context::from_waker(Waker::noop()));
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
                let read = chunks.follow(part.filled()).map_err(|BadFraming| Fault::BadFraming)?;
                gate.held.extend_from_slice(&part.filled()[read..]);
                buffer.advance(read);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Gate {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        let written = gate.poll_send(context, bytes);
        gate.limit(context, written, |bytes| *bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let flushed = match gate.poll_send_gathered(context) {
            Poll::Ready(Ok(())) => Pin::new(&mut gate.stream).poll_flush(context),
            unsent => unsent,
        };
        gate.limit(context, flushed, |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        let shut = match gate.poll_send_gathered(context) {
            Poll::Ready(Ok(())) => Pin::new(&mut gate.stream).poll_shutdown(context),
            unsent => unsent,
        };
        gate.limit(context, shut, |()| 0)
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
    /// Pingora asks for each request, and nobody here looks at the answer.
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
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

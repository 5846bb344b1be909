//! The client's side of an exchange: its stream, what has been received on it, and its deadlines.
//!
//! - A client may send its next request before it has the answer to the last (pipelining). A body is read to its end and not a
//!   byte further; what follows stays in [`Downstream::received`].
//! - Chunked bodies are decoded strictly ([`Decoder`]), so nobody behind this proxy reads the client's framing.
//! - Every wait for the client has a deadline, and over a whole request it must keep up a minimum rate: one that sends or takes a
//!   byte now and then would meet every deadline and hold a connection, the origin's too, for as long as it likes.
//! - An idle connection has no buffers. Reads go through [`Scratch`] or the stack, and what is left over is kept until it is used.

use std::fmt;
use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use chassis::pauses;
use pingora::protocols::l4::ext::{get_recv_buf, get_tcp_info};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::http1::chunked::{BadFraming, Decoder};
use crate::http1::held::Hold;
use crate::http1::progress::{BODY_TOO_LARGE, Limits, Progress};
use crate::http1::scratch::{SCRATCH, Scratch};
use crate::http1::timer::Timer;
use crate::http1::write::{poll_write_both, poll_write_last};
use crate::rejection::Rejection;
use crate::tls::stream::Stream;

/// How much of a head is read at a time, on the stack; most heads fit.
const READ: usize = 4096;

/// How much of later requests is read while one is being served; the rest waits in the kernel, as a client that sends too fast
/// must.
const MAX_AHEAD: usize = 16 << 10;

/// How long the rest of a request body may take to arrive when nobody waits for it any more. If it is not there then, the
/// connection closes.
const UNWANTED_BODY: Duration = Duration::from_secs(1);

/// What the log says of a client that was cut so that others have room.
pub const TOO_MUCH_HELD: &str = "clients hold more than client.max_held, and this one has waited longest";

/// TCP_CLOSE and TCP_CLOSE_WAIT: how Linux numbers the states of a connection that the other end has reset, and closed.
const CLOSED: [u8; 2] = [7, 8];

/// The body of the current request.
#[derive(Debug)]
pub enum Body {
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks are.
    Chunked(Decoder),
    /// The connection was switched to another protocol: whatever comes, until the client closes.
    Tunnel {
        /// The client has closed.
        closed: bool,
    },
}

impl Body {
    /// How much is still to be read, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::Tunnel { .. } => None,
        }
    }

    /// Whether all of it has been read.
    pub fn ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(decoder) => decoder.ended(),
            Self::Tunnel { closed } => *closed,
        }
    }
}

/// What a client did that ends its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientFault {
    /// It closed the connection.
    Gone,
    /// It sent nothing, or too little.
    SlowToSend,
    /// It took nothing of the response, or too little.
    SlowToRead,
    /// The framing of its body is broken.
    BadFraming(&'static str),
    /// Its body is longer than `max_body`.
    BodyTooLarge,
    /// It has made the proxy hold for longest what is more than `client.max_held` in all.
    HeldTooMuch,
}

impl ClientFault {
    /// Whether the client takes nothing any more, and a response that it has begun to take can't be ended.
    pub fn is_stall(self) -> bool {
        matches!(self, Self::SlowToRead | Self::HeldTooMuch)
    }

    /// What it is answered, if it can be.
    pub fn rejection(self) -> Rejection {
        match self {
            // A client that takes too little has gone, in effect.
            Self::Gone | Self::SlowToRead => Rejection::ClientGone,
            Self::SlowToSend => Rejection::RequestTimeout,
            Self::BadFraming(_) => Rejection::BadRequest,
            Self::BodyTooLarge => Rejection::BodyTooLarge,
            Self::HeldTooMuch => Rejection::HeldTooMuch,
        }
    }
}

impl fmt::Display for ClientFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "the client closed the connection",
            Self::SlowToSend => "the client sent its request too slowly",
            Self::SlowToRead => "the client read the response too slowly",
            Self::BadFraming(what) => what,
            Self::BodyTooLarge => BODY_TOO_LARGE,
            Self::HeldTooMuch => TOO_MUCH_HELD,
        })
    }
}

impl From<BadFraming> for ClientFault {
    fn from(BadFraming(what): BadFraming) -> Self {
        Self::BadFraming(what)
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Downstream {
    pub(super) stream: Stream,
    /// What has been received and belongs to nobody yet: a head, the beginning of a body, later requests.
    pub received: BytesMut,
    body: Body,
    /// How much of the body has been read.
    body_bytes: u64,
    /// How much the client has been sent in all.
    pub(super) sent_bytes: u64,
    /// How it gets on with the current request.
    pub progress: Progress,
    /// For whatever is waited for on behalf of this client; never for two things at a time.
    pub timer: Timer,
    /// What it makes the proxy hold.
    pub hold: Hold,
    /// It is closed behind the response.
    pub(super) closes: bool,
    /// The end of the connection would look like the end of the response.
    pub(super) is_open_ended: bool,
}

impl Downstream {
    /// The client behind `stream`.
    pub fn new(stream: Stream, limits: &Limits, hold: Hold) -> Self {
        Self {
            stream,
            received: BytesMut::new(),
            body: Body::Length(0),
            body_bytes: 0,
            sent_bytes: 0,
            progress: Progress::new(limits),
            timer: Timer::default(),
            hold,
            closes: false,
            is_open_ended: false,
        }
    }

    /// Takes it apart, for another protocol: its stream, what has been received, and what it makes the proxy hold.
    pub fn into_parts(self) -> (Stream, BytesMut, Hold) {
        (self.stream, self.received, self.hold)
    }

    /// Begins a request with this body, which is next in `received`, under these limits.
    pub fn begin(&mut self, body: Body, limits: &Limits) {
        self.body = body;
        self.body_bytes = 0;
        self.progress = Progress::new(limits);
    }

    /// From now on the body may be so long.
    pub fn limit_body(&mut self, max: Option<u64>) {
        self.progress.limits.max_body = max;
    }

    /// The body of the current request.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// How much of it has been read.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// The trailers of a chunked body that has ended, each line with its CRLF.
    pub fn trailers(&self) -> &[u8] {
        match &self.body {
            Body::Chunked(decoder) => decoder.trailers(),
            Body::Length(_) | Body::Tunnel { .. } => b"",
        }
    }

    /// From now on whatever comes belongs to another protocol.
    pub fn switch(&mut self) {
        self.closes = false;
        self.body = Body::Tunnel { closed: false };
        self.progress.both_talk();
    }

    /// Reads ahead into `received`, past a buffer on the stack, so that a connection that waits holds none. `None` when nothing
    /// comes any more.
    pub fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Option<()>> {
        let mut room = [MaybeUninit::uninit(); READ];
        let mut read = ReadBuf::uninit(&mut room);
        let failed = ready!(Pin::new(&mut self.stream).poll_read(context, &mut read)).is_err();
        self.received.extend_from_slice(read.filled());
        Poll::Ready((!failed && !read.filled().is_empty()).then_some(()))
    }

    /// Waits for the first bytes of a request, on a connection that is idle since `since` and may be for `limit`. `None` when
    /// nothing comes any more, or in time.
    pub fn poll_first(&mut self, context: &mut Context<'_>, since: Instant, limit: Duration) -> Poll<Option<()>> {
        match self.poll_receive(context) {
            Poll::Pending => self.timer.poll(context, since, limit).map(|()| None),
            received => received,
        }
    }

    /// Reads ahead while the request is being served. Ready when the client has gone away.
    pub fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.received.len() < MAX_AHEAD {
            if ready!(self.poll_receive(context)).is_none() {
                // Whoever has sent another request still wants its answers.
                return if self.received.is_empty() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                };
            }
        }
        Poll::Pending
    }

    /// Whether the client has closed the connection, or reset it, however much it has sent before: a read would only tell behind all
    /// that. For a client that is not read from while its request waits.
    pub fn has_closed(&self) -> bool {
        get_tcp_info(self.stream.tcp().as_raw_fd()).is_ok_and(|info| CLOSED.contains(&info.tcpi_state))
    }

    /// Reads more of the body and appends its data to `data`, for which it has spare capacity. Ready when there is some, or the
    /// body has ended.
    pub fn poll_body(&mut self, context: &mut Context<'_>, data: &mut BytesMut) -> Poll<Result<(), ClientFault>> {
        let before = data.len();
        while !self.body.ended() && data.len() == before {
            if self.received.is_empty() {
                ready!(self.poll_read_body(context, data))?;
            } else {
                self.take_received(data)?;
            }
        }
        Poll::Ready(self.count(data.len() - before))
    }

    /// Counts `bytes` of the body.
    fn count(&mut self, bytes: usize) -> Result<(), ClientFault> {
        self.body_bytes += bytes as u64;
        if self.progress.limits.max_body.is_some_and(|max| self.body_bytes > max)
            && !matches!(self.body, Body::Tunnel { .. })
        {
            return Err(ClientFault::BodyTooLarge);
        }
        Ok(())
    }

    /// The connection, and how much of the body is to come on it, where it comes without chunks and TLS and none of it has been received.
    /// What is taken from it directly is noted by [`Downstream::came`].
    pub fn plain_body(&self) -> Option<(&TcpStream, u64)> {
        match (&self.stream, &self.body) {
            (Stream::Plain(stream), Body::Length(left)) if self.received.is_empty() => Some((stream, *left)),
            _ => None,
        }
    }

    /// Notes that `bytes` of the body have come, some at least.
    ///
    /// # Errors
    /// When they came too slowly, or are too many.
    pub fn came(&mut self, bytes: usize) -> Result<(), ClientFault> {
        if !self.progress.reading.keeps(bytes, self.progress.limits.min_rate) {
            return Err(ClientFault::SlowToSend);
        }
        if let Body::Length(left) = &mut self.body {
            *left -= bytes as u64;
        }
        self.count(bytes)
    }

    /// Moves what has been received of the body to `data`, as far as that has spare capacity, and reads no more.
    ///
    /// # Errors
    /// When the client is at fault.
    pub fn received_body(&mut self, data: &mut BytesMut) -> Result<(), ClientFault> {
        let before = data.len();
        self.take_received(data)?;
        self.count(data.len() - before)
    }

    fn take_received(&mut self, data: &mut BytesMut) -> Result<(), ClientFault> {
        let room = data.capacity() - data.len();
        let taken = match &mut self.body {
            Body::Chunked(decoder) => decoder.decode(&self.received, data, room)?,
            Body::Length(left) => {
                let here = u64::min(*left, self.received.len().min(room) as u64);
                *left -= here;
                // No more than was received.
                let here = usize::try_from(here).unwrap_or(usize::MAX);
                data.extend_from_slice(&self.received[..here]);
                here
            }
            Body::Tunnel { .. } => {
                let here = self.received.len().min(room);
                data.extend_from_slice(&self.received[..here]);
                here
            }
        };
        self.received.advance(taken);
        if self.received.is_empty() {
            self.received = BytesMut::new();
        }
        Ok(())
    }

    /// Reads from the stream, when nothing is left of what was received.
    fn poll_read_body(&mut self, context: &mut Context<'_>, data: &mut BytesMut) -> Poll<Result<(), ClientFault>> {
        let mut raw = None;
        let read = match &mut self.body {
            Body::Chunked(_) => {
                let raw = raw.insert(Scratch::take());
                raw.poll_read(&mut self.stream, context)
            }
            Body::Length(left) => {
                let most = usize::try_from(*left).unwrap_or(SCRATCH).min(SCRATCH);
                pin!(self.stream.read_buf(&mut (&mut *data).limit(most))).poll(context)
            }
            Body::Tunnel { .. } => pin!(self.stream.read_buf(&mut (&mut *data).limit(SCRATCH))).poll(context),
        };
        let Poll::Ready(read) = read else {
            self.progress.reading.wait();
            return Poll::Pending;
        };
        if let (Body::Tunnel { closed }, Err(_)) = (&mut self.body, &read) {
            // A reset, and not the end of one half.
            *closed = true;
            return Poll::Ready(Err(ClientFault::Gone));
        }
        let read = read.unwrap_or(0);
        if !self.progress.reading.keeps(read, self.progress.limits.min_rate) {
            return Poll::Ready(Err(ClientFault::SlowToSend));
        }
        match &mut self.body {
            Body::Tunnel { closed } => *closed = read == 0,
            _ if read == 0 => return Poll::Ready(Err(ClientFault::Gone)),
            Body::Length(left) => *left -= read as u64,
            Body::Chunked(decoder) => {
                let raw = raw.as_deref().map_or(&b""[..], |raw| raw);
                let room = data.capacity() - data.len();
                let decoded = decoder.decode(raw, data, room)?;
                self.received.extend_from_slice(&raw[decoded..]);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends some of `head` and, behind it, of `body`; returns how many bytes. `last`: the response ends with them.
    pub fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        last: bool,
    ) -> Poll<Result<usize, ClientFault>> {
        let written = match &mut self.stream {
            Stream::Plain(stream) if last && self.closes => poll_write_last(stream, context, head, body),
            stream => poll_write_both(Pin::new(stream), context, head, body),
        };
        match written {
            Poll::Ready(Ok(written)) => Poll::Ready(self.sent(written).map(|()| written)),
            Poll::Ready(Err(_)) => Poll::Ready(Err(ClientFault::Gone)),
            Poll::Pending => {
                self.progress.writing.wait();
                Poll::Pending
            }
        }
    }

    /// The connection itself, if it is not encrypted. What is sent on it directly is noted by [`Downstream::sent`].
    pub fn plain(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Plain(stream) => Some(stream),
            Stream::Secure(_) => None,
        }
    }

    /// Notes that the client has taken `count` bytes of the response.
    ///
    /// # Errors
    /// When it is too slow.
    pub fn sent(&mut self, count: usize) -> Result<(), ClientFault> {
        self.sent_bytes += count as u64;
        if self.progress.writing.keeps(count, self.progress.limits.min_rate) {
            Ok(())
        } else {
            Err(ClientFault::SlowToRead)
        }
    }

    /// Closes this half of the connection; the client may go on sending. Ready when that is done, or can't be.
    pub fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.stream).poll_shutdown(context).map(drop)
    }

    /// How much the kernel may hold of what the client sends and nobody reads, in bytes.
    pub fn receive_buffer(&self) -> usize {
        get_recv_buf(self.stream.tcp().as_raw_fd()).unwrap_or_default()
    }

    /// Reads the rest of the body and forgets it. Returns whether it came in time, so that another request may follow.
    pub async fn discard_body(&mut self) -> bool {
        if self.body.ended() {
            return true;
        }
        self.progress.limits.max_body = None;
        let discarded = poll_fn(|context| {
            while !self.body.ended() {
                let mut data = Scratch::take();
                if ready!(self.poll_body(context, &mut data)).is_err() {
                    return Poll::Ready(false);
                }
            }
            Poll::Ready(true)
        });
        pauses::timeout(UNWANTED_BODY, discarded).await.unwrap_or(false)
    }
}

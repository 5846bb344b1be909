//! How a client's connection ends.

use std::future::poll_fn;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use chassis::pauses;
use pingora::protocols::l4::ext::get_tcp_info;
use rustix::net::{RecvFlags, recv};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;

use crate::http1::downstream::Downstream;
use crate::http1::held::SMALL;
use crate::http1::scratch::Scratch;
use crate::http1::timer::Timer;
use crate::tls::stream::Stream;

/// How long a client is listened to once it has taken everything: closing on one that still sends would destroy what it has not
/// read (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_millis(500);
/// How long it may take to take everything.
const LINGER_UNREAD: Duration = Duration::from_secs(30);
/// How long the kernel keeps what a client has not taken that will take nothing more. No time at all would mean its default.
const FORGOTTEN: Duration = Duration::from_millis(1);
/// How much of what it sends meanwhile is read.
const LINGER_BYTES: usize = 256 << 10;

impl Downstream {
    /// Ends our half of the connection of a client that means to send nothing more, if the other need not be waited for: it has sent nothing
    /// more yet, or the kernel would reset the connection, and what it was sent is on its way but for a little, or the kernel would keep
    /// that uncounted. With TLS the end has to be said, too.
    pub fn end_at_once(&self) -> bool {
        let (tcp, all_read) = (self.stream.tcp(), self.received.is_empty() && self.body().ended());
        let little = |bytes: u64| bytes <= SMALL as u64;
        if !all_read || self.stream.is_encrypted() {
            return false;
        }
        // A small answer to a request without a body, behind which nobody sends an empty line (RFC 9112, section 2.2). Closing ends both halves.
        let may_have_come = || tcp.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_ready();
        if self.body_bytes() == 0 && little(self.sent_bytes) && !may_have_come() {
            return true;
        }
        let is_sent = || get_tcp_info(tcp.as_raw_fd()).is_ok_and(|info| little(info.tcpi_notsent_bytes.into()));
        // The kernel is asked: tokio hears of what has come only when a thread has time for that. Our half ends first: what waits in the kernel
        // for the end of the connection is sent with it, and a reset would destroy it.
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let has_come = || matches!(recv(tcp, &mut [0; 1], flags), Ok((1.., _)));
        (little(self.sent_bytes) || is_sent()) && SockRef::from(tcp).shutdown(Shutdown::Write).is_ok() && !has_come()
    }

    /// Closes the connection so that the client can read all that was sent: ends our half, then reads on until the client closes,
    /// or has taken everything and gets no further.
    pub async fn linger(mut self: Box<Self>) {
        self.received = BytesMut::new();
        self.hold.release();
        // TCP ends at once. TLS first sends what is left, and says that this is the end.
        let Ok(Ok(())) = pauses::timeout(LINGER_UNREAD, self.stream.shutdown()).await else {
            return;
        };
        let mut linger = Linger::new();
        poll_fn(
            |context| match poll_linger(&mut self.stream, &mut self.timer, &mut linger, context) {
                Poll::Pending => self.hold.poll(context, SMALL, false),
                done => done,
            },
        )
        .await;
    }

    /// Begins a response, behind which the connection `closes` or not. Until one that is `open_ended` has ended the connection is reset
    /// however it is closed, even if this process dies: the client would take the end of the connection for that of the response.
    pub fn begin_response(&mut self, closes: bool, open_ended: bool) {
        self.closes = closes;
        if open_ended {
            let reset = SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO));
            self.is_open_ended = reset.is_ok();
        }
    }

    /// Ends a response.
    pub fn end_response(&mut self) {
        if std::mem::take(&mut self.is_open_ended) {
            let _ = SockRef::from(self.stream.tcp()).set_linger(None);
        }
    }

    /// Closes the connection of a client that takes nothing, and has the kernel soon forget what it has not taken: it would
    /// keep that for minutes, for a client that may never take it.
    pub fn abandon(self) {
        // It applies to the probes of the client's window.
        let _ = SockRef::from(self.stream.tcp()).set_tcp_user_timeout(Some(FORGOTTEN));
    }
}

/// How far the end of a connection has come.
#[derive(Debug)]
pub struct Linger {
    end: Instant,
    since: Instant,
    left: usize,
}

impl Linger {
    /// Our half has just ended.
    #[allow(clippy::new_without_default, reason = "it begins now")]
    pub fn new() -> Self {
        let since = Instant::now();
        Self {
            end: since + LINGER_UNREAD,
            since,
            left: LINGER_BYTES,
        }
    }
}

/// Reads on from a connection of which our half has ended. Ready when the client has closed its own, or has taken everything and gets
/// no further.
pub fn poll_linger(stream: &mut Stream, timer: &mut Timer, linger: &mut Linger, context: &mut Context<'_>) -> Poll<()> {
    loop {
        let mut data = Scratch::take();
        match data.poll_read(stream, context) {
            Poll::Ready(Ok(read @ 1..)) if read < linger.left => linger.left -= read,
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => {
                ready!(timer.poll(context, linger.since, LINGER));
                linger.since = Instant::now();
                if linger.since > linger.end || !has_unread(stream) {
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// Whether something that was sent has not reached the other end's kernel.
fn has_unread(stream: &Stream) -> bool {
    get_tcp_info(stream.tcp().as_raw_fd()).is_ok_and(|info| info.tcpi_notsent_bytes > 0 || info.tcpi_unacked > 0)
}

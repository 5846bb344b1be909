//! What goes to the origin: the head of a request and its body, and what is held of both to be sent again.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::config::Shape;
use crate::exchange::request::Request;
use crate::forward::client::ClientSide;
use crate::headers::edits::kept_trailers;
use crate::http1::chunked::{CHUNK_OVERHEAD, Decoder, write_data, write_last};
use crate::http1::downstream::ClientFault;
use crate::http1::scratch::Scratch;
use crate::http1::splice::{self, poll_splice};
use crate::http1::write::poll_write_both;
use crate::pool::stream::OriginStream;

/// The sending half of an exchange. It outlives a try that fails, so that the next can begin where the client's request began.
#[derive(Debug)]
pub struct Upload {
    head: Bytes,
    /// How much of the head has been sent in this try.
    head_sent: usize,
    /// The body is sent in chunks.
    chunked: bool,
    /// What the route does to the request.
    shape: Option<Arc<Shape>>,
    /// The body as it is sent: from its beginning while it is held, or else what has not been sent.
    body: BytesMut,
    /// How much of `body` has been sent in this try; 0 when it is not held.
    body_sent: usize,
    /// Up to how many bytes of the body are held to be sent again; `None` when nothing will be.
    hold: Option<usize>,
    /// Something of the body was sent and is not held.
    lost: bool,
    /// The end of the body is in `body`, or was sent.
    whole: bool,
}

impl Upload {
    /// Nothing of `request` has been sent. Up to `hold` bytes of its body are held if it may be repeated.
    pub fn new(request: &Request, hold: usize) -> Self {
        Self {
            head: request.head.clone(),
            head_sent: 0,
            chunked: request.chunked,
            shape: request.route.shape.clone(),
            body: BytesMut::new(),
            body_sent: 0,
            hold: request.idempotent.then_some(hold),
            lost: false,
            whole: false,
        }
    }

    /// Begins another try.
    pub fn rewind(&mut self) {
        self.head_sent = 0;
        self.body_sent = 0;
    }

    /// Whether the request can be sent again, whatever is still to come of its body.
    pub fn is_repeatable(&self, client: &impl ClientSide) -> bool {
        self.hold.is_some_and(|hold| match client.body_left() {
            Some(left) => self.body.len() as u64 + left <= hold as u64,
            None => self.whole,
        })
    }

    /// Whether all that was read of the request can be sent again.
    pub fn is_held(&self) -> bool {
        !self.lost
    }

    /// Takes what was read of the body, without its framing; `None` if some of it is not held.
    pub fn take_body(&mut self) -> Option<BytesMut> {
        let body = std::mem::take(&mut self.body);
        if self.lost || !self.chunked {
            return (!self.lost).then_some(body);
        }
        let mut data = BytesMut::with_capacity(body.len());
        // It was encoded here.
        Decoder::default().decode(&body, &mut data, usize::MAX).ok()?;
        Some(data)
    }

    /// Holds nothing any more, because nothing will be sent again.
    pub fn release(&mut self) {
        self.hold = None;
        self.forget_sent();
    }

    /// Gives up what is held only to be sent again; returns whether there was any.
    pub fn give_up(&mut self) -> bool {
        let held = self.hold.is_some() && self.body_sent > 0;
        if held {
            self.release();
        }
        held
    }

    /// How much memory the body takes.
    pub fn held(&self) -> usize {
        self.body.capacity()
    }

    fn forget_sent(&mut self) {
        self.lost |= self.body_sent > 0;
        self.body.advance(self.body_sent);
        self.body_sent = 0;
        if self.body.is_empty() {
            // An upload that waits has no buffer.
            self.body = BytesMut::new();
        }
    }

    /// Whether anything of the body was read or anything was sent.
    fn has_begun(&self) -> bool {
        self.head_sent > 0 || self.lost || self.whole || !self.body.is_empty()
    }

    /// Whether the whole head has been sent.
    pub fn head_is_sent(&self) -> bool {
        self.head_sent == self.head.len()
    }

    /// Whether everything has been sent.
    pub fn is_done(&self) -> bool {
        self.whole && !self.has_unsent()
    }

    /// How much the origin has not taken of what was read.
    pub fn unsent(&self) -> usize {
        self.head.len() - self.head_sent + self.body.len() - self.body_sent
    }

    fn has_unsent(&self) -> bool {
        self.unsent() > 0
    }

    /// Reads more of the body. Ready when there is more to send, or the body has ended.
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        client: &mut impl ClientSide,
    ) -> Poll<Result<(), ClientFault>> {
        if !self.chunked && client.body_ended() {
            self.whole = true;
            return Poll::Ready(Ok(()));
        }
        let mut data = Scratch::take();
        ready!(client.poll_body(context, &mut data))?;
        self.note(&data, client);
        Poll::Ready(Ok(()))
    }

    /// Whether the body is sent as it comes, and is not held.
    fn is_as_it_comes(&self) -> bool {
        !self.chunked && self.hold.is_none()
    }

    /// Has the kernel move some of the body to `origin`, if it goes as it comes and there is much of it. To be called when everything that was
    /// read has been sent. Ready with how much the origin has taken, if any was moved.
    pub fn poll_splice(
        &mut self,
        context: &mut Context<'_>,
        client: &mut impl ClientSide,
        origin: &OriginStream,
    ) -> Poll<Result<Option<usize>, ClientFault>> {
        let (true, OriginStream::Plain(origin), Some((from, left @ splice::WORTHWHILE..))) =
            (self.is_as_it_comes(), origin, client.plain_body())
        else {
            return Poll::Ready(Ok(None));
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let Poll::Ready(moved) = poll_splice(from, origin, most, context) else {
            client.progress_mut().reading.wait();
            return Poll::Pending;
        };
        // A connection that fails is one whose client has gone, as where it is read; what is lost can't be had again either.
        let Some(moved) = moved.map_err(|_| ClientFault::Gone)? else {
            return Poll::Ready(Ok(None));
        };
        self.lost |= moved.sent > 0;
        self.body = moved.left;
        client.came(moved.came)?;
        Poll::Ready(Ok(Some(moved.sent)))
    }

    /// Takes what has been received of the body, so that it goes out together with the head.
    ///
    /// # Errors
    /// When the client is at fault.
    pub fn take_received(
        &mut self,
        context: &mut Context<'_>,
        client: &mut impl ClientSide,
    ) -> Result<(), ClientFault> {
        if self.has_begun() || !client.has_received() || client.body_ended() {
            return Ok(());
        }
        let mut data = Scratch::take();
        client.received_body(context, &mut data)?;
        self.note(&data, client);
        Ok(())
    }

    /// Notes `data` of the body, which may be all of it.
    fn note(&mut self, data: &[u8], client: &impl ClientSide) {
        if self.hold.is_some_and(|hold| self.body.len() + data.len() > hold) {
            self.release();
        }
        if self.chunked {
            // Growing step by step, it would take twice as much.
            self.body.reserve(data.len() + CHUNK_OVERHEAD);
            write_data(&mut self.body, data);
        } else {
            self.body.extend_from_slice(data);
        }
        if client.body_ended() {
            if self.chunked {
                match (&self.shape, client.trailers()) {
                    (Some(shape), trailers @ [_, ..]) => write_last(&mut self.body, &kept_trailers(trailers, shape)),
                    (_, trailers) => write_last(&mut self.body, trailers),
                }
            }
            self.whole = true;
        }
    }

    /// Sends what there is. Ready when the origin has taken all of it.
    pub fn poll_send(&mut self, context: &mut Context<'_>, origin: &mut OriginStream) -> Poll<io::Result<()>> {
        while self.has_unsent() {
            let head = &self.head[self.head_sent..];
            let body = &self.body[self.body_sent..];
            let sent = ready!(poll_write_both(Pin::new(&mut *origin), context, head, body))?;
            let of_head = sent.min(head.len());
            self.head_sent += of_head;
            self.body_sent += sent - of_head;
            if self.hold.is_none() {
                self.forget_sent();
            }
        }
        Pin::new(origin).poll_flush(context)
    }
}

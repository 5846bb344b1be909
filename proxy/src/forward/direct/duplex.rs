//! One try of a request: what the client sends goes to the origin, and what the origin answers goes to the client, both at once.
//!
//! Each direction holds at most what was read in one go and not taken yet, and reads nothing more until that is gone. So a response
//! that nobody reads, or an upload that nobody takes, waits in the kernels of both ends. Neither direction waits for the other: an
//! answer that comes before the end of the request reaches the client at once.

use std::borrow::Cow;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, BytesMut};

use super::coming::Coming;
use super::download::Response;
use super::tunnel::Half;
use super::upload::Upload;
use super::{Broken, Ending};
use crate::exchange::record::Record;
use crate::exchange::request::Request;
use crate::exchange::retry::Failure;
use crate::forward::client::ClientSide;
use crate::forward::compress;
use crate::headers::origin_response::{self, Delivery, Edited, Framing, ResponseHead};
use crate::headers::straighten::{may_straighten, straighten};
use crate::http1::chunked::Decoder;
use crate::http1::downstream::ClientFault;
use crate::http1::head;
use crate::http1::scratch::Scratch;
use crate::lifecycle::Lifecycle;
use crate::pool::stream::OriginStream;

/// A body of this size or less is sent together with its head, at the price of a copy.
const COPIED: usize = 4096;

/// One try.
pub struct Duplex<'t, C> {
    pub(super) request: &'t Request,
    lifecycle: &'t Lifecycle,
    pub(super) record: &'t mut Record,
    pub(super) client: &'t mut C,
    pub(super) upload: &'t mut Upload,
    pub(super) origin: OriginStream,
    /// What the origin said when it could not be sent more.
    pub(super) send_error: Option<std::io::Error>,
    /// The beginning of a response head that did not come at once.
    pub(super) partial: BytesMut,
    /// What the client has not taken yet of the response.
    pub(super) pending: BytesMut,
    /// How much memory that takes: what was sent of it is not given back by itself.
    pub(super) pending_size: usize,
    /// Something that was held has been taken, all of it.
    pub(super) moved: bool,
    pub(super) response: Option<Response>,
    pub(super) heard: bool,
    pub(super) switched: bool,
    /// Once it has switched: from the client to the origin, and back.
    pub(super) up: Half,
    pub(super) down: Half,
    /// The origin has answered an expectation, or the client has sent its body without waiting for that.
    pub(super) continues: bool,
    /// Since when the origin is waited for, to say something or to take something.
    pub(super) says_since: Option<Instant>,
    pub(super) takes_since: Option<Instant>,
    /// When the client was last looked at while its upload waits.
    pub(super) looked: Option<Instant>,
}

impl<'t, C: ClientSide> Duplex<'t, C> {
    /// A try of `request` on `origin`.
    pub fn new(
        request: &'t Request,
        origin: OriginStream,
        lifecycle: &'t Lifecycle,
        client: &'t mut C,
        upload: &'t mut Upload,
        record: &'t mut Record,
    ) -> Self {
        Self {
            request,
            lifecycle,
            record,
            client,
            upload,
            origin,
            send_error: None,
            partial: BytesMut::new(),
            pending: BytesMut::new(),
            pending_size: 0,
            moved: false,
            response: None,
            heard: false,
            switched: false,
            up: Half::Open,
            down: Half::Open,
            continues: false,
            says_since: None,
            takes_since: None,
            looked: None,
        }
    }

    /// Whether the origin has said anything.
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// Whether the client was sent something of a final response.
    pub fn is_answering(&self) -> bool {
        self.response.is_some() || self.switched
    }

    /// The connection to the origin, if it can be used for another request.
    pub fn into_reusable(mut self) -> Option<OriginStream> {
        let response = self.response?;
        (response.reusable && response.coming.ended() && self.origin.is_read()).then_some(self.origin)
    }

    /// Ready when the client has its whole response.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Ending, Broken>> {
        let polled = self.poll_both(context);
        if polled.is_pending() && self.poll_held(context).is_ready() {
            return Poll::Ready(Err(ClientFault::HeldTooMuch.into()));
        }
        polled
    }

    fn poll_both(&mut self, context: &mut Context<'_>) -> Poll<Result<Ending, Broken>> {
        if !self.switched {
            if let Poll::Ready(Err(fault)) = self.poll_upload(context) {
                return Poll::Ready(Err(fault.into()));
            }
            if let Poll::Ready(done) = self.poll_download(context) {
                return Poll::Ready(done);
            }
        }
        if self.switched {
            return self.poll_tunnel(context);
        }
        if self.client.body_ended() && self.client.poll_gone(context).is_ready() {
            return Poll::Ready(Err(ClientFault::Gone.into()));
        }
        self.poll_deadlines(context).map(Err)
    }

    /// Moves the request to the origin, for as long as both ends are ready.
    fn poll_upload(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ClientFault>> {
        self.upload.take_received(context, self.client)?;
        while self.send_error.is_none() {
            ready!(self.poll_send(context));
            if self.upload.is_done() {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.upload.poll_splice(context, self.client, &self.origin))? {
                Some(0) => {}
                Some(_) => self.was_sent(),
                None => ready!(self.upload.poll_read(context, self.client))?,
            }
            self.continues = true;
        }
        Poll::Pending
    }

    /// Sends what has been read of the request. An origin that takes no more may have answered before.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let before = self.upload.unsent();
        let sent = self.upload.poll_send(context, &mut self.origin);
        if self.upload.unsent() < before {
            self.was_sent();
        }
        match sent {
            Poll::Ready(sent) => {
                self.moved |= before > 0;
                self.takes_since = None;
                self.send_error = sent.err();
                Poll::Ready(())
            }
            Poll::Pending => {
                self.takes_since.get_or_insert_with(Instant::now);
                Poll::Pending
            }
        }
    }

    /// The origin has taken some of the request.
    fn was_sent(&mut self) {
        self.says_since = None;
        self.takes_since = None;
    }

    /// Moves the response to the client, for as long as both ends are ready. Ready when the client has all of it.
    fn poll_download(&mut self, context: &mut Context<'_>) -> Poll<Result<Ending, Broken>> {
        loop {
            ready!(self.poll_flush(context))?;
            if let Some(response) = &self.response
                && response.coming.ended()
            {
                self.client.end(&response.trailers());
                self.record.ended();
                return Poll::Ready(Ok(if response.keeps { Ending::Keep } else { Ending::Close }));
            }
            if ready!(self.poll_splice(context))? {
                continue;
            }
            let mut read = Scratch::take();
            let polled = read.poll_read(&mut self.origin, context);
            if polled.is_pending() {
                self.flush_encoder(context)?;
            }
            match ready!(polled) {
                Ok(0) => self.origin_closed(true)?,
                Ok(_) if self.response.is_some() => {
                    self.says_since = None;
                    self.body(context, &read, Scratch::take())?;
                }
                Ok(_) => self.head(context, &read)?,
                Err(error) if is_cut(&error) => self.origin_closed(false)?,
                Err(error) => return Poll::Ready(Err(Broken::closed(&error))),
            }
            if self.switched {
                return Poll::Pending;
            }
        }
    }

    /// Sends the client what it has not taken.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ClientFault>> {
        let last = self.is_last();
        while !self.pending.is_empty() {
            let taken = ready!(self.client.poll_write(context, &self.pending, b"", last))?;
            self.pending.advance(taken);
            if self.pending.is_empty() {
                self.pending = BytesMut::new();
                self.pending_size = 0;
                self.moved = true;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether nothing follows what the client is sent now, and no trailers.
    fn is_last(&self) -> bool {
        let response = self.response.as_ref();
        response.is_some_and(|response| response.coming.ended() && response.trailers().is_empty())
    }

    /// Sends the client `head` and then `body`, and keeps what it does not take.
    pub(super) fn send(
        &mut self,
        context: &mut Context<'_>,
        mut head: Scratch,
        mut body: &[u8],
    ) -> Result<(), ClientFault> {
        if !head.is_empty() && body.len() <= COPIED {
            head.extend_from_slice(body);
            body = &[];
        }
        let mut head = &head[..];
        let last = self.is_last();
        while !(head.is_empty() && body.is_empty()) {
            match self.client.poll_write(context, head, body, last) {
                Poll::Ready(taken) => {
                    let taken = taken?;
                    let of_head = taken.min(head.len());
                    head = &head[of_head..];
                    body = &body[taken - of_head..];
                }
                Poll::Pending => {
                    self.pending.reserve(head.len() + body.len());
                    self.pending.extend_from_slice(head);
                    self.pending.extend_from_slice(body);
                    self.pending_size = self.pending.capacity();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads the head of a response, and those of informational ones before it, and passes it on.
    fn head(&mut self, context: &mut Context<'_>, read: &[u8]) -> Result<(), Broken> {
        self.heard = true;
        let mut whole = std::mem::take(&mut self.partial);
        let mut bytes = if whole.is_empty() {
            read
        } else {
            whole.extend_from_slice(read);
            &whole[..]
        };
        let mut out = Scratch::take();
        loop {
            let (mut room, mut other_room) = (head::room(), head::room());
            let mut parsed = origin_response::parse(bytes, &mut room, self.request.to_head);
            let straight;
            if parsed.is_err() {
                straight = straighten(bytes);
                if let Some((head, length)) = &straight {
                    let again = origin_response::parse(head, &mut other_room, self.request.to_head);
                    parsed = again.map(|parsed| parsed.map(|(head, _)| (head, *length)));
                } else if may_straighten(bytes) {
                    parsed = Ok(None);
                }
            }
            let Some((head, length)) = parsed.map_err(|what| origin(Failure::Malformed, what))? else {
                self.partial.extend_from_slice(bytes);
                return Ok(self.send(context, out, b"")?);
            };
            bytes = &bytes[length..];
            match head.status {
                101 => {
                    self.switch(&head, &mut out)?;
                    self.record.bytes = bytes.len() as u64;
                    return Ok(self.send(context, out, bytes)?);
                }
                status @ 100..=199 => {
                    // Others do not answer an expectation: the client goes on waiting.
                    if status == 100 && !self.continues {
                        self.continues = true;
                        self.client.excuse_sending();
                    }
                    // HTTP/1.0 has none.
                    if !self.request.old {
                        self.client.write_head(&head, &self.delivery(true, None), &mut out);
                    }
                }
                _ => {
                    self.answer(&head, &mut out);
                    return self.body(context, bytes, out);
                }
            }
        }
    }

    /// The cookie that the client needs.
    fn cookie(&self) -> Option<String> {
        let upstream = self.record.backend.as_ref()?;
        self.request.affinity.set_cookie(upstream)
    }

    fn delivery<'c>(&self, keeps: bool, cookie: Option<&'c str>) -> Delivery<'c>
    where
        't: 'c,
    {
        Delivery {
            keeps,
            old: self.request.old,
            trailers: !self.request.old,
            hsts: self.request.hsts,
            cookie,
            edits: Edited::of(self.request),
        }
    }

    /// Notes that the origin has answered, with this status.
    fn answered(&mut self, status: u16) {
        self.record.status = status;
        self.record.answered = true;
        self.record.place.answered();
        if let Some(upstream) = &self.record.backend {
            upstream.answered();
        }
        // What follows is not the time that the backend took to answer.
        self.upload.release();
    }

    fn switch(&mut self, head: &ResponseHead<'_>, out: &mut BytesMut) -> Result<(), Broken> {
        let wanted = self.request.upgrade.as_deref();
        let agreed = wanted
            .zip(head.upgrade())
            .is_some_and(|(wanted, got)| wanted.eq_ignore_ascii_case(got));
        if !agreed {
            return Err(origin(
                Failure::Malformed,
                "the backend switches to a protocol that nobody asked for",
            ));
        }
        self.answered(C::SWITCHED);
        self.record.ended();
        let cookie = self.cookie();
        self.client
            .write_head(head, &self.delivery(false, cookie.as_deref()), out);
        self.client.switch();
        self.switched = true;
        Ok(())
    }

    /// Begins the final response.
    fn answer(&mut self, head: &ResponseHead<'_>, out: &mut BytesMut) {
        self.answered(head.status);
        if !self.client.body_ended() {
            self.client.both_talk();
        }
        let in_doubt = self.client.leaves_doubt(self.request, self.continues);
        let keeps = self.request.keeps && !in_doubt && !self.lifecycle.is_draining();
        let cookie = self.cookie();
        let delivery = self.delivery(keeps, cookie.as_deref());
        let (framing, encoder) = compress::begin(self.client, self.request, head, &delivery, out);
        self.response = Some(Response {
            coming: match head.framing {
                Framing::None => Coming::Length(0),
                Framing::Length(length) => Coming::Length(length),
                Framing::Chunked => Coming::Chunked(Decoder::default()),
                Framing::Close => Coming::Close { closed: false },
            },
            encoder,
            chunked: matches!(framing, Framing::Chunked),
            // An origin that answers before it has the request may take the rest of it for the next one.
            reusable: head.reusable && self.upload.is_done(),
            keeps: keeps && !matches!(framing, Framing::Close),
        });
    }
}

/// Whether that is the end of a TCP connection before the end of TLS in it, which anybody on the way can make.
pub(super) fn is_cut(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::UnexpectedEof
}

pub(super) fn origin(failure: Failure, what: &'static str) -> Broken {
    Broken::Origin(failure, Cow::Borrowed(what))
}

//! The client's side of an exchange that Pingora forwards.
//!
//! Pingora's upstream half reads the body and writes the response through here, in pieces of its own making; the client sees the
//! same as from the direct forwarder.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use pingora::http::{HeaderNameVariant, ResponseHeader};
use pingora::prelude::{Error, ErrorType, Result};

use crate::compression::encoder::{Encoder, Then};
use crate::exchange::request::Request;
use crate::forward::client::ClientSide;
use crate::forward::compress;
use crate::forward::direct::Ending;
use crate::forward::handover::Handover;
use crate::headers::origin_response::{Delivery, Edited, Framing, ResponseHead, trailers_of_compressed};
use crate::http1::chunked::{write_data, write_last};
use crate::http1::downstream::ClientFault;
use crate::http1::scratch::SCRATCH;
use crate::http2::stream::to_lines;
use crate::lifecycle::Lifecycle;

/// What ends a request that Pingora forwards, as the cause of an error of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The client's.
    Client(ClientFault),
    /// Nobody's: the client has its whole response, and waits for nothing that the rest of its request could change.
    Answered,
    /// The origin was silent for too long.
    SilentBackend,
    /// The origin answered something that can't be passed on.
    Malformed(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(fault) => fault.fmt(f),
            Self::Answered => f.write_str("the response came before the end of the request"),
            Self::SilentBackend => f.write_str("the backend said nothing for upstream.read_timeout"),
            Self::Malformed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// The fault behind `error`.
    pub fn behind(error: &Error) -> Option<Self> {
        let cause = error.root_cause().downcast_ref::<io::Error>()?;
        cause.get_ref()?.downcast_ref().copied()
    }

    /// An error of this `kind` that it is behind.
    pub fn into_error(self, kind: ErrorType) -> Box<Error> {
        Error::because(kind, "", io::Error::other(self))
    }
}

/// What the session needs where Pingora forwards.
pub(super) struct Forwarding<C> {
    pub(super) client: Box<C>,
    /// What had come of the body before Pingora asked for it.
    pub(super) first: BytesMut,
    lifecycle: Arc<Lifecycle>,
    pub(super) request: Request,
    /// Another request may follow.
    pub(super) keeps: bool,
    /// The request has no body.
    pub(super) empty: bool,
    /// The head has just gone to an origin.
    pub(super) head_sent: bool,
    pub(super) silent_since: Option<Instant>,
    /// Since when the origin sends nothing but interim responses, and how much of the body had been read then.
    interim_since: Option<(Instant, usize)>,
    pub(super) written: Option<Box<ResponseHeader>>,
    /// What compresses the body of the response.
    encoder: Option<Box<Encoder>>,
    /// How the body of the response is framed to the client, and whether its end was sent.
    pub(super) framing: Option<Framing>,
    pub(super) ended: bool,
    pub(super) switched: bool,
    pub(super) continues: bool,
    /// What is held of the body for another try; `None` when it was too much.
    pub(super) held: Option<BytesMut>,
    /// The trailers of the response, each line with its CRLF.
    trailers: Vec<u8>,
    pub(super) sent: usize,
    pub(super) read: usize,
    pub(super) ending: Ending,
}

impl<C: ClientSide> Forwarding<C> {
    pub(super) fn new(client: Box<C>, first: BytesMut, request: &Request, lifecycle: &Arc<Lifecycle>) -> Self {
        Self {
            lifecycle: Arc::clone(lifecycle),
            request: request.clone(),
            keeps: request.keeps,
            empty: first.is_empty() && client.body_ended(),
            head_sent: false,
            first,
            client,
            silent_since: None,
            interim_since: None,
            written: None,
            encoder: None,
            framing: None,
            ended: false,
            switched: false,
            continues: false,
            held: Some(BytesMut::new()),
            trailers: Vec::new(),
            sent: 0,
            read: 0,
            ending: Ending::Cut,
        }
    }

    /// Whether Pingora has had the whole body.
    pub(super) fn body_ended(&self) -> bool {
        self.first.is_empty() && self.client.body_ended()
    }

    /// Ready with more of the body, or its end.
    pub(super) fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let mut data = std::mem::take(&mut self.first);
        let polled = if data.is_empty() {
            data.reserve(SCRATCH);
            match self.client.poll_body(context, &mut data) {
                // Pingora does not tell a tunnel's end from a reset.
                Poll::Ready(Err(ClientFault::Gone)) if self.switched && self.client.body_ended() => Poll::Ready(Ok(())),
                polled => polled,
            }
        } else {
            Poll::Ready(Ok(()))
        };
        match polled {
            Poll::Ready(Ok(())) => {
                self.continues = true;
                self.silent_since = None;
                self.read += data.len();
                let hold = self.request.route.upstream.retry_buffer;
                match &mut self.held {
                    Some(held) if held.len() + data.len() <= hold => held.extend_from_slice(&data),
                    held => *held = None,
                }
                Poll::Ready(Ok((!data.is_empty()).then(|| data.freeze())))
            }
            Poll::Ready(Err(fault)) => Poll::Ready(Err(Fault::Client(fault).into_error(ErrorType::ReadError))),
            Poll::Pending if self.poll_held(context).is_ready() => {
                let fault = Fault::Client(ClientFault::HeldTooMuch);
                Poll::Ready(Err(fault.into_error(ErrorType::ReadError)))
            }
            Poll::Pending if self.request.expects && !self.continues => self.poll_silent(context).map(Err),
            Poll::Pending if self.switched => Poll::Pending,
            Poll::Pending => {
                let slow = self.client.poll_slow(context);
                slow.map(|fault| Err(Fault::Client(fault).into_error(ErrorType::ReadError)))
            }
        }
    }

    /// Ready when the client has gone, or the origin was silent for too long.
    pub(super) fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<Box<Error>> {
        if self.client.poll_gone(context).is_ready() {
            return Poll::Ready(Fault::Client(ClientFault::Gone).into_error(ErrorType::ConnectionClosed));
        }
        if self.poll_held(context).is_ready() {
            return Poll::Ready(Fault::Client(ClientFault::HeldTooMuch).into_error(ErrorType::ReadError));
        }
        self.poll_silent(context)
    }

    /// Ready when what is held while somebody is waited for is too much.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let least = self.request.weight + self.client.held() + self.encoder_size();
        let client = &mut self.client;
        let held = self.held.as_ref().map_or(0, BytesMut::capacity);
        ready!(client.hold().poll(context, least + held, false));
        // A request that could be sent again is worth more than another try of it.
        if self.held.take().is_some_and(|held| !held.is_empty()) {
            return client.hold().poll(context, least, false);
        }
        Poll::Ready(())
    }

    fn encoder_size(&self) -> usize {
        self.encoder.as_ref().map_or(0, |encoder| encoder.size())
    }

    pub(super) fn poll_silent(&mut self, context: &mut Context<'_>) -> Poll<Box<Error>> {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        let patience = self.request.route.upstream.read_timeout;
        let silent = self.client.timer().poll(context, since, patience);
        silent.map(|()| Fault::SilentBackend.into_error(ErrorType::ReadTimedout))
    }

    /// An error when the origin has sent interim responses for longer than it may take for the final one. While it takes the body, that
    /// time has not begun.
    fn judge_interim(&mut self) -> Result<()> {
        let since = self.interim_since.filter(|(_, read)| *read == self.read);
        let (since, _) = *self.interim_since.insert(since.unwrap_or((Instant::now(), self.read)));
        if since.elapsed() < self.request.route.upstream.read_timeout {
            return Ok(());
        }
        Err(Fault::SilentBackend.into_error(ErrorType::ReadTimedout).into_up())
    }

    /// Writes the head of a response to `out`. `ends`: nothing follows it.
    pub(super) fn head(&mut self, response: Box<ResponseHeader>, ends: bool, out: &mut BytesMut) -> Result<()> {
        // The iterator over names as they came has none for a response of HTTP/2.
        let mut fields = Vec::with_capacity(response.headers.len());
        response.map(|name, value| {
            let name = match name {
                HeaderNameVariant::Case(name) => String::from_utf8_lossy(name.as_slice()).into_owned(),
                HeaderNameVariant::Titled(name) => name.to_owned(),
            };
            fields.push((name, value.clone()));
            Ok(())
        })?;
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| httparse::Header {
                name,
                value: value.as_bytes(),
            })
            .collect();
        let status = response.status.as_u16();
        let reason = response.get_reason_phrase().unwrap_or_default();
        let minor = u8::from(response.version != http::Version::HTTP_10);
        let head = ResponseHead::from_fields(status, minor, reason.as_bytes(), &fields, self.request.to_head);
        let head = head.map_err(|what| {
            Fault::Malformed(what)
                .into_error(ErrorType::InvalidHTTPHeader)
                .into_up()
        })?;
        let head = if ends { head.without_body() } else { head };
        let informational = response.status.is_informational() && status != 101;
        // Others do not answer an expectation: the client goes on waiting.
        if status == 100 && !self.continues {
            self.continues = true;
            self.client.excuse_sending();
        }
        if informational {
            self.judge_interim()?;
        }
        if informational && self.request.old {
            return Ok(());
        }
        let in_doubt = status != 101 && self.client.leaves_doubt(&self.request, self.continues);
        self.keeps &= !in_doubt && !self.lifecycle.is_draining();
        let cookie = if informational { None } else { Handover::cookie() };
        let delivery = Delivery {
            keeps: self.keeps,
            old: self.request.old,
            trailers: false,
            hsts: self.request.hsts,
            cookie: cookie.as_deref(),
            edits: Edited::of(&self.request),
        };
        if informational {
            self.client.write_head(&head, &delivery, out);
            return Ok(());
        }
        let (framing, encoder) = compress::begin(&mut *self.client, &self.request, &head, &delivery, out);
        self.encoder = encoder;
        if status == 101 {
            self.switched = true;
            self.keeps = false;
            self.client.switch();
        } else if !self.client.body_ended() {
            self.client.both_talk();
        }
        self.keeps &= !matches!(framing, Framing::Close);
        self.framing = Some(framing);
        self.written = Some(response);
        Ok(())
    }

    /// Writes a piece of the body to `out`, and its end.
    pub(super) fn body(&mut self, data: Option<&[u8]>, end: bool, out: &mut BytesMut) {
        let data = data.unwrap_or_default();
        let chunked = matches!(self.framing, Some(Framing::Chunked));
        let ends = end && !self.ended;
        self.ended |= end;
        if matches!(self.framing, Some(Framing::None)) && !self.switched {
            return;
        }
        if let Some(encoder) = &mut self.encoder {
            let then = if ends { Then::End } else { Then::More };
            self.sent += encoder.write(data, then, chunked, out);
        } else if chunked {
            self.sent += data.len();
            write_data(out, data);
        } else {
            self.sent += data.len();
            out.extend_from_slice(data);
        }
        if ends && chunked {
            write_last(out, b"");
        }
    }

    /// Ends the body with these trailers. A client of HTTP/1.1 gets none: its head has not announced them.
    pub(super) fn trailers(&mut self, trailers: &HeaderMap, out: &mut BytesMut) {
        self.trailers = match to_lines(trailers) {
            lines if self.encoder.is_some() => trailers_of_compressed(&lines),
            lines => lines,
        };
        self.body(None, true, out);
    }

    /// Sends the client what is in `out`, and what its encoder holds back: no more is at hand.
    pub(super) async fn write(&mut self, out: &mut BytesMut) -> Result<()> {
        self.silent_since = None;
        if let Some(encoder) = self.encoder.as_mut().filter(|encoder| encoder.holds_back()) {
            let chunked = matches!(self.framing, Some(Framing::Chunked));
            self.sent += encoder.write(b"", Then::Flush, chunked, out);
        }
        let last = self.ended && self.trailers.is_empty();
        let written = self.client.write_all(out, last, self.encoder_size()).await;
        if written.is_err_and(ClientFault::is_stall) {
            self.ending = Ending::Abandon;
        }
        written.map_err(|fault| Fault::Client(fault).into_error(ErrorType::WriteError).into_down())?;
        if self.ended {
            self.client.end(&self.trailers);
            self.ending = if self.keeps { Ending::Keep } else { Ending::Close };
        }
        Ok(())
    }
}

//! An admitted request as a session of Pingora's.
//!
//! Pingora lets a session be custom ([`custom::server::Session`](Custom), hidden from its documentation and so pinned to one
//! release). It sees the head as the origin gets it, and its own upstream half reads the body and writes the response through here.
//! The direct forwarder has the client to itself ([`Exchange::client`]) and uses nothing of this but the head.
//!
//! Pingora gives no session back, so the exchange and the client travel in a task-local [`Handover`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::{HeaderMap, HeaderValue, Method};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error, ErrorType, Result};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as Custom;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;

use crate::config::Forwarder;
use crate::exchange::record::Record;
use crate::exchange::request::Request;
use crate::forward::direct::Ending;
use crate::headers::origin_response::{Delivery, Framing, ResponseHead};
use crate::headers::request::Span;
use crate::http1::chunked::{write_chunk, write_last};
use crate::http1::downstream::{ClientFault, Downstream};
use crate::http1::scratch::SCRATCH;
use crate::lifecycle::Lifecycle;

tokio::task_local! {
    /// What is handed to Pingora's hooks with a request, and handed back.
    pub static HANDOVER: Handover;
}

/// An exchange and its client, while Pingora has the request.
#[derive(Default)]
pub struct Handover {
    exchange: Cell<Option<Box<Exchange>>>,
    client: Cell<Option<(Box<Downstream>, Ending)>>,
}

impl Handover {
    /// Takes the exchange, at the other end.
    pub fn take() -> Option<Box<Exchange>> {
        HANDOVER.try_with(|handover| handover.exchange.take()).ok().flatten()
    }

    /// Hands the client back, and says how its connection goes on.
    pub fn give_back(client: Box<Downstream>, ending: Ending) {
        // Without a scope there is nobody to take it, so it is closed.
        let _ = HANDOVER.try_with(|handover| handover.client.set(Some((client, ending))));
    }

    /// Takes the client that was handed back.
    pub fn client() -> Option<(Box<Downstream>, Ending)> {
        HANDOVER.try_with(|handover| handover.client.take()).ok().flatten()
    }
}

/// A request, its client and its record, on the way through Pingora's hooks.
pub struct Exchange {
    /// The request.
    pub request: Request,
    /// What becomes of it.
    pub record: Record,
    /// The client, unless the session has it.
    pub client: Option<Box<Downstream>>,
    /// What is wrong with what has come of the request's body, if anything is, and the session has the client.
    pub fault: Option<ClientFault>,
}

impl Exchange {
    /// Of `request`, which `client` has sent.
    pub fn new(request: Request, record: Record, client: Box<Downstream>) -> Self {
        Self {
            request,
            record,
            client: Some(client),
            fault: None,
        }
    }
}

/// A session for Pingora with this head, and what is handed to the hooks beside it.
pub fn open(
    header: Box<RequestHeader>,
    mut exchange: Exchange,
    lifecycle: &Arc<Lifecycle>,
) -> (ServerSession, Handover) {
    let forwarded = exchange.request.policy.forwarder == Forwarder::Pingora;
    let client = exchange.client.take_if(|_| forwarded);
    let session = Session {
        header: Some(header),
        forwarding: client.map(|mut client| {
            let mut first = BytesMut::with_capacity(client.received.len());
            exchange.fault = client.received_body(&mut first).err();
            Forwarding::new(client, first, &exchange.request, lifecycle)
        }),
    };
    let handover = Handover {
        exchange: Cell::new(Some(Box::new(exchange))),
        client: Cell::new(None),
    };
    (ServerSession::new_custom(Box::new(session)), handover)
}

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

thread_local! {
    /// Heads of requests that have ended: to build one is dearer than to change one.
    #[allow(clippy::vec_box, reason = "a session needs the box, and so it is kept")]
    static SPARE: RefCell<Vec<Box<RequestHeader>>> = const { RefCell::new(Vec::new()) };
}

/// How many heads a thread keeps.
const MAX_SPARE: usize = 64;

/// The head of `request`, whose fields are at `spans`, as Pingora has it. With `cases`, names keep their upper case letters, which
/// matters where Pingora writes the head.
///
/// # Errors
/// When a part of it is none to the library that holds the head.
pub fn header(request: &Bytes, method: &str, spans: &[Span], cases: bool) -> Result<Box<RequestHeader>> {
    let line = spans.first().map_or(0, |first| first.name().start);
    let target = request
        .get(method.len() + 1..line.saturating_sub(" HTTP/1.1\r\n".len()))
        .unwrap_or_default();
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| broken("a method that is none"))?;
    if cases {
        let mut header = Box::new(RequestHeader::build(method, target, Some(spans.len()))?);
        for span in spans {
            let name = String::from_utf8_lossy(&request[span.name()]).into_owned();
            header.append_header(name, &request[span.value()])?;
        }
        return Ok(header);
    }
    let spare = SPARE.with_borrow_mut(Vec::pop);
    let mut header = match spare {
        Some(header) => header,
        None => Box::new(RequestHeader::build_no_case(Method::GET, b"/", Some(spans.len()))?),
    };
    let mut parts: http::request::Parts = (*header).into();
    parts.headers.clear();
    parts.method = method;
    // Pingora's hooks see it and nobody sends it, so a target that is no URI for this library is no reason to refuse it.
    parts.uri = http::Uri::try_from(target).unwrap_or_default();
    for span in spans {
        let name = span.header_name(request).map_err(|_| broken("a name that is none"))?;
        let value = HeaderValue::from_maybe_shared(request.slice(span.value()));
        parts
            .headers
            .append(name, value.map_err(|_| broken("a value that is none"))?);
    }
    *header = RequestHeader::from(parts);
    Ok(header)
}

fn broken(what: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, what)
}

/// What the session needs where Pingora forwards.
#[derive(Debug)]
struct Forwarding {
    client: Box<Downstream>,
    /// What had come of the body before Pingora asked for it.
    first: BytesMut,
    lifecycle: Arc<Lifecycle>,
    to_head: bool,
    old: bool,
    keeps: bool,
    expects: bool,
    upgrades: bool,
    /// The request has no body.
    empty: bool,
    /// How long the origin may be silent once it has the request.
    patience: Duration,
    silent_since: Option<Instant>,
    written: Option<Box<ResponseHeader>>,
    /// How the body of the response is framed to the client, and whether its end was sent.
    framing: Option<Framing>,
    ended: bool,
    switched: bool,
    continues: bool,
    /// What the head takes.
    weight: usize,
    /// What is held of the body for another try, up to so many bytes; `None` when it was more.
    held: Option<BytesMut>,
    hold: usize,
    sent: usize,
    read: usize,
    ending: Ending,
}

/// A session of Pingora's.
#[derive(Debug)]
pub struct Session {
    header: Option<Box<RequestHeader>>,
    forwarding: Option<Forwarding>,
}

impl Session {
    fn forwarding(&mut self) -> Result<&mut Forwarding> {
        match &mut self.forwarding {
            Some(forwarding) => Ok(forwarding),
            None => Error::e_explain(ErrorType::InternalError, "the direct forwarder has the client"),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(header) = self.header.take() {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MAX_SPARE && !header.has_case() {
                    spare.push(header);
                }
            });
        }
        if let Some(forwarding) = self.forwarding.take() {
            Handover::give_back(forwarding.client, forwarding.ending);
        }
    }
}

impl Forwarding {
    fn new(client: Box<Downstream>, first: BytesMut, request: &Request, lifecycle: &Arc<Lifecycle>) -> Self {
        Self {
            lifecycle: Arc::clone(lifecycle),
            to_head: request.to_head,
            old: request.old,
            keeps: request.keeps,
            expects: request.expects,
            upgrades: request.upgrade.is_some(),
            empty: first.is_empty() && client.body().ended(),
            first,
            client,
            patience: request.policy.upstream.read_timeout,
            silent_since: None,
            written: None,
            framing: None,
            ended: false,
            switched: false,
            continues: false,
            weight: request.weight,
            held: Some(BytesMut::new()),
            hold: request.policy.upstream.retry_buffer,
            sent: 0,
            read: 0,
            ending: Ending::Cut,
        }
    }

    /// Whether Pingora has had the whole body.
    fn body_ended(&self) -> bool {
        self.first.is_empty() && self.client.body().ended()
    }

    /// Ready with more of the body, or its end.
    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let mut data = std::mem::take(&mut self.first);
        let polled = if data.is_empty() {
            data.reserve(SCRATCH);
            self.client.poll_body(context, &mut data)
        } else {
            Poll::Ready(Ok(()))
        };
        match polled {
            Poll::Ready(Ok(())) => {
                self.continues = true;
                self.silent_since = None;
                self.read += data.len();
                match &mut self.held {
                    Some(held) if held.len() + data.len() <= self.hold => held.extend_from_slice(&data),
                    held => *held = None,
                }
                Poll::Ready(Ok((!data.is_empty()).then(|| data.freeze())))
            }
            Poll::Ready(Err(fault)) => Poll::Ready(Err(Fault::Client(fault).into_error(ErrorType::ReadError))),
            Poll::Pending if self.poll_held(context).is_ready() => {
                let fault = Fault::Client(ClientFault::HeldTooMuch);
                Poll::Ready(Err(fault.into_error(ErrorType::ReadError)))
            }
            Poll::Pending if self.expects && !self.continues => self.poll_silent(context).map(Err),
            Poll::Pending if self.switched => Poll::Pending,
            Poll::Pending => {
                let slow = self.client.poll_slow(context);
                slow.map(|fault| Err(Fault::Client(fault).into_error(ErrorType::ReadError)))
            }
        }
    }

    /// Ready when the client has gone, or the origin was silent for too long.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<Box<Error>> {
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
        let client = &mut self.client;
        let least = self.weight + client.received.capacity();
        let held = self.held.as_ref().map_or(0, BytesMut::capacity);
        ready!(client.hold.poll(context, least + held, false));
        // A request that could be sent again is worth more than another try of it.
        if self.held.take().is_some_and(|held| !held.is_empty()) {
            return client.hold.poll(context, least, false);
        }
        Poll::Ready(())
    }

    fn poll_silent(&mut self, context: &mut Context<'_>) -> Poll<Box<Error>> {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        let silent = self.client.timer.poll(context, since, self.patience);
        silent.map(|()| Fault::SilentBackend.into_error(ErrorType::ReadTimedout))
    }

    /// Writes the head of a response to `out`.
    fn head(&mut self, response: Box<ResponseHeader>, out: &mut BytesMut) -> Result<()> {
        let fields: Vec<_> = response
            .case_header_iter()
            .map(|(name, value)| (String::from_utf8_lossy(name.as_slice()).into_owned(), value))
            .collect();
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
        let head = ResponseHead::from_fields(status, minor, reason.as_bytes(), &fields, self.to_head);
        let head = head.map_err(|what| {
            Fault::Malformed(what)
                .into_error(ErrorType::InvalidHTTPHeader)
                .into_up()
        })?;
        let informational = response.status.is_informational() && status != 101;
        // Others do not answer an expectation: the client goes on waiting.
        if status == 100 && !self.continues {
            self.continues = true;
            self.client.excuse_sending();
        }
        if informational && self.old {
            return Ok(());
        }
        let in_doubt = (self.expects && !self.continues && !self.client.body().ended())
            || (self.upgrades && status != 101 && !self.client.received.is_empty());
        self.keeps &= !in_doubt && !self.lifecycle.is_draining();
        let delivery = Delivery {
            keeps: self.keeps,
            old: self.old,
            trailers: false,
        };
        let framing = head.write(&delivery, out);
        if informational {
            return Ok(());
        }
        if status == 101 {
            self.switched = true;
            self.keeps = false;
            self.client.switch();
        } else if !self.client.body().ended() {
            self.client.both_talk();
        }
        self.keeps &= !matches!(framing, Framing::Close);
        self.framing = Some(framing);
        self.written = Some(response);
        Ok(())
    }

    /// Writes a piece of the body to `out`, and its end.
    fn body(&mut self, data: Option<&[u8]>, end: bool, out: &mut BytesMut) {
        let data = data.unwrap_or_default();
        let chunked = matches!(self.framing, Some(Framing::Chunked));
        let ends = end && !self.ended;
        self.ended |= end;
        if matches!(self.framing, Some(Framing::None)) && !self.switched {
            return;
        }
        self.sent += data.len();
        if chunked {
            let Ok(_) = write_chunk(out, |out| {
                out.extend_from_slice(data);
                Ok::<_, std::convert::Infallible>(())
            });
        } else {
            out.extend_from_slice(data);
        }
        if ends && chunked {
            write_last(out, b"");
        }
    }

    async fn write(&mut self, out: &[u8]) -> Result<()> {
        self.silent_since = None;
        let written = self.client.write_all(out).await;
        if written.is_err_and(ClientFault::is_stall) {
            self.ending = Ending::Abandon;
        }
        written.map_err(|fault| Fault::Client(fault).into_error(ErrorType::WriteError).into_down())?;
        if self.ended {
            self.ending = if self.keeps { Ending::Keep } else { Ending::Close };
        }
        Ok(())
    }
}

#[async_trait]
impl Custom for Session {
    fn req_header(&self) -> &RequestHeader {
        self.header.as_deref().expect("it is taken only by Drop")
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.header.as_deref_mut().expect("it is taken only by Drop")
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        let forwarding = self.forwarding()?;
        if forwarding.body_ended() {
            return Ok(None);
        }
        poll_fn(|context| forwarding.poll_body(context)).await
    }

    /// The connection does that, within its own limits.
    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    async fn write_response_header(&mut self, response: Box<ResponseHeader>, end: bool) -> Result<()> {
        let forwarding = self.forwarding()?;
        let mut out = BytesMut::new();
        forwarding.head(response, &mut out)?;
        if end {
            forwarding.body(None, true, &mut out);
        }
        forwarding.write(&out).await
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(response.clone()), end).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        let forwarding = self.forwarding()?;
        let mut out = BytesMut::new();
        forwarding.body(Some(&data), end, &mut out);
        forwarding.write(&out).await
    }

    async fn write_trailers(&mut self, _trailers: HeaderMap) -> Result<()> {
        Ok(())
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let forwarding = self.forwarding()?;
        let mut out = BytesMut::new();
        let mut ended = false;
        let mut failed = None;
        for task in tasks {
            match task {
                HttpTask::Header(response, end) => {
                    ended |= end;
                    forwarding.head(response, &mut out)?;
                    if end {
                        forwarding.body(None, true, &mut out);
                    }
                }
                HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) => {
                    ended |= end;
                    forwarding.body(data.as_deref(), end, &mut out);
                }
                HttpTask::Trailer(_) | HttpTask::Done => {
                    ended = true;
                    forwarding.body(None, true, &mut out);
                }
                HttpTask::Failed(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        forwarding.write(&out).await?;
        failed.map_or(Ok(ended), Err)
    }

    /// The deadlines of the client are its own.
    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_write_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_total_drain_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        None
    }

    /// For Pingora's own log, which the access log replaces.
    fn request_summary(&self) -> String {
        String::new()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.forwarding.as_ref()?.written.as_deref()
    }

    /// No request follows on this connection.
    async fn shutdown(&mut self, _code: u32, _context: &str) {
        if let Some(forwarding) = &mut self.forwarding {
            forwarding.keeps = false;
        }
    }

    fn is_body_done(&mut self) -> bool {
        self.forwarding.as_ref().is_none_or(Forwarding::body_ended)
    }

    async fn finish(&mut self) -> Result<()> {
        if let Some(forwarding) = &mut self.forwarding
            && forwarding.written.is_some()
        {
            forwarding.ending = if forwarding.keeps { Ending::Keep } else { Ending::Close };
        }
        Ok(())
    }

    fn is_body_empty(&mut self) -> bool {
        self.forwarding.as_ref().is_none_or(|forwarding| forwarding.empty)
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let forwarding = self.forwarding()?;
        if forwarding.ended && forwarding.switched {
            return Ok(None);
        }
        if forwarding.ended && !forwarding.body_ended() {
            return Err(Fault::Answered.into_error(ErrorType::ReadError));
        }
        poll_fn(|context| {
            if no_body_expected || (forwarding.body_ended() && !forwarding.switched) {
                forwarding.poll_idle(context).map(Err)
            } else if forwarding.body_ended() {
                Poll::Ready(Ok(None))
            } else {
                forwarding.poll_body(context)
            }
        })
        .await
    }

    fn body_bytes_sent(&self) -> usize {
        self.forwarding.as_ref().map_or(0, |forwarding| forwarding.sent)
    }

    fn body_bytes_read(&self) -> usize {
        self.forwarding.as_ref().map_or(0, |forwarding| forwarding.read)
    }

    fn digest(&self) -> Option<&Digest> {
        None
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        None
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {}

    fn retry_buffer_truncated(&self) -> bool {
        self.forwarding
            .as_ref()
            .is_some_and(|forwarding| forwarding.held.is_none())
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let held = self.forwarding.as_ref()?.held.as_ref()?;
        (!held.is_empty()).then(|| Bytes::copy_from_slice(held))
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }

    fn is_upgrade_req(&self) -> bool {
        self.forwarding.as_ref().is_some_and(|forwarding| forwarding.upgrades)
    }

    fn was_upgraded(&self) -> bool {
        self.forwarding.as_ref().is_some_and(|forwarding| forwarding.switched)
    }
}

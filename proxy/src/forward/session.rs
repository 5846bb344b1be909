//! An admitted request as a session of Pingora's.
//!
//! Pingora lets a session be custom ([`custom::server::Session`](Custom), hidden from its documentation and so pinned to one
//! release). It sees the head as the origin gets it, and its own upstream half reads the body and writes the response through here.
//! The direct forwarder has the client to itself ([`Exchange::client`]) and uses nothing of this but the head.
//!
//! Pingora gives no session back, so the exchange and the client travel in a [`Handover`].

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::Stream as Messages;
use http::{HeaderMap, HeaderValue, Method};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error, ErrorType, Result};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as Custom;
use pingora::protocols::l4::socket::SocketAddr;

use crate::config::Forwarder;
use crate::forward::client::{Client, ClientSide};
use crate::forward::direct::Ending;
use crate::forward::forwarding::{Fault, Forwarding};
use crate::forward::handover::{Exchange, Handover, Left};
use crate::forward::ready::Passed;
use crate::headers::request::Span;
use crate::http1::downstream::Downstream;
use crate::http2::stream::Stream;
use crate::lifecycle::Lifecycle;

/// A session for Pingora with this head, and what is handed to the hooks beside it.
pub fn open(
    header: Box<RequestHeader>,
    mut exchange: Box<Exchange>,
    lifecycle: &Arc<Lifecycle>,
) -> (Box<dyn Custom>, Handover) {
    let forwarded = exchange.request.forwarder == Forwarder::Pingora;
    let session: Box<dyn Custom> = match exchange.client.take() {
        Some(Client::Http1(mut client)) if forwarded => {
            let mut first = BytesMut::with_capacity(client.received.len());
            exchange.fault = client.received_body(&mut first).err();
            let forwarding = Forwarding::new(client, first, &exchange.request, lifecycle);
            Session::new(header, Some(forwarding))
        }
        Some(Client::Http2(client)) if forwarded => {
            let forwarding = Forwarding::new(client, BytesMut::new(), &exchange.request, lifecycle);
            Session::new(header, Some(forwarding))
        }
        // The direct forwarder has the client, and may leave it to this session.
        Some(client @ Client::Http2(_)) => {
            exchange.client = Some(client);
            Session::<Stream>::new(header, None)
        }
        client => {
            exchange.client = client;
            Session::<Downstream>::new(header, None)
        }
    };
    (session, Handover::new(exchange))
}

thread_local! {
    /// Heads of requests that have ended, without their values. The next request often has the same fields, and to replace values
    /// costs half of what a new map does.
    static SPARE: RefCell<Vec<http::request::Parts>> = const { RefCell::new(Vec::new()) };
}

/// How many heads a thread keeps, with how many fields each.
const MAX_SPARE: usize = 64;
const MAX_SPARE_FIELDS: usize = 32;

/// The head of `request`, whose fields are at `spans`, as Pingora has it. With `cases`, names keep their upper case letters, which
/// matters where Pingora writes the head.
///
/// # Errors
/// When a part of it is none to the library that holds the head.
pub fn header(request: &Bytes, method: &str, spans: &[Span], cases: bool) -> Result<Box<RequestHeader>> {
    let line = spans.first().map_or(0, |first| first.name().start);
    let target = request.slice(method.len() + 1..line - " HTTP/1.1\r\n".len());
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| broken("a method that is none"))?;
    if cases {
        let mut header = Box::new(RequestHeader::build(method, &target[..], Some(spans.len()))?);
        for span in spans {
            let name = String::from_utf8_lossy(&request[span.name()]).into_owned();
            header.append_header(name, &request[span.value()])?;
        }
        return Ok(header);
    }
    let mut parts = match SPARE.with_borrow_mut(Vec::pop) {
        Some(parts) => parts,
        None => RequestHeader::build_no_case(Method::GET, b"/", Some(spans.len()))?.into(),
    };
    parts.method = method;
    // Pingora's hooks see it and nobody sends it, so a target that is no URI for this library is no reason to refuse it.
    parts.uri = http::Uri::from_maybe_shared(target).unwrap_or_default();
    let headers = &mut parts.headers;
    let value = |span: &Span| {
        let value = HeaderValue::from_maybe_shared(request.slice(span.value()));
        value.map_err(|_| broken("a value that is none"))
    };
    let is_alike = headers.keys_len() == spans.len()
        && headers.len() == spans.len()
        && headers
            .keys()
            .zip(spans)
            .all(|(name, span)| span.is_named(name, request));
    if is_alike {
        for (place, span) in headers.values_mut().zip(spans) {
            *place = value(span)?;
        }
    } else {
        headers.clear();
        for span in spans {
            let name = span.header_name(request).map_err(|_| broken("a name that is none"))?;
            headers.append(name, value(span)?);
        }
    }
    Ok(Box::new(RequestHeader::from(parts)))
}

fn broken(what: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, what)
}

/// A session of Pingora's.
pub struct Session<C: ClientSide> {
    header: Option<Box<RequestHeader>>,
    forwarding: Option<Forwarding<C>>,
}

impl<C: ClientSide> Session<C> {
    fn new(header: Box<RequestHeader>, forwarding: Option<Forwarding<C>>) -> Box<Self> {
        Box::new(Self {
            header: Some(header),
            forwarding,
        })
    }

    fn forwarding(&mut self) -> Result<&mut Forwarding<C>> {
        match &mut self.forwarding {
            Some(forwarding) => Ok(forwarding),
            None => Error::e_explain(ErrorType::InternalError, "the direct forwarder has the client"),
        }
    }
}

impl<C: ClientSide> Drop for Session<C> {
    fn drop(&mut self) {
        if let Some(header) = self.header.take().filter(|header| !header.has_case()) {
            let mut parts: http::request::Parts = (*header).into();
            // Values are parts of the request's own bytes, which go with it.
            for value in parts.headers.values_mut() {
                *value = HeaderValue::from_static("");
            }
            parts.uri = http::Uri::default();
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MAX_SPARE && parts.headers.len() <= MAX_SPARE_FIELDS {
                    spare.push(parts);
                }
            });
        }
        if let Some(forwarding) = self.forwarding.take() {
            Handover::give_back(forwarding.client.into_client(), forwarding.ending);
        }
    }
}

#[async_trait]
impl<C: ClientSide> Custom for Session<C> {
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
        forwarding.head(response, end, &mut out)?;
        if end {
            forwarding.body(None, true, &mut out);
        }
        forwarding.write(&mut out).await
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(response.clone()), end).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        let forwarding = self.forwarding()?;
        let mut out = BytesMut::new();
        forwarding.body(Some(&data), end, &mut out);
        forwarding.write(&mut out).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        let forwarding = self.forwarding()?;
        let mut out = BytesMut::new();
        forwarding.trailers(&trailers, &mut out);
        forwarding.write(&mut out).await
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
                    forwarding.head(response, end, &mut out)?;
                    if end {
                        forwarding.body(None, true, &mut out);
                    }
                }
                HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) => {
                    ended |= end;
                    forwarding.body(data.as_deref(), end, &mut out);
                }
                HttpTask::Trailer(Some(trailers)) => {
                    ended = true;
                    forwarding.trailers(&trailers, &mut out);
                }
                HttpTask::Trailer(None) | HttpTask::Done => {
                    ended = true;
                    forwarding.body(None, true, &mut out);
                }
                HttpTask::Failed(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        forwarding.write(&mut out).await?;
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

    /// Written by hand, because `Passed` needs no allocation.
    fn finish<'s, 'f>(&'s mut self) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        if let Some(forwarding) = &mut self.forwarding
            && forwarding.written.is_some()
        {
            forwarding.ending = if forwarding.keeps { Ending::Keep } else { Ending::Close };
        }
        Box::pin(Passed)
    }

    /// Pingora asks this twice in each try: before it sends the head, to frame the body, and behind it, to end the body at once. Then a
    /// request that may switch protocols must not say yes: Pingora would take that end for the tunnel's, if the origin has switched
    /// meanwhile (its issue 946).
    fn is_body_empty(&mut self) -> bool {
        self.forwarding.as_mut().is_none_or(|forwarding| {
            let may_switch = std::mem::take(&mut forwarding.head_sent) && forwarding.request.upgrade.is_some();
            forwarding.empty && !may_switch
        })
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

    /// Goes on with the request that was left to it ([`Handover::leave`]). Pingora calls this too, when there is none.
    fn enable_retry_buffering(&mut self) {
        if let Some(Left {
            client,
            first,
            request,
            lifecycle,
        }) = Handover::left()
        {
            let client = C::from_client(client);
            self.forwarding = client.map(|client| Forwarding::new(client, first, &request, &lifecycle));
        }
    }

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

    fn take_custom_message_reader(&mut self) -> Option<Box<dyn Messages<Item = Result<Bytes>> + Unpin + Send + Sync>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Messages<Item = Result<Bytes>> + Unpin + Send + Sync>,
    ) -> Result<()> {
        Ok(())
    }

    /// Pingora asks for it once the head has gone out.
    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        if let Some(forwarding) = &mut self.forwarding {
            forwarding.head_sent = true;
        }
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }

    fn is_upgrade_req(&self) -> bool {
        self.forwarding
            .as_ref()
            .is_some_and(|forwarding| forwarding.request.upgrade.is_some())
    }

    fn was_upgraded(&self) -> bool {
        self.forwarding.as_ref().is_some_and(|forwarding| forwarding.switched)
    }
}

//! One client connection: reads each request head, and answers the request or forwards it.
//!
//! Pingora's own loop has no deadline for a whole head, waits for ever between requests, and answers a head that it can't
//! read without logging it. So heads are read here, bounded in length and time, and checked by [`head`].
//! [`admission`](crate::exchange::admission) decides whether to admit a request. One that is rejected is answered here, at little
//! cost. One that is admitted gets a new head from [`headers`](crate::headers) and goes through [`forward`](crate::forward).
//! Connections are limited too, in total and per client: the client that a PROXY protocol header names, where there is one.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Once};
use std::task::{Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::FusedFuture;
use pingora::http::RequestHeader;
use pingora::server::ShutdownWatch;
use pingora_limits::inflight::Inflight;
use pingora_proxy::HttpProxy;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::ClientLimits;
use crate::exchange::admission::{Admission, Rejected};
use crate::exchange::connection::Connection;
use crate::exchange::passwords::Passwords;
use crate::exchange::record::Record;
use crate::exchange::request::Request;
use crate::forward::authentication::Authentication;
use crate::forward::client::{Client, ClientSide};
use crate::forward::direct::Ending;
use crate::forward::handover::Exchange;
use crate::forward::proxy::EdgeProxy;
use crate::http1::chunked::Decoder;
use crate::http1::downstream::{Body, Downstream, TOO_MUCH_HELD};
use crate::http1::head;
use crate::http1::held::{Budget, Hold, SMALL};
use crate::http1::target::Scheme;
use crate::http1::violation::{PROXY_HEADER, Violation, is_proxy_header};
use crate::lifecycle::Lifecycle;
use crate::limit::refusals::Refusals;
use crate::listen::acme::challenge;
use crate::observe::metrics::Metrics;
use crate::rejection::{Delivery, Form, Rejection};
use crate::snapshot::{Live, Policy};
use crate::tls::stream::Stream;

/// What a client of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first line of that: nothing else begins so.
const PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// The server of client connections.
pub struct Edge {
    /// What serves an admitted request.
    pub proxy: Arc<HttpProxy<EdgeProxy>>,
    /// What decides whether a request may pass.
    pub admission: Admission,
    /// What verifies passwords.
    pub passwords: Passwords,
    /// What asks authentication services.
    pub authentication: Authentication,
    /// The rules, which a reload can change.
    pub live: Arc<Live>,
    /// What all clients make the proxy hold.
    pub held: Arc<Budget>,
    /// How many connections each client has.
    pub by_client: Inflight,
    /// Places for connections that are turned away.
    pub turned_away: Semaphore,
    /// Whether the process is on its way out.
    pub lifecycle: Arc<Lifecycle>,
    /// What Prometheus sees.
    pub metrics: Arc<Metrics>,
    /// Which refusals are logged.
    pub refusals: Arc<Refusals>,
    /// Done once the log has explained the limit.
    pub limit_explained: Once,
    /// Done when the first connection was refused for lack of descriptors.
    pub descriptors_explained: Once,
}

/// What came of waiting for a request head.
enum Arrival {
    /// A whole head of this length has been received.
    Head(usize),
    /// Nothing but empty lines, which RFC 9112 has servers ignore before a request.
    Nothing,
    /// The client left in the middle of a head.
    Left,
    /// The preface of HTTP/2, which is still received.
    Http2,
    /// What came is no head.
    Malformed(Violation),
}

/// How a connection goes on.
enum Next {
    /// With another request.
    Request(Box<Downstream>),
    /// With HTTP/2.
    Http2(Box<Downstream>),
}

impl Edge {
    /// Serves the requests on `stream` until one is the last. `policy` are the rules when it connected.
    pub(super) async fn serve_connection(
        self: &Arc<Self>,
        stream: Stream,
        connection: Connection,
        policy: Arc<Policy>,
        shutdown: &ShutdownWatch,
        mut down: Pin<&mut impl FusedFuture<Output = ()>>,
    ) {
        let is_http2 = stream.is_http2();
        let mut client = self.client(stream, &connection, &policy);
        drop(policy);
        if is_http2 {
            return Box::pin(self.serve_http2(client, connection, shutdown, down)).await;
        }
        let connection = Arc::new(connection);
        let mut requests = 0;
        let mut idle_since = Instant::now();
        loop {
            if client.received.is_empty() {
                let first = requests == 0;
                let received = self.first_bytes(&mut client, first, idle_since, down.as_mut());
                let Some(()) = received.await else { return };
            }
            // Boxed, so that a connection that waits has no room for it.
            let before = requests;
            client = match Box::pin(self.serve(client, &connection, &mut requests, shutdown)).await {
                None => return,
                Some(Next::Request(client)) => client,
                Some(Next::Http2(client)) => {
                    // Nobody else has it before the first request.
                    let Some(connection) = Arc::into_inner(connection) else {
                        return;
                    };
                    return Box::pin(self.serve_http2(client, connection, shutdown, down)).await;
                }
            };
            if requests != before {
                idle_since = Instant::now();
            }
        }
    }

    /// Answers a client that has sent these bytes of HTTP where TLS is spoken.
    pub(super) async fn refuse_plain(&self, stream: Stream, bytes: Bytes, connection: Connection, policy: &Policy) {
        let connection = Arc::new(connection);
        let client = self.client(stream, &connection, policy);
        let mut record = Record::new(&connection, Instant::now());
        record.arrived(bytes);
        let why = Rejected::from(Rejection::PlainHttp);
        self.reject(client, &why, Delivery::LAST, record, policy).await;
    }

    /// The client at the other end of `stream`.
    fn client(&self, stream: Stream, connection: &Connection, policy: &Policy) -> Box<Downstream> {
        let its_own = (!policy.trusted.contain(connection.peer)).then(|| policy.limiter.key(connection.peer));
        let hold = Hold::new(Arc::clone(&self.held), its_own, policy.held);
        Box::new(Downstream::new(stream, &policy.client.transfer, hold))
    }

    /// Waits for what a client is about to send, the `first` of its connection or a later thing: until it is there, or the drain has
    /// given it enough time.
    pub(super) async fn until_last_call<T>(
        &self,
        first: bool,
        mut wait: impl Future<Output = T> + Unpin,
        mut down: Pin<&mut impl FusedFuture<Output = ()>>,
    ) -> Option<T> {
        if !down.is_terminated() {
            tokio::select! {
                biased;
                done = &mut wait => return Some(done),
                () = &mut down => {}
            }
        }
        // A client sends its first request as soon as it is connected, so that one is under way; the process waits for it.
        let _under_way = first.then(|| self.lifecycle.enter());
        timeout(self.lifecycle.last_call(first), wait).await.ok()
    }

    /// Waits for the first bytes of a request, the first of its connection or a later one, on a connection that is idle since
    /// `idle_since`; `None` when there will be none.
    async fn first_bytes(
        &self,
        client: &mut Downstream,
        first: bool,
        idle_since: Instant,
        down: Pin<&mut impl FusedFuture<Output = ()>>,
    ) -> Option<()> {
        let idle_timeout = self.live.idle_timeout();
        let receive = poll_fn(|context| client.poll_first(context, idle_since, idle_timeout));
        self.until_last_call(first, receive, down).await?
    }

    /// Serves the request that `client` begins with. Returns the client when more may follow.
    async fn serve(
        &self,
        mut client: Box<Downstream>,
        connection: &Arc<Connection>,
        requests: &mut u64,
        shutdown: &ShutdownWatch,
    ) -> Option<Next> {
        let _in_flight = self.lifecycle.enter();
        let start = Instant::now();
        let policy = self.live.policy();
        client.hold.begin(policy.held);
        let may_be_http2 = *requests == 0 && policy.http2.cleartext;
        let arrival = head_of(&mut client, start, &policy.client, may_be_http2).await;
        client.hold.release();
        let mut record = match arrival {
            Arrival::Nothing => return Some(Next::Request(client)),
            Arrival::Http2 => return Some(Next::Http2(client)),
            _ => Record::new(connection, start),
        };
        let (why, delivery) = match arrival {
            Arrival::Head(length) => {
                *requests += 1;
                let last = *requests >= policy.client.max_requests || self.lifecycle.is_draining();
                let head = if length == client.received.len() {
                    std::mem::take(&mut client.received).freeze()
                } else {
                    client.received.split_to(length).freeze()
                };
                let proof = match &policy.challenges {
                    Some(storage) => challenge::proof(storage, target(&head)).await,
                    None => None,
                };
                let decided = self.decide((&head, proof), &mut client, connection, &policy, &mut record, last);
                record.arrived(head);
                match decided {
                    Ok((header, request)) => {
                        let exchange = Exchange::new(request, record, Client::Http1(client));
                        return self.forward(header, exchange, shutdown).await.map(Next::Request);
                    }
                    Err(rejected) => rejected,
                }
            }
            // Nobody knows where the next request would begin.
            Arrival::Malformed(violation) => {
                record.arrived(client.received.split().freeze());
                (violation.into(), Delivery::LAST)
            }
            Arrival::Left | Arrival::Nothing | Arrival::Http2 => {
                record.arrived(client.received.split().freeze());
                record.failed(
                    Rejection::ClientGone,
                    Some("the client left in the middle of a head".into()),
                );
                return None;
            }
        };
        let client = self.reject(client, &why, delivery, record, &policy).await?;
        Some(Next::Request(client))
    }

    /// Decides over the request with this head, whose body is next in what `client` has sent. An authority may have asked for the
    /// proof in it. It may be the `last` of its connection.
    fn decide(
        &self,
        (bytes, proof): (&Bytes, Option<Vec<u8>>),
        client: &mut Downstream,
        connection: &Connection,
        policy: &Arc<Policy>,
        record: &mut Record,
        last: bool,
    ) -> Result<(Box<RequestHeader>, Request), (Rejected, Delivery)> {
        let mut scratch = head::scratch();
        let head = head::parse(bytes, &mut scratch, &policy.client.head);
        let mut head = head.map_err(|violation| (violation.into(), Delivery::LAST))?;
        record.read(head.method.len(), head.target.len());
        let last_of_client = !head.keeps;
        head.keeps &= !last;
        client.begin(
            match head.body {
                head::Body::Length(length) => Body::Length(length),
                head::Body::Chunked => Body::Chunked(Decoder::default()),
                // Until the origin agrees, what follows is the next request.
                head::Body::Upgrade => Body::Length(0),
            },
            &policy.client.transfer,
        );
        // A client that waits for "100 Continue" sends no body after a rejection, but its next request; or it does send it.
        let in_doubt = head.expects && !client.body().ended() && client.received.is_empty();
        let delivery = || Delivery {
            keeps: head.keeps && !in_doubt,
            head_only: head.method == "HEAD",
            form: Form::accepted(head.values("accept")),
        };
        let scheme = if connection.tls.is_some() {
            Scheme::Https
        } else {
            Scheme::Http
        };
        if head.scheme.is_some_and(|named| named != scheme) {
            let rule = "the target has another scheme than the connection";
            return Err((Violation::malformed(rule).into(), Delivery::LAST));
        }
        if proof.is_some() {
            let why = Rejected {
                proof,
                ..Rejection::AcmeChallenge.into()
            };
            return Err((why, delivery()));
        }
        let admitted = self.admit(&head, bytes.len(), connection, policy, record);
        let mut admitted = admitted.map_err(|why| (why, delivery()))?;
        let request = &mut admitted.1;
        if let Some(max) = request.route.max_body {
            client.limit_body(max);
        }
        request.last = last_of_client;
        Ok(admitted)
    }

    /// Has an admitted request served by Pingora's hooks. Returns the client when another request may follow.
    async fn forward(
        &self,
        header: Box<RequestHeader>,
        exchange: Box<Exchange>,
        shutdown: &ShutdownWatch,
    ) -> Option<Box<Downstream>> {
        let last = exchange.request.last;
        let (Client::Http1(mut client), ending) = self.pass(header, exchange, shutdown).await? else {
            return None;
        };
        client.hold.release();
        match ending {
            Ending::Keep if client.discard_body().await => return Some(client),
            Ending::Close if last && client.end_at_once() => {}
            Ending::Keep | Ending::Close => client.linger().await,
            Ending::Cut => {}
            Ending::Abandon => client.abandon(),
        }
        None
    }

    /// Answers a request here. Returns the client when another may follow. The answer does not wait for the rest of the request's
    /// body.
    async fn reject(
        &self,
        mut client: Box<Downstream>,
        why: &Rejected,
        delivery: Delivery,
        mut record: Record,
        policy: &Policy,
    ) -> Option<Box<Downstream>> {
        self.refused(why, &mut record, policy);
        let body = why.body(policy, delivery.form, record.id.as_str());
        let answer = match (why.retry_after, &why.location) {
            (Some(retry_after), _) => why
                .limited(policy, record.rule.as_deref())
                .answer(retry_after, &body, delivery),
            (None, Some(location)) => Rejection::redirect(location, &body, delivery),
            (None, None) => why.rejection.answer(&body, delivery),
        };
        let length = body.length();
        let written = client.write_all(&answer, true, 0).await.is_ok();
        if written {
            why.sent(&mut record, delivery, length);
        }
        drop(record);
        if written && delivery.keeps && client.discard_body().await {
            return Some(client);
        }
        client.linger().await;
        None
    }

    /// Tells a client that there is no place for its connection. Only some are given the time to read that, because those take
    /// descriptors too.
    pub(super) async fn turn_away(&self, stream: Stream, connection: Connection, policy: &Policy) {
        let connection = &Arc::new(connection);
        let mut client = self.client(stream, connection, policy);
        let mut record = Record::new(connection, Instant::now());
        let why = Rejected::from(Rejection::TooManyConnections);
        if let Ok(_place) = self.turned_away.try_acquire() {
            self.reject(client, &why, Delivery::LAST, record, policy).await;
        } else {
            record.failed(why.rejection, None);
            let body = policy.error_pages.body(why.rejection, Form::Text, record.id.as_str());
            let length = body.length();
            if let Some(Ok(())) = client.reject(why.rejection, &body, Delivery::LAST).now_or_never() {
                record.answered_here(why.rejection, Delivery::LAST, length);
            }
        }
    }
}

/// The second word of a head, which is its target if it is one.
fn target(head: &[u8]) -> &[u8] {
    head.split(|byte| *byte == b' ').nth(1).unwrap_or_default()
}

/// Receives until there is a whole head, whose first byte was there at `start`.
async fn head_of(client: &mut Downstream, start: Instant, limits: &ClientLimits, may_be_http2: bool) -> Arrival {
    let mut scanned = 0;
    poll_fn(|context| {
        loop {
            // Nearly all heads come whole, and need no timer.
            if may_be_http2 && client.received.starts_with(PREFACE_LINE) {
                if let Some(arrival) = look_for_preface(&client.received) {
                    return Poll::Ready(arrival);
                }
            } else if let Some(arrival) = look_for_head(&mut client.received, &mut scanned, limits) {
                return Poll::Ready(arrival);
            }
            match client.poll_receive(context) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(Arrival::Left),
                Poll::Pending => {
                    // It is no small request before it is whole.
                    let held = SMALL + client.received.capacity();
                    if client.hold.poll(context, held, false).is_ready() {
                        let violation = Violation::new(Rejection::HeldTooMuch, TOO_MUCH_HELD);
                        return Poll::Ready(Arrival::Malformed(violation));
                    }
                    ready!(client.timer.poll(context, start, limits.head_timeout));
                    let late = "the head takes longer than client.head_timeout";
                    return Poll::Ready(Arrival::Malformed(Violation::new(Rejection::RequestTimeout, late)));
                }
            }
        }
    })
    .await
}

/// What `received` is, which begins with the first line of the preface.
fn look_for_preface(received: &[u8]) -> Option<Arrival> {
    let expected = &PREFACE[..received.len().min(PREFACE.len())];
    match received.strip_prefix(expected) {
        None => Some(Arrival::Malformed(Violation::malformed(
            "the preface of HTTP/2 is broken",
        ))),
        Some(_) => (expected.len() == PREFACE.len()).then_some(Arrival::Http2),
    }
}

/// What `received` begins with, as far as is known; `scanned` bytes of it have been examined.
fn look_for_head(received: &mut BytesMut, scanned: &mut usize, limits: &ClientLimits) -> Option<Arrival> {
    while received.starts_with(b"\r\n") {
        received.advance(2);
        *scanned = 0;
    }
    if received.is_empty() {
        return Some(Arrival::Nothing);
    }
    match head::length(received, *scanned) {
        Some(length) if length <= limits.max_head => Some(Arrival::Head(length)),
        None if !head::can_begin(received) => {
            Some(Arrival::Malformed(Violation::malformed(if head::is_tls(received) {
                "TLS on the port for plain HTTP; use http://"
            } else if is_proxy_header(received) {
                PROXY_HEADER
            } else {
                "the first byte can't begin a request"
            })))
        }
        None if received.len() <= limits.max_head => {
            *scanned = received.len();
            None
        }
        Some(_) | None => {
            let in_first_line = memchr::memchr(b'\n', received).is_none_or(|end| end > limits.max_head);
            Some(Arrival::Malformed(if in_first_line {
                Violation::new(Rejection::UriTooLong, "the request line is longer than client.max_head")
            } else {
                Violation::new(Rejection::HeadTooLarge, "the head is longer than client.max_head")
            }))
        }
    }
}

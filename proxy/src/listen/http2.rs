//! One client connection of HTTP/2: accepts its streams, and answers each request or forwards it.
//!
//! The loop waits for nothing but `accept`, which drives the connection: reads, writes, windows and pings happen in there. A request
//! that is refused is answered at once. One that is admitted gets a task, so that no stream waits for another, and a panic costs
//! its own stream.
//!
//! A stream is a connection in all but name: it takes memory, and a connection to an origin. So it counts as one in the limits.

use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures::future::FusedFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, header};
use pingora::server::ShutdownWatch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::Edge;
use crate::exchange::admission::Rejected;
use crate::exchange::connection::Connection;
use crate::exchange::record::Record;
use crate::forward::client::Client;
use crate::forward::direct::Ending;
use crate::forward::handover::Exchange;
use crate::http1::downstream::Downstream;
use crate::http1::head::Body;
use crate::http1::held::Hold;
use crate::http1::progress::Limits;
use crate::http1::timer::Timer;
use crate::http2::head::{self, Made};
use crate::http2::io::Io;
use crate::http2::stream::{Stream, respond};
use crate::observe::metrics::GoAway;
use crate::rejection::{Delivery, Form, Rejection};
use crate::snapshot::Policy;

/// A client that has reset more streams than this, and more than half of all, is cut: it makes work, and waits for no answer
/// (CVE-2023-44487).
const MOST_RESETS: u64 = 100;

/// What happens on a connection.
#[allow(clippy::large_enum_variant, reason = "it is taken apart where it is made")]
enum Event {
    /// A request has come.
    Request(Request<RecvStream>, SendResponse<Bytes>),
    /// A stream has ended; whether its client has reset it.
    Ended(bool),
    /// The process is about to leave.
    Leaving,
    /// No stream is open, for longer than that may be.
    Idle,
    /// It has ended.
    Closed(Option<h2::Error>),
}

/// The streams of a connection.
#[derive(Default)]
struct Streams {
    running: JoinSet<bool>,
    accepted: u64,
    resets: u64,
}

impl Streams {
    fn abuse(&self) -> bool {
        self.resets > MOST_RESETS && self.resets * 2 > self.accepted
    }
}

impl Edge {
    /// Serves a `client` that speaks HTTP/2 on a `connection`, of which it may have received the beginning.
    pub(super) async fn serve_http2(
        self: &Arc<Self>,
        client: Box<Downstream>,
        mut connection: Connection,
        shutdown: &ShutdownWatch,
        mut down: Pin<&mut impl FusedFuture<Output = ()>>,
    ) {
        connection.protocol = "h2";
        let connection = Arc::new(connection);
        let policy = self.live.policy();
        let (stream, received, hold) = client.into_parts();
        let io = Io::new(stream, received, policy.client.transfer);
        // Boxed, so that no connection has room for it for longer than it takes.
        let handshake = Box::pin(timeout(policy.client.head_timeout, builder(&policy).handshake(io)));
        let Some(Ok(Ok(mut http2))) = self.until_last_call(true, handshake, down.as_mut()).await else {
            return;
        };
        drop(policy);
        let mut streams = Streams::default();
        let mut timer = Timer::default();
        let mut idle_since = Instant::now();
        let mut idle_limit = self.live.idle_timeout();
        let mut under_way = None;
        let (mut draining, mut leaving, mut closing) = (false, false, false);
        let mut gathered = true;
        loop {
            let event = std::future::poll_fn(|context| {
                // The stream that has something to send is seldom alone: others have their turn first, and all goes out in one write.
                if !gathered && streams.running.len() > 1 {
                    gathered = true;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                gathered = true;
                if let Poll::Ready(Some(ended)) = streams.running.poll_join_next(context) {
                    return Poll::Ready(Event::Ended(ended.unwrap_or(false)));
                }
                match pin!(http2.accept()).poll(context) {
                    Poll::Ready(Some(Ok((request, respond)))) => return Poll::Ready(Event::Request(request, respond)),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Event::Closed(Some(error))),
                    Poll::Ready(None) => return Poll::Ready(Event::Closed(None)),
                    Poll::Pending => {}
                }
                // It may have been so since before the first byte.
                if !draining && (down.is_terminated() || down.as_mut().poll(context).is_ready()) {
                    return Poll::Ready(Event::Leaving);
                }
                gathered = false;
                if closing || !streams.running.is_empty() {
                    return Poll::Pending;
                }
                ready!(timer.poll(context, idle_since, idle_limit));
                Poll::Ready(Event::Idle)
            })
            .await;
            let ended = match event {
                Event::Request(request, respond) => {
                    under_way = None;
                    streams.accepted += 1;
                    self.begin(request, respond, &connection, &hold, &mut streams, shutdown);
                    idle_since = Instant::now();
                    // A reload may have made them fewer than were served.
                    if streams.accepted >= self.live.max_requests() && !leaving {
                        leaving = true;
                        self.metrics.goes_away(GoAway::MaxRequests);
                        http2.graceful_shutdown();
                    }
                    None
                }
                Event::Ended(reset) => {
                    idle_since = Instant::now();
                    // A reload may have changed it. During a drain it is another.
                    if !draining {
                        idle_limit = self.live.idle_timeout();
                    }
                    streams.resets += u64::from(reset);
                    (streams.abuse() && !closing).then_some((GoAway::Resets, Reason::ENHANCE_YOUR_CALM))
                }
                // Streams that the client has opened before it hears of that are accepted and answered. As a client of HTTP/1.1 sends its
                // first request as soon as it is connected, so does this one.
                Event::Leaving => {
                    draining = true;
                    let first = streams.accepted == 0;
                    under_way = first.then(|| self.lifecycle.enter());
                    idle_since = Instant::now();
                    idle_limit = self.lifecycle.last_call(first);
                    self.metrics.goes_away(GoAway::Drain);
                    http2.graceful_shutdown();
                    None
                }
                Event::Idle => Some((GoAway::Idle, Reason::NO_ERROR)),
                Event::Closed(error) => {
                    if let Some(why) = error.as_ref().and_then(fault) {
                        self.metrics.goes_away(why);
                    }
                    break;
                }
            };
            if let Some((why, reason)) = ended {
                closing = true;
                self.metrics.goes_away(why);
                http2.abrupt_shutdown(reason);
            }
        }
        drop(under_way);
        // Streams that are left hear of it now, and end.
        drop(http2);
        while streams.running.join_next().await.is_some() {}
    }

    /// Begins to serve a request, or refuses it.
    fn begin(
        self: &Arc<Self>,
        request: Request<RecvStream>,
        mut respond_to: SendResponse<Bytes>,
        connection: &Arc<Connection>,
        hold: &Hold,
        streams: &mut Streams,
        shutdown: &ShutdownWatch,
    ) {
        let in_flight = self.lifecycle.enter();
        let policy = self.live.policy();
        let (parts, incoming) = request.into_parts();
        let mut record = Record::new(connection, Instant::now());
        let (method, target) = (parts.method.as_str(), head::target(&parts));
        record.arrived([method.as_bytes(), b" ", target.as_bytes()].concat().into());
        let lengths = (method.len(), target.len());
        let place = self.place(self.lifecycle.open_stream(), &policy);
        let place = place.and_then(|place| Some((place, self.place_of_client(connection, &policy)?)));
        let Some(place) = place else {
            record.failed(Rejection::TooManyConnections, Some("the stream was refused".into()));
            return respond_to.send_reset(Reason::REFUSED_STREAM);
        };
        let made = Made::of(&parts);
        let mut fields = Vec::with_capacity(parts.headers.len() + 2);
        let (ends, limits) = (incoming.is_end_stream(), &policy.client);
        let read = head::read(&parts, &made, &mut fields, ends, &limits.head, limits.max_head);
        let admitted = read.map_err(Rejected::from).and_then(|head| {
            record.read(lengths.0, lengths.1);
            let body = match head.body {
                Body::Length(length) => (Some(length), false),
                Body::Chunked => (None, false),
                Body::Upgrade => (None, true),
            };
            let size = head
                .fields
                .iter()
                .map(|field| field.name.len() + field.value.len())
                .sum();
            self.admit(&head, size, connection, &policy, &mut record)
                .map(|admitted| (admitted, body))
        });
        let grpc = is_grpc(&parts.headers);
        let ((header, mut request), body) = match admitted {
            Ok(admitted) => admitted,
            Err(why) => {
                let delivery = Delivery {
                    keeps: true,
                    head_only: parts.method == http::Method::HEAD,
                    form: if grpc {
                        Form::Grpc
                    } else {
                        Form::accepted(parts.headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes))
                    },
                };
                self.refuse(&mut respond_to, &why, delivery, record, &policy);
                return;
            }
        };
        request.grpc = grpc;
        let mut hold = hold.another();
        hold.begin(policy.held);
        let transfer = Limits {
            max_body: request.route.max_body.unwrap_or(limits.transfer.max_body),
            ..limits.transfer
        };
        let stream = Stream::new(incoming, respond_to, body, &transfer, policy.http2.send_buffer, hold);
        let exchange = Exchange::new(request, record, Client::Http2(Box::new(stream)));
        let (edge, shutdown) = (Arc::clone(self), shutdown.clone());
        streams.running.spawn(async move {
            let _held = (in_flight, place);
            let Some((Client::Http2(mut stream), ending)) = edge.pass(header, exchange, &shutdown).await else {
                // A panic: the stream was reset when it was dropped.
                return false;
            };
            let reset = stream.is_gone();
            match ending {
                Ending::Keep | Ending::Close => stream.end(b""),
                Ending::Cut => stream.reset(Reason::INTERNAL_ERROR),
                Ending::Abandon => stream.reset(Reason::CANCEL),
            }
            reset
        });
    }

    /// Answers a request here. What is left of its body isn't wanted: the stream is reset with NO_ERROR behind the answer.
    fn refuse(
        &self,
        respond_to: &mut SendResponse<Bytes>,
        why: &Rejected,
        delivery: Delivery,
        mut record: Record,
        policy: &Policy,
    ) {
        self.refused(why, &mut record, policy);
        let body = why.body(policy, delivery.form, record.id.as_str());
        let response = match (why.retry_after, &why.location) {
            // A redirect is none to gRPC's clients either.
            _ if delivery.form == Form::Grpc => why.rejection.grpc_response(why.retry_after),
            (Some(retry_after), _) => why.limited(policy, record.rule.as_deref()).response(retry_after, &body),
            (None, Some(location)) => Rejection::redirecting(location, &body),
            (None, None) => why.rejection.response(&body),
        };
        let length = body.length();
        if respond(respond_to, response, (!delivery.is_bodiless()).then_some(&body)).is_ok() {
            why.sent(&mut record, delivery, length);
        }
    }
}

/// Whether a request with these fields is a call of gRPC.
fn is_grpc(fields: &HeaderMap) -> bool {
    let kind = fields.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    // Not application/grpc-web, which has its trailers in the body.
    rest.is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
}

fn builder(policy: &Policy) -> h2::server::Builder {
    let limits = &policy.http2;
    // A head of twice the length is still read, so that the answer comes from here and is logged.
    let max_list = u32::try_from(2 * policy.client.max_head).unwrap_or(u32::MAX);
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(max_list)
        .max_send_buffer_size(limits.send_buffer)
        .max_local_error_reset_streams(Some(limits.max_resets));
    if !policy.client.head.upgrades.is_empty() {
        builder.enable_connect_protocol();
    }
    builder
}

/// Why a connection with this error was ended, if the client was at fault.
fn fault(error: &h2::Error) -> Option<GoAway> {
    if let Some(error) = error.get_io() {
        return match error.kind() {
            ErrorKind::TimedOut => Some(GoAway::Slow),
            ErrorKind::InvalidData => Some(GoAway::Protocol),
            _ => None,
        };
    }
    let reason = error
        .reason()
        .filter(|reason| error.is_library() && *reason != Reason::NO_ERROR)?;
    Some(match reason {
        Reason::ENHANCE_YOUR_CALM => GoAway::Flood,
        _ => GoAway::Protocol,
    })
}

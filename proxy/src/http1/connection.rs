//! One client connection: reads each request head itself, and gives Pingora the requests that are admitted.
//!
//! Pingora's own loop has no deadline for a whole head, waits for ever between requests, and answers a head that it can't
//! read without logging it. So the head is read here: bounded in length and time, checked by [`head`], admitted or rejected by
//! [`admission`](crate::admission), and rewritten by [`headers`](crate::headers) for Pingora to proxy. Connections are limited
//! too, in total and per client. A request that is rejected here is logged and counted like any other.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use futures::FutureExt;
use futures::future::FusedFuture;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{Shutdown, Stream};
use pingora::server::ShutdownWatch;
use pingora_limits::inflight::{self, Inflight};
use pingora_proxy::{HttpProxy, ProxyHttp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::access_log;
use crate::admission::{Admission, Connection, Refused};
use crate::config::ClientLimits;
use crate::headers::request::{Origination, write_request};
use crate::http1::chunks::Chunks;
use crate::http1::gate::{Gate, Rest, Terms};
use crate::http1::head::{self, Body, Head, RequestLine};
use crate::http1::violation::Violation;
use crate::lifecycle::{Connected, Lifecycle};
use crate::limiter::refusals::Refusals;
use crate::metrics::Metrics;
use crate::policy::{Live, Policy};
use crate::rejection::{Delivery, Rejection};
use crate::service::Incoming;

/// How long, and for how many bytes, a client whose connection closes is listened to, so that closing doesn't destroy the answer
/// before it is read.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 256 << 10;

/// The server of client connections, in front of the application `A`.
pub struct Edge<A> {
    /// What proxies a request.
    pub proxy: Arc<HttpProxy<A>>,
    /// What decides whether a request may pass.
    pub admission: Admission,
    /// The rules, which a reload can change.
    pub live: Arc<Live>,
    /// How many connections each client has.
    pub by_client: Inflight,
    /// Whether the process is on its way out.
    pub lifecycle: Arc<Lifecycle>,
    /// What Prometheus sees.
    pub metrics: Metrics,
    /// Which refusals are logged.
    pub refusals: Refusals,
    /// Done once the log has explained the limit.
    pub limit_explained: Once,
    /// Done when the first connection was refused for lack of descriptors.
    pub descriptors_explained: Once,
}

/// What came of waiting for a request head.
enum Arrival {
    /// A whole head of so many bytes is there.
    Head(usize),
    /// Nothing but empty lines, which RFC 9112 has servers ignore before a request.
    Nothing,
    /// The client left, or was idle for too long, or the process is leaving.
    End,
    /// What came is no head.
    Refused(Violation),
}

/// A request that goes to Pingora.
struct Passing {
    /// Its head as Pingora reads it, and what has come of its body.
    request: BytesMut,
    /// How many bytes it was as it came.
    came: usize,
    /// What is still to come of its body.
    rest: Rest,
    incoming: Box<Incoming>,
}

/// A request that is answered here.
struct Refusal {
    why: Refused,
    delivery: Delivery,
    /// As for one that passes.
    came: usize,
    rest: Rest,
}

impl<W: Into<Refused>> From<W> for Refusal {
    /// The last of its connection, because nobody knows where the next request would begin.
    fn from(why: W) -> Self {
        Self {
            why: why.into(),
            delivery: Delivery::LAST,
            came: 0,
            rest: Rest::All,
        }
    }
}

/// A connection's places among all and among its client's.
struct Places {
    _among_all: Connected,
    _among_its_own: Option<inflight::Guard>,
}

impl<A> Edge<A> {
    /// A place for one more connection; `None` when there are too many.
    fn place(&self, connection: &Connection, policy: &Policy) -> Option<Places> {
        let limits = &policy.client;
        let among_all = self.lifecycle.connect();
        let among_its_own = (!policy.trusted.contain(connection.peer))
            .then(|| self.by_client.incr(policy.limiter.key(connection.peer), 1));
        let its_own = among_its_own.as_ref().map_or(0, |(_, count)| (*count).unsigned_abs());
        let too_many = self.lifecycle.connections() > limits.max_connections;
        if too_many {
            self.descriptors_explained
                .call_once(|| policy.explain_descriptors(true));
        }
        (!too_many && its_own <= limits.max_connections_per_client).then(|| Places {
            _among_all: among_all,
            _among_its_own: among_its_own.map(|(guard, _)| guard),
        })
    }

    /// Waits for the first bytes of a request, the first of its connection or a later one, on a connection that is idle since
    /// `idle_since`; `None` when there will be none.
    async fn first_bytes(
        &self,
        stream: &mut Gate,
        received: &mut BytesMut,
        first: bool,
        idle_since: Instant,
        mut down: Pin<&mut impl FusedFuture<Output = ()>>,
    ) -> Option<()> {
        let end = idle_since + self.live.idle_timeout();
        let mut read = poll_fn(|context| stream.poll_first(context, received, end));
        if !down.is_terminated() {
            tokio::select! {
                biased;
                read = &mut read => return read,
                () = &mut down => {}
            }
        }
        // A client sends its first request as soon as it is connected, so that one is under way; the process waits for it.
        let _under_way = first.then(|| self.lifecycle.enter());
        timeout(self.lifecycle.last_call(first), read).await.ok()?
    }

    /// Reads until `received` begins with a whole head.
    async fn rest_of_head(&self, stream: &mut Gate, received: &mut BytesMut, limits: &ClientLimits) -> Arrival {
        let mut scanned = 0;
        // Nearly all heads come whole, and need no timer.
        if let Some(arrival) = look_for_head(received, &mut scanned, limits) {
            return arrival;
        }
        let read = timeout(limits.head_timeout, async {
            loop {
                if poll_fn(|context| stream.poll_some(context, received)).await.is_none() {
                    return Arrival::End;
                }
                if let Some(arrival) = look_for_head(received, &mut scanned, limits) {
                    return arrival;
                }
            }
        });
        let late = Violation::new(
            Rejection::RequestTimeout,
            "the head takes longer than client.head_timeout",
        );
        read.await.unwrap_or(Arrival::Refused(late))
    }

    /// Decides over the request at the start of `bytes`, whose head is so long. It may be the `last` of its connection.
    fn decide(
        &self,
        bytes: &[u8],
        length: usize,
        connection: &Arc<Connection>,
        policy: &Arc<Policy>,
        start: Instant,
        last: bool,
    ) -> Result<Passing, Refusal> {
        let (head, after) = bytes.split_at(length);
        let mut scratch = head::scratch();
        let mut head = head::parse(head, &mut scratch, &policy.client.head)?;
        head.keeps &= !last;
        let (here, rest) = split(head.body, after)?;
        let admitted = match self.admission.decide(&head, connection, policy, start) {
            Ok(admitted) => admitted,
            Err(why) => return Err(refusal(&head, why, length, here, rest)),
        };
        let about = Origination {
            peer: &connection.peer_value,
            trusted_peer: admitted.client.trusted_peer,
            backend: &admitted.endpoint.upstream.name,
        };
        let mut request = BytesMut::new();
        let provenance = write_request(&head, about, &mut request);
        request.extend_from_slice(&after[..here]);
        Ok(Passing {
            request,
            came: length + here,
            rest,
            incoming: Box::new(Incoming { admitted, provenance }),
        })
    }

    /// Answers and reports the request at the start of `received`. Returns the stream when the connection is kept, with
    /// `received` at the next request. The answer does not wait for the rest of the request's body.
    async fn refuse(
        &self,
        mut stream: Box<Gate>,
        received: &mut BytesMut,
        refusal: Refusal,
        connection: &Connection,
        policy: &Policy,
        start: Instant,
    ) -> Option<Box<Gate>> {
        let Refusal {
            why,
            delivery,
            came,
            rest,
        } = refusal;
        let answer = match why.retry_after {
            Some(retry_after) => policy.limited.answer(retry_after, delivery),
            None => why.rejection.answer(delivery),
        };
        let written = async {
            stream.write_all(&answer).await?;
            stream.flush().await
        };
        let written: std::io::Result<()> = written.await;
        let bytes = if delivery.head_only {
            0
        } else {
            why.rejection.body().len()
        };
        self.report(received, &why, written.is_ok().then_some(bytes), connection, start);
        if let (Rejection::Limited, Some(client)) = (why.rejection, why.client) {
            self.limit_explained
                .call_once(|| policy.explain_limit(&connection.text_of(client)));
        }
        let mut kept = delivery.keeps && written.is_ok();
        let mut next = BytesMut::new();
        if kept && !rest.ended() {
            // The rest of the body is in front of the next request.
            let terms = Terms {
                rest,
                waiting: 0,
                patience: None,
                expects: false,
            };
            stream.shut(terms, start);
            kept = stream.discard().await.is_ok();
            next = stream.open();
        }
        if kept {
            received.advance(came);
            received.unsplit(next);
            return Some(stream);
        }
        Shutdown::shutdown(&mut *stream).await;
        let _ = timeout(LINGER, async {
            let mut discarded = vec![0; 4096];
            let mut left = LINGER_BYTES;
            while let Ok(read @ 1..) = stream.read(&mut discarded).await {
                left = left.saturating_sub(read);
                if left == 0 {
                    break;
                }
            }
        })
        .await;
        None
    }

    /// Counts and logs a request that Pingora has no part in. `received` begins with it; `answered` is how many bytes the body
    /// of the answer had that the client was sent.
    fn report(&self, received: &[u8], why: &Refused, answered: Option<usize>, connection: &Connection, start: Instant) {
        let status = why.rejection.status();
        if answered.is_some() {
            self.metrics.responded(status);
        }
        self.metrics.rejected(why.rejection);
        if why.rejection.is_drop() {
            self.metrics.dropped.inc();
        }
        // The first took a token, and the second is a mistake of ours. Nothing else bounds the others.
        let is_bounded = matches!(why.rejection, Rejection::NoBackend | Rejection::Internal);
        let client = why.client.unwrap_or(connection.peer);
        if !is_bounded && !self.refusals.allows(client, Instant::now()) {
            return;
        }
        let line = RequestLine::guess(received);
        let tls = head::is_tls(received).then_some("TLS on the port for plain HTTP; use http://");
        access_log::Line {
            method: line.method,
            target: &line.target,
            remote_addr: &connection.remote_addr,
            status,
            duration: start.elapsed(),
            client: why.client.map(|client| connection.text_of(client)).as_deref(),
            backend: None,
            request_id: None,
            bytes: answered.map(|bytes| bytes as u64),
            reason: Some(why.rejection.reason()),
            error: tls.or(why.error),
        }
        .write();
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
        None if !head::can_begin(received) => Some(Arrival::Refused(Violation::malformed(
            "the first byte can't begin a request",
        ))),
        None if received.len() <= limits.max_head => {
            *scanned = received.len();
            None
        }
        Some(_) | None => {
            let in_first_line = memchr::memchr(b'\n', received).is_none_or(|end| end > limits.max_head);
            Some(Arrival::Refused(if in_first_line {
                Violation::new(Rejection::UriTooLong, "the request line is longer than client.max_head")
            } else {
                Violation::new(Rejection::HeadTooLarge, "the head is longer than client.max_head")
            }))
        }
    }
}

/// The refusal of a request, whose head is so `long`, of whose body so much is `here` and the `rest` is to come.
fn refusal(head: &Head<'_>, why: Refused, long: usize, here: usize, rest: Rest) -> Refusal {
    // What comes behind a handshake that is refused is the next request.
    let (here, rest) = match head.body {
        Body::Upgrade => (0, Rest::Length(0)),
        Body::Length(_) | Body::Chunked => (here, rest),
    };
    // A client that waits for "100 Continue" sends no body now, and might send it after this answer.
    let waits = head.expects && !rest.ended();
    Refusal {
        why,
        delivery: Delivery {
            keeps: head.keeps && !waits,
            head_only: head.method == "HEAD",
        },
        came: long + here,
        rest,
    }
}

/// How many of the bytes that came behind a head are its body, and what of it is still to come. All else that came is the next
/// request.
fn split(body: Body, came: &[u8]) -> Result<(usize, Rest), Violation> {
    match body {
        Body::Length(length) => {
            let here = came.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            Ok((here, Rest::Length(length - here as u64)))
        }
        Body::Chunked => {
            let mut chunks = Chunks::default();
            let here = chunks.follow(came)?;
            Ok((here, Rest::Chunked(chunks)))
        }
        Body::Upgrade => Ok((came.len(), Rest::All)),
    }
}

#[async_trait]
impl<A> ServerApp for Edge<A>
where
    A: ProxyHttp + Send + Sync + 'static,
    A::CTX: Send + Sync,
{
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let remote: SocketAddr = *stream.get_socket_digest()?.peer_addr()?.as_inet()?;
        let connection = Arc::new(Connection::new(remote));
        let mut policy = self.live.policy();
        let mut stream = Box::new(Gate::new(stream, policy.client.write_timeout, policy.client.min_rate));
        let mut received = BytesMut::new();
        let Some(_places) = self.place(&connection, &policy) else {
            let refusal = Rejection::TooManyConnections.into();
            self.refuse(stream, &mut received, refusal, &connection, &policy, Instant::now())
                .await;
            return None;
        };
        let mut watch = shutdown.clone();
        let mut down = pin!(async move { drop(watch.wait_for(|down| *down).await) }.fuse());
        let mut requests = 0_u64;
        let mut idle_since = Instant::now();
        loop {
            if received.is_empty() {
                received = BytesMut::new();
                self.first_bytes(&mut stream, &mut received, requests == 0, idle_since, down.as_mut())
                    .await?;
            }
            let _in_flight = self.lifecycle.enter();
            let start = Instant::now();
            policy = self.live.policy();
            let decision = match self.rest_of_head(&mut stream, &mut received, &policy.client).await {
                Arrival::Head(length) => {
                    requests += 1;
                    let last = requests >= policy.client.max_requests || self.lifecycle.is_draining();
                    self.decide(&received, length, &connection, &policy, start, last)
                }
                Arrival::Nothing => continue,
                Arrival::End => return None,
                Arrival::Refused(violation) => Err(violation.into()),
            };
            let Passing {
                request,
                came,
                rest,
                incoming,
            } = match decision {
                Ok(passing) => passing,
                Err(refusal) => {
                    stream = self
                        .refuse(stream, &mut received, refusal, &connection, &policy, start)
                        .await?;
                    idle_since = Instant::now();
                    continue;
                }
            };
            received.advance(came);
            let admitted = &incoming.admitted;
            let terms = Terms {
                rest,
                waiting: received.len(),
                patience: (!admitted.websocket).then_some(policy.upstream.read_timeout),
                expects: admitted.expects,
            };
            stream.shut(terms, start);
            let mut session = ServerSession::new_http1(stream);
            session.set_connection_user_context(Some(incoming));
            session.set_pipelined_prefix(request);
            let served = AssertUnwindSafe(self.proxy.process_new_http(session, shutdown));
            let Ok(reusable) = served.catch_unwind().await else {
                // The stream went down with the request, and with it the connection; nothing else did.
                self.report(b"", &Rejection::Internal.into(), None, &connection, start);
                return None;
            };
            if !connection.was_taken() {
                // Pingora found fault with a head that was written here, and has answered it.
                self.report(b"", &Rejection::BadRequest.into(), Some(0), &connection, start);
            }
            let (same, _) = reusable?.consume();
            stream = same.into_any().downcast::<Gate>().ok()?;
            received.unsplit(stream.open());
            idle_since = Instant::now();
        }
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

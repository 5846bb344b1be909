//! One client connection: it reads each request head itself, then lets Pingora proxy the request.
//!
//! Pingora's own loop has no deadline for a whole head, waits for ever between requests, and answers a head that it can't
//! read without a word to anybody. So the head is read here: bounded in length and time, checked by [`head`], and only then given
//! to Pingora as bytes that were read already. Connections have their maxima too, in all and for each client. A request that
//! is refused here has a line in the log and its place in the metrics like any other.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use futures::FutureExt;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{Shutdown, Stream};
use pingora::server::ShutdownWatch;
use pingora_limits::inflight::{self, Inflight};
use pingora_proxy::{HttpProxy, ProxyHttp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::access_log;
use crate::chunks::{BadFraming, Chunks};
use crate::config::ClientLimits;
use crate::gate::{Gate, Rest};
use crate::head::{self, Body, RequestLine};
use crate::lifecycle::{Connected, Lifecycle};
use crate::metrics::Metrics;
use crate::policy::{Live, Policy};
use crate::rejection::Rejection;

/// Room for a first read; most heads fit.
const FIRST_READ: usize = 4096;
/// How long, and for how many bytes, a refused client is listened to, so that closing doesn't destroy the answer before it is
/// read.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 256 << 10;

/// What the requests of one connection share.
#[derive(Debug)]
pub struct Connection {
    /// The other end.
    pub peer: SocketAddr,
    /// How many requests have got past Pingora's parser.
    requests: AtomicU64,
}

impl Connection {
    /// Notes that Pingora has taken a request.
    pub fn request_seen(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests Pingora has taken, the one that is being served with them.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// The server of client connections, in front of the application `A`.
pub struct Edge<A> {
    /// What proxies a request.
    pub proxy: Arc<HttpProxy<A>>,
    /// The rules, which a reload can change.
    pub live: Arc<Live>,
    /// How many connections each client has.
    pub by_client: Inflight,
    /// How many connections there are descriptors for, whatever `client.max_connections` is.
    pub most_connections: usize,
    /// Whether the process is on its way out.
    pub lifecycle: Arc<Lifecycle>,
    /// What Prometheus sees.
    pub metrics: Metrics,
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
    Refused(Rejection),
}

/// A connection's places among all and among its client's.
struct Admitted {
    _among_all: Connected,
    _among_its_own: Option<inflight::Guard>,
}

impl<A> Edge<A> {
    /// A place for a connection from `peer`; `None` when there are too many.
    fn admit(&self, peer: SocketAddr, policy: &Policy) -> Option<Admitted> {
        let limits = &policy.client;
        let among_all = self.lifecycle.connect();
        let among_its_own =
            (!policy.trusted.contain(peer.ip())).then(|| self.by_client.incr(policy.limiter.key(peer.ip()), 1));
        let its_own = among_its_own.as_ref().map_or(0, |(_, count)| (*count).unsigned_abs());
        let most = limits.max_connections.min(self.most_connections);
        (self.lifecycle.connections() <= most && its_own <= limits.max_connections_per_client).then(|| Admitted {
            _among_all: among_all,
            _among_its_own: among_its_own.map(|(guard, _)| guard),
        })
    }

    /// Waits for the first byte of a request; `None` when there will be none.
    async fn first_byte(&self, stream: &mut Gate, shutdown: &mut ShutdownWatch) -> Option<u8> {
        let idle_timeout = self.live.policy().client.idle_timeout;
        // One byte on the stack: an idle connection holds no buffer of ours.
        let read = timeout(idle_timeout, stream.read_u8());
        tokio::pin!(read);
        tokio::select! {
            biased;
            byte = &mut read => return byte.ok()?.ok(),
            () = async { drop(shutdown.wait_for(|down| *down).await) } => {}
        }
        timeout(self.lifecycle.last_call(), read).await.ok()?.ok()?.ok()
    }

    /// Reads until `received` begins with a whole head.
    async fn rest_of_head(&self, stream: &mut Gate, received: &mut BytesMut, limits: &ClientLimits) -> Arrival {
        let mut scanned = 0;
        let read = timeout(limits.head_timeout, async {
            loop {
                while received.starts_with(b"\r\n") {
                    let _ = received.split_to(2);
                    scanned = 0;
                }
                if received.is_empty() {
                    return Arrival::Nothing;
                }
                if let Some(length) = head::length(received, scanned) {
                    return if length > limits.max_head {
                        Arrival::Refused(Rejection::HeadTooLarge)
                    } else {
                        Arrival::Head(length)
                    };
                }
                scanned = received.len();
                if scanned > limits.max_head {
                    return Arrival::Refused(Rejection::HeadTooLarge);
                }
                received.reserve(FIRST_READ);
                match stream.read_buf(received).await {
                    Ok(0) | Err(_) => return Arrival::End,
                    Ok(_) => {}
                }
            }
        });
        read.await.unwrap_or(Arrival::Refused(Rejection::RequestTimeout))
    }

    /// Answers what Pingora never gets to see, and closes the connection.
    async fn refuse(
        &self,
        mut stream: Box<Gate>,
        received: &[u8],
        rejection: Rejection,
        peer: SocketAddr,
        start: Instant,
    ) {
        let answered = async {
            stream.write_all(&rejection.raw()).await?;
            stream.flush().await
        };
        let answered: std::io::Result<()> = answered.await;
        let answered = answered.is_ok();
        self.report(received, rejection, peer, start, answered);
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
    }

    fn report(&self, received: &[u8], rejection: Rejection, peer: SocketAddr, start: Instant, answered: bool) {
        self.metrics.rejected(rejection);
        if answered {
            self.metrics.responded(rejection.status());
        }
        let line = RequestLine::guess(received);
        access_log::Line {
            method: line.method,
            target: line.target,
            remote_addr: Some(peer),
            status: rejection.status(),
            duration: start.elapsed(),
            client: None,
            backend: None,
            request_id: None,
            bytes: answered.then_some(rejection.body().len() as u64),
            reason: Some(rejection.reason()),
            error: None,
        }
        .write();
    }
}

/// How many of the bytes that came behind a head are its body, and what of it is still to come. All else that came is the next
/// request.
fn split(body: Body, came: &[u8]) -> Result<(usize, Rest), Rejection> {
    match body {
        Body::Length(length) => {
            let here = came.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            Ok((here, Rest::Length(length - here as u64)))
        }
        Body::Chunked => {
            let mut chunks = Chunks::default();
            let here = chunks.follow(came).map_err(|BadFraming| Rejection::BadRequest)?;
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
        let peer = *stream.get_socket_digest()?.peer_addr()?.as_inet()?;
        let connection = Arc::new(Connection {
            peer,
            requests: AtomicU64::new(0),
        });
        let mut shutdown = shutdown.clone();
        let mut received = BytesMut::new();
        let policy = self.live.policy();
        let mut stream = Box::new(Gate::new(stream, policy.client.write_timeout, policy.client.min_rate));
        let Some(_admitted) = self.admit(peer, &policy) else {
            let rejection = Rejection::TooManyConnections;
            self.refuse(stream, b"", rejection, peer, Instant::now()).await;
            return None;
        };
        drop(policy);
        loop {
            if received.is_empty() {
                received = BytesMut::new();
                let byte = self.first_byte(&mut stream, &mut shutdown).await?;
                received.reserve(FIRST_READ);
                received.extend_from_slice(&[byte]);
            }
            let _in_flight = self.lifecycle.enter();
            let start = Instant::now();
            let policy = self.live.policy();
            let length = match self.rest_of_head(&mut stream, &mut received, &policy.client).await {
                Arrival::Head(length) => length,
                Arrival::Nothing => continue,
                Arrival::End => return None,
                Arrival::Refused(rejection) => {
                    self.refuse(stream, &received, rejection, peer, start).await;
                    return None;
                }
            };
            let parsed = head::parse(&received[..length], policy.client.max_fields);
            let (body, rest) = match parsed.and_then(|body| split(body, &received[length..])) {
                Ok(split) => split,
                Err(rejection) => {
                    self.refuse(stream, &received, rejection, peer, start).await;
                    return None;
                }
            };
            drop(policy);
            let request = received.split_to(length + body);
            stream.shut_behind(rest, received.len());

            let mut session = ServerSession::new_http1(stream);
            session.set_connection_user_context(Some(Box::new(Arc::clone(&connection))));
            session.set_pipelined_prefix(request);
            let before = connection.requests();
            let served = AssertUnwindSafe(self.proxy.process_new_http(session, &shutdown));
            let Ok(reusable) = served.catch_unwind().await else {
                // The stream went down with the request, and with it the connection; nothing else did.
                self.report(b"", Rejection::Internal, peer, start, false);
                return None;
            };
            if connection.requests() == before {
                // Pingora found fault with a head that `head` let through, and has answered it.
                self.report(b"", Rejection::BadRequest, peer, start, true);
            }
            let (same, _) = reusable?.consume();
            stream = same.into_any().downcast::<Gate>().ok()?;
            received.unsplit(stream.open());
        }
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

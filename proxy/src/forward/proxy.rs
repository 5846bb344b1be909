//! Pingora's hooks, in the order in which they run.
//!
//! Every admitted request passes through here. `request_filter` forwards it directly, or leaves it to the upstream half of Pingora,
//! whose hooks follow: `upstream_peer` → `response_filter` → `fail_to_connect` or `error_while_proxy`, which decide about another
//! try → `fail_to_proxy`. `logging` ends the record in both cases.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chassis::shortage::is_shortage;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::{Error, ErrorType, HttpPeer, Result};
use pingora::{ErrorSource, RetryType};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::exchange::request::Request;
use crate::exchange::retry::{self, Failure, Next, Try};
use crate::forward::client::Client;
use crate::forward::direct::{Direct, Outcome};
use crate::forward::forwarding::Fault;
use crate::forward::handover::{Exchange, Handover, Left};
use crate::forward::ready::{Done, Passed};
use crate::observe::metrics::Metrics;
use crate::pool::balance::place::Place;
use crate::pool::failure;
use crate::rejection::{Form, Rejection};

/// The proxy's application.
pub struct EdgeProxy {
    /// Forwards what needs nothing of Pingora's.
    pub direct: Direct,
    /// What Prometheus sees.
    pub metrics: Arc<Metrics>,
}

/// Pingora gets no request without an exchange.
fn admitted(ctx: &mut Option<Box<Exchange>>) -> Result<&mut Exchange> {
    match ctx {
        Some(exchange) => Ok(exchange),
        None => Error::e_explain(ErrorType::InternalError, "a request that was not admitted"),
    }
}

/// In a debug build that a test has started with PANIC_FOR_TESTS, a request can ask for a panic: that a panic costs its own
/// request and nothing else can't be seen without one.
fn panic_for_tests(request: &RequestHeader) {
    #[allow(clippy::panic, reason = "it is what was asked for")]
    if cfg!(debug_assertions)
        && request.headers.contains_key("x-test-panic")
        && std::env::var_os("PANIC_FOR_TESTS").is_some()
    {
        panic!("asked for by a test");
    }
}

/// An error of Pingora's for the log. What it quotes is left out, because heads have secrets in them.
fn in_words(error: &Error) -> Cow<'static, str> {
    if let Some(fault) = Fault::behind(error) {
        return fault.to_string().into();
    }
    failure::in_words(error).into()
}

fn failure_of(error: &Error) -> Failure {
    if Fault::behind(error) == Some(Fault::SilentBackend) {
        return Failure::TimedOut;
    }
    match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError | ErrorType::H2Error => {
            Failure::Closed
        }
        ErrorType::ReadTimedout | ErrorType::WriteTimedout | ErrorType::ConnectTimedout => Failure::TimedOut,
        _ => Failure::Malformed,
    }
}

/// The status of a call of gRPC, which is in the trailers of its response, or in the head of one without a body.
fn grpc_status(fields: &HeaderMap) -> Option<u16> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Whether the origin has said over HTTP/2 that it has not acted on the request (RFC 9113, section 8.7).
fn is_refused(error: &Error) -> bool {
    let of_http2 = error.root_cause().downcast_ref::<h2::Error>();
    of_http2.is_some_and(|cause| {
        let goes_away = cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR);
        let refuses = cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM);
        cause.is_remote() && (goes_away || refuses)
    })
}

fn rejection_of(error: &Error) -> Rejection {
    match Fault::behind(error) {
        Some(Fault::Client(fault)) => return fault.rejection(),
        Some(Fault::Answered) => return Rejection::ClientGone,
        Some(Fault::SilentBackend) => return Rejection::BackendTimeout,
        Some(Fault::Malformed(_)) => return Rejection::BackendFailed,
        None => {}
    }
    match (error.esource(), failure_of(error)) {
        (ErrorSource::Upstream, Failure::TimedOut) => Rejection::BackendTimeout,
        (ErrorSource::Upstream, _) => Rejection::BackendFailed,
        (ErrorSource::Downstream, _) => Rejection::ClientGone,
        (ErrorSource::Internal | ErrorSource::Unset, _) => Rejection::Internal,
    }
}

/// Whether that is the end of a tunnel after `upstream.tunnel_idle_timeout`, which is nobody's fault.
fn is_idle_tunnel(session: &Session, error: &Error) -> bool {
    session.was_upgraded() && *error.esource() == ErrorSource::Upstream && *error.etype() == ErrorType::ReadTimedout
}

/// Whether `header` has the target of `request`. It has not when that is no URI to the library that holds the header.
fn has_target_of(header: &RequestHeader, request: &Request) -> bool {
    let mut words = request.head.split(|byte| *byte == b' ');
    let target = header.uri.path_and_query().map(|target| target.as_str().as_bytes());
    words.nth(1) == target
}

impl EdgeProxy {
    /// Whether the request has ended with this `outcome` of forwarding it directly. Otherwise Pingora goes on with it.
    fn is_over(&self, outcome: Outcome, client: Client, session: &mut Session, exchange: &mut Exchange) -> bool {
        match outcome {
            Outcome::Ended(ending) => {
                Handover::give_back(client, ending);
                true
            }
            Outcome::Moves(moved) => {
                exchange.request.endpoint = moved.endpoint;
                exchange.tries.count = moved.tried.len();
                exchange.tries.failed = moved.tried;
                let left = Left {
                    client,
                    first: moved.body,
                    request: exchange.request.clone(),
                    lifecycle: Arc::clone(self.direct.lifecycle()),
                };
                Handover::leave(session.as_downstream_mut(), left);
                false
            }
        }
    }

    /// Whether there may be another try, which is paid for from the budget if it is not for a stale connection. Finds out where.
    fn may_try_again(&self, exchange: &mut Exchange, next: Next) -> bool {
        let Exchange {
            request, record, tries, ..
        } = exchange;
        let limits = &request.route.upstream;
        match next {
            Next::Reconnect => true,
            Next::Retry if tries.count <= limits.retries => {
                record.place = Place::default();
                let pool = &request.route.pool;
                let other = pool.pick_again(&tries.failed, tries.connected, &request.affinity, |_| true);
                tries.next = other.filter(|_| pool.retries.take(limits.retry_budget, Instant::now()));
                tries.next.is_some()
            }
            Next::Retry | Next::Fail => false,
        }
    }

    /// Records that this try has failed, `connected` or not: the backend's failure, unless this machine had too little of something.
    fn try_failed(&self, exchange: &mut Exchange, error: &Error, connected: bool) {
        exchange.tries.connected = connected;
        let Some(endpoint) = &exchange.tries.endpoint else {
            return;
        };
        let (pool, limits) = (&exchange.request.route.pool, &exchange.request.route.upstream.ejection);
        if is_shortage(error.root_cause()) || (!connected && failure::speaks_http2_alone(error)) {
            // It says nothing about the backend, or a client has asked for what that does not offer.
        } else if connected {
            pool.failed(&endpoint.upstream, limits);
        } else {
            pool.unreachable(endpoint, limits);
        }
        exchange.tries.failed.push(endpoint.clone());
    }
}

#[async_trait]
impl ProxyHttp for EdgeProxy {
    // Boxed, because Pingora's futures hold it more than once, and are copied.
    type CTX = Option<Box<Exchange>>;

    fn new_ctx(&self) -> Self::CTX {
        Handover::take()
    }

    /// Nothing here uses Pingora's modules (compression and the like), so none are built for each request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    /// Written by hand, as is `logging`, because `Passed` needs no allocation.
    fn early_request_filter<'s, 'r, 'c, 'f>(
        &'s self,
        _session: &'r mut Session,
        _ctx: &'c mut Self::CTX,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'f>>
    where
        's: 'f,
        'r: 'f,
        'c: 'f,
        Self: 'f,
    {
        Box::pin(Passed)
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        panic_for_tests(session.req_header());
        let exchange = admitted(ctx)?;
        if let Some(fault) = exchange.fault {
            return Err(Fault::Client(fault).into_error(ErrorType::ReadError));
        }
        let (request, record) = (&exchange.request, &mut exchange.record);
        let header = session.req_header();
        let may_move = || has_target_of(header, request);
        match exchange.client.take() {
            None => Ok(false),
            Some(Client::Http1(mut client)) => {
                let outcome = self.direct.forward(request, &mut *client, record, may_move).await;
                Ok(self.is_over(outcome, Client::Http1(client), session, exchange))
            }
            Some(Client::Http2(mut client)) => {
                let outcome = self.direct.forward(request, &mut *client, record, may_move).await;
                Ok(self.is_over(outcome, Client::Http2(client), session, exchange))
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        let exchange = admitted(ctx)?;
        let tries = &mut exchange.tries;
        tries.count += 1;
        tries.body_sent = false;
        tries.heard = false;
        let stale = std::mem::take(&mut tries.stale);
        if tries.endpoint.is_some() {
            exchange.request.route.pool.metrics.upstream_retries.inc();
        }
        let endpoint = exchange.next_endpoint();
        let tries = &mut exchange.tries;
        tries.endpoint = Some(endpoint.clone());
        exchange.record.backend = Some(Arc::clone(&endpoint.upstream));
        exchange.record.place.sent(Instant::now());
        // Its series is there before its answer is, while the backend is surely known.
        endpoint.upstream.duration();
        let limits = &exchange.request.route.upstream;
        let mut peer = endpoint.peer(limits, exchange.request.upgrade.is_some());
        // For all others the session has the timer.
        peer.options.read_timeout = exchange.request.upgrade.is_some().then_some(limits.tunnel_idle_timeout);
        // After a response to HEAD Pingora does not look whether a body follows, which the next client would get.
        if stale || exchange.request.to_head {
            // A group of its own has no kept connection, and what is made for it is not kept.
            peer.group_key = fastrand::u64(1..);
            peer.options.idle_timeout = Some(Duration::ZERO);
        }
        Ok(peer)
    }

    /// The head has no more to do with HTTP/1.1 when this runs for an origin that speaks HTTP/2.
    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let exchange = admitted(ctx)?;
        let http2 = request.version == http::Version::HTTP_2;
        if let Some(endpoint) = exchange
            .tries
            .endpoint
            .as_ref()
            .filter(|_| exchange.request.upgrade.is_none())
        {
            endpoint.has_chosen(http2);
        }
        if !http2 {
            return Ok(());
        }
        // gRPC servers want to see that trailers pass (its specification, "Requests").
        request.insert_header(http::header::TE, "trailers")?;
        // Pingora passes no interim response of HTTP/2 on, so the client would wait for one.
        if request.remove_header(&http::header::EXPECT).is_some() && exchange.request.expects {
            let goes_on = ResponseHeader::build(http::StatusCode::CONTINUE, None)?;
            session.write_response_header(Box::new(goes_on), false).await?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        admitted(ctx)?.tries.body_sent = true;
        Ok(())
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let exchange = admitted(ctx)?;
        exchange.tries.heard = true;
        let switches = response.status == http::StatusCode::SWITCHING_PROTOCOLS;
        if switches && exchange.request.upgrade.is_none() {
            let fault = Fault::Malformed("the backend switches to a protocol that nobody asked for");
            return Err(fault.into_error(ErrorType::InvalidHTTPHeader).into_up());
        }
        if switches || !response.status.is_informational() {
            exchange.record.answered = true;
            exchange.record.place.answered();
            if let Some(upstream) = &exchange.record.backend {
                upstream.answered();
                Handover::keep_cookie(exchange.request.affinity.set_cookie(upstream));
            }
        }
        if switches {
            exchange.record.ended();
        }
        exchange.record.grpc_status = grpc_status(&response.headers);
        Ok(())
    }

    fn upstream_response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let record = &mut admitted(ctx)?.record;
        record.grpc_status = grpc_status(trailers).or(record.grpc_status);
        record.ended();
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if end_of_stream {
            admitted(ctx)?.record.ended();
        }
        Ok(None)
    }

    /// Nothing was sent, so any request may be tried at another address, or on another backend.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(exchange) = ctx {
            self.try_failed(exchange, &error, false);
            error.set_retry(self.may_try_again(exchange, Next::Retry));
        }
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Self::CTX,
        reused: bool,
    ) -> Box<Error> {
        let Some(exchange) = ctx else { return error };
        let rejection = rejection_of(&error);
        let of_backend = matches!(rejection, Rejection::BackendFailed | Rejection::BackendTimeout)
            && !is_idle_tunnel(session, &error);
        let refused = is_refused(&error);
        let next = if of_backend {
            retry::next(Try {
                failure: failure_of(&error),
                // A refusal is as good as a stale connection: once, because a backend may refuse for ever.
                reused: reused && error.retry == RetryType::ReusedOnly || refused && !exchange.tries.refused,
                // Of a head that could not be written nobody knows how much was; but without it nothing else was.
                head_sent: !refused && (exchange.tries.body_sent || !matches!(error.etype(), ErrorType::WriteError)),
                heard: exchange.tries.heard,
                answering: session.response_written().is_some(),
                idempotent: exchange.request.idempotent,
                held: !session.as_ref().retry_buffer_truncated(),
            })
        } else {
            Next::Fail
        };
        exchange.tries.stale = next == Next::Reconnect;
        exchange.tries.refused |= refused;
        if of_backend && !exchange.tries.stale && session.is_body_done() {
            self.try_failed(exchange, &error, true);
        }
        error.set_retry(self.may_try_again(exchange, next));
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Self::CTX) -> FailToProxy {
        let rejection = rejection_of(error);
        let mut answer = FailToProxy {
            error_code: rejection.status(),
            can_reuse_downstream: false,
        };
        let Some(exchange) = ctx else {
            return answer;
        };
        let fault = Fault::behind(error);
        // Whoever takes nothing has not got what the backend has sent.
        let stalls = matches!(fault, Some(Fault::Client(fault)) if fault.is_stall());
        let finished = fault == Some(Fault::Answered)
            || is_idle_tunnel(session, error)
            || exchange.record.answered && exchange.record.has_ended() && !session.was_upgraded() && !stalls;
        if !finished {
            exchange.record.failed(rejection, Some(in_words(error)));
        }
        if session.response_written().is_none() && rejection != Rejection::ClientGone {
            session.as_downstream_mut().shutdown().await;
            let (request, record) = (&exchange.request, &mut exchange.record);
            let form = request.form();
            let (header, body) = if form == Form::Grpc {
                record.grpc_status = Some(rejection.grpc_status());
                (rejection.grpc_header(), Bytes::new())
            } else {
                let body = request.policy.error_pages.body(rejection, form, record.id.as_str());
                (rejection.header(&body), body.pieces().concat().into())
            };
            if session.write_response_header(Box::new(header), false).await.is_ok()
                && session.write_response_body(Some(body), true).await.is_ok()
            {
                // It closes when the client has read this.
                answer.can_reuse_downstream = true;
            }
        }
        answer
    }

    /// The access log reports every failure, with the error's text.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Self::CTX, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Self::CTX,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn logging<'s, 'r, 'e, 'c, 'f>(
        &'s self,
        session: &'r mut Session,
        _error: Option<&'e Error>,
        ctx: &'c mut Self::CTX,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'f>>
    where
        's: 'f,
        'r: 'f,
        'e: 'f,
        'c: 'f,
        Self: 'f,
    {
        if let Some(mut exchange) = ctx.take() {
            if let Some(response) = session.response_written() {
                exchange.record.status = match response.status.as_u16() {
                    101 => exchange.switched,
                    status => status,
                };
                exchange.record.bytes = session.body_bytes_sent() as u64;
            }
            // It is written when it is dropped.
            drop(exchange);
        }
        Box::pin(Done)
    }
}

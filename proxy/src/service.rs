//! Serves an admitted request, phase by phase: Pingora's hooks.
//!
//! Pingora calls these hooks in order: `on_connection_reuse` (the request comes, as an [`Incoming`]) → `upstream_peer` (which
//! backend) → `upstream_request_filter` (the head it gets) → `response_filter` → `logging`. A failure goes through
//! `fail_to_connect` or `error_while_proxy`, which decide whether another try may follow, to `fail_to_proxy`, which answers.
//! `logging` runs exactly once whatever happens and is the one place that counts and logs such a request.
//!
//! Only the order is here; the decisions are in the modules that the hooks call.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chassis::shortage::is_shortage;
use http::{Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::{Error, ErrorType, HttpPeer, Result};
use pingora::{ErrorSource, RetryType};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::access_log;
use crate::admission::Admitted;
use crate::headers::request::Provenance;
use crate::headers::response;
use crate::http1::gate::{UNWANTED_BODY, fault};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::pool::Pool;
use crate::rejection::Rejection;
use crate::retry_budget::RetryBudget;
use crate::upstream::Endpoint;

/// A longer error is cut: a line is for reading.
const MAX_ERROR: usize = 512;

/// The proxy's application.
pub struct EdgeProxy {
    /// The backends.
    pub pool: Arc<Pool>,
    /// How many requests may be tried again.
    pub retries: Arc<RetryBudget>,
    /// Whether the process is on its way out.
    pub lifecycle: Arc<Lifecycle>,
    /// What Prometheus sees.
    pub metrics: Metrics,
}

/// A request, as [`connection`](crate::http1::connection) hands it over.
pub struct Incoming {
    /// What was found out on the way.
    pub admitted: Admitted,
    /// The fields about the client that only the backend gets.
    pub provenance: Provenance,
}

/// What is known of a request.
pub struct RequestCtx {
    /// Always there in practice: Pingora gets no request without it.
    incoming: Option<Box<Incoming>>,
    /// Where the request was last sent.
    endpoint: Option<Endpoint>,
    tries: usize,
    /// What is not to be tried again.
    tried: Vec<Endpoint>,
    /// The last try had a connection.
    connected: bool,
    /// The last try was on a kept connection that the backend had closed.
    stale: bool,
    /// A piece of the body was sent in this try, so its head was too.
    body_sent: bool,
    /// A backend answered: its final status has been seen.
    answered: bool,
    /// The connection was switched to another protocol.
    switched: bool,
    /// When the response had ended, or the connection was switched.
    answered_after: Option<Duration>,
    rejection: Option<Rejection>,
    error: Option<String>,
}

impl RequestCtx {
    /// What Pingora was given together with the request.
    fn incoming(&self) -> Result<&Incoming> {
        match &self.incoming {
            Some(incoming) => Ok(incoming),
            None => Error::e_explain(ErrorType::InternalError, "a request that was not admitted"),
        }
    }

    /// What was found out of the request before Pingora got it.
    fn admitted(&self) -> Option<&Admitted> {
        self.incoming.as_ref().map(|incoming| &incoming.admitted)
    }

    /// The rules that the request is served by.
    fn policy(&self) -> Option<&Policy> {
        self.admitted().map(|admitted| &*admitted.policy)
    }

    /// How long ago the request began to arrive.
    fn elapsed(&self) -> Duration {
        self.admitted()
            .map_or(Duration::ZERO, |admitted| admitted.start.elapsed())
    }

    fn is_websocket(&self) -> bool {
        self.admitted().is_some_and(|admitted| admitted.websocket)
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

/// An error for the log: not too long, and without the bytes of a head that Pingora quotes where it can't read one, because
/// a head has secrets in it. What the gate has ended is said in its own words: Pingora takes it for an error of the client.
fn in_words(error: &Error) -> String {
    if let Some(fault) = fault(error.root_cause()) {
        return fault.to_string();
    }
    let words = error.to_string();
    let words = words.split("buf: ").next().unwrap_or_default();
    let mut end = words.len().min(MAX_ERROR);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    words[..end].to_owned()
}

impl EdgeProxy {
    /// Answers with `rejection`, the last of its connection.
    async fn answer(session: &mut Session, rejection: Rejection) -> Result<()> {
        let body = Bytes::from_static(rejection.body().as_bytes());
        session
            .write_response_header(Box::new(rejection.header()), false)
            .await?;
        session.write_response_body(Some(body), true).await
    }

    /// Notes that the client has its whole response. What is left of a request body that nobody waits for gets a moment to
    /// arrive, so that the connection can be kept.
    fn response_ended(session: &mut Session, ctx: &mut RequestCtx) {
        if ctx.answered_after.is_none() {
            ctx.answered_after = Some(ctx.elapsed());
        }
        if !session.is_body_done() {
            session.set_read_timeout(Some(UNWANTED_BODY));
        }
    }

    /// Whether there may be another try. A stale connection is not the backend's failure, so that it costs nothing of the budget;
    /// the try after it is on a new connection, so that it can't happen twice.
    fn may_try_again(&self, ctx: &RequestCtx) -> bool {
        ctx.policy().is_some_and(|Policy { upstream: limits, .. }| {
            ctx.tries <= limits.retries
                && self.pool.has_other_than(&ctx.tried)
                && (ctx.stale || self.retries.take(limits.retry_budget, Instant::now()))
        })
    }

    /// Records that this try has failed, `connected` or not: the backend's failure, unless this machine had too little of something.
    fn try_failed(&self, ctx: &mut RequestCtx, error: &Error, connected: bool) {
        ctx.connected = connected;
        if let (Some(endpoint), Some(policy)) = (&ctx.endpoint, ctx.policy()) {
            let limits = &policy.upstream.ejection;
            if is_shortage(error.root_cause()) {
                // It says nothing about the backend.
            } else if connected {
                self.pool.failed(&endpoint.upstream, limits);
            } else {
                self.pool.unreachable(endpoint, limits);
            }
            ctx.tried.push(endpoint.clone());
        }
    }

    fn count(&self, ctx: &RequestCtx, status: u16) {
        if ctx.answered {
            self.metrics.processed.inc();
            if let Some(Endpoint { upstream, .. }) = &ctx.endpoint {
                let took = ctx.answered_after.unwrap_or_else(|| ctx.elapsed());
                upstream.duration(&self.metrics).observe(took.as_secs_f64());
            }
        }
        if let Some(rejection) = ctx.rejection {
            self.metrics.rejected(rejection);
            if rejection.is_drop() && !ctx.answered {
                self.metrics.dropped.inc();
            }
        }
        if status != Rejection::ClientGone.status() {
            self.metrics.responded(status);
        }
    }
}

#[async_trait]
impl ProxyHttp for EdgeProxy {
    // Boxed, because Pingora's futures hold it more than once, and are copied.
    type CTX = Box<RequestCtx>;

    fn new_ctx(&self) -> Self::CTX {
        Box::new(RequestCtx {
            incoming: None,
            endpoint: None,
            tries: 0,
            tried: Vec::new(),
            connected: false,
            stale: false,
            body_sent: false,
            answered: false,
            switched: false,
            answered_after: None,
            rejection: None,
            error: None,
        })
    }

    /// Nothing here uses Pingora's modules (compression and the like), so none are built for each request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    /// Called for every request, the first on a connection too, because `connection` passes one context with each.
    fn on_connection_reuse(&self, session: &mut Session, ctx: &mut Self::CTX, context: Box<dyn Any + Send + Sync>) {
        let Ok(incoming) = context.downcast::<Incoming>() else {
            return;
        };
        let admitted = &incoming.admitted;
        admitted.connection.request_taken();
        panic_for_tests(session.req_header());
        session.set_read_timeout(Some(admitted.policy.client.read_timeout));
        // An answer may come before the request body has ended (an echo, an error): the connection is kept if the rest arrives
        // soon. Not so where the client waits for "100 Continue": after the answer it sends no body, but its next request.
        if !admitted.expects {
            session.set_close_on_response_before_downstream_finish(false);
            session.set_total_drain_timeout(Some(UNWANTED_BODY));
        }
        if session.req_header().version == Version::HTTP_10 {
            session.set_ignore_info_resp(true);
        }
        // For how long, `connection` sees to.
        session.set_keepalive(admitted.keeps.then_some(0));
        ctx.endpoint = Some(admitted.endpoint.clone());
        ctx.incoming = Some(incoming);
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        ctx.tries += 1;
        ctx.body_sent = false;
        if ctx.tries > 1 {
            self.metrics.upstream_retries.inc();
            let again = self.pool.pick_again(&ctx.tried, ctx.connected);
            ctx.endpoint = again.or(ctx.endpoint.take());
        }
        let Admitted { policy, websocket, .. } = &ctx.incoming()?.admitted;
        let Some(endpoint) = &ctx.endpoint else {
            return Error::e_explain(ErrorType::InternalError, "a request without a backend");
        };
        // Its series is there before its answer is, while the backend is surely known.
        endpoint.upstream.duration(&self.metrics);
        let mut peer = endpoint.peer(&policy.upstream);
        // Of all others the gate has the timer.
        peer.options.read_timeout = websocket.then_some(policy.upstream.tunnel_idle_timeout);
        if std::mem::take(&mut ctx.stale) {
            // A group of its own has no kept connection, and what is made for it is not kept.
            peer.group_key = fastrand::u64(1..);
            peer.options.idle_timeout = Some(Duration::ZERO);
        }
        Ok(peer)
    }

    /// Called in each try with a new copy of what [`connection`](crate::http1::connection) wrote.
    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        ctx.incoming()?.provenance.tell(request)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        _body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        ctx.body_sent = true;
        match ctx.incoming()?.admitted.policy.client.max_body {
            Some(max) if !session.was_upgraded() && session.body_bytes_read() as u64 > max => Error::e_explain(
                ErrorType::HTTPStatus(413),
                "the request body is longer than client.max_body",
            ),
            _ => Ok(()),
        }
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let switches = response.status == http::StatusCode::SWITCHING_PROTOCOLS;
        if switches && !ctx.is_websocket() {
            return Error::e_explain(
                ErrorType::InvalidHTTPHeader,
                "the backend switches to a protocol that nobody asked for",
            )
            .map_err(|error: Box<Error>| error.into_up());
        }
        response::straighten(response)?;
        if switches {
            ctx.switched = true;
            ctx.answered_after = Some(ctx.elapsed());
            session.set_read_timeout(Some(ctx.incoming()?.admitted.policy.upstream.tunnel_idle_timeout));
        }
        if switches || !response.status.is_informational() {
            ctx.answered = true;
            if let Some(Endpoint { upstream, .. }) = &ctx.endpoint {
                upstream.answered();
            }
        }
        response::strip_hop_by_hop(response);
        let ends = response::ends_with_connection(session.req_header().version, response);
        if ends {
            response.remove_header(&header::TRANSFER_ENCODING);
        }
        if ends || self.lifecycle.is_draining() {
            session.set_keepalive(None);
        }
        if !switches && response::has_no_body(&session.req_header().method, response) {
            Self::response_ended(session, ctx);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        if end_of_stream && !ctx.switched {
            Self::response_ended(session, ctx);
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
        self.try_failed(ctx, &error, false);
        error.set_retry(self.may_try_again(ctx));
        error
    }

    /// Something may have been sent. A request is sent again when its head was not sent whole, or when doing it twice is doing it
    /// once (an idempotent method), and only while the client has seen nothing of a response and all of the body
    /// that was read can be sent again. A timeout is no reason to load another backend with the same request.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Self::CTX,
        reused: bool,
    ) -> Box<Error> {
        let repeatable = *error.esource() == ErrorSource::Upstream
            && session.response_written().is_none()
            && !session.as_ref().retry_buffer_truncated();
        let unsent = !ctx.body_sent && matches!(error.etype(), ErrorType::WriteError | ErrorType::WriteTimedout);
        let broken = matches!(
            error.etype(),
            ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError
        );
        let idempotent = session.req_header().method.is_idempotent();
        // A kept connection that the backend had closed says nothing about the backend: it may be tried again.
        ctx.stale = reused && error.retry == RetryType::ReusedOnly;
        let rejection = Rejection::of(&error);
        if matches!(rejection, Rejection::BackendFailed | Rejection::BackendTimeout) && !ctx.stale {
            self.try_failed(ctx, &error, true);
        }
        error.set_retry(repeatable && (unsent || (idempotent && broken)) && self.may_try_again(ctx));
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Self::CTX) -> FailToProxy {
        session.set_keepalive(None);
        let answer = |rejection: Rejection| FailToProxy {
            error_code: rejection.status(),
            can_reuse_downstream: false,
        };
        let rejection = Rejection::of(error);
        let unread = matches!(rejection, Rejection::ClientGone | Rejection::RequestTimeout)
            && !matches!(error.etype(), ErrorType::WriteError);
        if unread && ctx.answered_after.is_some() && !ctx.switched {
            // The client has its whole response; what failed is the rest of its request, which nobody waits for.
            return answer(rejection);
        }
        // An answer of our own that could not be written keeps its reason.
        let rejection = *ctx.rejection.get_or_insert(rejection);
        ctx.error = Some(in_words(error));
        let begun = session.was_upgraded()
            || session
                .response_written()
                .is_some_and(|response| !response.status.is_informational());
        if !begun
            && rejection != Rejection::ClientGone
            && Self::answer(session, rejection).await.is_ok()
            && rejection != Rejection::RequestTimeout
        {
            // Closing on a client that still sends would destroy the answer before it is read.
            session.set_total_drain_timeout(Some(UNWANTED_BODY));
            let _ = session.drain_request_body().await;
        }
        answer(rejection)
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

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, ctx: &mut Self::CTX) {
        let status = session
            .response_written()
            .map(|response| response.status)
            .filter(|status| !status.is_informational() || ctx.switched)
            .map_or(Rejection::ClientGone.status(), |status| status.as_u16());
        self.count(ctx, status);

        let Some(Incoming { admitted, provenance }) = ctx.incoming.as_deref() else {
            return;
        };
        let request = session.req_header();
        access_log::Line {
            method: request.method.as_str(),
            target: &String::from_utf8_lossy(request.raw_path()),
            remote_addr: &admitted.connection.remote_addr,
            status,
            duration: ctx.elapsed(),
            client: Some(&admitted.connection.text_of(admitted.client.address)),
            backend: ctx.endpoint.as_ref().map(|endpoint| &*endpoint.upstream.name),
            request_id: provenance.request_id.to_str().ok(),
            bytes: Some(session.body_bytes_sent() as u64),
            reason: ctx.rejection.map(Rejection::reason),
            error: ctx.error.as_deref(),
        }
        .write();
    }
}

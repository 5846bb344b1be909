//! Counts and logs each request exactly once, whoever answers it.
//!
//! A [`Record`] begins when the head of a request arrives. Whoever learns something about the request notes it there, and the record
//! is written when it is dropped. So a refusal, a response, a client that leaves and a panic all end in the same place.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::exchange::connection::Connection;
use crate::exchange::request::RequestId;
use crate::http1::head::RequestLine;
use crate::observe::access_log;
use crate::pool::balance::place::Place;
use crate::pool::endpoint::Upstream;
use crate::rejection::{Delivery, Form, Rejection};
use crate::snapshot::routes::Rule;

/// The record of one request.
pub struct Record {
    connection: Arc<Connection>,
    /// When its head began to arrive.
    start: Instant,
    /// Its head, as far as it arrived.
    head: Bytes,
    /// Where in `head` the method and the target end, if it could be read.
    line: Option<(usize, usize)>,
    /// Identifies it.
    pub id: RequestId,
    /// Its client, once that is known.
    pub client: Option<IpAddr>,
    /// The rule of its route, where there are routes.
    pub rule: Option<Arc<Rule>>,
    /// The pool whose backends it goes to, if there is more than one.
    pub pool: Option<Arc<str>>,
    /// Where it was last sent.
    pub backend: Option<Arc<Upstream>>,
    /// Its place there, which it has until it has ended.
    pub place: Place,
    /// The status that the client got; 0 while it has none.
    pub status: u16,
    /// How much of the body of a response it got.
    pub bytes: u64,
    /// The status of a call of gRPC.
    pub grpc_status: Option<u16>,
    /// Why the proxy answered itself, or the response broke off.
    pub rejection: Option<Rejection>,
    /// The words of the error behind that.
    pub error: Option<Cow<'static, str>>,
    /// A backend has answered, whatever the status.
    pub answered: bool,
    /// How long it took, if it ended before its record does.
    took: Option<Duration>,
}

impl Record {
    /// The record of a request that began to arrive on `connection` at `start`.
    pub fn new(connection: &Arc<Connection>, start: Instant) -> Self {
        Self {
            connection: Arc::clone(connection),
            start,
            head: Bytes::new(),
            line: None,
            id: RequestId::random(),
            client: None,
            rule: None,
            pool: None,
            backend: None,
            place: Place::default(),
            status: 0,
            bytes: 0,
            grpc_status: None,
            rejection: None,
            error: None,
            answered: false,
            took: None,
        }
    }

    /// Notes its head, as far as it arrived.
    pub fn arrived(&mut self, head: Bytes) {
        self.head = head;
    }

    /// Notes that its head could be read, and how long the method and the target are.
    pub fn read(&mut self, method: usize, target: usize) {
        self.line = Some((method, method + 1 + target));
    }

    /// Notes why it was refused or broke off. Of several reasons the first counts.
    pub fn failed(&mut self, rejection: Rejection, error: Option<Cow<'static, str>>) {
        if self.rejection.is_none() {
            self.rejection = Some(rejection);
            self.error = error;
        }
    }

    /// Notes that the client was sent a rejection, with a body of `length` bytes if it has one.
    pub fn answered_here(&mut self, rejection: Rejection, delivery: Delivery, length: usize) {
        let grpc = delivery.form == Form::Grpc;
        self.status = if grpc { 200 } else { rejection.status() };
        self.grpc_status = grpc.then(|| rejection.grpc_status());
        self.bytes = if delivery.is_bodiless() { 0 } else { length as u64 };
        self.ended();
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.took.is_some()
    }

    /// Notes that it has ended: its duration is the time until now.
    pub fn ended(&mut self) {
        self.took.get_or_insert_with(|| self.start.elapsed());
    }

    /// When its head began to arrive.
    pub fn start(&self) -> Instant {
        self.start
    }

    fn request_line(&self) -> (&str, Cow<'_, str>) {
        match self.line {
            Some((method, end)) => (
                str::from_utf8(&self.head[..method]).unwrap_or("-"),
                String::from_utf8_lossy(&self.head[method + 1..end]),
            ),
            None => {
                let line = RequestLine::guess(&self.head);
                (line.method, line.target)
            }
        }
    }

    /// Its client, or the peer while that is not known.
    fn client(&self) -> IpAddr {
        self.client.unwrap_or(self.connection.peer)
    }

    /// Whether it goes into the log. A refusal costs its client no token, so nothing else bounds how many lines it makes.
    fn is_logged(&self) -> bool {
        // A route's own answer costs a token.
        let is_answer =
            self.rule.is_some() && matches!(self.rejection, Some(Rejection::Answered | Rejection::Redirected));
        let is_refusal = self.backend.is_none()
            && !is_answer
            && !matches!(
                self.rejection,
                Some(Rejection::NoBackend | Rejection::BackendsBusy | Rejection::AuthUnavailable | Rejection::Internal)
            );
        let client = self.client();
        !is_refusal || self.connection.refusals.allows(client, Instant::now())
    }

    fn count(&self, took: Duration) {
        let metrics = &self.connection.metrics;
        if self.answered {
            metrics.processed.inc();
            if let Some(upstream) = &self.backend {
                upstream.duration().observe(took.as_secs_f64());
            }
        }
        if let Some(rejection) = self.rejection {
            metrics.rejected(rejection);
            if rejection.is_drop() && !self.answered {
                metrics.dropped.inc();
            }
        }
        if self.status != 0 {
            metrics.responded(self.status);
            if let Some(rule) = &self.rule {
                rule.series.responded(self.status, took);
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failed(Rejection::Internal, None);
        } else if self.status == 0 {
            self.failed(Rejection::ClientGone, None);
        }
        let took = self.took.unwrap_or_else(|| self.start.elapsed());
        self.count(took);
        if !self.is_logged() {
            return;
        }
        let (method, target) = self.request_line();
        let status = match (self.status, self.rejection) {
            // The client was sent no status, but this one says what happened.
            (0, Some(rejection)) => rejection.status(),
            (status, _) => status,
        };
        access_log::Line {
            method,
            target: &target,
            remote_addr: &self.connection.remote_addr,
            protocol: self.connection.protocol,
            status,
            duration: took,
            client: &self.connection.text_of(self.client()),
            backend: self.backend.as_ref().map(|upstream| &*upstream.name),
            request_id: Some(self.id.as_str()),
            bytes: (self.status != 0).then_some(self.bytes),
            grpc_status: self.grpc_status,
            reason: self.rejection.map(Rejection::reason),
            error: self.error.as_deref(),
            tls: self.connection.tls.as_ref(),
            route: self.rule.as_ref().map(|rule| &*rule.name),
            pool: self.pool.as_deref(),
        }
        .write();
    }
}

//! What requests have in common, whichever version of HTTP they come in: how they are admitted, and how they pass through Pingora's
//! hooks.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use pingora::apps::HttpServerApp;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora_limits::inflight;

use super::connection::Edge;
use crate::compression::accept::{Coding, preferred};
use crate::compression::content::forbids_transforming;
use crate::config::{Forwarder, Shape, UserFile};
use crate::exchange::admission::{Admitted, Rejected};
use crate::exchange::connection::Connection;
use crate::exchange::passwords::Verdict;
use crate::exchange::record::Record;
use crate::exchange::request::{Guarded, Request, Shaped, is_idempotent};
use crate::forward::authentication::{Answer, Words};
use crate::forward::client::{Client, ClientSide, answer_here};
use crate::forward::direct::Ending;
use crate::forward::handover::{Exchange, HANDOVER, Handover};
use crate::forward::session;
use crate::headers::authentication::question;
use crate::headers::request::{Origination, Shaping, Span, write_request};
use crate::http1::head::{Body, Head, Version};
use crate::lifecycle::Connected;
use crate::pool::endpoint::Upstream;
use crate::rejection::Rejection;
use crate::snapshot::Policy;

/// What a field of a request takes beside its bytes, in the head that Pingora has.
const FIELD: usize = 128;

thread_local! {
    /// The head that is being written, and where its fields are.
    static WRITTEN: RefCell<(Vec<u8>, Vec<Span>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// A connection's place among its client's; trusted proxies need none.
pub(super) type PlaceOfClient = Option<inflight::Guard>;

impl Edge {
    /// Whether `place` is one of those that there are, for a connection or a stream of HTTP/2, which counts as one.
    pub(super) fn place(&self, place: Connected, policy: &Policy) -> Option<Connected> {
        if self.lifecycle.connections_and_streams() <= policy.client.max_connections {
            return Some(place);
        }
        self.descriptors_explained
            .call_once(|| policy.explain_descriptors(true));
        None
    }

    /// A place among the connections of its client; `None` when there are too many.
    pub(super) fn place_of_client(&self, connection: &Connection, policy: &Policy) -> Option<PlaceOfClient> {
        if policy.trusted.contain(connection.peer) {
            return Some(None);
        }
        let key = policy.limiter.key(connection.peer);
        let (place, count) = self.by_client.incr(key, 1);
        (count.unsigned_abs() <= policy.client.max_connections_per_client).then_some(Some(place))
    }

    /// Decides over the request with this head, which took `size` bytes. The client is noted in `record`.
    pub(super) fn admit(
        &self,
        head: &Head<'_>,
        size: usize,
        connection: &Connection,
        policy: &Arc<Policy>,
        record: &mut Record,
    ) -> Result<(Box<RequestHeader>, Request), Rejected> {
        let Admitted {
            trusted_peer,
            route,
            endpoint,
            affinity,
        } = self.admission.decide(head, connection, policy, record)?;
        if !self.held.has_room(self.lifecycle.in_flight(), policy.held) {
            return Err(Rejection::HeldTooMuch.into());
        }
        let client;
        let mut shaping = None;
        if let Some(shape) = route.shape.as_deref() {
            client = connection.text_of(record.client.unwrap_or(connection.peer));
            shaping = Some(Shaping {
                shape,
                client: &client,
                route: route.name.as_deref().unwrap_or_default(),
            });
        }
        let about = Origination {
            peer: &connection.peer_text,
            trusted_peer,
            tls: connection.tls.as_ref(),
            backend: endpoint.upstream.authority(),
            id: &record.id,
            shape: shaping,
        };
        let upgrade = head.upgrade.is_some();
        let mut forwarder = if endpoint.speaks_http1(&route.upstream, upgrade) {
            policy.forwarder
        } else {
            Forwarder::Pingora
        };
        let (written, fields, header, shaped) = WRITTEN.with_borrow_mut(|(bytes, spans)| {
            bytes.clear();
            spans.clear();
            write_request(head, about, bytes, spans);
            let written = Bytes::copy_from_slice(bytes);
            let shaped = shaping.map(|shaping| shaped(head, shaping, &about, &written, spans));
            let cases = forwarder == Forwarder::Pingora;
            let mut header = session::header(&written, head.method, spans, cases);
            if cases && header.is_err() && endpoint.upstream.may_speak_http1(&route.upstream, upgrade) {
                // Its target is no URI to Pingora. It passes over HTTP/1.1, if the backend speaks that too.
                forwarder = policy.forwarder;
                header = session::header(&written, head.method, spans, forwarder == Forwarder::Pingora);
            }
            (written, spans.len(), header, shaped)
        });
        // What is no request to the library that holds the head is none to anybody.
        let header = header.map_err(|_| Rejected::from(Rejection::BadRequest))?;
        let request = Request {
            weight: size + written.len() + fields * FIELD,
            head: written,
            policy: Arc::clone(policy),
            route,
            endpoint,
            affinity,
            forwarder,
            grpc: false,
            to_head: head.method == "HEAD",
            idempotent: is_idempotent(head.method),
            chunked: head.body == Body::Chunked,
            old: head.version == Version::Http10,
            keeps: head.keeps,
            last: false,
            expects: head.expects,
            upgrade: head.upgrade.map(Bytes::copy_from_slice),
            shaped,
            hsts: policy.hsts.filter(|_| connection.tls.is_some()),
        };
        Ok((header, request))
    }

    /// Has an admitted request served by Pingora's hooks. Returns the client, and how its connection goes on.
    pub(super) async fn pass(
        &self,
        mut header: Box<RequestHeader>,
        mut exchange: Box<Exchange>,
        shutdown: &ShutdownWatch,
    ) -> Option<(Client, Ending)> {
        let shaped = exchange.request.shaped.as_mut();
        if let Some(guarded) = shaped.and_then(|shaped| shaped.guarded.take()) {
            // Boxed, so that no other request has room for it.
            let asked = Box::pin(self.may_pass(&guarded, &mut header, &mut exchange));
            if let Err(refusal) = asked.await {
                return Box::pin(self.deny(exchange, refusal)).await;
            }
        }
        let (session, handover) = session::open(header, exchange, &self.lifecycle);
        // Boxed by Pingora, and begun outside of the block, which would hold the session too.
        let serving = self
            .proxy
            .process_new_http(ServerSession::new_custom(session), shutdown);
        let served = async {
            // A panic takes the client down with the request; nothing else.
            let _ = AssertUnwindSafe(serving).catch_unwind().await;
            Handover::client()
        };
        HANDOVER.scope(handover, served).await
    }

    /// Whether an admitted request may go to a backend. It has no place there while that is found out, so that others don't wait for it.
    async fn may_pass(
        &self,
        guarded: &Guarded,
        header: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<(), Refusal> {
        let Exchange {
            request,
            record,
            client,
            ..
        } = exchange;
        let route = Arc::clone(&request.route);
        let timed = record.place.leave();
        let held = request.weight + guarded.question.as_ref().map_or(0, Bytes::len);
        if let Some(users) = route.shape.as_ref().and_then(|shape| shape.users.as_ref()) {
            let key = request
                .policy
                .limiter
                .key(record.client.unwrap_or(Ipv4Addr::UNSPECIFIED.into()));
            tokio::select! {
                biased;
                known = self.knows(users, guarded.authorization.as_deref(), key) => known?,
                why = lost(client, held) => return Err(why.into()),
            }
        }
        if let Some(auth) = route.forward_auth() {
            let (Some(service), Some(question)) = (&route.auth, &guarded.question) else {
                return Err(Rejection::Internal.into());
            };
            let asked = tokio::select! {
                biased;
                asked = self.authentication.ask(service, auth, question) => asked,
                why = lost(client, held) => return Err(why.into()),
            };
            let answer = asked.map_err(|why| Refusal::Rejection(Rejection::AuthUnavailable, Some(why)))?;
            if !answer.allows() {
                record.failed(Rejection::AuthRefused, Some(answer.why(auth)));
                return Err(Refusal::Answer(answer));
            }
            answer.apply(auth, request, header).map_err(|_| Rejection::Internal)?;
        }
        match client {
            Some(Client::Http1(client)) => client.hold().release(),
            Some(Client::Http2(client)) => client.hold().release(),
            None => {}
        }
        let fits = |upstream: &Upstream| {
            request.forwarder == Forwarder::Pingora
                || upstream.may_speak_http1(&route.upstream, request.upgrade.is_some())
        };
        let picked = route.pool.pick_later(&request.endpoint, timed, &request.affinity, fits);
        let picked = picked.ok_or(Rejection::BackendsBusy)?;
        request.endpoint = picked.endpoint;
        record.place = picked.place;
        Ok(())
    }

    /// Whether the client with this key, which says this of itself, is one of `users`.
    async fn knows(&self, users: &UserFile, authorization: Option<&[u8]>, client: u128) -> Result<(), Rejection> {
        let authorization = authorization.ok_or(Rejection::Unauthorized)?;
        let now = Instant::now();
        let users = self.passwords.users(users, now).await.ok_or(Rejection::Internal)?;
        match self.passwords.check(&users, authorization, client, now).await {
            Verdict::Good => Ok(()),
            Verdict::Wrong => Err(Rejection::Unauthorized),
            Verdict::Busy => Err(Rejection::AuthBusy),
        }
    }

    /// Answers an admitted request that may not pass. Nothing of it has gone to a backend.
    async fn deny(&self, exchange: Box<Exchange>, refusal: Refusal) -> Option<(Client, Ending)> {
        let Exchange {
            request,
            mut record,
            client,
            ..
        } = *exchange;
        let may_keep = request.keeps && !self.lifecycle.is_draining();
        match client? {
            Client::Http1(mut client) => {
                let ending = deny(&mut *client, &request, &mut record, refusal, may_keep).await;
                Some((Client::Http1(client), ending))
            }
            Client::Http2(mut client) => {
                let ending = deny(&mut *client, &request, &mut record, refusal, may_keep).await;
                Some((Client::Http2(client), ending))
            }
        }
    }

    /// Notes in `record` why a request was refused, and explains the limit once.
    pub(super) fn refused(&self, why: &Rejected, record: &mut Record, policy: &Policy) {
        record.failed(why.rejection, why.rule.map(Into::into));
        if let (Rejection::Limited, Some(address)) = (why.rejection, record.client) {
            let rule = record.rule.as_deref().filter(|_| why.of_route);
            self.limit_explained
                .call_once(|| policy.explain_limit(&address.to_string(), rule));
        }
    }
}

/// Why an admitted request may not pass.
enum Refusal {
    /// By this rejection, with the words for the log.
    Rejection(Rejection, Option<Words>),
    /// An authentication service says so.
    Answer(Answer),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejection(rejection, None)
    }
}

/// What the route of the request with this head does beside forwarding it. The backend gets the fields at `spans` of `written`.
fn shaped(
    head: &Head<'_>,
    shaping: Shaping<'_>,
    about: &Origination<'_>,
    written: &[u8],
    spans: &[Span],
) -> Box<Shaped> {
    Box::new(Shaped {
        guarded: guarded(head, shaping.shape, written, spans),
        response_fields: shaping.response_fields(head, about),
        compress: coding(shaping.shape, head),
    })
}

/// What is looked at before the request with this head goes to a backend, which gets the fields at `spans` of `written`; `None` if that
/// is nothing.
fn guarded(head: &Head<'_>, shape: &Shape, written: &[u8], spans: &[Span]) -> Option<Box<Guarded>> {
    if shape.users.is_none() && shape.auth.is_none() {
        return None;
    }
    let authorization = shape.users.as_ref().and_then(|_| head.values("authorization").next());
    let auth = shape.auth.as_ref();
    Some(Box::new(Guarded {
        authorization: authorization.map(Bytes::copy_from_slice),
        question: auth.map(|auth| question(head, shape, auth, written, spans)),
    }))
}

/// The coding that the client prefers, if it accepts any, where the route compresses responses and the client does not forbid that.
fn coding(shape: &Shape, head: &Head<'_>) -> Option<Option<Coding>> {
    let compresses = shape.compress && !head.values("cache-control").any(forbids_transforming);
    compresses.then(|| preferred(head.values("accept-encoding")))
}

/// Ready when a request that is `held`, in bytes, is waited for no longer: because its client has gone away, which nobody sees while it has
/// some of its body to send, or because too much is held.
async fn lost(client: &mut Option<Client>, held: usize) -> Rejection {
    fn poll(client: &mut impl ClientSide, context: &mut Context<'_>, held: usize) -> Poll<Rejection> {
        let held = held + client.held();
        if client.hold().poll(context, held, false).is_ready() {
            return Poll::Ready(Rejection::HeldTooMuch);
        }
        if client.body_ended() {
            client.poll_gone(context).map(|()| Rejection::ClientGone)
        } else {
            Poll::Pending
        }
    }
    poll_fn(|context| match client {
        Some(Client::Http1(client)) => poll(&mut **client, context, held),
        Some(Client::Http2(client)) => poll(&mut **client, context, held),
        None => Poll::Pending,
    })
    .await
}

async fn deny(
    client: &mut impl ClientSide,
    request: &Request,
    record: &mut Record,
    refusal: Refusal,
    may_keep: bool,
) -> Ending {
    let keeps = may_keep && !client.leaves_doubt(request, false);
    let answered = match refusal {
        Refusal::Answer(answer) => answer.give(client, request, record, keeps).await,
        Refusal::Rejection(rejection, why) => {
            record.failed(rejection, why);
            if rejection == Rejection::ClientGone {
                return Ending::Cut;
            }
            answer_here(client, request, record, rejection, keeps).await
        }
    };
    match answered {
        Err(_) => Ending::Cut,
        Ok(()) if keeps => Ending::Keep,
        Ok(()) => Ending::Close,
    }
}

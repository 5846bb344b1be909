//! What requests have in common, whichever version of HTTP they come in: how they are admitted, and how they pass through Pingora's
//! hooks.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use pingora::apps::HttpServerApp;
use pingora::http::RequestHeader;
use pingora::server::ShutdownWatch;
use pingora_limits::inflight;

use super::connection::Edge;
use crate::config::{Forwarder, UserFile};
use crate::exchange::admission::{Admitted, Rejected};
use crate::exchange::connection::Connection;
use crate::exchange::passwords::Verdict;
use crate::exchange::record::Record;
use crate::exchange::request::{Request, is_idempotent};
use crate::forward::client::{Client, ClientSide, answer_here};
use crate::forward::direct::Ending;
use crate::forward::handover::{Exchange, HANDOVER, Handover};
use crate::forward::session;
use crate::headers::request::{Origination, Shaping, Span, write_request};
use crate::http1::head::{Body, Head, Version};
use crate::lifecycle::Connected;
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
        let shape = route.shape.as_deref();
        let client = shape.map(|_| connection.text_of(record.client.unwrap_or(connection.peer)));
        let shaping = shape.map(|shape| Shaping {
            shape,
            client: client.as_deref().unwrap_or_default(),
            route: route.name.as_deref().unwrap_or_default(),
        });
        let about = Origination {
            peer: &connection.peer_text,
            trusted_peer,
            tls: connection.tls.as_ref(),
            backend: endpoint.upstream.authority(),
            id: &record.id,
            shape: shaping,
        };
        let users = shape.and_then(|shape| shape.users.as_ref());
        let authorization = users.and_then(|_| head.values("authorization").next().map(Bytes::copy_from_slice));
        let response_fields = shaping.map_or(Bytes::new(), |shaping| shaping.response_fields(head, &about));
        let upgrade = head.upgrade.is_some();
        let mut forwarder = if endpoint.speaks_http1(&route.upstream, upgrade) {
            policy.forwarder
        } else {
            Forwarder::Pingora
        };
        let (written, fields, header) = WRITTEN.with_borrow_mut(|(bytes, spans)| {
            bytes.clear();
            spans.clear();
            write_request(head, about, bytes, spans);
            let written = Bytes::copy_from_slice(bytes);
            let cases = forwarder == Forwarder::Pingora;
            let mut header = session::header(&written, head.method, spans, cases);
            if cases && header.is_err() && endpoint.upstream.may_speak_http1(&route.upstream, upgrade) {
                // Its target is no URI to Pingora. It passes over HTTP/1.1, if the backend speaks that too.
                forwarder = policy.forwarder;
                header = session::header(&written, head.method, spans, forwarder == Forwarder::Pingora);
            }
            (written, spans.len(), header)
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
            authorization,
            response_fields,
            hsts: policy.hsts.filter(|_| connection.tls.is_some()),
        };
        Ok((header, request))
    }

    /// Has an admitted request served by Pingora's hooks. Returns the client, and how its connection goes on.
    pub(super) async fn pass(
        &self,
        header: Box<RequestHeader>,
        exchange: Exchange,
        shutdown: &ShutdownWatch,
    ) -> Option<(Client, Ending)> {
        if let Some(users) = exchange
            .request
            .route
            .shape
            .as_ref()
            .and_then(|shape| shape.users.as_ref())
        {
            // Boxed, so that no other request has room for it.
            let asked = Box::pin(self.authenticate(users, exchange.request.authorization.as_deref()));
            if let Some(rejection) = asked.await {
                return Box::pin(self.deny(exchange, rejection)).await;
            }
        }
        let (session, handover) = session::open(header, exchange, &self.lifecycle);
        // Boxed by Pingora, and begun outside of the block, which would hold the session too.
        let serving = self.proxy.process_new_http(session, shutdown);
        let served = async {
            // A panic takes the client down with the request; nothing else.
            let _ = AssertUnwindSafe(serving).catch_unwind().await;
            Handover::client()
        };
        HANDOVER.scope(handover, served).await
    }

    /// Why a client that says this of itself is none of `users`.
    async fn authenticate(&self, users: &UserFile, authorization: Option<&[u8]>) -> Option<Rejection> {
        let Some(authorization) = authorization else {
            return Some(Rejection::Unauthorized);
        };
        let now = Instant::now();
        let Some(users) = self.passwords.users(users, now).await else {
            return Some(Rejection::Internal);
        };
        match self.passwords.check(&users, authorization, now).await {
            Verdict::Good => None,
            Verdict::Wrong => Some(Rejection::Unauthorized),
            Verdict::Busy => Some(Rejection::AuthBusy),
        }
    }

    /// Answers an admitted request with a rejection. Nothing of it has gone to a backend.
    async fn deny(&self, exchange: Exchange, rejection: Rejection) -> Option<(Client, Ending)> {
        let Exchange {
            request,
            mut record,
            client,
            ..
        } = exchange;
        let may_keep = request.keeps && !self.lifecycle.is_draining();
        match client? {
            Client::Http1(mut client) => {
                let ending = deny(&mut *client, &request, &mut record, rejection, may_keep).await;
                Some((Client::Http1(client), ending))
            }
            Client::Http2(mut client) => {
                let ending = deny(&mut *client, &request, &mut record, rejection, may_keep).await;
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

async fn deny(
    client: &mut impl ClientSide,
    request: &Request,
    record: &mut Record,
    rejection: Rejection,
    may_keep: bool,
) -> Ending {
    record.failed(rejection, None);
    let keeps = may_keep && !client.leaves_doubt(request, false);
    match answer_here(client, request, record, rejection, keeps).await {
        Err(_) => Ending::Cut,
        Ok(()) if keeps => Ending::Keep,
        Ok(()) => Ending::Close,
    }
}

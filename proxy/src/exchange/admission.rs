//! Decides whether to admit a request, from its head.
//!
//! Pingora is not involved yet, so rejecting is cheap. That matters most in a proxy's worst hour, when it rejects most of its
//! requests. An admitted request goes on as a [`Request`](crate::exchange::request::Request).

use std::sync::Arc;
use std::time::Duration;

use crate::exchange::client::{self, FORWARDED_FOR};
use crate::exchange::connection::Connection;
use crate::exchange::record::Record;
use crate::exchange::request::RequestId;
use crate::http1::head::{Body, Head};
use crate::http1::violation::Violation;
use crate::limit::Verdict;
use crate::pool::balance::{Affinity, Asked, Unavailable};
use crate::pool::endpoint::Endpoint;
use crate::pool::retry_budget::RetryBudget;
use crate::rejection::Rejection;
use crate::snapshot::Policy;
use crate::snapshot::route::Route;
use crate::tls;

/// Why a request may not pass.
#[derive(Debug)]
pub struct Rejected {
    /// Why not.
    pub rejection: Rejection,
    /// After this long it would pass.
    pub retry_after: Option<Duration>,
    /// Which rule it breaks, in words for the log.
    pub rule: Option<&'static str>,
    /// What to ask for instead.
    pub location: Option<Box<str>>,
    /// What proves to an authority that asks for it that a host is this proxy's.
    pub proof: Option<Vec<u8>>,
}

impl From<Rejection> for Rejected {
    fn from(rejection: Rejection) -> Self {
        Self {
            rejection,
            retry_after: None,
            rule: None,
            location: None,
            proof: None,
        }
    }
}

impl From<Violation> for Rejected {
    fn from(Violation { rejection, rule }: Violation) -> Self {
        Self {
            rule: Some(rule),
            ..rejection.into()
        }
    }
}

/// What was decided for a request that may pass.
pub struct Admitted {
    /// Whether the peer is trusted.
    pub trusted_peer: bool,
    /// The route that it takes.
    pub route: Arc<Route>,
    /// The backend whose turn it is.
    pub endpoint: Endpoint,
    /// What ties the request to backends.
    pub affinity: Affinity,
}

/// Decides whether requests are admitted.
pub struct Admission {
    /// Where requests are counted that may be tried again.
    pub retries: Arc<RetryBudget>,
    /// The certificates. While there is none, nobody is sent to HTTPS.
    pub certificates: Option<Arc<tls::server::Live>>,
}

impl Admission {
    /// Decides whether to admit the request with this head, which came on `connection` and is served by the rules of `policy`. That
    /// costs the client a token, and a backend its turn. The client is noted in `record`.
    ///
    /// # Errors
    /// Why it may not pass.
    pub fn decide(
        &self,
        head: &Head<'_>,
        connection: &Connection,
        policy: &Policy,
        record: &mut Record,
    ) -> Result<Admitted, Rejected> {
        let client = client::identify(connection.peer, head.values(FORWARDED_FOR), &policy.trusted);
        record.client = Some(client.address);
        if client.trusted_peer
            && let Some(id) = head.values("x-request-id").next().and_then(RequestId::given)
        {
            record.id = id;
        }
        if connection.tls.is_none()
            && let Some(redirect) = &policy.redirect
            && self
                .certificates
                .as_ref()
                .is_some_and(|certificates| certificates.has_any())
            && !(client.trusted_peer && came_by_https(head))
            && let Some(location) = redirect.location(head)
        {
            return Err(Rejected {
                location: Some(location?.into()),
                ..Rejection::Redirected.into()
            });
        }
        if policy.limit_enabled
            && !client.peers_own
            && !policy.exempt.contain(client.address)
            && let Verdict::Limited { retry_after } = policy.limiter.check(client.address, record.start())
        {
            return Err(Rejected {
                retry_after: Some(retry_after),
                ..Rejection::Limited.into()
            });
        }
        if matches!((head.body, policy.client.transfer.max_body), (Body::Length(length), Some(max)) if length > max) {
            return Err(Violation::new(
                Rejection::BodyTooLarge,
                "the request body is longer than client.max_body",
            )
            .into());
        }
        let route = &policy.route;
        let asked = Asked {
            client: client.address,
            path: head.path,
            fields: head.fields,
        };
        let (picked, mut affinity) = route.pool.pick(asked).map_err(|why| match why {
            Unavailable::NoneAlive => Rejection::NoBackend,
            Unavailable::AllBusy => Rejection::BackendsBusy,
        })?;
        record.place = picked.place;
        if let Some(sticking) = &mut affinity.sticking {
            sticking.secure = connection.tls.is_some() || (client.trusted_peer && came_by_https(head));
        }
        self.retries.request(record.start());
        Ok(Admitted {
            trusted_peer: client.trusted_peer,
            route: Arc::clone(route),
            endpoint: picked.endpoint,
            affinity,
        })
    }
}

/// Whether a proxy in front says that the client speaks TLS with it.
fn came_by_https(head: &Head<'_>) -> bool {
    head.values("x-forwarded-proto")
        .any(|scheme| scheme.eq_ignore_ascii_case(b"https"))
}

//! Decides from its head whether a request is admitted.
//!
//! Pingora is not involved yet, so rejecting is cheap: in its worst hour a proxy rejects most of its requests, and accepting one
//! costs Pingora several times as much. An admitted request reaches [`service`](crate::service) as an [`Admitted`], with everything
//! that was learnt on the way.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::client::{self, Client, FORWARDED_FOR};
use crate::http1::head::{Body, Head};
use crate::http1::violation::Violation;
use crate::limiter::Verdict;
use crate::policy::Policy;
use crate::pool::Pool;
use crate::rejection::Rejection;
use crate::retry_budget::RetryBudget;
use crate::upstream::Endpoint;

/// What the requests of one connection share. Its addresses are formatted once, because each request uses them more than once.
#[derive(Debug)]
pub struct Connection {
    /// The other end, without its port; IPv4 never mapped into IPv6.
    pub peer: IpAddr,
    /// The same as text.
    pub peer_text: String,
    /// The same as the value of a field.
    pub peer_value: HeaderValue,
    /// `peer` with its port, as text.
    pub remote_addr: String,
    /// Pingora has taken the last request that it was given.
    taken: AtomicBool,
}

impl Connection {
    /// A connection to `remote`.
    pub fn new(remote: SocketAddr) -> Self {
        let peer = remote.ip().to_canonical();
        let peer_text = peer.to_string();
        Self {
            peer,
            peer_value: HeaderValue::from_str(&peer_text).expect("an address is text"),
            peer_text,
            remote_addr: SocketAddr::new(peer, remote.port()).to_string(),
            taken: AtomicBool::new(false),
        }
    }

    /// `client` as text.
    pub fn text_of(&self, client: IpAddr) -> Cow<'_, str> {
        if client == self.peer {
            Cow::Borrowed(&self.peer_text)
        } else {
            Cow::Owned(client.to_string())
        }
    }

    /// Notes that Pingora has taken a request.
    pub fn request_taken(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    /// Whether Pingora has taken a request since this was last asked.
    pub fn was_taken(&self) -> bool {
        self.taken.swap(false, Ordering::Relaxed)
    }
}

/// A request that may pass.
pub struct Admitted {
    /// When its head began to arrive.
    pub start: Instant,
    /// The rules that it is served by.
    pub policy: Arc<Policy>,
    /// The connection that it came on.
    pub connection: Arc<Connection>,
    /// Whose it is.
    pub client: Client,
    /// The backend whose turn it is, at one of its addresses.
    pub endpoint: Endpoint,
    /// Another request may follow on the connection.
    pub keeps: bool,
    /// The client may wait for "100 Continue" before it sends the body.
    pub expects: bool,
    /// It asks to switch to WebSocket.
    pub websocket: bool,
}

/// A request that may not pass.
#[derive(Debug)]
pub struct Refused {
    /// Why not.
    pub rejection: Rejection,
    /// Whose it is, where that was found out.
    pub client: Option<IpAddr>,
    /// After this long it would pass.
    pub retry_after: Option<Duration>,
    /// Which rule it breaks, in words for the log.
    pub error: Option<&'static str>,
}

impl From<Rejection> for Refused {
    fn from(rejection: Rejection) -> Self {
        Self {
            rejection,
            client: None,
            retry_after: None,
            error: None,
        }
    }
}

impl From<Violation> for Refused {
    fn from(Violation { rejection, rule }: Violation) -> Self {
        Self {
            error: Some(rule),
            ..rejection.into()
        }
    }
}

/// Decides over requests.
pub struct Admission {
    /// The backends.
    pub pool: Arc<Pool>,
    /// Where requests are counted that may be tried again.
    pub retries: Arc<RetryBudget>,
}

impl Admission {
    /// Decides over the request with this head, that came on `connection` at `start` and is served by the rules of `policy`.
    /// It costs its client a token, and takes the turn of a backend.
    ///
    /// # Errors
    /// Why it may not pass.
    pub fn decide(
        &self,
        head: &Head<'_>,
        connection: &Arc<Connection>,
        policy: &Arc<Policy>,
        start: Instant,
    ) -> Result<Admitted, Refused> {
        let client = client::identify(connection.peer, head.values(FORWARDED_FOR), &policy.trusted);
        let refused = |rejection, retry_after| Refused {
            rejection,
            client: Some(client.address),
            retry_after,
            error: None,
        };
        if policy.limit_enabled
            && !client.peers_own
            && !policy.exempt.contain(client.address)
            && let Verdict::Limited { retry_after } = policy.limiter.check(client.address, start)
        {
            return Err(refused(Rejection::Limited, Some(retry_after)));
        }
        if matches!((head.body, policy.client.max_body), (Body::Length(length), Some(max)) if length > max) {
            return Err(Refused {
                error: Some("the request body is longer than client.max_body"),
                ..refused(Rejection::BodyTooLarge, None)
            });
        }
        let endpoint = self.pool.pick().ok_or_else(|| refused(Rejection::NoBackend, None))?;
        self.retries.request(start);
        Ok(Admitted {
            start,
            policy: Arc::clone(policy),
            connection: Arc::clone(connection),
            client,
            endpoint,
            keeps: head.keeps,
            expects: head.expects,
            websocket: head.body == Body::Upgrade,
        })
    }
}

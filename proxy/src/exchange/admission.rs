//! Decides whether to admit a request, from its head.
//!
//! Pingora is not involved yet, so rejecting is cheap. That matters most in a proxy's worst hour, when it rejects most of its
//! requests. An admitted request goes on as a [`Request`](crate::exchange::request::Request).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::exchange::client::{self, FORWARDED_FOR};
use crate::exchange::connection::Connection;
use crate::exchange::record::Record;
use crate::exchange::request::RequestId;
use crate::http1::head::{Body, Head};
use crate::http1::progress::BODY_TOO_LARGE;
use crate::http1::violation::Violation;
use crate::limit::Verdict;
use crate::pool::balance::{Affinity, Asked, Unavailable};
use crate::pool::endpoint::Endpoint;
use crate::rejection::{self, Delivery, Form, LimitedAnswers, Prepared, Rejection};
use crate::snapshot::Policy;
use crate::snapshot::route::Route;
use crate::snapshot::routes::{Action, Choice, Rule, RuleLimit};
use crate::tls;

/// Why a request may not pass.
#[derive(Debug)]
pub struct Rejected {
    /// Why not.
    pub rejection: Rejection,
    /// After this long it would pass.
    pub retry_after: Option<Duration>,
    /// The limit that the client is over is that of its route.
    pub of_route: bool,
    /// Which rule it breaks, in words for the log.
    pub rule: Option<&'static str>,
    /// What its route answers.
    pub answer: Option<Arc<Prepared>>,
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
            of_route: false,
            rule: None,
            answer: None,
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

impl Rejected {
    /// What the client reads in this form, of a request with this `id`.
    pub fn body<'b>(&'b self, policy: &'b Policy, form: Form, id: &'b str) -> rejection::Body<'b> {
        match (&self.proof, &self.answer) {
            (Some(proof), _) => rejection::Body::Proof(proof),
            (None, Some(answer)) => rejection::Body::Prepared(answer),
            (None, None) => policy.error_pages.body(self.rejection, form, id),
        }
    }

    /// The answers to clients over the limit of their route, which has this `rule`, or over that for all requests.
    pub fn limited<'p>(&self, policy: &'p Policy, rule: Option<&'p Rule>) -> &'p LimitedAnswers {
        match rule.map(|rule| &rule.limit) {
            Some(RuleLimit::Own(own)) if self.of_route => &own.answers,
            _ => &policy.limited,
        }
    }

    /// Notes in `record` that the client was sent it, with a body of `length` bytes if there is one.
    pub fn sent(&self, record: &mut Record, delivery: Delivery, length: usize) {
        record.answered_here(self.rejection, delivery, length);
        if let Some(answer) = &self.answer
            && delivery.form != Form::Grpc
        {
            record.status = answer.status;
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
        let choice = policy.routes.choose(head)?;
        let rule = choice.rule();
        if let Some(rule) = rule {
            record.rule = Some(Arc::clone(rule));
        }
        if !client.peers_own && !policy.exempt.contain(client.address) {
            take_tokens(policy, rule, client.address, record.start())?;
        }
        let max_body = match rule.and_then(|rule| rule.max_body) {
            Some(of_route) => of_route,
            None => policy.client.transfer.max_body,
        };
        if matches!((head.body, max_body), (Body::Length(length), Some(max)) if length > max) {
            return Err(Violation::new(Rejection::BodyTooLarge, BODY_TOO_LARGE).into());
        }
        let route = match choice {
            Choice::One(route) => route,
            Choice::None => return Err(Rejection::NoRoute.into()),
            Choice::Rule(rule) => of_rule(rule, head, client.address, policy)?,
        };
        record.pool = route.pool_name.clone();
        let asked = Asked {
            bodiless: head.body == Body::Length(0),
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
        route.pool.retries.request(record.start());
        Ok(Admitted {
            trusted_peer: client.trusted_peer,
            route: Arc::clone(route),
            endpoint: picked.endpoint,
            affinity,
        })
    }
}

/// The route of this `rule` that a request with this head takes, if `client` may take one.
fn of_rule<'r>(rule: &'r Rule, head: &Head<'_>, client: IpAddr, policy: &Policy) -> Result<&'r Arc<Route>, Rejected> {
    if rule.shape.as_ref().is_some_and(|shape| !shape.access.admits(client)) {
        return Err(Rejection::Forbidden.into());
    }
    match &rule.action {
        Action::Forward(route) => Ok(route),
        Action::Split(split, routes) => {
            let number = split.of_client(policy.limiter.key(client));
            Ok(routes.get(number).ok_or(Rejection::Internal)?)
        }
        Action::Redirect(redirect, answer) => Err(Rejected {
            location: Some(redirect.location(head)?.into()),
            answer: Some(Arc::clone(answer)),
            ..Rejection::Redirected.into()
        }),
        Action::Answer(answer) => Err(Rejected {
            answer: Some(Arc::clone(answer)),
            ..Rejection::Answered.into()
        }),
    }
}

/// Takes a token from the client's bucket for the route of this `rule` and from the one for all requests, or from neither.
fn take_tokens(policy: &Policy, rule: Option<&Arc<Rule>>, client: IpAddr, now: Instant) -> Result<(), Rejected> {
    let own = match rule.map(|rule| &rule.limit) {
        None | Some(RuleLimit::Global) => None,
        Some(RuleLimit::Own(own)) => Some(own),
        Some(RuleLimit::Unlimited) => return Ok(()),
    };
    if let Some(own) = own
        && let Verdict::Limited { retry_after } = own.limiter.check(client, now)
    {
        return Err(Rejected {
            retry_after: Some(retry_after),
            of_route: true,
            ..Rejection::Limited.into()
        });
    }
    if policy.limit_enabled
        && let Verdict::Limited { retry_after } = policy.limiter.check(client, now)
    {
        if let Some(own) = own {
            own.limiter.give_back(client);
        }
        return Err(Rejected {
            retry_after: Some(retry_after),
            ..Rejection::Limited.into()
        });
    }
    Ok(())
}

/// Whether a proxy in front says that the client speaks TLS with it.
fn came_by_https(head: &Head<'_>) -> bool {
    head.values("x-forwarded-proto")
        .any(|scheme| scheme.eq_ignore_ascii_case(b"https"))
}

//! Which rule a request is served by: that of its route, or the one for all requests where there are no routes.

use std::sync::Arc;
use std::time::Instant;

use registry::PoolName;

use crate::config::{Config, Limit, Shape, UpstreamLimits, routes};
use crate::http1::head::Head;
use crate::http1::path;
use crate::http1::violation::Violation;
use crate::limit::ClientLimiter;
use crate::limit::shared::Shared;
use crate::observe::routes::{RouteMetrics, RouteSeries};
use crate::pool::Pool;
use crate::pool::auth_service::AuthServices;
use crate::rejection::{LimitedAnswers, Prepared};
use crate::snapshot::route::Route;
use crate::snapshot::table::Table;

/// The rules for requests.
pub enum Routes {
    /// All requests take this route.
    One(Arc<Route>),
    /// Each takes the most specific of these.
    Many {
        /// Finds it.
        table: Table,
        /// The rules, by the numbers in the table.
        rules: Vec<Arc<Rule>>,
        /// Where the limits of routes have their buckets.
        limits: Arc<Shared>,
    },
}

/// What is done with the requests of a route.
pub struct Rule {
    /// The name of the route.
    pub name: Arc<str>,
    /// What is done.
    pub action: Action,
    /// What its clients may send.
    pub limit: RuleLimit,
    /// The longest request body in bytes, if it is not `client.max_body`.
    pub max_body: Option<Option<u64>>,
    /// What it does to requests and responses, if it does anything.
    pub shape: Option<Arc<Shape>>,
    /// Where its requests are counted.
    pub series: RouteSeries,
}

/// What is done with a request.
pub enum Action {
    /// It goes to a backend.
    Forward(Arc<Route>),
    /// It goes to a backend of the client's pool.
    Split(routes::Split, Vec<Arc<Route>>),
    /// The client is sent to another URL, by this answer.
    Redirect(routes::Redirect, Arc<Prepared>),
    /// The client gets this answer.
    Answer(Arc<Prepared>),
}

/// What the clients of a route may send.
pub enum RuleLimit {
    /// What the limit for all requests allows.
    Global,
    /// So much of this route, within the limit for all requests.
    Own(OwnLimit),
    /// As much as they like.
    Unlimited,
}

/// The limit of a route.
pub struct OwnLimit {
    /// The bucket of each client.
    pub limiter: ClientLimiter,
    /// The answers to clients over their limit.
    pub answers: LimitedAnswers,
}

/// How a request is served.
pub enum Choice<'r> {
    /// By the one route of a proxy without routes.
    One(&'r Arc<Route>),
    /// By this rule.
    Rule(&'r Arc<Rule>),
    /// Not at all: no route is for it.
    None,
}

impl<'r> Choice<'r> {
    /// The rule of its route.
    pub fn rule(&self) -> Option<&'r Arc<Rule>> {
        match self {
            Self::Rule(rule) => Some(rule),
            Self::One(_) | Self::None => None,
        }
    }
}

/// A pool, what its backends may take, and its name if there is more than one.
pub type ToPool = (Arc<Pool>, UpstreamLimits, Option<Arc<str>>);

/// What routes are made with.
pub struct Parts<'p> {
    /// The pool of a name.
    pub pools: &'p dyn Fn(&PoolName) -> ToPool,
    /// The authentication services. Routes with the same one share it.
    pub services: &'p AuthServices,
    /// Where requests are counted.
    pub metrics: &'p RouteMetrics,
    /// The routes until now. Clients keep the buckets of a limit that stays the same.
    pub before: Option<&'p Routes>,
}

impl Routes {
    /// The rules that `config` sets.
    pub fn new(config: &Config, parts: &Parts<'_>) -> Self {
        if config.routes.is_empty() {
            let (pool, upstream, pool_name) = (parts.pools)(&PoolName::default());
            return Self::One(Arc::new(Route {
                name: None,
                pool_name,
                pool,
                upstream,
                max_body: None,
                shape: None,
                auth: None,
            }));
        }
        let limits = match parts.before {
            Some(Self::Many { limits, .. }) if limits.clients() == config.limit.clients => Arc::clone(limits),
            _ => Arc::new(Shared::new(config.limit.clients, Instant::now())),
        };
        let rules = config
            .routes
            .iter()
            .map(|route| Arc::new(Rule::new(route, config, parts, &limits)));
        Self::Many {
            rules: rules.collect(),
            limits,
            table: Table::new(config.routes.iter().map(|route| &route.matches)),
        }
    }

    /// How the request with this head is served.
    ///
    /// # Errors
    /// Where there are routes: that its path could mean another one to the origin.
    pub fn choose(&self, head: &Head<'_>) -> Result<Choice<'_>, Violation> {
        let (table, rules) = match self {
            Self::One(route) => return Ok(Choice::One(route)),
            Self::Many { table, rules, .. } => (table, rules),
        };
        let path = path::plain(head.path).map_err(Violation::malformed)?;
        let number = table.pick(head.host, &path, head.method);
        let rule = number.and_then(|number| rules.get(usize::try_from(number).ok()?));
        Ok(rule.map_or(Choice::None, Choice::Rule))
    }

    /// The buckets of the limits that routes have, for a successor's [`Routes::import_buckets`].
    pub fn export_buckets(&self, now: Instant) -> Vec<u8> {
        match self {
            Self::One(_) => Vec::new(),
            Self::Many { limits, .. } => limits.export(now),
        }
    }

    /// Takes the buckets that clients had in another process.
    pub fn import_buckets(&self, note: &[u8], now: Instant) {
        if let Self::Many { limits, .. } = self {
            limits.import(note, now);
        }
    }

    /// The names of the routes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rules().iter().map(|rule| &*rule.name)
    }

    /// The rules of the routes.
    fn rules(&self) -> &[Arc<Rule>] {
        match self {
            Self::One(_) => &[],
            Self::Many { rules, .. } => rules,
        }
    }
}

impl Rule {
    fn new(route: &routes::Route, config: &Config, parts: &Parts<'_>, limits: &Shared) -> Self {
        let name: Arc<str> = route.name.as_str().into();
        let shape = (route.shape != Shape::default()).then(|| Arc::new(route.shape.clone()));
        let auth = route.shape.auth.as_ref();
        let service = auth.map(|auth| parts.services.at(&auth.url.service));
        let to_pool = |pool: &PoolName| {
            let (pool, upstream, pool_name) = (parts.pools)(pool);
            Arc::new(Route {
                name: Some(Arc::clone(&name)),
                pool_name,
                pool,
                upstream: route.overrides.over(&upstream),
                max_body: route.overrides.max_body,
                shape: shape.clone(),
                auth: service.clone(),
            })
        };
        let action = match &route.action {
            routes::Action::Pool(pool) => Action::Forward(to_pool(pool)),
            routes::Action::Split(split) => {
                let routes = split.pools.iter().map(|(pool, _)| to_pool(pool));
                Action::Split(split.clone(), routes.collect())
            }
            routes::Action::Redirect(redirect) => Action::Redirect(redirect.clone(), Arc::new(redirect.answer())),
            routes::Action::Answer(answer) => Action::Answer(Arc::clone(answer)),
        };
        let limit = match route.limit {
            routes::RouteLimit::Global => RuleLimit::Global,
            routes::RouteLimit::Unlimited => RuleLimit::Unlimited,
            routes::RouteLimit::Own(rate) => {
                let limit = config.limit.at(rate);
                RuleLimit::Own(OwnLimit::new(&limit, limits.limiter(&name, &limit)))
            }
        };
        Self {
            series: parts.metrics.of(&name),
            name,
            action,
            limit,
            max_body: route.overrides.max_body,
            shape,
        }
    }
}

impl OwnLimit {
    fn new(limit: &Limit, limiter: ClientLimiter) -> Self {
        Self {
            answers: LimitedAnswers::new(limit.burst, limiter.refill()),
            limiter,
        }
    }
}

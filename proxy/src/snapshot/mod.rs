//! The rules for requests that a reload can change.
//!
//! A request takes the current [`Policy`] when it begins and keeps it to its end, so that none is served half under the old rules and
//! half under the new ones.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::{Level, info, log};
use registry::PoolName;

use crate::config::{ClientLimits, Config, DEFAULT_MAX_CONNECTIONS, Forwarder, Http2, Limit, Networks, Readiness};
use crate::http1::held;
use crate::http1::redirect::Redirect;
use crate::limit::ClientLimiter;
use crate::observe::routes::RouteMetrics;
use crate::pool::auth_service::AuthServices;
use crate::pool::pools::ByName;
use crate::rejection::{LimitedAnswers, Pages};
use crate::snapshot::routes::{Parts, Routes, Rule};

pub mod route;
pub mod routes;
pub mod table;

/// The rules that requests are served by.
pub struct Policy {
    /// Whether clients are limited at all.
    pub limit_enabled: bool,
    /// The bucket of each client.
    pub limiter: Arc<ClientLimiter>,
    /// The answers to clients over their limit.
    pub limited: LimitedAnswers,
    /// What users see when the proxy itself answers.
    pub error_pages: Arc<Pages>,
    /// Clients without a limit.
    pub exempt: Networks,
    /// Peers whose word about the client is believed.
    pub trusted: Networks,
    /// Balancers that name the client of each connection.
    pub proxy_protocol: Networks,
    /// Where the proofs are that an authority may ask for (`acme.storage`).
    pub challenges: Option<PathBuf>,
    /// What a client connection may take; no more of them than there are descriptors for.
    pub client: ClientLimits,
    /// What a client connection of HTTP/2 may take beside that.
    pub http2: Http2,
    /// How much clients may make the proxy hold.
    pub held: held::Limits,
    /// Where requests go.
    pub routes: Routes,
    /// Who forwards admitted requests.
    pub forwarder: Forwarder,
    /// Which requests without TLS are sent to HTTPS.
    pub redirect: Option<Redirect>,
    /// For so many seconds clients with TLS should use nothing else.
    pub hsts: Option<u64>,
    /// When the process is ready.
    pub readiness: Readiness,
    /// What the limiter was made from.
    limit: Limit,
    /// `client.max_connections` as configured.
    max_connections: usize,
}

impl Policy {
    fn new(config: &Config, limiter: Arc<ClientLimiter>, routes: Routes, machine: Machine) -> Self {
        let mut client = config.client.clone();
        client.max_connections = client.max_connections.min(machine.connections);
        let held = config.client.max_held.unwrap_or(machine.memory / 4);
        Self {
            held: held::Limits::new(held),
            limit_enabled: config.limit_enabled,
            limited: LimitedAnswers::new(config.limit.burst, limiter.refill()),
            limiter,
            error_pages: config.error_pages.pages(),
            exempt: Networks::new(config.limit.exempt.clone()),
            trusted: Networks::new(config.trusted_proxies.clone()),
            proxy_protocol: Networks::new(config.proxy_protocol.clone()),
            challenges: config.acme.as_ref().map(|acme| acme.storage.clone()),
            client,
            http2: config.http2.clone(),
            routes,
            forwarder: config.forwarder,
            redirect: config.tls.redirect.clone(),
            hsts: config.tls.hsts.map(|time| time.as_secs()),
            readiness: config.readiness,
            limit: config.limit.clone(),
            max_connections: config.client.max_connections,
        }
    }

    /// Logs that there are fewer descriptors than `client.max_connections` takes: as a warning when that matters, because
    /// somebody asked for so many or a connection was `refused`.
    pub fn explain_descriptors(&self, refused: bool) {
        let (connections, wanted) = (self.client.max_connections, self.max_connections);
        if connections == wanted {
            return;
        }
        let matters = refused || wanted != DEFAULT_MAX_CONNECTIONS;
        log!(
            if matters { Level::Warn } else { Level::Info },
            connections = connections,
            max_connections = wanted,
            help = "raise the hard limit on open files: LimitNOFILE= in a systemd unit, --ulimit nofile= for a container, ulimit -Hn";
            "the limit on open files allows fewer connections than client.max_connections"
        );
    }

    /// Logs why `client` gets a 429, by the limit of the route with this `rule` if there is one, and how to change that. A newcomer meets the default limit within minutes.
    pub fn explain_limit(&self, client: &str, rule: Option<&Rule>) {
        if let Some(rule) = rule {
            info!(
                client = client,
                route = &*rule.name,
                help = "change limit of this route in gopherproxy.routes; limit: none turns it off; if this address is a proxy in front, add \
                        it to TRUSTED_PROXIES";
                "a client is over the limit of a route and gets 429"
            );
            return;
        }
        info!(
            client = client,
            burst = self.limit.burst,
            per_second = self.limit.per_second,
            help = "set gopherproxy.limit or RATE_LIMIT_BURST and RATE_LIMIT_PER_SECOND; RATE_LIMIT=off turns the limit off; \
                    if this address is a proxy in front, add it to TRUSTED_PROXIES";
            "a client is over the limit and gets 429"
        );
    }
}

/// How many connections over a limit get the time to read their 503, at most. More are closed at once.
const MAX_TURNED_AWAY: usize = 64;

/// How many descriptors the process needs beside those for clients and what they ask for: for its ports, its threads, the admin port, the
/// registry and the checks.
const OWN_DESCRIPTORS: usize = 80;

/// What there is of everything, for the rules to keep to.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// For how many connections there are descriptors.
    pub connections: usize,
    /// For how many more that are turned away and get the time to read why.
    pub turned_away: usize,
    /// How much memory the process may have, in bytes.
    pub memory: usize,
}

impl Machine {
    /// One that gives the process so many descriptors and bytes of `memory`.
    pub fn new(descriptors: usize, memory: usize) -> Self {
        let turned_away = (descriptors / 16).min(MAX_TURNED_AWAY);
        // Each may need one more to a backend.
        let left = descriptors.saturating_sub(OWN_DESCRIPTORS + turned_away) / 2;
        // A quarter is for everything else, where there are enough of them.
        let connections = (descriptors / 8).saturating_mul(3).min(left).max(1);
        Self {
            connections,
            turned_away,
            memory,
        }
    }
}

/// The rules now.
pub struct Live {
    policy: ArcSwap<Policy>,
    services: Arc<AuthServices>,
    metrics: RouteMetrics,
    machine: Machine,
}

impl Live {
    /// The rules that `config` sets, for requests to these `pools` that are made from it, in a process on this `machine`. Authentication
    /// services are among `services`. Requests are counted by route in `metrics`.
    pub fn new(
        config: &Config,
        pools: &ByName,
        services: Arc<AuthServices>,
        metrics: RouteMetrics,
        machine: Machine,
    ) -> Self {
        let limiter = Arc::new(ClientLimiter::new(&config.limit, Instant::now()));
        let routes = routes(config, pools, &services, &metrics, None);
        let policy = Policy::new(config, limiter, routes, machine);
        policy.explain_descriptors(false);
        Self {
            policy: ArcSwap::from_pointee(policy),
            services,
            metrics,
            machine,
        }
    }

    /// The rules to keep for a while.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// How long a connection may wait for its next request.
    pub fn idle_timeout(&self) -> Duration {
        self.policy.load().client.idle_timeout
    }

    /// The most requests on one connection.
    pub fn max_requests(&self) -> u64 {
        self.policy.load().client.max_requests
    }

    /// Changes the rules to those of `config`. Clients keep their buckets unless the limit itself has changed: then all
    /// start with a full one, because what is left of an old one means nothing in the new.
    pub fn change(&self, config: &Config, pools: &ByName) {
        let before = self.policy();
        let limiter = if before.limit == config.limit {
            Arc::clone(&before.limiter)
        } else {
            Arc::new(ClientLimiter::new(&config.limit, Instant::now()))
        };
        let routes = routes(config, pools, &self.services, &self.metrics, Some(&before.routes));
        self.metrics.keep(before.routes.names(), routes.names());
        let policy = Policy::new(config, limiter, routes, self.machine);
        if before.max_connections != policy.max_connections {
            policy.explain_descriptors(false);
        }
        self.policy.store(Arc::new(policy));
    }
}

/// The routes that `config` sets.
fn routes(
    config: &Config,
    pools: &ByName,
    services: &AuthServices,
    metrics: &RouteMetrics,
    before: Option<&Routes>,
) -> Routes {
    let of_name = |name: &PoolName| {
        // Routes name only pools that `config` has, and `pools` are made from it.
        let shown = (pools.len() > 1).then(|| name.as_str().into());
        (Arc::clone(&pools[name]), config.pools[name].upstream.clone(), shown)
    };
    let parts = Parts {
        pools: &of_name,
        services,
        metrics,
        before,
    };
    Routes::new(config, &parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_for_everything_else_however_few_there_are() {
        for (descriptors, connections, turned_away) in [
            (0, 1, 0),
            (64, 1, 4),
            (160, 35, 10),
            (256, 80, 16),
            (1024, 384, 64),
            (20_000, 7_500, 64),
            (usize::MAX, usize::MAX / 8 * 3, 64),
        ] {
            let machine = Machine::new(descriptors, 0);
            assert_eq!(
                (machine.connections, machine.turned_away),
                (connections, turned_away),
                "{descriptors}"
            );
        }
    }
}

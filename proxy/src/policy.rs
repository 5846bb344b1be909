//! What a reload of the configuration can change for requests.
//!
//! A request takes one [`Policy`] when it begins and keeps it to its end, so that no request is judged half by the old
//! configuration and half by the new one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::info;

use crate::client::Networks;
use crate::config::{ClientLimits, Config, Limit, Readiness, UpstreamLimits};
use crate::limiter::ClientLimiter;
use crate::rejection::LimitedAnswers;

/// The rules that requests are served by.
pub struct Policy {
    /// The bucket of each client.
    pub limiter: Arc<ClientLimiter>,
    /// The answers to clients over their limit.
    pub limited: LimitedAnswers,
    /// Clients without a limit.
    pub exempt: Networks,
    /// Peers whose word about the client is believed.
    pub trusted: Networks,
    /// What a client connection may take.
    pub client: ClientLimits,
    /// What a backend may take.
    pub upstream: UpstreamLimits,
    /// When the process is ready.
    pub readiness: Readiness,
    /// What the limiter was made from.
    limit: Limit,
}

impl Policy {
    fn new(config: &Config, limiter: Arc<ClientLimiter>) -> Self {
        Self {
            limited: LimitedAnswers::new(config.limit.burst, limiter.refill()),
            limiter,
            exempt: Networks::new(config.limit.exempt.clone()),
            trusted: Networks::new(config.trusted_proxies.clone()),
            client: config.client.clone(),
            upstream: config.upstream.clone(),
            readiness: config.readiness,
            limit: config.limit.clone(),
        }
    }

    /// Logs why `client` gets a 429 and how to change that. A newcomer meets the default limit within minutes.
    pub fn explain_limit(&self, client: &str) {
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

/// The rules now.
pub struct Live(ArcSwap<Policy>);

impl Live {
    /// The rules that `config` sets.
    pub fn new(config: &Config) -> Self {
        let limiter = Arc::new(ClientLimiter::new(&config.limit, Instant::now()));
        Self(ArcSwap::from_pointee(Policy::new(config, limiter)))
    }

    /// The rules to keep for a while.
    pub fn policy(&self) -> Arc<Policy> {
        self.0.load_full()
    }

    /// How long a connection may wait for its next request.
    pub fn idle_timeout(&self) -> Duration {
        self.0.load().client.idle_timeout
    }

    /// Changes the rules to those of `config`. Clients keep their buckets unless the limit itself has changed: then all
    /// start with a full one, because what is left of an old one means nothing in the new.
    pub fn change(&self, config: &Config) {
        let before = self.policy();
        let limiter = if before.limit == config.limit {
            Arc::clone(&before.limiter)
        } else {
            Arc::new(ClientLimiter::new(&config.limit, Instant::now()))
        };
        self.0.store(Arc::new(Policy::new(config, limiter)));
    }
}

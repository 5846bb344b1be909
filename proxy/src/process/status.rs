//! What the admin port reports: readiness, and the metrics that are refreshed at a scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use chassis::admin::Probed;

use crate::config::Readiness;
use crate::http1::held::Budget;
use crate::lifecycle::Lifecycle;
use crate::listen::acme::Failing;
use crate::observe::metrics::Metrics;
use crate::pool::pools::Pools;
use crate::snapshot::Live;

/// Ready once a backend has passed a check, and until the shutdown begins. (Backends that were never checked get traffic
/// when there are no others, but that is no reason to attract more.)
///
/// Where there are several pools, one without a backend does not make the process unready: it would take the requests to all others
/// away, and no other process has that backend either. But at the start it is waited for, until it is known that there is none.
pub struct Status {
    /// The backends.
    pub pools: Arc<Pools>,
    /// It was ready once. Pools that a reload brings don't change that.
    pub was_ready: AtomicBool,
    /// Whether the process is shutting down.
    pub lifecycle: Arc<Lifecycle>,
    /// The memory that clients make the proxy hold.
    pub held: Arc<Budget>,
    /// The rules, with the limiter whose size is reported at a scrape.
    pub live: Arc<Live>,
    /// The metrics that are refreshed at a scrape.
    pub metrics: Metrics,
    /// The certificates that can't be had.
    pub failing: Arc<Failing>,
}

impl Probed for Status {
    fn ready(&self) -> Result<String, String> {
        if self.lifecycle.is_leaving() {
            return Err("shutting down".into());
        }
        let was_ready = self.was_ready.load(Ordering::Relaxed) || self.pools.are_known();
        self.was_ready.store(was_ready, Ordering::Relaxed);
        let while_alive = self.live.policy().readiness == Readiness::WhileAlive;
        let without = self.pools.without_backends();
        if !was_ready || while_alive && !self.pools.any_alive() {
            return Err(without.unwrap_or_else(|| "no backend is alive yet".into()));
        }
        let without = without.filter(|_| self.pools.all().len() > 1);
        let but: Vec<_> = [without, self.pools.staleness(), self.failing.text()]
            .into_iter()
            .flatten()
            .collect();
        Ok(if but.is_empty() {
            "ready".into()
        } else {
            format!("ready, but {}", but.join(", and "))
        })
    }

    fn refresh(&self) {
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.inflight.set(gauge(self.lifecycle.in_flight()));
        self.metrics
            .limiter_clients
            .set(gauge(self.live.policy().limiter.clients(Instant::now())));
        self.metrics.connections.set(gauge(self.lifecycle.connections()));
        self.metrics.held.set(gauge(self.held.held()));
        self.metrics.access_log_dropped(chassis::json_log::dropped_lines());
        self.metrics.panics(chassis::json_log::panics());
    }
}

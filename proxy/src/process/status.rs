//! What the admin port reports: readiness, and the metrics that are refreshed at a scrape.

use std::sync::Arc;
use std::time::Instant;

use chassis::admin::Probed;

use crate::config::Readiness;
use crate::discovery::RegistryDiscovery;
use crate::http1::held::Budget;
use crate::lifecycle::Lifecycle;
use crate::listen::acme::Failing;
use crate::observe::metrics::Metrics;
use crate::pool::Pool;
use crate::snapshot::Live;

/// Ready once a backend has passed a check, and until the shutdown begins. (Backends that were never checked get traffic
/// when there are no others, but that is no reason to attract more.)
pub struct Status {
    /// Where the backends come from.
    pub discovery: RegistryDiscovery,
    /// Which of them are alive.
    pub pool: Arc<Pool>,
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
        match self.live.policy().readiness {
            Readiness::OnceAlive if self.pool.was_alive() => {}
            Readiness::WhileAlive if self.pool.is_alive() => {}
            _ => {
                self.discovery.has_set()?;
                let yet = if self.pool.was_alive() { "" } else { " yet" };
                return Err(format!("no backend passes its health check{yet}"));
            }
        }
        let but: Vec<_> = [self.discovery.staleness(), self.failing.text()]
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

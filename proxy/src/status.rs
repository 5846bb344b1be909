//! What the admin port says of the process.

use std::sync::Arc;
use std::time::Instant;

use chassis::admin::Probed;

use crate::discovery::RegistryDiscovery;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::policy::Live;

/// Ready once there are backends to send traffic to, and until the shutdown begins.
pub struct Status {
    /// Where the backends come from.
    pub discovery: RegistryDiscovery,
    /// Whether the process is on its way out.
    pub lifecycle: Arc<Lifecycle>,
    /// Whose limiter's size is told at a scrape.
    pub live: Arc<Live>,
    /// What is brought up to date at a scrape.
    pub metrics: Metrics,
}

impl Probed for Status {
    fn ready(&self) -> Result<String, String> {
        if self.lifecycle.is_leaving() {
            return Err("shutting down".into());
        }
        self.discovery.ready()?;
        Ok(match self.discovery.staleness() {
            None => "ready".into(),
            Some(stale) => format!("ready, but {stale}"),
        })
    }

    fn refresh(&self) {
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.inflight.set(gauge(self.lifecycle.in_flight()));
        self.metrics
            .limiter_clients
            .set(gauge(self.live.policy().limiter.clients(Instant::now())));
        self.metrics.connections.set(gauge(self.lifecycle.connections()));
        self.metrics.access_log_dropped(chassis::json_log::dropped_lines());
        self.metrics.panics(chassis::json_log::panics());
    }
}

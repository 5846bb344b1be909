//! The metrics of the sentinel.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chassis::clock;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::target::State;

/// The sentinel's metrics; clones share the same series.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) registry_errors: IntCounter,
    targets: IntGaugeVec,
    probes: IntCounterVec,
    probe_duration: Histogram,
    last_success: Gauge,
    /// The same by a clock that nobody sets; none before the first.
    last_success_at: Arc<Mutex<Option<Instant>>>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When one of the names is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            registry_errors: IntCounter::new(
                "gopherproxy_sentinel_registry_errors_total",
                "Cycles that could not read or write the registry.",
            )?,
            targets: IntGaugeVec::new(
                Opts::new("gopherproxy_sentinel_targets", "Targets by state."),
                &["state"],
            )?,
            probes: IntCounterVec::new(
                Opts::new("gopherproxy_sentinel_probes_total", "Probes by result."),
                &["result"],
            )?,
            probe_duration: Histogram::with_opts(
                HistogramOpts::new(
                    "gopherproxy_sentinel_probe_duration_seconds",
                    "How long a probe took, the lookup of the name included.",
                )
                .buckets(vec![
                    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
                ]),
            )?,
            last_success: Gauge::new(
                "gopherproxy_sentinel_last_success_timestamp_seconds",
                "When the registry was last in line with the probes of all targets, in seconds since 1970.",
            )?,
            last_success_at: Arc::default(),
        };
        registry.register(Box::new(metrics.registry_errors.clone()))?;
        registry.register(Box::new(metrics.targets.clone()))?;
        registry.register(Box::new(metrics.probes.clone()))?;
        registry.register(Box::new(metrics.probe_duration.clone()))?;
        registry.register(Box::new(metrics.last_success.clone()))?;
        metrics.count([]);
        for result in ["success", "failure"] {
            metrics.probes.with_label_values(&[result]);
        }
        Ok(metrics)
    }

    /// How long ago the last good cycle ended; `None` before the first.
    pub fn since_last_success(&self) -> Option<Duration> {
        let at = *self.last_success_at.lock().unwrap_or_else(PoisonError::into_inner);
        at.map(|at| at.elapsed())
    }

    pub(crate) fn probed(&self, took: Duration, success: bool) {
        self.probe_duration.observe(took.as_secs_f64());
        let result = if success { "success" } else { "failure" };
        self.probes.with_label_values(&[result]).inc();
    }

    pub(crate) fn count(&self, states: impl IntoIterator<Item = State>) {
        let (mut up, mut down, mut unknown) = (0, 0, 0);
        for state in states {
            match state {
                State::Up => up += 1,
                State::Down => down += 1,
                State::Unknown => unknown += 1,
            }
        }
        self.targets.with_label_values(&["up"]).set(up);
        self.targets.with_label_values(&["down"]).set(down);
        self.targets.with_label_values(&["unknown"]).set(unknown);
    }

    pub(crate) fn cycle_succeeded(&self) {
        self.last_success.set(clock::since_1970().as_secs_f64());
        *self.last_success_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

//! The metrics of the sentinel, for each pool.
//!
//! [`pool_label`] says which labels they have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chassis::{clock, pool_label};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use registry::PoolName;

use crate::target::State;

/// The metrics of one pool; clones share the same series.
#[derive(Clone)]
pub(crate) struct PoolMetrics {
    pub(crate) registry_errors: IntCounter,
    targets: IntGaugeVec,
    probes: IntCounterVec,
    probe_duration: Histogram,
    last_success: Gauge,
    /// The same by a clock that nobody sets; none before the first.
    last_success_at: Arc<Mutex<Option<Instant>>>,
}

impl PoolMetrics {
    /// Series that nobody collects yet.
    fn new() -> prometheus::Result<Self> {
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
        metrics.count([]);
        for result in ["success", "failure"] {
            metrics.probes.with_label_values(&[result]);
        }
        Ok(metrics)
    }

    /// Each of them.
    fn all(&self) -> [&dyn Collector; 5] {
        [
            &self.registry_errors,
            &self.targets,
            &self.probes,
            &self.probe_duration,
            &self.last_success,
        ]
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

/// The sentinel's metrics, as one collector; clones share the same series.
#[derive(Clone)]
pub struct Metrics(Arc<Shared>);

struct Shared {
    /// Tells the registry of Prometheus which names there are. It is collected for no pool.
    names: PoolMetrics,
    /// A lock of the standard library, because it is never held across an `await`.
    pools: Mutex<BTreeMap<PoolName, PoolMetrics>>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When one of the names is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self(Arc::new(Shared {
            names: PoolMetrics::new()?,
            pools: Mutex::default(),
        }));
        registry.register(Box::new(metrics.clone()))?;
        Ok(metrics)
    }

    /// How long ago the last good cycle ended: of the pool that has waited longest for one.
    ///
    /// # Errors
    /// The name of a pool that has had none, where there are several pools.
    pub fn since_last_success(&self) -> Result<Duration, Option<PoolName>> {
        let pools = self.pools();
        let mut longest: Result<Duration, _> = Err(None);
        for (name, metrics) in pools.iter() {
            let at = *metrics.last_success_at.lock().unwrap_or_else(PoisonError::into_inner);
            match at {
                Some(at) => longest = Ok(longest.unwrap_or_default().max(at.elapsed())),
                None => return Err((pools.len() > 1).then(|| name.clone())),
            }
        }
        longest
    }

    /// Makes `names` the pools. One that stays keeps its series.
    pub(crate) fn set_pools<'n>(&self, names: impl IntoIterator<Item = &'n PoolName>) {
        let mut pools = self.pools();
        let mut old = std::mem::take(&mut *pools);
        for name in names {
            // What could go wrong would have gone wrong before, with the same names.
            let new = || PoolMetrics::new().unwrap_or_else(|_| self.0.names.clone());
            pools.insert(name.clone(), old.remove(name).unwrap_or_else(new));
        }
    }

    /// The metrics of a pool. What is counted there for one that is not among the pools is not collected.
    pub(crate) fn of(&self, name: &PoolName) -> PoolMetrics {
        self.pools().get(name).unwrap_or(&self.0.names).clone()
    }

    /// How log lines name a pool: not at all where there is only one.
    pub(crate) fn in_log<'n>(&self, name: &'n PoolName) -> Option<&'n str> {
        (self.pools().len() > 1).then(|| name.as_str())
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<PoolName, PoolMetrics>> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.0.names.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let pools = self.pools().clone();
        let collectors: Vec<_> = pools
            .iter()
            .map(|(name, metrics)| (name.as_str(), metrics.all()))
            .collect();
        pool_label::collect(&collectors)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn the_pool_is_a_label_only_while_there_are_several() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let samples = || {
            let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
            let wanted = |line: &&str| line.contains("_total") && !line.starts_with('#') && !line.ends_with(" 0");
            text.lines().filter(wanted).map(str::to_owned).collect::<Vec<_>>()
        };
        let [default, api] = ["default", "api"].map(|name| name.parse::<PoolName>().unwrap());
        assert_eq!(metrics.since_last_success(), Err(None));
        metrics.set_pools([&default]);
        assert_eq!(metrics.since_last_success(), Err(None));
        metrics.of(&default).registry_errors.inc();
        metrics.of(&default).probed(Duration::ZERO, true);
        metrics.of(&api).probed(Duration::ZERO, true);
        let alone = [
            r#"gopherproxy_sentinel_probes_total{result="success"} 1"#,
            "gopherproxy_sentinel_registry_errors_total 1",
        ];
        assert_eq!(samples(), alone);
        assert_eq!(metrics.in_log(&default), None);
        metrics.of(&default).cycle_succeeded();
        assert!(metrics.since_last_success().is_ok());

        metrics.set_pools([&default, &api]);
        metrics.of(&api).probed(Duration::ZERO, false);
        let both = [
            r#"gopherproxy_sentinel_probes_total{pool="api",result="failure"} 1"#,
            r#"gopherproxy_sentinel_probes_total{pool="default",result="success"} 1"#,
            r#"gopherproxy_sentinel_registry_errors_total{pool="default"} 1"#,
        ];
        assert_eq!(samples(), both);
        assert_eq!(metrics.in_log(&default), Some("default"));
        assert_eq!(metrics.since_last_success(), Err(Some(api.clone())));

        metrics.set_pools([&default]);
        assert_eq!(samples(), alone);
        metrics.set_pools([&api, &default]);
        assert_eq!(samples().len(), 2, "the other pool of that name was another");
    }
}

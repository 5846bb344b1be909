//! The metrics of backends, for each pool.
//!
//! [`pool_label`] says which labels they have.
//!
//! The series of a pool are gone when its last request is: whoever uses a pool holds them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use chassis::pool_label;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge};
use registry::PoolName;

/// Upper bounds in seconds: the Go client's defaults, and finer ones below them, because most requests take less.
pub(super) const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The metrics of one pool's backends.
#[derive(Debug)]
pub struct PoolMetrics {
    /// Backends that are alive and get traffic.
    pub active_backends: IntGauge,
    /// Tries after the first.
    pub upstream_retries: IntCounter,
    /// Backends taken out because they kept failing.
    pub ejections: IntCounter,
    /// Reads of the registry that gave no usable set.
    pub discovery_errors: IntCounter,
    /// Members of the registry that could not be understood, at the last read.
    pub discovery_malformed: IntGauge,
    /// Failures to read or write the state file.
    pub state_file_errors: IntCounter,
    /// When the registry last gave a usable set.
    discovery_last_success: Gauge,
    /// Backends in the last usable set.
    discovery_backends: IntGauge,
    /// How long requests took that a backend answered.
    request_duration: HistogramVec,
}

impl PoolMetrics {
    /// Series that nobody collects yet.
    fn new() -> prometheus::Result<Self> {
        Ok(Self {
            active_backends: IntGauge::new(
                "gopherproxy_active_backends",
                "Backends that are alive and get traffic.",
            )?,
            upstream_retries: IntCounter::new(
                "gopherproxy_upstream_retries_total",
                "Tries of a request after the first, on another backend or connection.",
            )?,
            ejections: IntCounter::new(
                "gopherproxy_ejections_total",
                "Times that a backend was ejected because it kept failing.",
            )?,
            discovery_errors: IntCounter::new(
                "gopherproxy_discovery_errors_total",
                "Reads of the registry that gave no usable set: an error, no answer in time, or an empty set.",
            )?,
            discovery_malformed: IntGauge::new(
                "gopherproxy_discovery_malformed_members",
                "Members of the registry that could not be understood, at the last read.",
            )?,
            state_file_errors: IntCounter::new(
                "gopherproxy_state_file_errors_total",
                "Failures to read or write discovery.state_file.",
            )?,
            discovery_last_success: Gauge::new(
                "gopherproxy_discovery_last_success_timestamp_seconds",
                "When the registry last gave a usable set, in seconds since 1970; 0 before the first.",
            )?,
            discovery_backends: IntGauge::new("gopherproxy_discovery_backends", "Backends in the last usable set.")?,
            request_duration: HistogramVec::new(
                HistogramOpts::new(
                    "gopherproxy_request_duration_seconds",
                    "How long a request took that a backend answered, from its head to the end of the response (of an \
                     upgraded connection: to the switch), by backend as registered.",
                )
                .buckets(BUCKETS.into()),
                &["backend"],
            )?,
        })
    }

    /// Each of them.
    fn all(&self) -> [&dyn Collector; 9] {
        [
            &self.active_backends,
            &self.upstream_retries,
            &self.ejections,
            &self.discovery_errors,
            &self.discovery_malformed,
            &self.state_file_errors,
            &self.discovery_last_success,
            &self.discovery_backends,
            &self.request_duration,
        ]
    }

    /// The histogram of a backend, by the name it has in the registry.
    pub fn request_duration(&self, backend: &str) -> Histogram {
        self.request_duration.with_label_values(&[backend])
    }

    /// Ends the series of a backend that has left.
    pub fn forget_backend(&self, backend: &str) {
        // An error means that it has none.
        let _ = self.request_duration.remove_label_values(&[backend]);
    }

    /// Notes that the registry has just given a usable set of so many backends.
    pub fn discovered(&self, backends: usize) {
        self.discovery_last_success
            .set(chassis::clock::since_1970().as_secs_f64());
        self.discovery_backends.set(i64::try_from(backends).unwrap_or(i64::MAX));
    }
}

/// The metrics of all pools, as one collector. Clones share the same series.
#[derive(Debug, Clone)]
pub struct PoolsMetrics(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Tells the registry which names there are.
    names: PoolMetrics,
    pools: Mutex<Vec<(PoolName, Weak<PoolMetrics>)>>,
}

impl PoolsMetrics {
    /// Those of no pool yet.
    ///
    /// # Errors
    /// When Prometheus does not take a name.
    pub fn new() -> prometheus::Result<Self> {
        let names = PoolMetrics::new()?;
        let pools = Mutex::default();
        Ok(Self(Arc::new(Shared { names, pools })))
    }

    /// New series for the pool `name`, which are collected until nobody holds them any more, or another pool of that name has some.
    ///
    /// # Errors
    /// When Prometheus does not take a name.
    pub fn of(&self, name: &PoolName) -> prometheus::Result<Arc<PoolMetrics>> {
        let metrics = Arc::new(PoolMetrics::new()?);
        let mut pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(other, series)| other != name && series.strong_count() > 0);
        pools.push((name.clone(), Arc::downgrade(&metrics)));
        Ok(metrics)
    }
}

impl Collector for PoolsMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.0.names.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let living = |(name, series): &(PoolName, Weak<PoolMetrics>)| Some((name.clone(), series.upgrade()?));
        let living: Vec<_> = pools.iter().filter_map(living).collect();
        drop(pools);
        let collectors: Vec<_> = living
            .iter()
            .map(|(name, series)| (name.as_str(), series.all()))
            .collect();
        pool_label::collect(&collectors)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;

    #[test]
    fn the_pool_is_a_label_only_while_there_are_several() {
        let registry = Registry::new();
        let all = PoolsMetrics::new().unwrap();
        registry.register(Box::new(all.clone())).unwrap();
        let samples = || {
            let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
            let wanted = |line: &&str| line.contains("_active_backends") || line.contains("_seconds_count");
            let lines = text.lines().filter(wanted).filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(samples(), [""; 0]);
        let [default, api] = ["default", "api"].map(|name| name.parse::<PoolName>().unwrap());
        let one = all.of(&default).unwrap();
        one.active_backends.set(2);
        one.request_duration("a:1").observe(1.0);
        let alone = [
            "gopherproxy_active_backends 2",
            r#"gopherproxy_request_duration_seconds_count{backend="a:1"} 1"#,
        ];
        assert_eq!(samples(), alone);

        let other = all.of(&api).unwrap();
        other.request_duration("a:1").observe(1.0);
        let both = [
            r#"gopherproxy_active_backends{pool="api"} 0"#,
            r#"gopherproxy_active_backends{pool="default"} 2"#,
            r#"gopherproxy_request_duration_seconds_count{backend="a:1",pool="api"} 1"#,
            r#"gopherproxy_request_duration_seconds_count{backend="a:1",pool="default"} 1"#,
        ];
        assert_eq!(samples(), both);

        // One that comes back under its name has series of its own, though the old ones are still held.
        let again = all.of(&api).unwrap();
        assert_eq!(samples().len(), 3);
        drop(other);
        assert_eq!(samples().len(), 3);
        drop(again);
        assert_eq!(samples(), alone);
    }
}

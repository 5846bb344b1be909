//! The metrics of routes: none of them is there where there are no routes.

use std::collections::BTreeSet;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::pools::BUCKETS;

/// The classes of statuses, by their first digit, from 1.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The place of `status` in [`CLASSES`]. One above 599 counts as 5xx, as clients take it (RFC 9110, section 15).
pub(super) fn class_of(status: u16) -> usize {
    usize::from(status / 100).clamp(1, CLASSES.len()) - 1
}

/// What Prometheus sees of routes.
#[derive(Debug, Clone)]
pub struct RouteMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
}

/// The series of one route.
#[derive(Debug, Clone)]
pub struct RouteSeries {
    /// By [`CLASSES`].
    requests: [IntCounter; CLASSES.len()],
    duration: Histogram,
}

impl RouteMetrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When one of the names is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "gopherproxy_route_requests_total",
                    "Requests that a client got a response to, by route and class of status.",
                ),
                &["route", "class"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "gopherproxy_route_duration_seconds",
                    "How long requests took by route, from the head to the end of the response (of an upgraded connection: to the \
                     switch).",
                )
                .buckets(BUCKETS.into()),
                &["route"],
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        Ok(metrics)
    }

    /// The series of the route of this name.
    pub fn of(&self, route: &str) -> RouteSeries {
        RouteSeries {
            requests: CLASSES.map(|class| self.requests.with_label_values(&[route, class])),
            duration: self.duration.with_label_values(&[route]),
        }
    }

    /// Ends the series of the routes that were there `before` and are not there now. What is in flight ends uncounted.
    pub fn keep<'n>(&self, before: impl IntoIterator<Item = &'n str>, now: impl IntoIterator<Item = &'n str>) {
        let now: BTreeSet<_> = now.into_iter().collect();
        for route in before.into_iter().filter(|route| !now.contains(route)) {
            // An error means that it has none.
            let _ = self.duration.remove_label_values(&[route]);
            for class in CLASSES {
                let _ = self.requests.remove_label_values(&[route, class]);
            }
        }
    }
}

impl RouteSeries {
    /// Counts a request whose client got this `status`, and which took so long.
    pub fn responded(&self, status: u16, took: Duration) {
        self.requests[class_of(status)].inc();
        self.duration.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_of_a_route_end_with_it() {
        let registry = Registry::new();
        let metrics = RouteMetrics::register(&registry).unwrap();
        let names = || -> Vec<String> {
            let families = registry.gather();
            let series = families.iter().flat_map(|family| family.get_metric());
            let label = |metric: &prometheus::proto::Metric| metric.get_label().last().unwrap().value().to_owned();
            let names: BTreeSet<_> = series.map(label).collect();
            names.into_iter().collect()
        };
        assert_eq!(names(), [""; 0], "a proxy without routes has no series");
        let (a, b) = (metrics.of("a"), metrics.of("b"));
        a.responded(204, Duration::from_millis(1));
        b.responded(999, Duration::from_millis(1));
        assert_eq!((a.requests[1].get(), b.requests[4].get()), (1, 1));
        assert_eq!(names(), ["a", "b"]);
        metrics.keep(["a", "b"], ["b", "c"]);
        a.responded(200, Duration::from_millis(1));
        assert_eq!(names(), ["b"]);
    }
}

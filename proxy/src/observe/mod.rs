//! Metrics and the access log.
//!
//! - [`metrics`]: the metrics for Prometheus.
//! - [`pools`]: those of backends, for each pool.
//! - [`routes`]: the metrics of routes.
//! - [`access_log`]: one line per request.

pub mod access_log;
pub mod acme;
pub mod metrics;
pub mod pools;
pub mod routes;

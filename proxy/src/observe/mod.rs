//! Metrics and the access log.
//!
//! - [`metrics`]: the metrics for Prometheus.
//! - [`access_log`]: one line per request.

pub mod access_log;
pub mod acme;
pub mod metrics;

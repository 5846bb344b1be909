//! The proxy: accepts requests on one port and balances them over the backends in the registry.
//!
//! In reading order:
//!
//! - [`config`]: the file and the environment, validated.
//! - [`http1`]: a client's connection: reads and checks its requests, and hands them to Pingora one at a time.
//! - [`headers`]: the heads that origins and clients get; the one place where fields change.
//! - [`admission`]: whether a request is admitted.
//! - [`policy`]: the rules under which a request is served.
//! - [`client`]: the client that a request is charged to.
//! - [`limiter`]: whether that client is within its limit.
//! - [`forward`]: sends an admitted request to a backend and its response to the client.
//! - [`exchange`]: one request and its response: what becomes of it, and whether it may be sent again.
//! - [`pool`]: the backends, and which one is next.
//! - [`upstream`]: one backend and its addresses.
//! - [`health_check`]: whether an address accepts connections.
//! - [`ejection`]: when a failing backend is ejected.
//! - [`retry_budget`]: how many retries are allowed.
//! - [`discovery`]: finds the pool's backends in the registry and in DNS.
//! - [`members`]: the members of the registry, each with its addresses.
//! - [`state_store`]: saves the last good set for the next start.
//! - [`state_file`]: the format and the safety of its file.
//! - [`rejection`]: every response that the proxy makes itself.
//! - [`access_log`]: one line per request.
//! - [`metrics`]: the metrics for Prometheus.
//! - [`status`]: what the admin port reports.
//! - [`startup`]: from bound ports to serving, by a handover if need be.
//! - [`lifecycle`]: the state of the process between its start and its end.
//! - [`signals`]: shutdown, handover to a successor, reload.
//! - [`reload`]: reads the configuration again.

pub mod access_log;
pub mod admission;
pub mod client;
pub mod config;
pub mod discovery;
pub mod ejection;
pub mod exchange;
pub mod forward;
pub mod headers;
pub mod health_check;
pub mod http1;
pub mod lifecycle;
pub mod limiter;
pub mod members;
pub mod metrics;
pub mod policy;
pub mod pool;
pub mod rejection;
pub mod reload;
pub mod retry_budget;
pub mod signals;
pub mod startup;
pub mod state_file;
pub mod state_store;
pub mod status;
pub mod upstream;

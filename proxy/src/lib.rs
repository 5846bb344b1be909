//! The proxy: requests in on one port, balanced over the origins in the registry.
//!
//! In reading order:
//!
//! - [`config`]: the file and the environment, validated.
//! - [`connection`]: one client connection: reads each request head itself, then lets Pingora proxy it.
//! - [`head`]: what a request head must be before anything else looks at it.
//! - [`chunks`]: where a chunked body ends.
//! - [`gate`]: the client's stream, shut behind the request that is being served.
//! - [`service`]: what happens to a request, phase by phase.
//! - [`client`]: whose request it is.
//! - [`limiter`]: whether that client may have it.
//! - [`upstream`]: the pool of backends, and which one is next.
//! - [`discovery`]: where the pool's backends come from.
//! - [`forwarding`]: what the backend and the client get to see of each other.
//! - [`rejection`]: every answer that is the proxy's own.
//! - [`access_log`]: one line a request.
//! - [`metrics`]: what Prometheus sees.
//! - [`status`]: what the admin port says of the process.
//! - [`lifecycle`]: signals, drain, exit.

pub mod access_log;
pub mod chunks;
pub mod client;
pub mod config;
pub mod connection;
pub mod discovery;
pub mod forwarding;
pub mod gate;
pub mod head;
pub mod lifecycle;
pub mod limiter;
pub mod metrics;
pub mod rejection;
pub mod service;
pub mod status;
pub mod upstream;

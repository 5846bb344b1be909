//! Sends an admitted request to a backend and its response to the client.
//!
//! - [`proxy`]: Pingora's hooks, through which every admitted request passes.
//! - [`session`]: presents a request to Pingora as a session.
//! - [`direct`]: our own forwarder, for HTTP/1.1 without TLS.

pub mod direct;
pub mod proxy;
pub mod session;

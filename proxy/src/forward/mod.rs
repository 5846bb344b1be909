//! Sends an admitted request to a backend and its response to the client.
//!
//! - [`proxy`]: Pingora's hooks, through which every admitted request passes.
//! - [`session`]: presents a request to Pingora as a session.
//! - [`forwarding`]: the client's side of an exchange that Pingora forwards.
//! - [`direct`]: our own forwarder, for HTTP/1.1 without TLS.

pub mod direct;
pub mod forwarding;
pub mod proxy;
pub mod session;

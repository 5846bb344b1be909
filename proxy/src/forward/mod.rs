//! Sends an admitted request to a backend and its response to the client.
//!
//! - [`proxy`]: Pingora's hooks, which every admitted request passes through.
//! - [`session`]: a request as a session of Pingora's.
//! - [`direct`]: the forwarder of our own, for HTTP/1.1 without TLS.

pub mod direct;
pub mod proxy;
pub mod session;

//! Sends an admitted request to a backend and its response to the client.
//!
//! - [`proxy`]: Pingora's hooks, which every admitted request passes through.
//! - [`session`]: a request as a session of Pingora's.
//! - [`direct`]: the forwarder of our own, for HTTP/1.1 without TLS.
//! - [`kept`]: connections to backends that wait for their next request.

pub mod direct;
pub mod kept;
pub mod proxy;
pub mod session;

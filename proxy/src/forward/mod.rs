//! Sends an admitted request to a backend and its response to the client.
//!
//! - [`authentication`]: asks a service whether a request may pass.
//! - [`client`]: the client's side of an exchange, as both forwarders see it.
//! - `compress`: begins responses, compressed where their route says so.
//! - [`proxy`]: Pingora's hooks, through which every admitted request passes.
//! - [`handover`]: what travels beside a request through Pingora.
//! - [`session`]: presents a request to Pingora as a session.
//! - [`forwarding`]: the client's side of an exchange that Pingora forwards.
//! - `ready`: futures of hooks that wait for nothing.
//! - [`direct`]: our own forwarder, for HTTP/1.1, with TLS or without.

pub mod authentication;
pub mod client;
mod compress;
pub mod direct;
pub mod forwarding;
pub mod handover;
pub mod proxy;
mod ready;
pub mod session;

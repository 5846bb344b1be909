//! Client connections, in the order in which one goes through them.
//!
//! - [`port`]: accepts connections, with TLS or without.
//! - [`proxy_protocol`]: reads the header with which a balancer names a client.
//! - [`handshake`]: makes a connection one with TLS.
//! - [`connection`]: reads each request head, and answers the request or forwards it.
//! - `http2`: the same over HTTP/2.
//! - `request`: what both have in common.
//! - [`acme`]: gets certificates for hosts of this proxy, and proves that they are its own.

pub mod acme;
pub mod connection;
pub mod handshake;
mod http2;
pub mod port;
pub mod proxy_protocol;
mod request;

//! Client connections, in the order in which one goes through them.
//!
//! - [`accept`]: accepts connections.
//! - [`port`]: gives each its place, and TLS where the port has it.
//! - [`proxy_protocol`]: reads the header with which a balancer names a client.
//! - [`handshake`]: makes a connection one with TLS.
//! - [`connection`]: reads each request head, and answers the request or forwards it.
//! - `http2`: the same over HTTP/2.
//! - `request`: what both have in common.
//! - [`acme`]: gets certificates for hosts of this proxy, and proves that they are its own.

pub mod accept;
pub mod acme;
pub mod connection;
pub mod handshake;
mod http2;
pub mod port;
pub mod proxy_protocol;
mod request;

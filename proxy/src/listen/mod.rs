//! Client connections.
//!
//! - [`proxy_protocol`]: reads the header with which a balancer names a client.
//! - [`connection`]: reads each request head, and answers the request or forwards it.

pub mod connection;
pub mod proxy_protocol;

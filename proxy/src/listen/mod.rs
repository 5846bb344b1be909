//! Client connections.
//!
//! - [`connection`]: reads each request head, and answers the request or forwards it.

pub mod connection;

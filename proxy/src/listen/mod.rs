//! Client connections.
//!
//! - [`connection`]: reads each request head, decides over it, and has the request answered.

pub mod connection;

//! One request and its response, from the client's first byte to the log line.
//!
//! - [`client`]: the client that a request is charged to.
//! - [`admission`]: whether a request is admitted.
//! - [`request`]: an admitted request, as the origin gets it.
//! - [`retry`]: whether a request that broke off may be sent again.
//! - [`record`]: what becomes of a request, counted and logged exactly once.

pub mod admission;
pub mod client;
pub mod record;
pub mod request;
pub mod retry;

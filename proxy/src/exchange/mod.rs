//! One request and its response, from the client's first byte to the log line.
//!
//! - [`record`]: what becomes of a request, counted and logged exactly once.
//! - [`request`]: an admitted request, as the origin gets it.
//! - [`retry`]: whether a request that broke off may be sent again.

pub mod record;
pub mod request;
pub mod retry;

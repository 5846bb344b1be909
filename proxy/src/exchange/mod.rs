//! One request and its response, from the client's first byte to the log line.
//!
//! - [`connection`]: what the requests of one connection have in common.
//! - [`client`]: identifies the client that a request is charged to.
//! - [`admission`]: decides whether to admit a request.
//! - [`request`]: an admitted request, as the origin gets it.
//! - [`retry`]: decides whether a request that failed may be sent again.
//! - [`passwords`]: verifies the passwords of basic authentication.
//! - [`record`]: counts and logs each request exactly once.

pub mod admission;
pub mod client;
pub mod connection;
pub mod passwords;
pub mod record;
pub mod request;
pub mod retry;

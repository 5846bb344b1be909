//! The heads that origins and clients get: the one place where fields change.
//!
//! - [`origin_response`]: reads the head of an origin's response and writes it for the client.
//! - [`request`]: writes the head of a request for the origin.
//! - [`straighten`]: rewrites the head of a response that is odd but has one reading.

pub mod origin_response;
pub mod request;
pub mod straighten;

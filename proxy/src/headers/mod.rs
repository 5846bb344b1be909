//! The heads that origins and clients get: the one place where fields change.
//!
//! - [`names`]: field names with a meaning of their own.
//! - [`request`]: the head of a request, written anew for the origin.
//! - [`response`]: the head of a response, made unambiguous for the client.

pub mod names;
pub mod request;
pub mod response;

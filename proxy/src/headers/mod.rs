//! Writes the heads that origins and clients get. Fields change only here.
//!
//! - [`authentication`]: writes what an authentication service is asked, and adds what it answers to a request.
//! - [`edits`]: the fields that a route sets and adds.
//! - [`origin_response`]: reads the head of an origin's response and writes it for the client.
//! - [`request`]: writes the head of a request for the origin.
//! - [`straighten`]: rewrites a response head that is old-fashioned but can be read in one way only.

pub mod authentication;
pub mod edits;
pub mod origin_response;
pub mod request;
pub mod straighten;

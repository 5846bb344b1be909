//! The HTTP/1.1 server side: connections from clients.
//!
//! - [`connection`]: reads each request head itself, and gives Pingora the requests that are admitted.
//! - [`head`]: parses and checks a request head before anything else looks at it.
//! - [`target`]: request targets and the authorities in them.
//! - [`violation`]: which rule a request breaks, in words for the log.
//! - [`chunks`]: finds the end of a chunked body.
//! - [`chunked`]: reads and writes chunked bodies.
//! - [`gate`]: the client's stream, closed to Pingora behind the end of the current request.
//! - [`pace`]: whether a client keeps up a minimum rate.
//! - [`lazy_timer`]: a timer for a deadline that keeps moving.

pub mod chunked;
pub mod chunks;
pub mod connection;
pub mod gate;
pub mod head;
pub mod lazy_timer;
pub mod pace;
pub mod target;
pub mod violation;

//! HTTP/1.1 towards clients.
//!
//! - [`connection`]: reads each request head itself, and gives Pingora those requests that may pass.
//! - [`head`]: what a request head must be before anything else looks at it.
//! - [`target`]: request targets and the authorities in them.
//! - [`chunks`]: where a chunked body ends.
//! - [`gate`]: the client's stream, shut behind the request that is being served.
//! - [`pace`]: whether a client keeps up a minimum rate.
//! - [`lazy_timer`]: a timer for an end that keeps moving away.

pub mod chunks;
pub mod connection;
pub mod gate;
pub mod head;
pub mod lazy_timer;
pub mod pace;
pub mod target;

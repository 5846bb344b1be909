//! Reads and writes HTTP/1.1.
//!
//! - [`downstream`]: the client's side of an exchange, with its deadlines.
//! - [`head`]: parses and checks a request head before anything else looks at it.
//! - [`violation`]: which rule a request breaks.
//! - [`target`]: request targets and the authorities in them.
//! - [`names`]: field names with a meaning of their own.
//! - [`chunked`]: decodes and encodes chunked bodies.
//! - [`rate`]: whether a client keeps up a minimum rate.
//! - [`timer`]: a timer for deadlines that keep moving.
//! - [`scratch`]: buffers that are needed only while something is read or written.

pub mod chunked;
pub mod downstream;
pub mod head;
pub mod names;
pub mod rate;
pub mod scratch;
pub mod target;
pub mod timer;
pub mod violation;

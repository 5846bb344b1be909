//! Reads and writes HTTP/1.1.
//!
//! - [`downstream`]: the client's side of an exchange, with its deadlines.
//! - [`closing`]: how a client's connection ends.
//! - [`head`]: parses and checks a request head before anything else looks at it.
//! - [`violation`]: names the rule that a request breaks.
//! - [`target`]: checks request targets and the authorities in them.
//! - [`path`]: the one meaning of a path.
//! - [`redirect`]: sends a client from plain HTTP to HTTPS.
//! - [`list`]: reads the values of fields that are lists.
//! - [`names`]: classifies the names of fields.
//! - [`chunked`]: decodes and encodes chunked bodies.
//! - [`held`]: bounds the memory that clients make the proxy hold.
//! - [`progress`]: how a client gets on with one request.
//! - [`rate`]: measures whether a client keeps up a minimum rate.
//! - [`timer`]: a timer for deadlines that keep moving.
//! - [`mod@write`]: writes what is in two places as if it were in one.
//! - [`scratch`]: lends buffers for the time of a read or a write.

pub mod chunked;
pub mod closing;
pub mod downstream;
pub mod head;
pub mod held;
pub mod list;
pub mod names;
pub mod path;
pub mod progress;
pub mod rate;
pub mod redirect;
pub mod scratch;
pub mod splice;
pub mod target;
pub mod timer;
pub mod violation;
pub mod write;

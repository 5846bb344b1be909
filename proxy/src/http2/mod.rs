//! Reads requests and writes responses over HTTP/2.
//!
//! The crate `h2` has the frames, the compression of heads and the flow control. What is here is what it leaves open: how strictly a
//! head is read, how long a client may take and how much it may make the proxy hold.
//!
//! - [`io`]: a connection as `h2` reads and writes it.
//! - [`head`]: a request head, as strict as one of HTTP/1.1.
//! - [`stream`]: one request and its response.

pub mod head;
pub mod io;
pub mod stream;

//! The proxy: accepts requests on one port and balances them over the backends in the registry.
//!
//! The road of a request, from the top floor down; nothing calls upwards:
//!
//! - [`process`]: start, signals, reload, handover and end of the process, and what its admin port reports.
//! - [`listen`]: client connections: reads each request, decides over it, and has it answered.
//! - [`forward`]: sends an admitted request to a backend and its response to the client.
//! - [`headers`]: the heads that origins and clients get; the only place where fields change.
//! - [`exchange`]: one request and its response: whose it is, whether it is admitted, what becomes of it.
//! - [`snapshot`]: the rules under which a request is served.
//! - [`limit`]: whether a client is within its limit.
//! - [`pool`]: the backends, and which one is next.
//! - [`discovery`]: finds the pool's backends in the registry and in DNS.
//! - [`http1`]: reads and writes HTTP/1.1.
//! - [`observe`]: metrics and the access log, which everybody calls.
//! - [`rejection`]: every response that the proxy makes itself.
//! - [`config`]: the file and the environment, validated.

pub mod config;
pub mod discovery;
pub mod exchange;
pub mod forward;
pub mod headers;
pub mod http1;
pub mod limit;
pub mod listen;
pub mod observe;
pub mod pool;
pub mod process;
pub mod rejection;
pub mod snapshot;

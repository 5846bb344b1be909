//! Start, signals, reload and end of the process.
//!
//! - [`startup`]: binds the ports, or takes them over from a running proxy, and begins to serve.
//! - [`signals`]: what each signal does.
//! - [`reload`]: reads the configuration again.
//! - [`explain`]: says what happens to a request by a configuration.
//! - [`certificates`]: looks for renewed certificates.
//! - [`status`]: what the admin port reports.
//! - [`backend_command`]: drains and weighs backends from the command line.

pub mod backend_command;
pub mod certificates;
pub mod explain;
pub mod reload;
pub mod signals;
pub mod startup;
pub mod status;

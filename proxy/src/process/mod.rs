//! The process: from its start to its end.
//!
//! - [`startup`]: from bound ports to serving, by a handover if need be.
//! - [`lifecycle`]: where the process is between its start and its end, and what it still has to finish.
//! - [`signals`]: shutdown, handover to a successor, reload.
//! - [`reload`]: reads the configuration again.
//! - [`status`]: what the admin port reports.

pub mod lifecycle;
pub mod reload;
pub mod signals;
pub mod startup;
pub mod status;

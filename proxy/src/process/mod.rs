//! The process: from its start to its end.
//!
//! - [`startup`]: from bound ports to serving, by a handover if need be.
//! - [`signals`]: shutdown, handover to a successor, reload.
//! - [`reload`]: reads the configuration again.
//! - [`status`]: what the admin port reports.

pub mod reload;
pub mod signals;
pub mod startup;
pub mod status;

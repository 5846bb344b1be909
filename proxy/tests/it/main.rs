//! The real binaries over real sockets, with a real redis-server where one is needed. A file a behaviour.

#![allow(clippy::panic, reason = "in a test a panic is the failure of the test")]

mod admin;
mod configuration;
mod connections;
mod demo;
mod discovery;
mod failing_backends;
mod faulty_origins;
mod forwarding;
mod handover;
mod hostile;
mod lifecycle;
mod limit;
mod log;
mod observability;
mod pauses;
mod pool;
mod processes;
mod prometheus;
mod protocols;
mod readiness;
mod redis_connection;
mod refusals;
mod registry_faults;
mod reload;
mod sentinel;
mod smuggling;
mod soak;
mod state_file;
mod support;
mod targets;
mod unprivileged;
mod upgrade;

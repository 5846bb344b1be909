//! The real binaries over real sockets, with a real redis-server where one is needed. A file a behaviour.

#![allow(clippy::panic, reason = "in a test a panic is the failure of the test")]

mod admin;
mod bodies;
mod both_forwarders;
mod closing;
mod configuration;
mod connection_limits;
mod connection_reuse;
mod connections;
mod demo;
mod discovery;
mod failing_backends;
mod faulty_origins;
mod forwarding;
mod full_duplex;
mod handover;
mod hostile;
mod lifecycle;
mod limit;
mod log;
mod memory;
mod observability;
mod origin_answers;
mod pauses;
mod pool;
mod processes;
mod prometheus;
mod protocols;
mod readiness;
mod records;
mod redis_connection;
mod refusals;
mod registry_faults;
mod reload;
mod retries;
mod sentinel;
mod slow_clients;
mod smuggling;
mod soak;
mod state_file;
mod support;
mod targets;
mod unprivileged;
mod upgrade;
mod websocket;

//! Shared process infrastructure; no proxy logic.
//!
//! In reading order:
//!
//! - [`build_info`]: the version and commit a binary was built from.
//! - [`settings`]: reads a file and the environment into values, and reports every mistake at once.
//! - [`yaml`]: YAML as a tree whose nodes know their lines.
//! - [`clock`]: the time of day, within the range that date formats can write.
//! - [`json_log`]: the log, one JSON object per line, written off the caller's path.
//! - [`process`]: from `main` to an exit code.
//! - [`process_metrics`]: the CPU time, memory and descriptors of this process, for Prometheus.
//! - [`descriptors`]: how many files and connections a process may have.
//! - [`memory`]: how much memory a process may have.
//! - [`listener`]: ports bound before anything starts, so that a taken one is an error and not a silent process.
//! - [`graceful_close`]: closing a listening port without resetting a connection.
//! - [`handover`]: listening sockets passed from a running process to its successor.
//! - [`service_manager`]: notifications to systemd.
//! - [`admin`]: `/metrics`, `/healthz` and `/readyz` over HTTP.
//! - [`healthcheck`]: asks a running process whether it is ready.
//! - [`pauses`]: times when the process did not run, which deadlines don't count.
//! - [`pool_label`]: the label `pool` of metrics.
//! - [`regular_file`]: files of a limited size that are read as a whole.
//! - [`replace`]: files that are replaced as a whole.
//! - [`shortage`]: connect errors caused by this machine, not by the peer.
//! - [`supervisor`]: background loops that outlive their own panics.

pub mod admin;
pub mod build_info;
pub mod clock;
pub mod descriptors;
pub mod graceful_close;
pub mod handover;
pub mod healthcheck;
pub mod json_log;
pub mod listener;
pub mod memory;
pub mod pauses;
pub mod pool_label;
pub mod process;
pub mod process_metrics;
pub mod regular_file;
pub mod replace;
pub mod service_manager;
pub mod settings;
pub mod shortage;
pub mod supervisor;
pub mod yaml;

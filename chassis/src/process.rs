//! From `main` to an exit code.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use log::{Level, error, log_enabled};

use crate::json_log;

/// How long the log may take at the end.
const FLUSH: Duration = Duration::from_secs(1);

/// Starts the log and runs `work`. Its error is logged under the message `failure`, and makes the exit code 1; where there is
/// no log to tell it (`RUST_LOG` is wrong, or turns errors off), it goes to standard error.
pub fn run(default_filter: &str, failure: &str, work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> ExitCode {
    let started = json_log::init(default_filter);
    let logs = started.is_ok() && log_enabled!(Level::Error);
    let done = started.map_err(Into::into).and_then(|()| work());
    if let Err(problem) = &done {
        let problem = problem.to_string();
        if logs {
            error!(error = problem.as_str(); "{failure}");
        } else {
            #[allow(clippy::print_stderr, reason = "there is no log to tell it")]
            {
                eprintln!("{failure}: {problem}");
            }
        }
    }
    json_log::flush(FLUSH);
    if done.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

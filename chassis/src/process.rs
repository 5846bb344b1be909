//! Runs a process from `main` to its exit code.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use log::{Level, error, info, log_enabled};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{json_log, pauses};

/// How long the log may take at the end.
const FLUSH: Duration = Duration::from_secs(1);

/// Listens for this signal from now on, before there is a runtime. It ends the process no longer; one that arrives is kept until it is
/// asked for.
///
/// # Errors
/// When the kernel does not allow it.
pub fn listen(kind: SignalKind) -> io::Result<Signal> {
    // Whichever runtime runs later passes on what has arrived.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    signal(kind)
}

/// Starts the log and the look-out for [`pauses`], and runs `work`. Its error is logged under the message `failure`, and makes the exit code 1; where there is
/// no log for it (`RUST_LOG` is wrong, or turns errors off), it goes to standard error.
pub fn run(default_filter: &str, failure: &str, work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> ExitCode {
    let done = json_log::init(default_filter).map_err(Into::into);
    let done = done.and_then(|()| Ok(pauses::watch()?)).and_then(|()| work());
    end(done, failure, false)
}

/// The same for a question on the command line, whose answer is all that is wanted: `work` returns it, empty if the exit code says
/// everything. A person at a terminal gets it as it is; all others get it as a line of the log.
pub fn answer(default_filter: &str, failure: &str, work: impl FnOnce() -> Result<String, Box<dyn Error>>) -> ExitCode {
    let to_person = io::stdout().is_terminal();
    let answer = json_log::init(default_filter).map_err(Into::into).and_then(|()| work());
    let done = answer.map(|answer| match (answer.as_str(), to_person) {
        ("", _) => {}
        #[allow(clippy::print_stdout, reason = "somebody waits for it there")]
        (answer, true) => println!("{answer}"),
        (answer, false) => info!("{answer}"),
    });
    end(done, failure, to_person)
}

/// Reports what came of it, to a person if there is one, and waits for the log.
fn end(done: Result<(), Box<dyn Error>>, failure: &str, to_person: bool) -> ExitCode {
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let problem = problem.to_string();
            if log_enabled!(Level::Error) && !to_person {
                error!(error = problem.as_str(); "{failure}");
            } else {
                #[allow(
                    clippy::print_stderr,
                    reason = "there is no log for it, or somebody waits for it there"
                )]
                {
                    eprintln!("{failure}: {problem}");
                }
            }
            ExitCode::FAILURE
        }
    };
    json_log::flush(FLUSH);
    code
}

//! The log: one JSON object per line on standard output, or text where that is a terminal.
//!
//! `log` macros reach `env_logger`, which filters them (`filter`: `RUST_LOG`) and formats a line (`line`), with every string
//! escaped (`escape`), so that no byte that a client sends can end a line, forge a field or move a cursor. The line goes into
//! a queue with a bound in bytes (`queue`), and a separate thread writes the queue out in batches (`stdout`, and `terminal`
//! for people). So a request never waits for a slow terminal or a full pipe: when the queue is full the line is dropped and
//! counted ([`dropped_lines`]).

mod escape;
mod filter;
mod line;
mod queue;
mod stdout;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use log::{Level, Log, Metadata, warn};

use crate::clock;
use crate::settings::Settings;
pub use escape::cut;
pub use line::LineFields;
use queue::Queue;
use stdout::StandardOutput;
use terminal::Terminal;

static LOG: OnceLock<Running> = OnceLock::new();
static PANICS: AtomicU64 = AtomicU64::new(0);

/// The log of this process, once it has started.
struct Running {
    queue: Arc<Queue>,
    /// Whether the access log is written.
    access: bool,
}

/// Starts the log. `default_filter` is what `RUST_LOG` means where it says nothing, in the same syntax.
///
/// Panics of any thread are logged as errors from here on.
///
/// # Errors
/// When `RUST_LOG` makes no sense, a logger is already installed, or the writer thread can't be started.
pub fn init(default_filter: &str) -> io::Result<()> {
    if io::stdout().is_terminal() {
        init_to(default_filter, Terminal::new(StandardOutput::new()))
    } else {
        init_to(default_filter, StandardOutput::new())
    }
}

/// The same, with the lines written to `out`: for the benchmark of a line.
///
/// # Errors
/// As [`init`].
pub fn init_to(default_filter: &str, out: impl Write + Send + 'static) -> io::Result<()> {
    let settings = Settings::from_process();
    let chosen = settings.variable("RUST_LOG", |text| filter::parse(text, default_filter));
    let (chosen, _) = settings.finish(chosen).map_err(io::Error::other)?;
    let filter = match chosen {
        Some(filter) => filter,
        None => filter::parse("", default_filter).map_err(io::Error::other)?,
    };
    let queue = Arc::new(Queue::default());
    let writer = Arc::clone(&queue);
    std::thread::Builder::new()
        .name("log-writer".into())
        .spawn(move || writer.write_out(out))?;

    let logger = filter
        .logger()
        .format(|out, record| out.write_all(&line::of_record(record, clock::now())))
        .target(env_logger::Target::Pipe(Box::new(Enqueue(Arc::clone(&queue)))))
        .build();
    let access = Metadata::builder().level(Level::Info).target(filter::ACCESS).build();
    let access = logger.enabled(&access);
    log::set_max_level(logger.filter());
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)?;
    let _ = LOG.set(Running { queue, access });

    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let place = panic.location().map(ToString::to_string);
        let what = panic.payload_as_str().unwrap_or("not a text");
        log::error!(place = place.as_deref().unwrap_or("unknown"), panic = what; "panicked");
    }));
    for target in filter.strangers {
        warn!(target = target.as_str(); "RUST_LOG names a target that this program does not have");
    }
    Ok(())
}

/// Waits until all that was logged so far is written, at most `limit`. Call it before the process exits.
pub fn flush(limit: Duration) {
    if let Some(log) = LOG.get() {
        log.queue.wait_until_written(limit);
    }
}

/// How many panics there were since the start. Each has its line.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// How many lines were dropped since the start, because the queue was full or standard output could not be written.
pub fn dropped_lines() -> u64 {
    LOG.get().map_or(0, |log| log.queue.dropped())
}

/// Writes a line of the access log, of level INFO, with this message and what `fields` adds to it, unless `RUST_LOG` turns the
/// target `access` off.
///
/// There is one for each request, so it goes past `log`, its records and its filter, which would cost nearly as much again as
/// the line does.
pub fn access(message: &'static str, fields: impl FnOnce(&mut LineFields<'_>)) {
    if let Some(Running { queue, access: true }) = LOG.get() {
        line::info(message, fields, |line| queue.push(line, false));
    }
}

/// The queue as `env_logger` sees it, which writes a line at once.
struct Enqueue(Arc<Queue>);

impl Write for Enqueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line, true);
        Ok(line.len())
    }

    /// [`flush`] has a limit.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

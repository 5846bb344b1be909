//! Everything a process says: one JSON object a line on standard output.
//!
//! `log` macros reach `env_logger`, which filters (`RUST_LOG`) and formats here; the line then goes into a queue with a
//! bound in bytes, and one thread of its own writes the queue out in batches. So a request never waits for a slow
//! terminal or a full pipe: when the queue is full the line is dropped and counted ([`dropped_lines`]).
//!
//! A line is `{"time":…,"level":…,"msg":…}` and then the record's own fields in their order. Every string is escaped by
//! `serde_json`, so no byte that a client sends can end a line or forge a field.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::kv::{self, Key, Value, VisitSource, VisitValue};

use crate::settings::Settings;

/// How much may wait for the writer before lines are dropped, in bytes: some 30,000 lines.
const CAPACITY: usize = 8 << 20;

/// How long lines of requests are gathered before they are written, and how many bytes are enough to write at once: waking the
/// writer for each of them, and a system call for each, costs more than making it. All other lines are written at once.
const GATHER: Duration = Duration::from_millis(10);
const ENOUGH: usize = 64 << 10;

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Starts the log. `default_filter` is what `RUST_LOG` means when it is not set or empty, in `env_logger`'s syntax.
///
/// Panics of any thread are logged as errors from here on.
///
/// # Errors
/// When `RUST_LOG` makes no sense, a logger is already installed, or the writer thread can't be started.
pub fn init(default_filter: &str) -> io::Result<()> {
    init_to(default_filter, io::stdout())
}

/// The same, with the lines written to `out`: for the benchmark of a line.
///
/// # Errors
/// As [`init`].
pub fn init_to(default_filter: &str, out: impl Write + Send + 'static) -> io::Result<()> {
    let settings = Settings::from_process();
    // env_logger itself would print a complaint and go on.
    let filter = settings.variable("RUST_LOG", |text| match env_filter::Builder::new().try_parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("levels and targets, such as info,access=off ({error})")),
    });
    let (filter, _) = settings.finish(filter).map_err(io::Error::other)?;
    let filter = filter.as_deref().unwrap_or(default_filter);
    let queue = Arc::new(Queue::default());
    let writer = Arc::clone(&queue);
    std::thread::Builder::new()
        .name("log-writer".into())
        .spawn(move || writer.write_out(out))?;

    env_logger::Builder::new()
        .parse_filters(filter)
        .format(|out, record| {
            let time = out.timestamp_millis().to_string();
            write_line(out, &time, record)
        })
        .target(env_logger::Target::Pipe(Box::new(Enqueue(Arc::clone(&queue)))))
        .try_init()
        .map_err(io::Error::other)?;
    let _ = QUEUE.set(queue);

    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let place = panic.location().map(ToString::to_string);
        let what = panic.payload_as_str().unwrap_or("not a text");
        log::error!(place = place.as_deref().unwrap_or("unknown"), panic = what; "panicked");
    }));
    Ok(())
}

/// Waits until all that was logged so far is written, at most `limit`. Call it before the process exits.
pub fn flush(limit: Duration) {
    if let Some(queue) = QUEUE.get() {
        queue.wait_until_written(limit);
    }
}

/// How many panics there were since the start. Each has its line.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// How many lines were dropped since the start, because the queue was full or standard output could not be written.
pub fn dropped_lines() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
}

/// Writes a line of level INFO with this message and what `fields` adds to it.
///
/// For lines of which there is one a request: it goes past `log`, its records and its filter (ask [`log::log_enabled`] first), which
/// would cost nearly as much again as the line does.
pub fn info_line(message: &'static str, fields: impl FnOnce(&mut LineFields<'_>)) {
    /// The second that was last written, as it is written, and room for a line.
    struct Scratch {
        second: u64,
        written: String,
        line: Vec<u8>,
    }
    thread_local! {
        static SCRATCH: RefCell<Scratch> = const {
            RefCell::new(Scratch { second: u64::MAX, written: String::new(), line: Vec::new() })
        };
    }
    let Some(queue) = QUEUE.get() else { return };
    let now = SystemTime::now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    SCRATCH.with_borrow_mut(|Scratch { second, written, line }| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            *written = humantime::format_rfc3339_seconds(now).to_string();
            // The zone comes behind the milliseconds.
            written.pop();
        }
        line.clear();
        line.extend_from_slice(br#"{"time":""#);
        line.extend_from_slice(written.as_bytes());
        let mut fields_of = LineFields(line);
        fields_of.fraction(since.subsec_millis().into());
        fields_of.0.extend_from_slice(br#"Z","level":"INFO","msg":"#);
        fields_of.string(message);
        fields(&mut fields_of);
        line.extend_from_slice(b"}\n");
        queue.push(line, false);
    });
}

/// The fields of a line that is being written.
pub struct LineFields<'l>(&'l mut Vec<u8>);

// What takes a key is inlined, so that to copy a name whose length is known there is a move or two.
impl LineFields<'_> {
    /// Adds a text.
    #[inline(always)]
    pub fn text(&mut self, key: &'static str, text: &str) {
        self.key(key);
        self.string(text);
    }

    /// Adds a text of which it is known that JSON escapes nothing in it, such as an address.
    #[inline(always)]
    pub fn plain(&mut self, key: &'static str, text: &str) {
        self.key(key);
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
    }

    /// Adds a number.
    #[inline(always)]
    pub fn number(&mut self, key: &'static str, number: u64) {
        self.key(key);
        self.digits(number);
    }

    /// Adds a duration in milliseconds, to a thousandth: more digits would be noise.
    #[inline(always)]
    pub fn millis(&mut self, key: &'static str, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.key(key);
        self.digits(micros / 1000);
        self.fraction(micros % 1000);
    }

    #[inline(always)]
    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn digits(&mut self, number: u64) {
        self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Three digits behind a point.
    fn fraction(&mut self, thousandths: u64) {
        self.0.push(b'.');
        let digits =
            [thousandths / 100, thousandths / 10, thousandths].map(|digit| b"0123456789"[(digit % 10) as usize]);
        self.0.extend_from_slice(&digits);
    }

    fn string(&mut self, text: &str) {
        // Every byte is looked at, whatever the first is: that can be done for many at once.
        let plain = |byte: u8| (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\\');
        if text.bytes().fold(true, |all, byte| all & plain(byte)) {
            self.0.push(b'"');
            self.0.extend_from_slice(text.as_bytes());
            self.0.push(b'"');
        } else {
            // Writing to memory can't fail, and neither can the encoding of a text.
            let _ = write_string(&mut *self.0, text);
        }
    }
}

fn write_line(out: &mut impl Write, time: &str, record: &log::Record<'_>) -> io::Result<()> {
    write!(out, r#"{{"time":"{time}","level":"{}","msg":"#, record.level())?;
    match record.args().as_str() {
        Some(text) => write_string(out, text)?,
        None => write_string(out, &record.args().to_string())?,
    }
    let mut fields = Fields { out };
    record.key_values().visit(&mut fields).map_err(io::Error::other)?;
    fields.out.write_all(b"}\n")
}

fn write_string(out: &mut impl Write, text: &str) -> io::Result<()> {
    serde_json::to_writer(out, text).map_err(io::Error::from)
}

/// Writes each field of a record as `,"key":value`.
struct Fields<'a, W> {
    out: &'a mut W,
}

impl<'kvs, W: Write> VisitSource<'kvs> for Fields<'_, W> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.out.write_all(b",")?;
        write_string(self.out, key.as_str())?;
        self.out.write_all(b":")?;
        value.visit(JsonValue { out: self.out })
    }
}

/// Writes a value as JSON: numbers and truth values as such, all else as a string.
struct JsonValue<'a, W> {
    out: &'a mut W,
}

impl<'v, W: Write> VisitValue<'v> for JsonValue<'_, W> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        Ok(write_string(self.out, &value.to_string())?)
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(self.out.write_all(b"null")?)
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        Ok(write!(self.out, "{value}")?)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        Ok(write!(self.out, "{value}")?)
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        serde_json::to_writer(&mut *self.out, &value).map_err(|error| io::Error::from(error).into())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        Ok(write!(self.out, "{value}")?)
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        Ok(write_string(self.out, value)?)
    }
}

/// Lines waiting for the writer thread.
///
/// One buffer that producers append to and the writer swaps out whole: a producer holds the lock for a copy of some 300
/// bytes and never during a write.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Signalled when `pending` stops being empty.
    filled: Condvar,
    /// Signalled when the writer is to gather no longer.
    enough: Condvar,
    /// Signalled when everything pushed so far has been written.
    drained: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    /// The writer holds a batch that is not written yet.
    writing: bool,
    /// There is a line that is not to wait for others.
    at_once: bool,
    /// Somebody waits until all is written, so the writer gathers no more lines.
    hurry: bool,
}

impl Queue {
    /// A panic while holding the lock can't leave the buffer half-changed, so a poisoned lock is as good as a whole one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8], at_once: bool) {
        let mut state = self.lock();
        if state.pending.len() + line.len() > CAPACITY {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = state.pending.is_empty();
        state.pending.extend_from_slice(line);
        let enough = at_once || (state.pending.len() >= ENOUGH && state.pending.len() - line.len() < ENOUGH);
        state.at_once |= at_once;
        drop(state);
        if was_empty {
            self.filled.notify_one();
        }
        if enough {
            self.enough.notify_one();
        }
    }

    /// Writes batches to `out` for ever.
    fn write_out(&self, mut out: impl Write) {
        /// A burst may grow the buffers to [`CAPACITY`]; past this they are given back.
        const KEPT: usize = 256 << 10;

        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            state.writing = false;
            if state.pending.is_empty() && std::mem::take(&mut state.hurry) {
                self.drained.notify_all();
            }
            while state.pending.is_empty() {
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state = self
                .enough
                .wait_timeout_while(state, GATHER, |state| {
                    !state.hurry && !state.at_once && state.pending.len() < ENOUGH
                })
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            std::mem::swap(&mut state.pending, &mut batch);
            state.writing = true;
            state.at_once = false;
            drop(state);

            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                let lines = batch.iter().filter(|byte| **byte == b'\n').count();
                self.dropped.fetch_add(lines as u64, Ordering::Relaxed);
            }
            batch.clear();
            batch.shrink_to(KEPT);
        }
    }

    fn wait_until_written(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        while state.writing || !state.pending.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state.hurry = true;
            self.enough.notify_one();
            state = self
                .drained
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// The `Write` that `env_logger` is given: it hands over a whole line at a time.
struct Enqueue(Arc<Queue>);

impl Write for Enqueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line, true);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn line(message: std::fmt::Arguments<'_>, fields: &dyn kv::Source) -> serde_json::Value {
        let mut out = Vec::new();
        let record = log::Record::builder()
            .args(message)
            .level(log::Level::Info)
            .key_values(&fields)
            .build();
        write_line(&mut out, "2026-11-22T00:00:00.000Z", &record).expect("a Vec takes all");
        assert_eq!(
            out.iter().filter(|byte| **byte == b'\n').count(),
            1,
            "one line, ended once"
        );
        serde_json::from_slice(&out).expect("a line is one JSON object")
    }

    #[test]
    fn fields_keep_their_kind_and_hostile_text_stays_inside_its_string() {
        let hostile = "\"},{\"level\":\"ERROR\"\n\r\u{0}\u{2028}\\";
        let fields: &[(&str, Value<'_>)] = &[
            ("path", hostile.into()),
            ("status", 200.into()),
            ("duration_ms", 1.25.into()),
            ("ok", true.into()),
        ];
        let got = line(format_args!("{hostile}"), &fields);
        assert_eq!(got["msg"], hostile);
        assert_eq!(got["path"], hostile);
        assert_eq!(got["status"], 200);
        assert_eq!(got["duration_ms"], 1.25);
        assert_eq!(got["ok"], true);
        assert_eq!(got["level"], "INFO");
        assert_eq!(got["time"], "2026-11-22T00:00:00.000Z");
    }

    /// A standard output that takes nothing until it is told to.
    struct Stalled(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_output_drops_lines_past_the_bound_and_never_blocks() {
        let queue = Arc::new(Queue::default());
        let (go, stalled) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let out = Stalled(stalled, Arc::clone(&written));
        let writer = Arc::clone(&queue);
        std::thread::spawn(move || writer.write_out(out));

        let long = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let lines = 3 * CAPACITY / long.len();
        for _ in 0..lines {
            queue.push(&long, false);
        }
        let dropped = usize::try_from(queue.dropped.load(Ordering::Relaxed)).unwrap();
        assert!(dropped >= lines / 3, "{dropped} of {lines} lines dropped");

        drop(go);
        queue.wait_until_written(Duration::from_secs(10));
        let written = written.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert_eq!(
            written / long.len() + dropped,
            lines,
            "every line was written or counted"
        );
    }
}

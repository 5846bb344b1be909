//! The format of a log line: `{"time":…,"level":…,"msg":…}` and then its own fields in their order.

use std::cell::RefCell;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::kv::{self, Key, Value, VisitSource, VisitValue};

use super::escape::push_string;
use crate::clock;

/// Makes a line of level INFO with this message and what `fields` adds to it, and gives it to `take`.
pub(super) fn info(message: &'static str, fields: impl FnOnce(&mut LineFields<'_>), take: impl FnOnce(&[u8])) {
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
    let now = clock::since_1970();
    SCRATCH.with_borrow_mut(|Scratch { second, written, line }| {
        if *second != now.as_secs() {
            *second = now.as_secs();
            *written = humantime::format_rfc3339_seconds(UNIX_EPOCH + now).to_string();
            // The zone comes behind the milliseconds.
            written.pop();
        }
        line.clear();
        line.extend_from_slice(br#"{"time":""#);
        line.extend_from_slice(written.as_bytes());
        let mut fields_of = LineFields(line);
        fields_of.fraction(now.subsec_millis().into());
        fields_of.0.extend_from_slice(br#"Z","level":"INFO","msg":"#);
        push_string(fields_of.0, message);
        fields(&mut fields_of);
        line.extend_from_slice(b"}\n");
        take(line);
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
        push_string(self.0, text);
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
}

/// The line of `record`, written at `now`, which must be one of [`clock::now`].
pub(super) fn of_record(record: &log::Record<'_>, now: SystemTime) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    let time = humantime::format_rfc3339_millis(now);
    push(
        &mut line,
        format_args!(r#"{{"time":"{time}","level":"{}","msg":"#, record.level()),
    );
    match record.args().as_str() {
        Some(text) => push_string(&mut line, text),
        None => push_string(&mut line, &record.args().to_string()),
    }
    // A field whose value can't be read is left out; nothing here fails.
    let _ = record.key_values().visit(&mut Fields(&mut line));
    line.extend_from_slice(b"}\n");
    line
}

/// Writing to memory can't fail.
fn push(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = line.write_fmt(text);
}

/// Writes each field of a record as `,"key":value`, but for those that are `None`.
struct Fields<'l>(&'l mut Vec<u8>);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let field = self.0.len();
        self.0.push(b',');
        push_string(self.0, key.as_str());
        self.0.push(b':');
        value.visit(JsonValue { line: self.0, field })
    }
}

/// Writes a value as JSON: numbers and truth values as such, all else as a string.
struct JsonValue<'l> {
    line: &'l mut Vec<u8>,
    /// Where its field begins in the line.
    field: usize,
}

impl JsonValue<'_> {
    fn push(&mut self, text: std::fmt::Arguments<'_>) -> Result<(), kv::Error> {
        push(self.line, text);
        Ok(())
    }
}

impl<'v> VisitValue<'v> for JsonValue<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        push_string(self.line, &value.to_string());
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.line.truncate(self.field);
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.push(format_args!("{value}"))
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.push(format_args!("{value}"))
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        if value.is_finite() {
            self.push(format_args!("{value:?}"))
        } else {
            self.push(format_args!("null"))
        }
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.push(format_args!("{value}"))
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        push_string(self.line, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_kind_and_hostile_text_stays_inside_its_string() {
        let hostile = "\"},{\"level\":\"ERROR\"\n\r\u{0}\u{2028}\u{9b}\\";
        let fields: &[(&str, Value<'_>)] = &[
            ("path", hostile.into()),
            ("status", 200.into()),
            ("duration_ms", 1.25.into()),
            ("huge", 1e300.into()),
            ("endless", f64::INFINITY.into()),
            ("nothing", Value::null()),
            ("ok", true.into()),
        ];
        let line = of_record(
            &log::Record::builder()
                .args(format_args!("{hostile}"))
                .level(log::Level::Info)
                .key_values(&fields)
                .build(),
            UNIX_EPOCH + Duration::from_millis(1_795_305_600_012),
        );
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "ended once");
        let got: serde_json::Value = serde_json::from_slice(&line).expect("a line is one JSON object");
        assert_eq!(got["msg"], hostile);
        assert_eq!(got["path"], hostile);
        assert_eq!(got["status"], 200);
        assert_eq!(got["duration_ms"], 1.25);
        assert_eq!(got["huge"], 1e300);
        assert_eq!(got.get("endless"), Some(&serde_json::Value::Null));
        assert_eq!(got.get("nothing"), None);
        assert_eq!(got["ok"], true);
        assert_eq!(got["level"], "INFO");
        assert_eq!(got["time"], "2026-11-22T00:00:00.012Z");
    }
}

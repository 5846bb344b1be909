//! The log as text, for people: used where standard output is a terminal.
//!
//! `2026-11-22T23:31:50.952Z INFO  listening service=proxy address=0.0.0.0:8080`. A value of several lines follows below its
//! line, indented, so that no value can look like a line of its own; and nothing is written that is not printable ASCII.
//!
//! The JSON is read again for that, by the thread that writes: a terminal is slow anyway, and a request does the same work
//! wherever its line goes.

use std::io::{self, Write};

use serde_json::Value;

use super::escape::{push_escaped, push_string};

/// Writes lines of JSON to `W` as text.
pub(super) struct Terminal<W> {
    out: W,
    text: Vec<u8>,
}

impl<W> Terminal<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, text: Vec::new() }
    }
}

impl<W: Write> Write for Terminal<W> {
    /// Takes one line at a time.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let end = lines
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(lines.len(), |end| end + 1);
        self.text.clear();
        push_text(&mut self.text, &lines[..end]);
        self.out.write_all(&self.text)?;
        Ok(end)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn push_text(text: &mut Vec<u8>, line: &[u8]) {
    let Ok(Value::Object(fields)) = serde_json::from_slice(line) else {
        // Every line is one.
        text.extend_from_slice(line);
        return;
    };
    let mut below = Vec::new();
    for (key, value) in &fields {
        match (key.as_str(), value) {
            ("time", Value::String(time)) => {
                push_escaped(text, time);
                text.push(b' ');
            }
            ("level", Value::String(level)) => {
                // The longest is ERROR.
                text.extend_from_slice(format!("{level:<5} ").as_bytes());
            }
            ("msg", Value::String(message)) => push_escaped(text, message),
            (_, Value::String(value)) if value.contains('\n') => {
                for (number, line) in value.trim_end().lines().enumerate() {
                    below.extend_from_slice(b"\n    ");
                    if number == 0 {
                        push_escaped(&mut below, key);
                        below.extend_from_slice(b": ");
                    }
                    push_escaped(&mut below, line);
                }
            }
            (_, value) => {
                text.push(b' ');
                push_escaped(text, key);
                text.push(b'=');
                match value {
                    Value::String(value) if is_word(value) => text.extend_from_slice(value.as_bytes()),
                    Value::String(value) => push_string(text, value),
                    other => text.extend_from_slice(other.to_string().as_bytes()),
                }
            }
        }
    }
    text.append(&mut below);
    text.push(b'\n');
}

/// Whether `value` needs no quotes to be seen as one.
fn is_word(value: &str) -> bool {
    !value.is_empty()
        && value
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: &str) -> String {
        let mut terminal = Terminal::new(Vec::new());
        terminal.write_all(lines.as_bytes()).unwrap();
        String::from_utf8(terminal.out).unwrap()
    }

    #[test]
    fn a_line_is_text_and_a_value_of_several_lines_is_below_it() {
        assert_eq!(
            shown(concat!(
                r#"{"time":"2026-11-22T23:31:50.952Z","level":"INFO","msg":"request","path":"/a b","status":200,"duration_ms":1.886,"client":"127.0.0.1"}"#,
                "\n",
                r#"{"time":"2026-11-22T23:31:50.953Z","level":"ERROR","msg":"can't start","error":"two mistakes:\n  a\n  b\n","ok":false}"#,
                "\n"
            )),
            "2026-11-22T23:31:50.952Z INFO  request path=\"/a b\" status=200 duration_ms=1.886 client=127.0.0.1\n\
             2026-11-22T23:31:50.953Z ERROR can't start ok=false\n    error: two mistakes:\n      a\n      b\n"
        );
    }

    #[test]
    fn no_value_can_colour_the_terminal_or_look_like_a_line_of_its_own() {
        let text = shown(concat!(
            r#"{"time":"t","level":"WARN","msg":"m\u001b[2J","a":"\u001b[31m\u009b\u202e","b":"x\n2026 ERROR forged\r\n"}"#,
            "\n"
        ));
        assert_eq!(
            text,
            "t WARN  m\\u001b[2J a=\"\\u001b[31m\\u009b\\u202e\"\n    b: x\n    2026 ERROR forged\n"
        );
    }
}

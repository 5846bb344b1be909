//! Rewrites a response head that is old-fashioned but can be read in one way only.
//!
//! Old and home-made origins end lines with LF alone, fold a long value over several lines, or put a space before the colon. RFC 9112
//! lets a proxy take such a response if it passes it on in the usual form (sections 2.2, 5.1 and 5.2). Requests are not
//! treated so leniently: their sender may gain by being misread.

/// The longest head that is looked at.
const MAX: usize = super::origin_response::MAX_HEAD;

/// The head at the start of `bytes` with one line a field, each ended by CRLF, and how long it was; `None` if it has not all arrived.
pub fn straighten(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut straight = Vec::with_capacity(256);
    let (mut read, mut fields) = (0, 0);
    for line in bytes[..bytes.len().min(MAX)].split_inclusive(|byte| *byte == b'\n') {
        let line_end = line.strip_suffix(b"\n")?;
        let text = line_end.strip_suffix(b"\r").unwrap_or(line_end);
        read += line.len();
        let first = straight.is_empty();
        match text {
            // An empty line before a response belongs to nothing.
            [] if first => {}
            [] => {
                straight.extend_from_slice(b"\r\n");
                return Some((straight, read));
            }
            [b' ' | b'\t', ..] if fields > 0 => {
                straight.truncate(straight.len() - 2);
                straight.push(b' ');
                straight.extend_from_slice(trim_start(text));
                straight.extend_from_slice(b"\r\n");
            }
            _ => {
                fields += usize::from(!first);
                let (name, rest) = text.split_at(text.iter().position(|byte| *byte == b':').unwrap_or(0));
                straight.extend_from_slice(if first { name } else { trim_end(name) });
                straight.extend_from_slice(rest);
                straight.extend_from_slice(b"\r\n");
            }
        }
    }
    None
}

/// `text` without the spaces and tabs it begins with. A CR or another control character is left for the parser to refuse.
fn trim_start(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    text
}

/// The same for those it ends with.
fn trim_end(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Whether [`straighten`] may have something to do when more has come: what is there begins as a response does.
pub fn may_straighten(bytes: &[u8]) -> bool {
    bytes.len() < MAX && bytes.trim_ascii_start().starts_with(b"HTTP/1.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_one_reading_is_written_in_the_usual_form() {
        for (odd, straight) in [
            ("HTTP/1.1 200 OK\nA: b\n\n", "HTTP/1.1 200 OK\r\nA: b\r\n\r\n"),
            ("\r\n\nHTTP/1.1 200 OK\n\n", "HTTP/1.1 200 OK\r\n\r\n"),
            (
                "HTTP/1.1 200 OK\r\nA: b\r\n  c\r\n\td\r\n\r\n",
                "HTTP/1.1 200 OK\r\nA: b c d\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nA:\r\n 2\r\nB \t: c : d\r\n\r\n",
                "HTTP/1.1 200 OK\r\nA: 2\r\nB: c : d\r\n\r\n",
            ),
            ("HTTP/1.1 200 a : b\n\n", "HTTP/1.1 200 a : b\r\n\r\n"),
            // What some readers take for the end of a line is no white space.
            ("HTTP/1.1 200 OK\nA\r: b\n\n", "HTTP/1.1 200 OK\r\nA\r: b\r\n\r\n"),
            (
                "HTTP/1.1 200 OK\nA: b\n \r\x0cc\n\n",
                "HTTP/1.1 200 OK\r\nA: b \r\x0cc\r\n\r\n",
            ),
            // A fold of nothing is left for the parser to refuse.
            ("HTTP/1.1 200 OK\n A: b\n\n", "HTTP/1.1 200 OK\r\n A: b\r\n\r\n"),
        ] {
            let with_body = odd.to_owned() + "body";
            let expected = Some((straight.as_bytes().to_vec(), odd.len()));
            assert_eq!(straighten(with_body.as_bytes()), expected, "{odd:?}");
            assert_eq!(straighten(&odd.as_bytes()[..odd.len() - 1]), None, "{odd:?} cut short");
        }
        assert_eq!(straighten(b""), None);
    }

    #[test]
    fn what_does_not_begin_as_a_response_is_not_waited_for() {
        assert!(may_straighten(b"HTTP/1.1 200 OK\nA : b"));
        assert!(!may_straighten(b"<html>"));
        assert!(!may_straighten(&b"HTTP/1.1 200 OK\n".repeat(MAX)));
    }
}

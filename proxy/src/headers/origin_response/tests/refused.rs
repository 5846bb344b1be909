//! Heads that nobody can be sure to read as they are meant.

use super::{GET, HEAD, head_of, read};
use crate::http1::violation::LF_ALONE;

#[test]
fn what_is_read_in_two_ways_or_in_none_is_an_error() {
    let lf = LF_ALONE;
    let name = "the name of a field is not a token";
    let value = "a field has a control character";
    let status = "the status is not three digits and a reason";
    let version = "the version is neither HTTP/1.1 nor HTTP/1.0";
    let length = "Content-Length is not one number";
    let coding = "the transfer coding is not chunked";
    for (line, why) in [
        ("garbage", version),
        ("<html>hello</html>", version),
        ("\x16\x03\x03\0\x04\x0e\0\0\0", version),
        ("GET / HTTP/1.1", version),
        ("ICY 200 OK", version),
        (" HTTP/1.1 200 OK", version),
        ("HTTP/2 200 OK", version),
        ("HTTP/1.2 200 OK", version),
        ("HTTP/1.10 200 OK", version),
        ("HTTP/2.0 200 OK", version),
        ("HTTP/0.9 200 OK", version),
        ("http/1.1 200 OK", version),
        ("HTTP/1,1 200 OK", version),
        ("HTTP/1.1\t200 OK", version),
        ("HTTP/1.1", version),
        ("HTTP/1.1 ", status),
        ("HTTP/1.1 OK", status),
        ("HTTP/1.1 20 OK", status),
        ("HTTP/1.1 2000 OK", status),
        ("HTTP/1.1 -20 OK", status),
        ("HTTP/1.1 +20 OK", status),
        ("HTTP/1.1 0x8 OK", status),
        ("HTTP/1.1 2 0 OK", status),
        ("HTTP/1.1 200OK", status),
        ("HTTP/1.1 200\tOK", status),
        ("HTTP/1.1  200 OK", status),
        ("HTTP/1.1 200 O\0K", status),
        ("HTTP/1.1 200 O\x08K", status),
        ("HTTP/1.1 200 O\x7fK", status),
        ("HTTP/1.1 200 O\x1bK", status),
        ("HTTP/1.1 200 OK\rX: y", status),
        ("HTTP/1.1 200\rX: y", status),
        ("HTTP/1.1 200 OK\r", status),
        ("HTTP/1.1 000 OK", "the status is less than 100"),
        ("HTTP/1.1 099 OK", "the status is less than 100"),
        ("HTTP/1.1 200 OK\nX: y", lf),
        ("\nHTTP/1.1 200 OK", lf),
        (
            "HTTP/1.0 101 Switching Protocols",
            "a response of HTTP/1.0 switches protocols",
        ),
    ] {
        let head = format!("{line}\r\nContent-Length: 2\r\n\r\n");
        assert_eq!(read(head.as_bytes(), GET, |_| ()), Err(why), "{line:?}");
    }
    for (lines, why) in [
        ("X", name),
        ("X\r\nY: z", name),
        (": y", name),
        ("X Y: z", name),
        ("X : y", name),
        ("X\t: y", name),
        ("Content-Length : 2", name),
        ("Transfer-Encoding : chunked", name),
        ("X\0: y", name),
        ("\u{e4}: y", name),
        ("X\u{e4}: y", name),
        ("\"X\": y", name),
        ("X(y): z", name),
        ("X@y: z", name),
        ("[X]: y", name),
        (" X: y", name),
        ("\tX: y", name),
        ("X: y\r\n z", name),
        ("X: y\r\n\tz", name),
        ("X: y\r\n ", name),
        ("Content-Length:\r\n 2", name),
        ("Transfer-Encoding:\r\n chunked", name),
        ("X: y\0z", value),
        ("X: y\x01z", value),
        ("X: y\x08", value),
        ("X: \x0b", value),
        ("X: y\x0cz", value),
        ("X: y\x1bz", value),
        ("X: y\x7fz", value),
        ("X: y\rSet-Cookie: z", value),
        ("X: y\r", value),
        ("X:\ry", value),
        ("X: y\nZ: z", lf),
        ("X:\nZ: z", lf),
        ("X: y\n", lf),
        ("Content-Length: 2\r\nContent-Length: 20", length),
        ("Content-Length: 2\r\nX: y\r\ncontent-length: 20", length),
        ("Content-Length: 2, 20", length),
        ("Content-Length: 2,", length),
        ("Content-Length: ,2", length),
        ("Content-Length: 2;2", length),
        ("Content-Length: 2 2", length),
        ("Content-Length: +2", length),
        ("Content-Length: -2", length),
        ("Content-Length: -0", length),
        ("Content-Length: 0x2", length),
        ("Content-Length: 2.0", length),
        ("Content-Length: 2e1", length),
        ("Content-Length: \"2\"", length),
        ("Content-Length: 2b", length),
        ("Content-Length: \u{b2}", length),
        ("Content-Length:", length),
        ("Content-Length: 2\r\nContent-Length:", length),
        ("Content-Length: 18446744073709551616", length),
        ("Content-Length: 18446744073709551618", length),
        ("Content-Length: 2, +2", length),
        ("Transfer-Encoding: gzip", coding),
        ("Transfer-Encoding: gzip, chunked", coding),
        ("Transfer-Encoding: chunked, gzip", coding),
        ("Transfer-Encoding: chunked, chunked", coding),
        ("Transfer-Encoding: chunked,", coding),
        ("Transfer-Encoding: chunked;q=1", coding),
        ("Transfer-Encoding: xchunked", coding),
        ("Transfer-Encoding: chunkedx", coding),
        ("Transfer-Encoding: \"chunked\"", coding),
        ("Transfer-Encoding: \u{b}chunked", value),
        ("Transfer-Encoding: identity", coding),
        ("Transfer-Encoding: identity\r\nContent-Length: 2", coding),
        ("Transfer-Encoding:", coding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip", coding),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", coding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding:", coding),
    ] {
        let text = head_of("200 OK", lines);
        assert_eq!(read(text.as_bytes(), GET, |_| ()), Err(why), "{lines:?}");
        // Neither HEAD nor another status makes it any better, but framing that doesn't count may say what it likes.
        assert_eq!(read(text.as_bytes(), HEAD, |_| ()), Err(why), "{lines:?} after HEAD");
        let expected = if why == length || why == coding {
            Ok(())
        } else {
            Err(why)
        };
        let text = head_of("204 No Content", lines);
        assert_eq!(read(text.as_bytes(), GET, |_| ()), expected, "204 with {lines:?}");
    }
    for lines in ["", "Connection: keep-alive\r\n", "Content-Length: 2\r\n"] {
        let head = format!("HTTP/1.0 200 OK\r\n{lines}Transfer-Encoding: chunked\r\n\r\n");
        let why = "a response of HTTP/1.0 has a transfer coding";
        assert_eq!(read(head.as_bytes(), GET, |_| ()), Err(why), "{lines:?}");
    }
}

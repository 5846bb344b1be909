//! Names the rule that a request breaks, for the log.
//!
//! The client learns only the status. The words are fixed, so nothing that a client sends gets into the log this way.

use crate::http1::names::is_in_token;
use crate::rejection::Rejection;

/// A rule that a request breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// How the request is answered.
    pub rejection: Rejection,
    /// What is wrong with it.
    pub rule: &'static str,
}

/// The rule that a line feed without a carriage return before it breaks.
pub const LF_ALONE: &str = "a line ends with LF alone";

/// The rule that a PROXY protocol header breaks where none is due.
pub const PROXY_HEADER: &str = "a PROXY protocol header from a peer that is not in proxy_protocol";

const CR_ALONE: &str = "a CR stands without an LF behind it";

impl Violation {
    /// A rule that makes the answer `rejection`.
    pub const fn new(rejection: Rejection, rule: &'static str) -> Self {
        Self { rejection, rule }
    }

    /// A rule that makes the answer 400.
    pub const fn malformed(rule: &'static str) -> Self {
        Self::new(Rejection::BadRequest, rule)
    }

    /// The rule that `head` breaks, which httparse does not read because of `error`; without one, because it is not whole.
    #[cold]
    pub fn of_unreadable(head: &[u8], error: Option<httparse::Error>) -> Self {
        use httparse::Error;
        Self::malformed(match error {
            Some(Error::TooManyHeaders) => {
                return Self::new(Rejection::HeadTooLarge, "it has more fields than client.max_fields");
            }
            _ if is_proxy_header(head) => PROXY_HEADER,
            _ if has_lf_alone(head) => LF_ALONE,
            Some(Error::HeaderName) if has_fold(head) => "a field continues on the next line",
            Some(Error::HeaderName) => "the name of a field has a byte that no name may have",
            Some(Error::HeaderValue) => "the value of a field has a control character",
            Some(Error::Token | Error::Version | Error::NewLine | Error::Status) | None => in_request_line(head),
        })
    }
}

/// Whether a line of `head` ends with a line feed alone.
pub fn has_lf_alone(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|newline| newline == 0 || head[newline - 1] != b'\r')
}

/// Whether `bytes` begin with a PROXY protocol header: a line of version 1, or version 2 without its first two empty lines.
pub fn is_proxy_header(bytes: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 3] = [b"PROXY TCP", b"PROXY UNKNOWN", b"\0\r\nQUIT\n"];
    BEGINNINGS.iter().any(|beginning| bytes.starts_with(beginning))
}

fn has_fold(head: &[u8]) -> bool {
    head.windows(2).any(|pair| matches!(pair, b"\n " | b"\n\t"))
}

fn in_request_line(head: &[u8]) -> &'static str {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.contains(&b'\r') {
        return CR_ALONE;
    }
    let words: Vec<_> = line.splitn(4, |byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else {
        return "the request line is not a method, a target and a version";
    };
    if method.is_empty() || !method.iter().copied().all(is_in_token) {
        "the method has a byte that no method may have"
    } else if target.is_empty() || target.iter().any(u8::is_ascii_control) {
        "the target has a byte that no target may have"
    } else if str::from_utf8(target).is_err() {
        "the target is not UTF-8, and client.raw_targets is off"
    } else if !matches!(version, b"HTTP/1.0" | b"HTTP/1.1") {
        "the version is not HTTP/1.0 or HTTP/1.1"
    } else {
        CR_ALONE
    }
}

//! Parses and checks a request head before anything else looks at it.
//!
//! Requests get smuggled where two programs read the same bytes differently. Nobody knows how lenient the backend is, so
//! [`parse`] rejects whatever can be read in two ways: it is strict wherever RFC 9112 lets a server be strict. The backend never
//! sees the client's bytes: it gets a head that [`headers`](crate::headers) writes from what was read here.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::str;

use crate::http1::list::members;
use crate::http1::names::is_in_token;
use crate::http1::target::{Scheme, is_authority, is_same_host, path_of, split_target, why_no_target};
use crate::http1::violation::{LF_ALONE, Violation, has_lf_alone};
use crate::rejection::Rejection;

/// The most fields in a head, whatever `client.max_fields` is: there is room for so many on the stack.
pub const MOST_FIELDS: usize = 240;

/// A longer target is answered 414 whatever `client.max_head` is: the HTTP library's type for a URI holds no longer one.
const MAX_TARGET: usize = 65_534;

/// More options in `Connection` are refused: no honest client sends so many.
const MAX_OPTIONS: usize = 9;

/// Fields that `Connection` may not name, so that no client can have them removed.
const PROTECTED: [&str; 4] = ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// The configurable rules for heads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The most fields.
    pub max_fields: usize,
    /// Whether a target may have bytes that are not UTF-8.
    pub raw_targets: bool,
    /// The protocols that a connection may switch to, in upper or lower case.
    pub upgrades: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_fields: 100,
            raw_targets: false,
            upgrades: vec!["websocket".to_owned()],
        }
    }
}

impl Rules {
    /// The first protocol in an `Upgrade` field that a connection may switch to.
    pub fn protocol<'b>(&self, value: &'b [u8]) -> Option<&'b [u8]> {
        let allowed = |protocol: &&[u8]| {
            let mut upgrades = self.upgrades.iter();
            upgrades.any(|one| one.as_bytes().eq_ignore_ascii_case(protocol))
        };
        members(value).find(allowed)
    }
}

/// Room for the fields of a head. Most of it stays unused, so it is not initialised either.
pub type Room<'b> = [MaybeUninit<httparse::Header<'b>>; MOST_FIELDS];

/// An empty room.
pub const fn room<'b>() -> Room<'b> {
    [const { MaybeUninit::uninit() }; MOST_FIELDS]
}

/// What [`parse`] needs besides a head.
#[derive(Debug)]
pub struct Scratch<'b> {
    fields: Room<'b>,
    /// A copy of the head, with a target that httparse can read; rarely needed.
    masked: Vec<u8>,
}

/// An empty scratch space.
pub const fn scratch<'b>() -> Scratch<'b> {
    Scratch {
        fields: room(),
        masked: Vec::new(),
    }
}

/// A head that can be read in one way only.
#[derive(Debug, Clone, Copy)]
pub struct Head<'b> {
    /// The method.
    pub method: &'b str,
    /// The target as it came: `/path?query`, `http://host/path?query` (or `https://`) or `*`. It is UTF-8 unless [`Rules::raw_targets`] lets others in.
    pub target: &'b [u8],
    /// The target without scheme and host: `/path?query` or `*`; the slash is missing where an absolute target has no path.
    pub path: &'b [u8],
    /// The scheme that an absolute target names.
    pub scheme: Option<Scheme>,
    /// The version that it came in.
    pub version: Version,
    /// All fields as they came, without spaces around their values.
    pub fields: &'b [httparse::Header<'b>],
    /// The host that an absolute target names, or else `Host`, which only HTTP/1.0 may lack.
    pub host: Option<&'b [u8]>,
    /// How the body is delimited.
    pub body: Body,
    /// With [`Body::Upgrade`], and only then: the protocol to switch to, as the client wrote it.
    pub upgrade: Option<&'b [u8]>,
    /// The client wants to send more requests on the connection.
    pub keeps: bool,
    /// The client has said `Expect`, and may wait for "100 Continue" before it sends the body.
    pub expects: bool,
    /// What `Connection` says.
    connection: Connection<'b>,
}

impl<'b> Head<'b> {
    /// The values of all fields of this name, in order.
    pub fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &'b [u8]> {
        let named = move |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
        self.fields.iter().filter(named).map(|field| field.value)
    }

    /// Whether `Connection` names the field `name` as one that goes no further than this proxy.
    pub fn nominates(&self, name: &str) -> bool {
        let named = &self.connection.nominated[..self.connection.count];
        named.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// The request line as far as it could be read, for the log line of a request that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLine<'b> {
    /// The method, or `-`.
    pub method: &'b str,
    /// The target without scheme, host and fragment, or `-`. What is not UTF-8 in it is replaced.
    pub target: Cow<'b, str>,
}

/// The methods of RFC 9110 and RFC 5789, which are no secret whatever follows them.
const METHODS: [&str; 9] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];

/// Longer words are no method.
const LONGEST_METHOD: usize = 20;

impl<'b> RequestLine<'b> {
    /// What `bytes` begin with, if that looks like a method and a target.
    ///
    /// It may be anything: a field without a request line, the rest of a body that was longer than its `Content-Length`, another
    /// protocol. There are secrets in all of these, and the log must have none.
    pub fn guess(bytes: &'b [u8]) -> Self {
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line.split(u8::is_ascii_whitespace);
        let method = words
            .next()
            .and_then(|word| str::from_utf8(word).ok())
            .unwrap_or_default();
        let is_upper = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
        let may_be_method = (1..=LONGEST_METHOD).contains(&method.len()) && method.bytes().all(is_upper);
        let target = words.next().filter(|_| may_be_method).and_then(path_of);
        Self {
            method: if target.is_some() || METHODS.contains(&method) {
                method
            } else {
                "-"
            },
            target: target.map_or("-".into(), String::from_utf8_lossy),
        }
    }
}

/// A version of HTTP that a request may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// How the body that follows a head is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes, often none.
    Length(u64),
    /// Until the last chunk.
    Chunked,
    /// Whatever follows is of another protocol, if the backend agrees to switch.
    Upgrade,
}

/// Whether the first of `bytes` can begin a request, which begins with its method, a token (RFC 9110, section 9.1). Other
/// protocols, TLS above all, are refused at their first byte instead of at the deadline of a head.
pub fn can_begin(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|first| is_in_token(*first) || *first == b'\r')
}

/// Whether `bytes` begin with a TLS handshake record (RFC 8446, section 5.1), as a client sends it for an `https://` URL.
pub fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [22] | [22, 3, ..])
}

/// The length of the head at the start of `bytes`, its empty line included; `None` when it has not all arrived.
///
/// `scanned` is how many bytes were looked at before. A bare LF ends a head too: [`parse`] refuses it then, instead of
/// waiting for an empty line that the client thinks it has sent.
pub fn length(bytes: &[u8], scanned: usize) -> Option<usize> {
    let from = scanned.saturating_sub(3);
    memchr::memchr_iter(b'\n', &bytes[from..])
        .map(|index| from + index)
        .find_map(|newline| match bytes.get(newline + 1..) {
            Some([b'\n', ..]) => Some(newline + 2),
            Some([b'\r', b'\n', ..]) => Some(newline + 3),
            _ => None,
        })
}

/// Checks a whole head and takes it apart.
///
/// # Errors
/// The first rule that it breaks.
pub fn parse<'b>(bytes: &'b [u8], scratch: &'b mut Scratch<'b>, rules: &Rules) -> Result<Head<'b>, Violation> {
    let Scratch { fields, masked } = scratch;
    let raw_target = if rules.raw_targets { raw_target(bytes) } else { None };
    // What httparse reads: the head, with other bytes in place of those that it would not read.
    let readable = match &raw_target {
        Some(target) => {
            masked.extend_from_slice(bytes);
            let high = masked[target.clone()].iter_mut().filter(|byte| !byte.is_ascii());
            high.for_each(|byte| *byte = b'x');
            masked
        }
        None => bytes,
    };
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(readable, &mut fields[..rules.max_fields.min(MOST_FIELDS)]) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Violation::of_unreadable(readable, None)),
        Err(error) => return Err(Violation::of_unreadable(readable, Some(error))),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Violation::of_unreadable(readable, None));
    };
    let target = raw_target.map_or(target.as_bytes(), |range| &bytes[range]);
    if target.len() > MAX_TARGET {
        return Err(Violation::new(
            Rejection::UriTooLong,
            "the target is longer than 65534 bytes",
        ));
    }
    if has_lf_alone(bytes) {
        return Err(Violation::malformed(LF_ALONE));
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    check(method, target, version, request.headers, rules)
}

/// Checks a head that has been taken apart.
///
/// # Errors
/// The first rule that it breaks.
#[inline]
pub fn check<'b>(
    method: &'b str,
    target: &'b [u8],
    version: Version,
    fields: &'b [httparse::Header<'b>],
    rules: &Rules,
) -> Result<Head<'b>, Violation> {
    let malformed = |rule| Err(Violation::malformed(rule));
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Violation::new(
            Rejection::MethodNotAllowed,
            "CONNECT and TRACE are not proxied",
        ));
    }
    let (named, path) = split_target(target);
    let path = if named.is_some() && path.is_empty() && method == "OPTIONS" {
        // RFC 9112, section 3.2.4: the whole server is meant.
        b"*"
    } else {
        path
    };
    if let Some(rule) = why_no_target(target) {
        return malformed(rule);
    }
    if target == b"*" && method != "OPTIONS" {
        return malformed("* is a target of OPTIONS alone");
    }
    if named.is_some_and(|named| !is_authority(named.authority)) {
        return malformed("the target names no host, or one with more than a name and a port");
    }
    let (mut host, mut length, mut coding, mut upgrade, mut expects) = (None, None, None, None, false);
    let mut connection = Connection::default();
    for field in fields {
        let name = field.name;
        if name.eq_ignore_ascii_case("host") {
            if !is_authority(field.value) {
                return malformed("Host is not a name with an optional port");
            }
            if named.is_some_and(|named| !is_same_host(named, field.value)) {
                return malformed("Host and the target name different hosts");
            }
            if host.replace(field.value).is_some() {
                return malformed("two Host fields");
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            // One field of digits and nothing else: repeated, signed, listed or padded lengths are read differently.
            if length.replace(content_length(field.value)?).is_some() {
                return malformed("two Content-Length fields");
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if coding.replace(Coding::read(field.value)?).is_some() {
                return malformed("two Transfer-Encoding fields");
            }
        } else if name.eq_ignore_ascii_case("connection") {
            connection.read(field.value)?;
        } else if name.eq_ignore_ascii_case("upgrade") {
            upgrade = upgrade.or_else(|| rules.protocol(field.value));
        } else if name.eq_ignore_ascii_case("expect") {
            expects = true;
        }
    }
    // HTTP/1.0 requires no Host and has no chunks.
    let old = version == Version::Http10;
    if host.is_none() && !old {
        return malformed("no Host field");
    }
    if coding.is_some() && length.is_some() {
        return malformed("Transfer-Encoding together with Content-Length");
    }
    if coding.is_some() && old {
        return malformed("Transfer-Encoding in HTTP/1.0");
    }
    let body = match (coding, length.unwrap_or(0)) {
        (Some(Coding::Chunked), _) => Body::Chunked,
        (Some(Coding::Unknown), _) => {
            let rule = "Transfer-Encoding names a coding other than chunked";
            return Err(Violation::new(Rejection::NotImplemented, rule));
        }
        // Only a request without a body can switch: its body could not be told from what follows the switch. And only one of
        // HTTP/1.1 whose `Connection` says so (RFC 9110, section 7.8).
        (None, 0) if connection.upgrade && upgrade.is_some() && !old => Body::Upgrade,
        (None, length) => Body::Length(length),
    };
    Ok(Head {
        method,
        target,
        path,
        scheme: named.map(|named| named.scheme),
        version,
        fields,
        host: named.map(|named| named.authority).or(host),
        body,
        upgrade: upgrade.filter(|_| body == Body::Upgrade),
        keeps: !connection.close && (connection.keep_alive || !old),
        expects,
        connection,
    })
}

/// Where in `head` the target is that httparse does not read, because it is not UTF-8. If the request line is none, it may be
/// elsewhere; httparse does not read that either.
fn raw_target(head: &[u8]) -> Option<Range<usize>> {
    let start = memchr::memchr(b' ', head)? + 1;
    let end = start + memchr::memchr(b' ', &head[start..])?;
    str::from_utf8(&head[start..end]).is_err().then_some(start..end)
}

/// What a `Transfer-Encoding` field asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Chunked,
    /// A coding that this proxy does not have, alone or with `chunked` as the last (RFC 9112, section 6.1).
    Unknown,
}

impl Coding {
    fn read(value: &[u8]) -> Result<Self, Violation> {
        if value.eq_ignore_ascii_case(b"chunked") {
            return Ok(Self::Chunked);
        }
        let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let is_unknown =
            |coding: &[u8]| !coding.is_empty() && !is_chunked(coding) && coding.iter().copied().all(is_in_token);
        let mut codings = value.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let last = codings.next().unwrap_or_default();
        let before = codings.next();
        let known = match before {
            None => is_unknown(last),
            Some(before) => is_chunked(last) && is_unknown(before) && codings.all(is_unknown),
        };
        if known {
            Ok(Self::Unknown)
        } else {
            Err(Violation::malformed(
                "Transfer-Encoding is not a list of codings with chunked at its end",
            ))
        }
    }
}

/// What the `Connection` fields say.
#[derive(Debug, Clone, Copy, Default)]
struct Connection<'b> {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    /// The first `count` are the options, those above among them.
    nominated: [&'b [u8]; MAX_OPTIONS],
    count: usize,
}

impl<'b> Connection<'b> {
    /// Reads one more field.
    fn read(&mut self, value: &'b [u8]) -> Result<(), Violation> {
        let malformed = |rule| Err(Violation::malformed(rule));
        for option in members(value) {
            let protected = PROTECTED
                .iter()
                .any(|name| option.eq_ignore_ascii_case(name.as_bytes()));
            let Some(place) = self.nominated.get_mut(self.count) else {
                return malformed("Connection has more than 9 options");
            };
            if protected {
                return malformed("Connection names a field that is not the connection's");
            }
            if !option.iter().copied().all(is_in_token) {
                return malformed("Connection is not a list of names");
            }
            *place = option;
            self.count += 1;
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
        Ok(())
    }
}

fn content_length(value: &[u8]) -> Result<u64, Violation> {
    str::from_utf8(value)
        .ok()
        .filter(|_| is_canonical_length(value))
        .and_then(|text| text.parse().ok())
        .ok_or(Violation::malformed("Content-Length is not a plain number"))
}

/// Whether a Content-Length is written in the only way that all readers agree on: digits, without leading zeros.
pub fn is_canonical_length(value: &[u8]) -> bool {
    let padded = value.len() > 1 && value[0] == b'0';
    !value.is_empty() && !padded && value.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests;

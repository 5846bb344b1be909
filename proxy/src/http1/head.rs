//! Parses and checks a request head before anything else looks at it.
//!
//! Two programs that read the same bytes differently are how requests get smuggled. Pingora's parser is lenient where the
//! origin behind us may not be (or the reverse), so [`parse`] rejects whatever can be read in two ways: it is strict
//! where RFC 9112 lets a server be strict. Pingora and the backend never see the client's bytes: they get a head that
//! [`headers`](crate::headers) writes from what was read here.

use std::mem::MaybeUninit;
use std::str;

use crate::http1::chunks::is_in_name;
use crate::http1::target::{is_authority, is_same_host, is_target, split_target};
use crate::rejection::Rejection;

/// The most fields in a head, whatever `client.max_fields` is: Pingora reads 256, and a few are added to what comes.
pub const MOST_FIELDS: usize = 240;

/// A longer target is answered 414 whatever `client.max_head` is: the HTTP library takes none.
const MAX_TARGET: usize = 65_534;

/// More options in `Connection` are refused: no client that means well sends them.
const MAX_OPTIONS: usize = 9;

/// What `Connection` may not name as its own, to be taken off before the backend sees it.
const PROTECTED: [&str; 4] = ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// Room for the fields of a head. Most of it stays unused, so it is not initialised either.
pub type Room<'b> = [MaybeUninit<httparse::Header<'b>>; MOST_FIELDS];

/// An empty room.
pub const fn room<'b>() -> Room<'b> {
    [const { MaybeUninit::uninit() }; MOST_FIELDS]
}

/// A head that can be read in one way only.
#[derive(Debug, Clone, Copy)]
pub struct Head<'b> {
    /// The method.
    pub method: &'b str,
    /// The target as it came: `/path?query`, `http://host/path?query` or `*`.
    pub target: &'b str,
    /// The target without scheme and host: `/path?query` or `*`; the slash is missing where an absolute target has no path.
    pub path: &'b str,
    /// The version is HTTP/1.0, and not HTTP/1.1.
    pub old: bool,
    /// All fields as they came, without spaces around their values.
    pub fields: &'b [httparse::Header<'b>],
    /// The host that an absolute target names, or else `Host`, which only HTTP/1.0 may lack.
    pub host: Option<&'b [u8]>,
    /// How the body is delimited.
    pub body: Body,
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

/// The line of a request, as far as anything could be made of it: for the access log of a request that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLine<'b> {
    /// The method, or `-`.
    pub method: &'b str,
    /// The target, or `-`.
    pub target: &'b str,
}

impl<'b> RequestLine<'b> {
    /// The first two words of `bytes`, where they are text.
    pub fn guess(bytes: &'b [u8]) -> Self {
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line
            .split(|byte| *byte == b' ')
            .map(|word| str::from_utf8(word).unwrap_or("-").trim())
            .map(|word| if word.is_empty() { "-" } else { word });
        Self {
            method: words.next().filter(|word| word.bytes().all(is_in_name)).unwrap_or("-"),
            target: words.next().unwrap_or("-"),
        }
    }
}

/// How the body that follows a head is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes, often none.
    Length(u64),
    /// Until the last chunk.
    Chunked,
    /// Whatever follows is WebSocket, if the backend agrees to switch.
    Upgrade,
}

/// Whether the first of `bytes` can begin a request, which begins with its method, a token (RFC 9110, section 9.1). Other
/// protocols, TLS above all, are refused at their first byte instead of after the time that a head may take.
pub fn can_begin(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|first| is_in_name(*first) || *first == b'\r')
}

/// Whether `bytes` begin with a TLS handshake record (RFC 8446, section 5.1), as a client sends it that was given `https://`.
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

/// Checks a whole head, which may have `max_fields` fields, and takes it apart.
///
/// # Errors
/// What to answer instead of proxying it.
pub fn parse<'b>(bytes: &'b [u8], room: &'b mut Room<'b>, max_fields: usize) -> Result<Head<'b>, Rejection> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut room[..max_fields.min(MOST_FIELDS)]) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Rejection::HeadTooLarge),
        Ok(httparse::Status::Partial) | Err(_) => return Err(Rejection::BadRequest),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Rejection::BadRequest);
    };
    if target.len() > MAX_TARGET {
        return Err(Rejection::UriTooLong);
    }
    if has_bare_line_end(bytes) {
        return Err(Rejection::BadRequest);
    }
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Rejection::MethodNotAllowed);
    }
    let (named, path) = split_target(target);
    let path = if named.is_some() && path.is_empty() && method == "OPTIONS" {
        // RFC 9112, section 3.2.4: the whole server is meant.
        "*"
    } else {
        path
    };
    if !is_target(target) || (target == "*" && method != "OPTIONS") {
        return Err(Rejection::BadRequest);
    }
    if named.is_some_and(|named| !is_authority(named.as_bytes())) {
        return Err(Rejection::BadRequest);
    }
    let fields: &[httparse::Header<'_>] = request.headers;
    let (mut host, mut length, mut coding, mut upgrade, mut expects) = (None, None, None, None, false);
    let mut connection = Connection::default();
    for field in fields {
        let name = field.name;
        if name.eq_ignore_ascii_case("host") {
            let differs = named.is_some_and(|named| !is_same_host(named.as_bytes(), field.value));
            if !is_authority(field.value) || differs || host.replace(field.value).is_some() {
                return Err(Rejection::BadRequest);
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            // One field of digits and nothing else: repeated, signed, listed or padded lengths are read differently.
            if length.replace(content_length(field.value)?).is_some() {
                return Err(Rejection::BadRequest);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if coding.replace(Coding::read(field.value)?).is_some() {
                return Err(Rejection::BadRequest);
            }
        } else if name.eq_ignore_ascii_case("connection") {
            connection.read(field.value)?;
        } else if name.eq_ignore_ascii_case("upgrade") {
            // The first of several counts, as for everybody else here.
            upgrade.get_or_insert(minor == 1 && field.value.eq_ignore_ascii_case(b"websocket"));
        } else if name.eq_ignore_ascii_case("expect") {
            expects = true;
        }
    }
    // HTTP/1.0 knows neither a required Host nor chunks.
    let old = minor == 0;
    if (host.is_none() && !old) || (coding.is_some() && (length.is_some() || old)) {
        return Err(Rejection::BadRequest);
    }
    let body = match (coding, length.unwrap_or(0)) {
        (Some(Coding::Chunked), _) => Body::Chunked,
        (Some(Coding::Unknown), _) => return Err(Rejection::NotImplemented),
        // Only a request without a body can switch: its body could not be told from what follows the switch. And only one whose
        // `Connection` says so (RFC 9110, section 7.8).
        (None, 0) if connection.upgrade && upgrade.unwrap_or(false) => Body::Upgrade,
        (None, length) => Body::Length(length),
    };
    Ok(Head {
        method,
        target,
        path,
        old,
        fields,
        host: named.map(str::as_bytes).or(host),
        body,
        keeps: !connection.close && (connection.keep_alive || !old),
        expects,
        connection,
    })
}

/// What a `Transfer-Encoding` field asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Chunked,
    /// A coding that this proxy does not have, alone or with `chunked` as the last (RFC 9112, section 6.1).
    Unknown,
}

impl Coding {
    fn read(value: &[u8]) -> Result<Self, Rejection> {
        if value.eq_ignore_ascii_case(b"chunked") {
            return Ok(Self::Chunked);
        }
        let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let is_unknown =
            |coding: &[u8]| !coding.is_empty() && !is_chunked(coding) && coding.iter().copied().all(is_in_name);
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
            Err(Rejection::BadRequest)
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
    fn read(&mut self, value: &'b [u8]) -> Result<(), Rejection> {
        for option in options(value) {
            let protected = PROTECTED
                .iter()
                .any(|name| option.eq_ignore_ascii_case(name.as_bytes()));
            let Some(place) = self.nominated.get_mut(self.count) else {
                return Err(Rejection::BadRequest);
            };
            if protected || !option.iter().copied().all(is_in_name) {
                return Err(Rejection::BadRequest);
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

/// The parts of a list that are not empty.
fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let options = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    options.filter(|option| !option.is_empty())
}

fn has_bare_line_end(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes).any(|newline| newline == 0 || bytes[newline - 1] != b'\r')
}

fn content_length(value: &[u8]) -> Result<u64, Rejection> {
    str::from_utf8(value)
        .ok()
        .filter(|_| is_canonical_length(value))
        .and_then(|text| text.parse().ok())
        .ok_or(Rejection::BadRequest)
}

/// Whether a Content-Length is written in the one way that nobody reads differently: digits alone, and no zero before them.
pub fn is_canonical_length(value: &[u8]) -> bool {
    let padded = value.len() > 1 && value[0] == b'0';
    !value.is_empty() && !padded && value.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_FIELDS: usize = 100;

    fn check(head: &str) -> Result<Body, Rejection> {
        let bytes = head.as_bytes();
        assert_eq!(length(bytes, 0), Some(bytes.len()), "{head:?}");
        parse(bytes, &mut room(), MAX_FIELDS).map(|head| head.body)
    }

    #[test]
    fn a_head_ends_at_its_empty_line_however_it_arrives() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody\r\n\r\n";
        for scanned in 0..27 {
            assert_eq!(length(&bytes[..scanned], scanned.saturating_sub(1)), None, "{scanned}");
            assert_eq!(length(bytes, scanned), Some(27), "{scanned}");
        }
        assert_eq!(length(b"GET / HTTP/1.1\n\nrest", 0), Some(16));
    }

    #[test]
    fn heads_that_mean_one_thing_are_taken() {
        for (head, body) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Body::Length(0)),
            ("GET / HTTP/1.0\r\n\r\n", Body::Length(0)),
            ("OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", Body::Length(0)),
            ("GET / HTTP/1.1\r\nHost: a-b_c.d.:\r\n\r\n", Body::Length(0)),
            ("GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", Body::Length(0)),
            ("GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n", Body::Length(0)),
            (
                "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 42\r\n\r\n",
                Body::Length(42),
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
                Body::Chunked,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
                Body::Upgrade,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
                Body::Length(0),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nUpgrade: h2c\r\nConnection: x, Upgrade\r\n\r\n",
                Body::Upgrade,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
                Body::Upgrade,
            ),
            // Without the option in `Connection`, or with a body, it is an ordinary request.
            (
                "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
                Body::Length(0),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n",
                Body::Length(1),
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n",
                Body::Chunked,
            ),
            (
                "GET HTTP://Shop.Example:80/b HTTP/1.1\r\nHost: shop.example\r\n\r\n",
                Body::Length(0),
            ),
            ("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", Body::Length(0)),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n\r\n",
                Body::Length(0),
            ),
        ] {
            assert_eq!(check(head), Ok(body), "{head:?}");
        }
    }

    #[test]
    fn heads_that_could_mean_two_things_are_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a[::1]\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
            "GET /#f HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{1} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /<b> HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a?<b> HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a?b HTTP/1.1\r\nHost: a:8080\r\n\r\n",
            "GET http://a:180/ HTTP/1.1\r\nHost: a:1\r\n\r\n",
            "GET http://u:p@a/ HTTP/1.0\r\n\r\n",
            "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /` HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 01\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, x\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip,, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: gzip\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, HOST\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive close\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: a,b,c,d,e\r\nConnection: f,g,h,i,j\r\n\r\n",
        ] {
            assert_eq!(check(head), Err(Rejection::BadRequest), "{head:?}");
        }
        for line in ["CONNECT /", "CONNECT a:443", "TRACE /"] {
            let head = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(check(&head), Err(Rejection::MethodNotAllowed));
        }
        for codings in ["gzip", "gzip, chunked", "gzip , x,CHUNKED"] {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {codings}\r\n\r\n");
            assert_eq!(check(&head), Err(Rejection::NotImplemented), "{codings}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(MAX_TARGET));
        assert_eq!(check(&long), Err(Rejection::UriTooLong));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS));
        assert_eq!(check(&many), Err(Rejection::HeadTooLarge));
    }

    #[test]
    fn connections_are_kept_or_not_and_fields_end_here_as_the_client_says() {
        let with = |version: &str, connection: &str| {
            let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}X: y\r\n\r\n");
            let mut room = room();
            let head = parse(text.as_bytes(), &mut room, MAX_FIELDS).unwrap();
            (head.keeps, head.nominates("x"))
        };
        assert_eq!(with("1.1", ""), (true, false));
        assert_eq!(with("1.1", "Connection: Keep-Alive\r\n"), (true, false));
        assert_eq!(with("1.1", "Connection: X\r\nConnection: ,Close\r\n"), (false, true));
        assert_eq!(with("1.1", "Connection: keep-alive, close\r\n"), (false, false));
        assert_eq!(with("1.1", "Connection: upgrade , x\r\n"), (true, true));
        assert_eq!(with("1.0", ""), (false, false));
        assert_eq!(with("1.0", "Connection: keep-alive\r\n"), (true, false));
    }

    #[test]
    fn the_line_of_a_broken_request_is_guessed_for_the_log() {
        let guess = |bytes| {
            let line = RequestLine::guess(bytes);
            (line.method, line.target)
        };
        assert_eq!(guess(b"GET /a?b HTTP/1.1\r\nHost"), ("GET", "/a?b"));
        assert_eq!(guess(b"\x16\x03\x01\xff"), ("-", "-"));
        assert_eq!(guess(b""), ("-", "-"));
        assert_eq!(guess(b"GET\r\n"), ("GET", "-"));
    }
}

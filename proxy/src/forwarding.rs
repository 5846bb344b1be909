//! What the backend and the client get to see of each other.
//!
//! The request head that Pingora and the backend read is written here, field by field, from what [`head`](crate::head) has read
//! of the client's. Fields that concern only the client's connection stay out, and so does what a peer that is not trusted
//! says of itself (X-Forwarded-*, Forwarded, X-Real-IP, X-Request-Id); what tells the backend whose request it is comes
//! in, some of it only into the copy that Pingora makes for the backend, because each field that it reads and copies costs it 1,500
//! instructions. Responses come through Pingora, and have straightened and taken off them what must not go further.

use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error, ErrorType, Result};

use crate::client::FORWARDED_FOR;
use crate::head::{Body, Head, is_canonical_length};

/// A longer X-Request-Id is not kept, even from a trusted peer: it goes into the log.
const MAX_REQUEST_ID: usize = 128;

/// How long the fields are that [`write_request`] adds, but for their values.
const ADDED: usize = 128;

/// Fields of the client's connection, which go no further. Of those the backend gets its own.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "upgrade",
    "transfer-encoding",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "http2-settings",
];

/// What is told of a request.
#[derive(Debug, Clone, Copy)]
pub struct Origination<'r> {
    /// The peer, as an address without a port.
    pub peer: &'r HeaderValue,
    /// Whether the peer is believed.
    pub trusted_peer: bool,
    /// The host that a request of HTTP/1.0 gets that names none, because the backend hears HTTP/1.1, which requires one.
    pub backend: &'r str,
}

/// What the backend is told of a request besides.
#[derive(Debug)]
pub struct Provenance {
    /// The hops that a trusted peer tells of, and the peer.
    forwarded_for: HeaderValue,
    /// What the request is known by, here and in the backend.
    pub request_id: HeaderValue,
}

impl Provenance {
    /// Adds X-Forwarded-For and X-Request-Id to `request`.
    ///
    /// # Errors
    /// When it has tens of thousands of fields already.
    pub fn tell(&self, request: &mut RequestHeader) -> Result<()> {
        request.append_header("X-Forwarded-For", self.forwarded_for.clone())?;
        request.append_header("X-Request-Id", self.request_id.clone())?;
        Ok(())
    }
}

/// Writes the head that Pingora gets: the client's without what ends here, then X-Forwarded-Proto and -Host and Via. `Host` stays what it
/// is, and so do the names of fields, in upper and lower case. Returns what the backend is told besides.
pub fn write_request(head: &Head<'_>, about: Origination<'_>, to: &mut BytesMut) -> Provenance {
    let fields = head.fields.iter().map(|field| field.name.len() + field.value.len() + 4);
    to.reserve(head.method.len() + head.path.len() + ADDED + 2 * fields.sum::<usize>());
    to.put_slice(head.method.as_bytes());
    // The path is empty, or only a query, where an absolute target has none (RFC 9112, section 3.2.1).
    to.put_slice(if matches!(head.path.as_bytes().first(), Some(b'/' | b'*')) {
        b" "
    } else {
        b" /"
    });
    to.put_slice(head.path.as_bytes());
    to.put_slice(if head.old { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
    // Whether a trusted peer has said what else would be said here.
    let (mut proto, mut forwarded_host) = (false, false);
    let host = head.host.unwrap_or(about.backend.as_bytes());
    let mut has_host = false;
    for field in head.fields {
        let name = field.name;
        if ends_here(name) || (head.nominates(name) && !is(name, "content-length")) {
            continue;
        }
        if is_claim(name) {
            if !about.trusted_peer || is(name, FORWARDED_FOR) || is(name, "x-request-id") {
                continue;
            }
            proto |= is(name, "x-forwarded-proto");
            forwarded_host |= is(name, "x-forwarded-host");
        }
        if is(name, "host") {
            has_host = true;
            write_field(name, host, to);
        } else {
            write_field(name, field.value, to);
        }
    }
    match head.body {
        Body::Length(_) => {}
        Body::Chunked => to.put_slice(b"Transfer-Encoding: chunked\r\n"),
        Body::Upgrade => to.put_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    }
    if !proto {
        to.put_slice(b"X-Forwarded-Proto: http\r\n");
    }
    if !has_host {
        write_field("Host", host, to);
    }
    if head.host.is_some() && !forwarded_host {
        write_field("X-Forwarded-Host", host, to);
    }
    // The version is the one that was received (RFC 9110, section 7.6.3).
    to.put_slice(if head.old {
        b"Via: 1.0 gopherproxy\r\n\r\n"
    } else {
        b"Via: 1.1 gopherproxy\r\n\r\n"
    });
    Provenance {
        forwarded_for: forwarded_for(head, about),
        request_id: request_id(head, about.trusted_peer),
    }
}

fn write_field(name: &str, value: &[u8], to: &mut BytesMut) {
    to.put_slice(name.as_bytes());
    to.put_slice(b": ");
    to.put_slice(value);
    to.put_slice(b"\r\n");
}

/// The hops that a trusted peer names, and the peer. Bytes that are not text end what can be known, as they do for
/// [`identify`](crate::client::identify): the origin sees what lies to the right of them.
fn forwarded_for(head: &Head<'_>, about: Origination<'_>) -> HeaderValue {
    if !about.trusted_peer {
        return about.peer.clone();
    }
    let mut lines = Vec::new();
    for line in head.values(FORWARDED_FOR).rev() {
        let garbled = line.iter().rposition(|byte| !matches!(byte, b'\t' | b' '..=b'~'));
        let readable = match garbled {
            None => line,
            Some(last) => line[last..].splitn(2, |byte| *byte == b',').nth(1).unwrap_or_default(),
        };
        let readable = readable.trim_ascii();
        if !readable.is_empty() {
            lines.push(readable);
        }
        if garbled.is_some() {
            break;
        }
    }
    if lines.is_empty() {
        return about.peer.clone();
    }
    lines.reverse();
    lines.push(about.peer.as_bytes());
    let hops = lines.join(&b", "[..]);
    // Each part is text.
    HeaderValue::try_from(hops).unwrap_or_else(|_| about.peer.clone())
}

/// What a trusted peer has named the request, or else 128 random bits.
fn request_id(head: &Head<'_>, trusted_peer: bool) -> HeaderValue {
    let is_id = |value: &&[u8]| (1..=MAX_REQUEST_ID).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
    let given = trusted_peer.then(|| head.values("x-request-id").next()).flatten();
    let given = given.filter(is_id).and_then(|id| HeaderValue::from_bytes(id).ok());
    given.unwrap_or_else(|| {
        let digits = fastrand::u128(..).to_be_bytes().map(|byte| HEX[usize::from(byte)]);
        HeaderValue::from_bytes(digits.as_flattened()).expect("hexadecimal digits are text")
    })
}

/// Each byte in two hexadecimal digits.
static HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut all = [[0; 2]; 256];
    let mut byte = 0;
    while byte < all.len() {
        all[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    all
};

fn is(name: &str, other: &str) -> bool {
    name.eq_ignore_ascii_case(other)
}

/// Whether a field of this name concerns the client's connection alone, or is another spelling of one that does or of the
/// length of the body: CGI and its kin take `_` for `-`.
fn ends_here(name: &str) -> bool {
    HOP_BY_HOP.iter().any(|one| is_alike(name, one))
        || (is_alike(name, "content-length") && !is(name, "content-length"))
}

/// Whether `name` is `known`, which is in lower case, for a reader that takes `_` for `-`.
fn is_alike(name: &str, known: &str) -> bool {
    name.len() == known.len()
        && std::iter::zip(name.bytes(), known.bytes())
            .all(|(byte, known)| byte.to_ascii_lowercase() == known || (byte == b'_' && known == b'-'))
}

/// Whether a field of this name says where a request came from.
fn is_claim(name: &str) -> bool {
    const FAMILY: &str = "x-forwarded";
    const OTHERS: [&str; 3] = ["forwarded", "x-real-ip", "x-request-id"];
    name.get(..FAMILY.len()).is_some_and(|family| is_alike(family, FAMILY))
        || OTHERS.iter().any(|known| is_alike(name, known))
}

/// Makes the framing of a response say one thing, for Pingora passes it on as it came: one Content-Length in digits, none
/// where there can't be a body, HTTP/1.1 as the version, which is this proxy's own.
///
/// # Errors
/// When it says two things, or a transfer coding that nobody here can undo.
pub fn straighten(response: &mut ResponseHeader) -> Result<()> {
    let broken = |what: &'static str| {
        Error::e_explain(ErrorType::InvalidHTTPHeader, what).map_err(|error: Box<Error>| error.into_up())
    };
    response.set_version(Version::HTTP_11);
    if response.status.is_informational() || response.status == StatusCode::NO_CONTENT {
        response.remove_header(&header::CONTENT_LENGTH);
        response.remove_header(&header::TRANSFER_ENCODING);
        return Ok(());
    }
    let (mut chunked, mut lengths, mut canonical) = (false, 0, true);
    for (name, value) in &response.headers {
        if name == header::TRANSFER_ENCODING {
            if chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return broken("the backend's transfer coding is not chunked");
            }
            chunked = true;
        } else if name == header::CONTENT_LENGTH {
            lengths += 1;
            canonical &= is_canonical_length(value.as_bytes());
        }
    }
    if lengths == 0 || (lengths == 1 && canonical) {
        return Ok(());
    }
    let mut meant = None;
    for value in response.headers.get_all(header::CONTENT_LENGTH) {
        for length in value.to_str().unwrap_or_default().split(',') {
            let length = length.trim();
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            match length.parse::<u64>() {
                Ok(length) if digits && *meant.get_or_insert(length) == length => {}
                _ => return broken("the backend's Content-Length says two things"),
            }
        }
    }
    response.insert_header(header::CONTENT_LENGTH, meant.unwrap_or_default())
}

/// Takes off a response what concerns only the connection to the backend. Its framing (Content-Length, Transfer-Encoding)
/// stays, for Pingora to frame the response anew; `Upgrade` stays on the answers that accept one or ask for one.
pub fn strip_hop_by_hop(response: &mut ResponseHeader) {
    // One look for all of them, because most responses have none.
    let switches = response.status == StatusCode::SWITCHING_PROTOCOLS;
    let mut ending: Vec<HeaderName> = Vec::new();
    for (name, value) in &response.headers {
        let ends = match name.as_str() {
            "keep-alive" | "proxy-connection" => true,
            "upgrade" => !switches && response.status != StatusCode::UPGRADE_REQUIRED,
            "connection" => {
                ending.extend(nominated(value));
                !switches
            }
            _ => false,
        };
        if ends {
            ending.push(name.clone());
        }
    }
    for name in &ending {
        response.remove_header(name);
    }
}

/// The fields that a Connection field says end with the connection. Options are no fields, and framing is not the backend's to
/// take off.
fn nominated(value: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    let names = value.to_str().unwrap_or_default().split(',');
    names
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name: &HeaderName| {
            !matches!(
                name.as_str(),
                "close" | "keep-alive" | "upgrade" | "content-length" | "transfer-encoding"
            )
        })
}

/// Whether a response to `method` ends with its head.
pub fn has_no_body(method: &Method, response: &ResponseHeader) -> bool {
    let length = response.headers.get(header::CONTENT_LENGTH);
    method == Method::HEAD
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || (!response.status.is_informational() && length.is_some_and(|length| length == "0"))
}

/// Whether the response has to end with its connection, because a client of `version` knows no chunks and the length of
/// the body is not known.
pub fn ends_with_connection(version: Version, response: &ResponseHeader) -> bool {
    version == Version::HTTP_10
        && !response.status.is_informational()
        && !response.headers.contains_key(header::CONTENT_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head;

    /// The fields that the backend gets, names in lower case, of a request with these.
    fn passed_on(trusted_peer: bool, fields: &[(&str, &str)]) -> Vec<(String, String)> {
        passed_on_to("/a?b", trusted_peer, fields)
    }

    /// The same for a request with this target.
    fn passed_on_to(target: &str, trusted_peer: bool, fields: &[(&str, &str)]) -> Vec<(String, String)> {
        let fields: String = fields
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let text = format!("GET {target} HTTP/1.0\r\n{fields}\r\n");
        let mut room = head::room();
        let head = head::parse(text.as_bytes(), &mut room, head::MOST_FIELDS).unwrap();
        let about = Origination {
            peer: &HeaderValue::from_static("10.0.0.1"),
            trusted_peer,
            backend: "backend:80",
        };
        let mut written = BytesMut::new();
        let provenance = write_request(&head, about, &mut written);
        let written = String::from_utf8(written.into()).unwrap();
        let (line, lines) = written.split_once("\r\n").unwrap();
        assert!(line.starts_with("GET /") && line.ends_with(" HTTP/1.0"), "{line}");
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for line in lines.strip_suffix("\r\n\r\n").unwrap().split("\r\n") {
            let (name, value) = line.split_once(": ").unwrap();
            request.append_header(name.to_owned(), value).unwrap();
        }
        provenance.tell(&mut request).unwrap();
        let fields = request.headers.iter();
        fields
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect()
    }

    fn all<'f>(fields: &'f [(String, String)], name: &str) -> Vec<&'f str> {
        let named = fields.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    const CLAIMS: [(&str, &str); 8] = [
        ("Host", "shop.example"),
        ("X-Forwarded-For", "1.1.1.1"),
        ("X-Forwarded-For", "2.2.2.2"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "www.shop.example"),
        ("X-Forwarded-Prefix", "/admin"),
        ("X-Real-Ip", "1.1.1.1"),
        ("X-Request-Id", "abc-123"),
    ];

    #[test]
    fn what_an_untrusted_peer_claims_is_replaced() {
        let request = passed_on(false, &CLAIMS);
        assert_eq!(all(&request, "x-forwarded-for"), ["10.0.0.1"]);
        assert_eq!(all(&request, "x-forwarded-proto"), ["http"]);
        assert_eq!(all(&request, "x-forwarded-host"), ["shop.example"]);
        assert_eq!(all(&request, "x-forwarded-prefix"), [""; 0]);
        assert_eq!(all(&request, "x-real-ip"), [""; 0]);
        assert_eq!(all(&request, "via"), ["1.0 gopherproxy"]);
        assert_ne!(all(&request, "x-request-id"), ["abc-123"]);
    }

    #[test]
    fn what_a_trusted_peer_says_is_passed_on_and_the_peer_added() {
        let request = passed_on(true, &CLAIMS);
        assert_eq!(all(&request, "x-forwarded-for"), ["1.1.1.1, 2.2.2.2, 10.0.0.1"]);
        assert_eq!(all(&request, "x-forwarded-proto"), ["https"]);
        assert_eq!(all(&request, "x-forwarded-host"), ["www.shop.example"]);
        assert_eq!(all(&request, "x-real-ip"), ["1.1.1.1"]);
        assert_eq!(all(&request, "x-request-id"), ["abc-123"]);
    }

    #[test]
    fn a_request_id_that_could_be_mischief_is_made_anew() {
        for id in ["", "a b", &"x".repeat(MAX_REQUEST_ID + 1)] {
            let request = passed_on(true, &[("X-Request-Id", id)]);
            let [made] = all(&request, "x-request-id")[..] else {
                panic!("{request:?}")
            };
            assert_eq!(made.len(), 32, "{made}");
        }
    }

    #[test]
    fn hop_by_hop_fields_of_a_response_go_and_its_framing_stays() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("Connection", "close, X-Internal, Content-Length"),
            ("X-Internal", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Upgrade", "h2c"),
            ("Content-Length", "3"),
            ("X-Public", "1"),
        ] {
            response.append_header(name, value).unwrap();
        }
        strip_hop_by_hop(&mut response);
        let mut names: Vec<_> = response.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "x-public"]);
    }

    #[test]
    fn claims_are_known_by_all_their_names() {
        for name in [
            "x-forwarded-for",
            "X_Forwarded_For",
            "x-forwarded",
            "x_forwarded-host",
            "forwarded",
            "x_real_ip",
            "x_request_id",
        ] {
            assert!(is_claim(name), "{name}");
        }
        for name in ["x-forward", "forwarded-by", "x-real-ip-2", "host", ""] {
            assert!(!is_claim(name), "{name}");
        }
    }

    #[test]
    fn a_client_of_http_1_0_without_a_host_gets_the_backends() {
        assert_eq!(all(&passed_on(false, &[]), "host"), ["backend:80"]);
        assert_eq!(all(&passed_on(false, &[("Host", "a")]), "host"), ["a"]);
        // It may name one in its target.
        assert_eq!(all(&passed_on_to("http://b:1/", false, &[]), "host"), ["b:1"]);
    }

    #[test]
    fn what_concerns_the_connection_alone_goes_no_further() {
        let fields = [
            ("Connection", "X-Hop, Content-Length"),
            ("Content-Length", "0"),
            ("x-HOP", "1"),
            ("Keep-Alive", "5"),
            ("Upgrade", "h2c"),
            ("TE", "trailers"),
            ("Trailer", "X"),
            ("Proxy-Authorization", "secret"),
            ("X-End", "1"),
        ];
        let request = passed_on(false, &fields);
        let mut names: Vec<_> = request.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let added = [
            "host",
            "via",
            "x-end",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-request-id",
        ];
        assert_eq!(names[..1], ["content-length"]);
        assert_eq!(names[1..], added);
    }

    #[test]
    fn framing_that_says_one_thing_is_said_once_and_all_other_is_refused() {
        let straightened = |status: u16, fields: &[(&'static str, &str)]| {
            let mut response = ResponseHeader::build(status, None).unwrap();
            for (name, value) in fields {
                response.append_header(*name, *value).unwrap();
            }
            straighten(&mut response)
                .map(|()| {
                    let field = |name| {
                        response
                            .headers
                            .get_all(name)
                            .iter()
                            .map(|value| value.to_str().unwrap().to_owned())
                            .collect::<Vec<_>>()
                            .join("|")
                    };
                    (field("content-length"), field("transfer-encoding"))
                })
                .map_err(drop)
        };
        let length = |length: &str| Ok((length.to_owned(), String::new()));
        assert_eq!(straightened(200, &[("Content-Length", "2")]), length("2"));
        assert_eq!(
            straightened(200, &[("Content-Length", "2"), ("Content-Length", "2")]),
            length("2")
        );
        assert_eq!(straightened(200, &[("Content-Length", "2, 2")]), length("2"));
        assert_eq!(straightened(200, &[("Content-Length", "02")]), length("2"));
        assert_eq!(straightened(204, &[("Content-Length", "2")]), length(""));
        assert_eq!(straightened(103, &[("Transfer-Encoding", "chunked")]), length(""));
        assert_eq!(straightened(200, &[]), length(""));
        assert_eq!(
            straightened(200, &[("Transfer-Encoding", "Chunked")]),
            Ok((String::new(), "Chunked".into()))
        );
        for fields in [
            &[("Content-Length", "2"), ("Content-Length", "3")][..],
            &[("Content-Length", "2, 3")],
            &[("Content-Length", "+2")],
            &[("Content-Length", "")],
            &[("Transfer-Encoding", "gzip")],
            &[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
        ] {
            assert_eq!(straightened(200, fields), Err(()), "{fields:?}");
        }
    }
}

//! Writes the head of a request for the origin, field by field, from what [`head`](crate::http1::head) has read.
//!
//! It leaves out the fields that concern only the client's connection, and what an untrusted peer says about itself
//! (X-Forwarded-*, Forwarded, X-Real-IP, X-Request-Id). It adds the fields that identify the client, some of them only to the
//! copy that Pingora makes for the origin, because each field that Pingora reads and copies costs 1,500 instructions.

use bytes::{BufMut, BytesMut};
use http::HeaderValue;
use pingora::http::RequestHeader;
use pingora::prelude::Result;

use crate::client::FORWARDED_FOR;
use crate::headers::names::{ends_here, is, is_claim};
use crate::http1::head::{Body, Head};

/// A longer X-Request-Id is not kept, even from a trusted peer: it goes into the log.
const MAX_REQUEST_ID: usize = 128;

/// How long the fields are that [`write_request`] adds, but for their values.
const ADDED: usize = 128;

/// What is known of a request's origin, for the fields that the proxy writes.
#[derive(Debug, Clone, Copy)]
pub struct Origination<'r> {
    /// The peer, as an address without a port.
    pub peer: &'r HeaderValue,
    /// Whether the peer is trusted.
    pub trusted_peer: bool,
    /// The host for an HTTP/1.0 request that names none: the backend gets HTTP/1.1, which requires one.
    pub backend: &'r str,
}

/// The fields about the client that only the backend's copy of the head gets.
#[derive(Debug)]
pub struct Provenance {
    /// The hops that a trusted peer names, and the peer.
    forwarded_for: HeaderValue,
    /// Identifies the request, here and in the backend.
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
/// is, and so do the names of fields, in upper and lower case. Returns the fields that only the backend gets.
pub fn write_request(head: &Head<'_>, about: Origination<'_>, to: &mut BytesMut) -> Provenance {
    let fields = head.fields.iter().map(|field| field.name.len() + field.value.len() + 4);
    to.reserve(head.method.len() + head.path.len() + ADDED + 2 * fields.sum::<usize>());
    to.put_slice(head.method.as_bytes());
    // The path is empty, or only a query, where an absolute target has none (RFC 9112, section 3.2.1).
    to.put_slice(if matches!(head.path.first(), Some(b'/' | b'*')) {
        b" "
    } else {
        b" /"
    });
    to.put_slice(head.path);
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
        Body::Length(_) | Body::Upgrade => {}
        Body::Chunked => to.put_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    if let Some(protocol) = head.upgrade {
        to.put_slice(b"Connection: Upgrade\r\n");
        write_field("Upgrade", protocol, to);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::head;

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
        let mut scratch = head::scratch();
        let head = head::parse(text.as_bytes(), &mut scratch, &head::Rules::default()).unwrap();
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
}

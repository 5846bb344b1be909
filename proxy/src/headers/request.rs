//! Writes the head of a request for the origin, field by field, from what [`head`](crate::http1::head) has read.
//!
//! It leaves out the fields that concern only the client's connection, and what an untrusted peer says about itself
//! (X-Forwarded-*, Forwarded, X-Real-IP, X-Request-Id) and everybody about a client's certificate (X-Client-Cert-Subject), and adds the fields that identify the client and the request.

use bytes::Bytes;
use http::HeaderName;
use http::header::InvalidHeaderName;

use crate::config::{Part, Shape};
use crate::exchange::client::FORWARDED_FOR;
use crate::exchange::request::RequestId;
use crate::headers::edits::Values;
use crate::http1::head::{Body, Head, Version};
use crate::http1::names::{CLIENT_CERT_SUBJECT, is, is_alike, is_claim, is_hop_by_hop};
use crate::tls::Agreed;

/// What was taken away from the beginning of the path.
const FORWARDED_PREFIX: &str = "x-forwarded-prefix";

/// The most bytes that [`write_request`] adds, apart from the values of fields.
const ADDED: usize = 256;

/// Where a request came from, for the fields that the proxy adds.
#[derive(Debug, Clone, Copy)]
pub struct Origination<'r> {
    /// The peer, as an address without a port.
    pub peer: &'r str,
    /// Whether the peer is trusted.
    pub trusted_peer: bool,
    /// What was agreed on in the handshake of the client's connection, if it is one with TLS.
    pub tls: Option<&'r Agreed>,
    /// The host for an HTTP/1.0 request that names none: the backend gets HTTP/1.1, which requires one.
    pub backend: &'r str,
    /// Identifies the request.
    pub id: &'r RequestId,
    /// What its route does to it.
    pub shape: Option<Shaping<'r>>,
}

/// What a route does to a request.
#[derive(Debug, Clone, Copy)]
pub struct Shaping<'r> {
    /// What.
    pub shape: &'r Shape,
    /// The client, as an address.
    pub client: &'r str,
    /// The name of the route.
    pub route: &'r str,
}

/// Fields that the proxy writes itself. A name that is made once costs nothing to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    RequestId,
}

impl Own {
    const fn name(self) -> &'static str {
        match self {
            Self::ForwardedFor => "X-Forwarded-For",
            Self::ForwardedHost => "X-Forwarded-Host",
            Self::ForwardedProto => "X-Forwarded-Proto",
            Self::RequestId => "X-Request-Id",
        }
    }

    fn header_name(self) -> HeaderName {
        // Checked by the compiler, and not for each request.
        match self {
            Self::ForwardedFor => const { HeaderName::from_static("x-forwarded-for") },
            Self::ForwardedHost => const { HeaderName::from_static("x-forwarded-host") },
            Self::ForwardedProto => const { HeaderName::from_static("x-forwarded-proto") },
            Self::RequestId => const { HeaderName::from_static("x-request-id") },
        }
    }
}

/// Where a field is in a head: its name and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: usize,
    name: usize,
    value: usize,
    own: Option<Own>,
}

impl Shaping<'_> {
    /// The fields that the route adds to the response, each a line with its CRLF.
    pub fn response_fields(&self, head: &Head<'_>, about: &Origination<'_>) -> Bytes {
        self.values(head, about).lines(&self.shape.response_headers)
    }

    fn values<'v>(&'v self, head: &Head<'v>, about: &Origination<'v>) -> Values<'v> {
        Values {
            client: self.client,
            host: head.host.unwrap_or(about.backend.as_bytes()),
            id: about.id.as_bytes(),
            route: self.route,
        }
    }
}

impl Span {
    /// The bytes of the name.
    pub fn name(self) -> std::ops::Range<usize> {
        self.start..self.start + self.name
    }

    /// Whether the field in `head` has this name.
    pub fn is_named(self, name: &HeaderName, head: &[u8]) -> bool {
        match self.own {
            Some(own) => *name == own.header_name(),
            None => name.as_str().as_bytes().eq_ignore_ascii_case(&head[self.name()]),
        }
    }

    /// The name, of a field in `head`.
    ///
    /// # Errors
    /// When it is none.
    pub fn header_name(self, head: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
        match self.own {
            Some(own) => Ok(own.header_name()),
            None => HeaderName::from_bytes(&head[self.name()]),
        }
    }

    /// The bytes of the value.
    pub fn value(self) -> std::ops::Range<usize> {
        let start = self.start + self.name + 2;
        start..start + self.value
    }
}

/// A head that is being written, and where its fields are.
struct Writer<'w> {
    to: &'w mut Vec<u8>,
    spans: &'w mut Vec<Span>,
}

impl Writer<'_> {
    fn field(&mut self, name: &str, value: &[&[u8]]) {
        self.write(name, None, value);
    }

    fn own(&mut self, own: Own, value: &[&[u8]]) {
        self.write(own.name(), Some(own), value);
    }

    fn write(&mut self, name: &str, own: Option<Own>, value: &[&[u8]]) {
        let start = self.to.len();
        self.to.extend_from_slice(name.as_bytes());
        self.to.extend_from_slice(b": ");
        value.iter().for_each(|part| self.to.extend_from_slice(part));
        self.end(start, name, own);
    }

    fn made(&mut self, name: &str, parts: &[Part], values: &Values<'_>) {
        let start = self.to.len();
        self.to.extend_from_slice(name.as_bytes());
        self.to.extend_from_slice(b": ");
        values.write(parts, self.to);
        self.end(start, name, None);
    }

    /// Ends the line of the field that began at `start`.
    fn end(&mut self, start: usize, name: &str, own: Option<Own>) {
        let value = self.to.len() - start - name.len() - 2;
        self.to.extend_from_slice(b"\r\n");
        self.spans.push(Span {
            start,
            name: name.len(),
            value,
            own,
        });
    }
}

/// Writes the head that the origin gets to `to`, and where its fields are to `spans`. `Host`, the order
/// of fields and the case of their names stay the same.
pub fn write_request(head: &Head<'_>, about: Origination<'_>, to: &mut Vec<u8>, spans: &mut Vec<Span>) {
    let fields = head.fields.iter().map(|field| field.name.len() + field.value.len() + 4);
    to.reserve(head.method.len() + head.path.len() + ADDED + fields.sum::<usize>());
    to.extend_from_slice(head.method.as_bytes());
    let stripped = match about.shape.map(|shaping| shaping.shape.prefix.apply(head.path)) {
        Some(([first, rest], stripped)) => {
            to.extend_from_slice(b" ");
            to.extend_from_slice(first);
            to.extend_from_slice(rest);
            stripped
        }
        None => {
            // The path is empty, or only a query, where an absolute target has none (RFC 9112, section 3.2.1).
            to.extend_from_slice(if matches!(head.path.first(), Some(b'/' | b'*')) {
                b" "
            } else {
                b" /"
            });
            to.extend_from_slice(head.path);
            None
        }
    };
    // The response will be one of HTTP/1.1, and is translated for a client of HTTP/1.0.
    to.extend_from_slice(b" HTTP/1.1\r\n");
    let mut writer = Writer { to, spans };
    // Whether a trusted peer has sent these already.
    let (mut proto, mut forwarded_host) = (false, false);
    let host = head.host.unwrap_or(about.backend.as_bytes());
    let mut has_host = false;
    for field in head.fields {
        let name = field.name;
        let announces = is(name, "trailer") && head.body == Body::Chunked;
        if (is_hop_by_hop(name) && !announces) || (head.nominates(name) && !is(name, "content-length")) {
            continue;
        }
        if is_claim(name) {
            let own = is(name, FORWARDED_FOR) || is(name, "x-request-id") || is_alike(name, CLIENT_CERT_SUBJECT);
            if !about.trusted_peer || own || (stripped.is_some() && is_alike(name, FORWARDED_PREFIX)) {
                continue;
            }
            proto |= is(name, "x-forwarded-proto");
            forwarded_host |= is(name, "x-forwarded-host");
        }
        if about.shape.is_some_and(|shaping| shaping.shape.drops(name)) {
            continue;
        }
        if is(name, "host") {
            has_host = true;
            writer.field(name, &[host]);
        } else {
            writer.field(name, &[field.value]);
        }
    }
    match head.body {
        Body::Length(_) | Body::Upgrade => {}
        Body::Chunked => writer.field("Transfer-Encoding", &[b"chunked"]),
    }
    if let Some(protocol) = head.upgrade {
        writer.field("Connection", &[b"Upgrade"]);
        writer.field("Upgrade", &[protocol]);
    }
    if !proto {
        writer.own(
            Own::ForwardedProto,
            &[if about.tls.is_some() { b"https" } else { b"http" }],
        );
    }
    if !has_host {
        writer.field("Host", &[host]);
    }
    if head.host.is_some() && !forwarded_host {
        writer.own(Own::ForwardedHost, &[host]);
    }
    if let Some(stripped) = stripped {
        // A proxy in front has taken away what comes before that.
        let before = head.values(FORWARDED_PREFIX).next().filter(|_| about.trusted_peer);
        writer.field("X-Forwarded-Prefix", &[before.unwrap_or_default(), stripped.as_bytes()]);
    }
    if let Some(shaping) = about.shape {
        let values = shaping.values(head, &about);
        for (name, parts) in shaping.shape.request_headers.added() {
            writer.made(name, parts, &values);
        }
    }
    // The version is the one that was received (RFC 9110, section 7.6.3).
    writer.field(
        "Via",
        &[match head.version {
            Version::Http10 => b"1.0 gopherproxy",
            Version::Http11 => b"1.1 gopherproxy",
            Version::Http2 => b"2.0 gopherproxy",
        }],
    );
    if let Some(subject) = about.tls.and_then(|tls| tls.subject.as_deref()) {
        writer.field("X-Client-Cert-Subject", &[subject.as_bytes()]);
    }
    if about.trusted_peer {
        let hops = forwarded_for(head);
        let separator: &[u8] = if hops.is_empty() { b"" } else { b", " };
        writer.own(Own::ForwardedFor, &[&hops, separator, about.peer.as_bytes()]);
    } else {
        writer.own(Own::ForwardedFor, &[about.peer.as_bytes()]);
    }
    writer.own(Own::RequestId, &[about.id.as_bytes()]);
    writer.to.extend_from_slice(b"\r\n");
}

/// The hops that a trusted peer names. Nothing to the left of bytes that are not text can be trusted, here and in
/// [`identify`](crate::exchange::client::identify): the origin gets only what is to the right of them.
fn forwarded_for(head: &Head<'_>) -> Vec<u8> {
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
    lines.reverse();
    lines.join(&b", "[..])
}

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
        shaped(None, target, trusted_peer, fields).1
    }

    /// The target and the fields that the backend gets over a route that does this.
    fn shaped(
        keys: Option<&str>,
        target: &str,
        trusted_peer: bool,
        fields: &[(&str, &str)],
    ) -> (String, Vec<(String, String)>) {
        let shape = keys.map(|keys| Shape::of(keys).unwrap());
        let fields: String = fields
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let text = format!("GET {target} HTTP/1.0\r\n{fields}\r\n");
        let mut scratch = head::scratch();
        let head = head::parse(text.as_bytes(), &mut scratch, &head::Rules::default()).unwrap();
        let given = trusted_peer.then(|| head.values("x-request-id").next()).flatten();
        let about = Origination {
            peer: "10.0.0.1",
            trusted_peer,
            tls: None,
            backend: "backend:80",
            id: &given.and_then(RequestId::given).unwrap_or_else(RequestId::random),
            shape: shape.as_ref().map(|shape| Shaping {
                shape,
                client: "192.0.2.1",
                route: "shop",
            }),
        };
        let (mut written, mut spans) = (Vec::new(), Vec::new());
        write_request(&head, about, &mut written, &mut spans);
        let text = String::from_utf8(written).unwrap();
        assert!(text.starts_with("GET /") && text.ends_with("\r\n\r\n"), "{text}");
        let fields: Vec<_> = spans
            .iter()
            .map(|span| (&text[span.name()], &text[span.value()]))
            .collect();
        let lines: String = fields
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        assert_eq!(text.split_once("\r\n").unwrap().1, lines + "\r\n");
        let owned = |(name, value): &(&str, &str)| (name.to_lowercase(), (*value).to_owned());
        let target = text.split(' ').nth(1).unwrap_or_default().to_owned();
        (target, fields.iter().map(owned).collect())
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
    fn a_route_sets_adds_and_removes_fields_whichever_way_they_are_spelt() {
        let keys = "request_headers: {set: {X-User: '{client} {host} {request_id} {route}', New: a}, add: {Accept: b/c}, remove: [Cookie]}";
        let fields = [
            ("Host", "a"),
            ("x_user", "admin"),
            ("X-User", "admin"),
            ("Accept", "*/*"),
            ("cookie", "a=b"),
            ("X-Users", "kept"),
        ];
        let (_, passed) = shaped(Some(keys), "/", false, &fields);
        let id = all(&passed, "x-request-id")[0];
        assert_eq!(all(&passed, "x-user"), [format!("192.0.2.1 a {id} shop")]);
        assert_eq!(all(&passed, "x_user"), [""; 0]);
        assert_eq!(all(&passed, "cookie"), [""; 0]);
        assert_eq!(all(&passed, "new"), ["a"]);
        assert_eq!(all(&passed, "accept"), ["*/*", "b/c"]);
        assert_eq!(all(&passed, "x-users"), ["kept"]);
    }

    #[test]
    fn a_stripped_prefix_is_named_behind_what_a_trusted_proxy_has_stripped() {
        let keys = Some("{strip_prefix: /shop, add_prefix: /v1}");
        for (trusted, prefix) in [(false, "/shop"), (true, "/admin/shop")] {
            let (target, passed) = shaped(keys, "/shop/a?b", trusted, &CLAIMS);
            assert_eq!(target, "/v1/a?b");
            assert_eq!(all(&passed, "x-forwarded-prefix"), [prefix]);
        }
        let (target, passed) = shaped(keys, "/other", true, &CLAIMS);
        assert_eq!(
            (target.as_str(), all(&passed, "x-forwarded-prefix")),
            ("/v1/other", vec!["/admin"])
        );
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

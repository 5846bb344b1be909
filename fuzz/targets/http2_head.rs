//! Request heads over HTTP/2.
//!
//! Each line of the input behind the first is a field of a head, `name: value` or `:name: value`, and `h2` reads them as a client sends
//! them. The first line ends in `+` if a body follows. What `h2` lets pass is accepted if HTTP/1.1 accepts the same head, written out the
//! plain way, and then it is the same request: read in the same way, and passed on to the origin in the same bytes.
#![no_main]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use gopherproxy::exchange::request::RequestId;
use gopherproxy::headers::request::{Origination, write_request};
use gopherproxy::http1::head::{self, Body, Head};
use gopherproxy::http2::head::{Made, read};
use http::request::Parts;
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// No head is longer, in bytes.
const MAX_HEAD: usize = 32 << 10;

/// What only HTTP/2 refuses, because its head says more than one of HTTP/1.1, or has room for what that has not.
const ONLY_HERE: [&str; 5] = [
    "Host and :authority name different hosts",
    "the scheme is neither http nor https",
    "a value has white space around it",
    ":protocol is none of client.upgrades",
    "a request to switch to another protocol has a length",
];

fuzz_target!(|input: &[u8]| -> Corpus {
    let mut lines = input.split(|byte| *byte == b'\n');
    let ends = !lines.next().unwrap_or_default().ends_with(b"+");
    let fields: Vec<(&[u8], &[u8])> = lines.filter_map(field).collect();
    if fields.len() > head::MOST_FIELDS - 4 {
        return Corpus::Reject;
    }
    let Some(parts) = received(&fields, ends) else {
        return Corpus::Keep;
    };
    let rules = head::Rules {
        max_fields: head::MOST_FIELDS,
        ..head::Rules::default()
    };
    let made = Made::of(&parts);
    let mut room = Vec::new();
    let read = read(&parts, &made, &mut room, ends, &rules, MAX_HEAD);
    let plain = plain(&fields, ends, &read);
    let mut scratch = head::scratch();
    match (&read, head::parse(&plain, &mut scratch, &rules)) {
        (Ok(read), Ok(expected)) => {
            assert_eq!(read.method, expected.method);
            assert_eq!(read.target, expected.target);
            assert_eq!(read.host, expected.host);
            assert_eq!(read.body, expected.body);
            assert_eq!(read.upgrade, expected.upgrade);
            assert_eq!(read.expects, expected.expects);
            assert_eq!(passed_on(read, "2.0"), passed_on(&expected, "1.1"));
        }
        (Ok(read), Err(rule)) => panic!("{rule:?}: {read:?}"),
        (Err(why), Ok(_)) => assert!(ONLY_HERE.contains(&why.rule), "{why:?}"),
        (Err(_), Err(_)) => {}
    }
    Corpus::Keep
});

/// The name and the value in a line.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = 1 + line.get(1..)?.iter().position(|byte| *byte == b':')?;
    let value = &line[colon + 1..];
    Some((&line[..colon], value.strip_prefix(b" ").unwrap_or(value)))
}

/// What `h2` makes of a head with these fields, if it lets it pass.
fn received(fields: &[(&[u8], &[u8])], ends: bool) -> Option<Parts> {
    let mut block = Vec::new();
    for (name, value) in fields {
        // A literal that is not indexed, with a new name (RFC 7541, section 6.2.2).
        block.push(0);
        for text in [name, value] {
            length(text.len(), &mut block);
            block.extend_from_slice(text);
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let mut pieces = block.chunks(16 << 10).peekable();
    let mut kind = 1;
    while let Some(piece) = pieces.next() {
        let end_stream = if kind == 1 { u8::from(ends) } else { 0 };
        let flags = end_stream | if pieces.peek().is_none() { 4 } else { 0 };
        bytes.extend_from_slice(&u32::try_from(piece.len()).expect("it is short").to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        bytes.extend_from_slice(piece);
        kind = 9;
    }
    let mut builder = h2::server::Builder::new();
    builder
        .max_header_list_size(2 * MAX_HEAD as u32)
        .enable_connect_protocol();
    let mut connection = builder.handshake::<_, Bytes>(Sent(bytes)).now_or_never()?.ok()?;
    let (request, _respond) = connection.accept().now_or_never()??.ok()?;
    Some(request.into_parts().0)
}

/// An integer of which the first byte has seven bits (RFC 7541, section 5.1).
fn length(mut length: usize, block: &mut Vec<u8>) {
    if length < 127 {
        return block.push(length as u8);
    }
    block.push(127);
    length -= 127;
    while length >= 128 {
        block.push(length as u8 | 128);
        length >>= 7;
    }
    block.push(length as u8);
}

/// What a client has sent, and no more; what it is sent goes nowhere.
struct Sent(Vec<u8>);

impl AsyncRead for Sent {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let here = self.0.len().min(buffer.remaining());
        buffer.put_slice(&self.0[..here]);
        self.0.drain(..here);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Sent {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The head of HTTP/1.1 that says what these fields do (RFC 9113, section 8; RFC 8441, section 5). The key of a WebSocket, which only
/// HTTP/1.1 has, is taken from what was `read`.
fn plain(fields: &[(&[u8], &[u8])], ends: bool, read: &Result<Head<'_>, impl Sized>) -> Vec<u8> {
    let all = |name: &'static str| fields.iter().filter(move |field| field.0 == name.as_bytes());
    let pseudo = |name| all(name).map(|field| field.1).next();
    let protocol = pseudo(":protocol");
    let method = pseudo(":method").unwrap_or_default();
    // `h2` cuts a fragment off before anybody sees it, and what is left empty, or missing where there is no authority either, is the root.
    let path = pseudo(":path").unwrap_or_default().split(|byte| *byte == b'#').next();
    let path = path.filter(|path| !path.is_empty()).unwrap_or(b"/");
    let mut lines = vec![[if protocol.is_some() { b"GET" } else { method }, path, b"HTTP/1.1"].join(&b' ')];
    let mut add = |name: &[u8], value: &[u8]| lines.push([name, b": ", value].concat());
    if let Some(authority) = pseudo(":authority") {
        add(b"host", authority);
    }
    let mut cookies = all("cookie").map(|field| field.1).collect::<Vec<_>>();
    if cookies.len() > 1 {
        cookies.retain(|one| !one.is_empty());
    }
    let mut cookies = Some(cookies.join(&b"; "[..]));
    // The fields of a name come together.
    let mut seen: Vec<&[u8]> = Vec::new();
    for (name, _) in fields {
        if name.starts_with(b":") || seen.contains(name) || (*name == b"host" && pseudo(":authority").is_some()) {
            continue;
        }
        seen.push(name);
        if *name == b"cookie" {
            add(name, &cookies.take().unwrap_or_default());
            continue;
        }
        for (_, value) in fields.iter().filter(|field| field.0 == *name) {
            add(name, value);
        }
    }
    match protocol {
        Some(protocol) => {
            if let Some(key) = read
                .as_ref()
                .ok()
                .and_then(|head| head.values("sec-websocket-key").next())
                && all("sec-websocket-key").next().is_none()
            {
                assert!(key.len() == 24 && key.ends_with(b"=="));
                add(b"sec-websocket-key", key);
            }
            add(b"connection", b"upgrade");
            add(b"upgrade", protocol);
        }
        None if !ends && all("content-length").next().is_none() => add(b"transfer-encoding", b"chunked"),
        None => {}
    }
    [lines.join(&b"\r\n"[..]), b"\r\n\r\n".to_vec()].concat()
}

/// What an origin gets of a head that came in this version of HTTP, but for that.
fn passed_on(head: &Head<'_>, version: &str) -> String {
    assert!(matches!(head.body, Body::Length(_) | Body::Chunked | Body::Upgrade));
    let about = Origination {
        peer: "192.0.2.1",
        trusted_peer: false,
        tls: None,
        backend: "backend:80",
        id: &RequestId::given(b"0123456789abcdef").expect("it is one"),
        shape: None,
    };
    let (mut written, mut spans) = (Vec::new(), Vec::new());
    write_request(head, about, &mut written, &mut spans);
    let text: String = written.iter().copied().map(char::from).collect();
    text.replacen(&format!("{version} gopherproxy"), "gopherproxy", 1)
}

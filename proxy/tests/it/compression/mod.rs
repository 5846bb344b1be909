//! `compress: true`: which responses of a route are compressed, and that clients get what the origin has sent.

mod heads;
mod streams;

use std::io::Read;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use zstd_safe::{DCtx, InBuffer, OutBuffer};

use crate::support::http2::{CLEARTEXT, Http2, request as request2};
use crate::support::raw_origin::Peer;
use crate::support::{Connection, LIMIT, Process, RawOrigin, embedded, eventually, forwarder, proxy_to};

const ROUTE: &str = "  routes:\n    all: {compress: true}\n";

/// A proxy with a route that compresses, with HTTP/2 without TLS.
async fn compressing(origin: &RawOrigin) -> Process {
    proxy_to(origin, &format!("{CLEARTEXT}{ROUTE}")).await
}

/// Text of so many bytes, with few repetitions.
fn text(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(length as u64);
    let mut text = Vec::with_capacity(length + 32);
    while text.len() < length {
        text.extend_from_slice(format!("line {} of a text\n", random.u32(..1000)).as_bytes());
    }
    text.truncate(length);
    text
}

/// What `compressed` says, and whether it has an end.
fn decoded(coding: &str, compressed: &[u8]) -> (Vec<u8>, bool) {
    let mut plain = Vec::new();
    if coding == "gzip" {
        let mut decoder = flate2::read::GzDecoder::new(compressed);
        let mut piece = vec![0; 64 << 10];
        loop {
            match decoder.read(&mut piece) {
                Ok(0) => return (plain, decoder.into_inner().is_empty()),
                Ok(read) => plain.extend_from_slice(&piece[..read]),
                Err(_) => return (plain, false),
            }
        }
    }
    assert_eq!(coding, "zstd");
    let mut decoder = DCtx::create();
    let mut input = InBuffer::around(compressed);
    let mut piece = vec![0; 64 << 10];
    loop {
        let mut output = OutBuffer::around(&mut piece[..]);
        let left = decoder
            .decompress_stream(&mut output, &mut input)
            .expect("it is no garbage");
        let written = output.pos();
        plain.extend_from_slice(&piece[..written]);
        if left == 0 || (written == 0 && input.pos == compressed.len()) {
            return (plain, left == 0 && input.pos == compressed.len());
        }
    }
}

/// A response, whatever it came in.
#[derive(Debug)]
struct Got {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Got {
    /// The values of a field.
    fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter().filter(|(field, _)| field == name);
        fields.map(|(_, value)| value.as_str()).collect()
    }

    fn value(&self, name: &str) -> Option<&str> {
        let values = self.values(name);
        assert!(values.len() < 2, "{name}: {values:?}");
        values.first().copied()
    }
}

/// Asks over HTTP/1.1 and HTTP/2, with these fields.
async fn ask(proxy: &Process, method: &str, path: &str, fields: &[(&str, &str)]) -> [Got; 2] {
    let lines: String = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let mut connection = Connection::open(proxy.address()).await;
    let first = connection.request(method, path, &lines, "").await;
    let fields_of = |(name, value): (&str, &str)| (name.to_lowercase(), value.to_owned());
    let first = Got {
        status: first.status,
        fields: first
            .headers
            .iter()
            .map(|(name, value)| fields_of((name, value)))
            .collect(),
        body: first.body,
    };
    let mut request = request2(method, path);
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().expect("a name");
        request.headers_mut().append(name, value.parse().expect("a value"));
    }
    let mut connection = Http2::open(proxy.address()).await;
    let second = connection.send(request, b"").await.expect("an answer");
    let text = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
    let second = Got {
        status: second.status,
        fields: second
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect(),
        body: second.body,
    };
    [first, second]
}

/// The number behind the last slash of the path of a request.
fn number(request: &str) -> usize {
    let path = request.split(' ').nth(1).unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    last.parse().expect("a number")
}

const TEXT: &str = "Content-Type: text/plain; charset=utf-8\r\nETag: \"abc\"\r\nAccept-Ranges: bytes\r\n";

/// Answers `/length/N`, `/pieces/N` and `/close/N` with so much text, framed like that, and breaks off in the middle of others.
async fn framed(mut peer: Peer) {
    while let Some(request) = peer.request().await {
        let body = text(number(&request));
        let path = request.split(' ').nth(1).unwrap_or_default();
        match path.split('/').nth(1) {
            Some("length") => {
                let length = body.len();
                peer.send(format!("HTTP/1.1 200 OK\r\n{TEXT}Content-Length: {length}\r\n\r\n"))
                    .await;
                peer.send(body).await;
            }
            Some("pieces") => {
                peer.send(format!("HTTP/1.1 200 OK\r\n{TEXT}Transfer-Encoding: chunked\r\n\r\n"))
                    .await;
                let mut random = fastrand::Rng::with_seed(body.len() as u64);
                let mut left = &body[..];
                while !left.is_empty() {
                    let most = [3, 100, 9_000, 150_000][random.usize(..4)];
                    let (piece, rest) = left.split_at(random.usize(1..=most).min(left.len()));
                    peer.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())
                        .await;
                    left = rest;
                }
                peer.send("0\r\n\r\n").await;
            }
            Some("close") => {
                peer.send(format!("HTTP/1.1 200 OK\r\n{TEXT}Connection: close\r\n\r\n"))
                    .await;
                peer.send(body).await;
                return;
            }
            other => {
                let framing = match other {
                    Some("broken-length") => format!("Content-Length: {}\r\n\r\n", body.len()),
                    _ => format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len()),
                };
                peer.send(format!("HTTP/1.1 200 OK\r\n{TEXT}{framing}")).await;
                peer.send(&body[..body.len() / 2]).await;
                return;
            }
        }
    }
}

#[tokio::test]
async fn text_comes_compressed_and_decodes_to_the_same_bytes() {
    let origin = RawOrigin::start(framed).await;
    let proxy = compressing(&origin).await;
    for framing in ["length", "pieces", "close"] {
        for length in [0, 1, 1024, 5_000, 70_000, 3 << 20] {
            // A short body of a known length stays as it is.
            let compresses = framing != "length" || length >= 1024;
            for coding in ["gzip", "zstd"] {
                let path = format!("/{framing}/{length}");
                for got in ask(&proxy, "GET", &path, &[("accept-encoding", coding)]).await {
                    let case = format!("{path} {coding} {:?}", got.fields);
                    assert_eq!(got.status, 200, "{case}");
                    if !compresses {
                        assert!(got.body == text(length), "{case}");
                        assert_eq!(got.value("content-encoding"), None, "{case}");
                        assert_eq!(got.value("vary"), None, "{case}");
                        continue;
                    }
                    let (plain, ended) = decoded(coding, &got.body);
                    assert!(ended && plain == text(length), "{case}");
                    assert!(
                        length < 5_000 || got.body.len() < length / 2,
                        "{case} {}",
                        got.body.len()
                    );
                    assert_eq!(got.value("content-encoding"), Some(coding), "{case}");
                    assert_eq!(got.value("content-length"), None, "{case}");
                    assert_eq!(got.value("accept-ranges"), None, "{case}");
                    assert_eq!(got.value("etag"), Some("W/\"abc\""), "{case}");
                    assert_eq!(got.value("vary"), Some("Accept-Encoding"), "{case}");
                }
            }
        }
    }
    // A client of HTTP/1.0 knows no chunks.
    for coding in ["gzip", "zstd"] {
        let mut old = Connection::open(proxy.address()).await;
        old.send(format!(
            "GET /length/70000 HTTP/1.0\r\nAccept-Encoding: {coding}\r\n\r\n"
        ))
        .await;
        let head = old.head().await;
        assert_eq!(head.header("content-encoding"), Some(coding));
        assert_eq!(
            [head.header("transfer-encoding"), head.header("content-length")],
            [None, None]
        );
        let body = old.try_rest().await.expect("no reset");
        assert!(decoded(coding, &body) == (text(70_000), true));
    }
    // The log has what was sent.
    let mut client = Connection::open(proxy.address()).await;
    let accepts = "Accept-Encoding: gzip\r\n";
    let response = client.request("GET", "/length/50000", accepts, "").await;
    let line = proxy.request_line("/length/50000").await;
    assert_eq!(line["bytes"], response.body.len());
}

#[tokio::test]
async fn it_is_checked_and_explained() {
    let checked = Process::check("gopherproxy:\n  routes:\n    shop: {compress: brotli}\n");
    assert!(!checked.ended().await.0.success());
    eventually("the value is named", async || {
        checked
            .text()
            .contains("gopherproxy.routes.shop.compress: expected true or false")
    })
    .await;
}

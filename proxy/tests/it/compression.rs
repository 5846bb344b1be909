//! `compress: true`: which responses of a route are compressed, and that clients get what the origin has sent.

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

/// A response that is not compressed: its lines, those of the request, and whether the client is told that it depends on what it accepts.
type Left = (&'static str, &'static [(&'static str, &'static str)], bool);

const LEFT: [Left; 15] = [
    // The client.
    ("Content-Type: text/plain", &[], true),
    ("Content-Type: text/plain", &[("accept-encoding", "br")], true),
    ("Content-Type: text/plain", &[("accept-encoding", "gzip;q=0")], true),
    (
        "Content-Type: text/plain",
        &[("accept-encoding", "identity, gzip;q=0.5")],
        true,
    ),
    (
        "Content-Type: text/plain",
        &[("accept-encoding", "gzip"), ("cache-control", "no-transform")],
        false,
    ),
    // The type.
    ("Content-Type: image/png", &[("accept-encoding", "gzip")], false),
    ("Content-Type: application/zip", &[("accept-encoding", "gzip")], false),
    ("Content-Type: application/grpc", &[("accept-encoding", "gzip")], false),
    ("X-Type: none", &[("accept-encoding", "gzip")], false),
    // It is compressed, or must not be.
    (
        "Content-Type: text/plain\r\nContent-Encoding: br",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nContent-Encoding: gzip",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nCache-Control: max-age=3, No-Transform",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nContent-Range: bytes 0-1999/5000",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nContent-Digest: sha-256=:abc:",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nContent-Type: text/html",
        &[("accept-encoding", "gzip")],
        false,
    ),
];

#[tokio::test]
async fn a_response_that_must_stay_as_it_is_does() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let (lines, _, _) = LEFT[number(&request)];
            let body = text(2000);
            let head = format!("HTTP/1.1 200 OK\r\n{lines}\r\nETag: \"abc\"\r\nContent-Length: 2000\r\n\r\n");
            peer.send([head.as_bytes(), &body].concat()).await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    for (number, (lines, fields, varies)) in LEFT.into_iter().enumerate() {
        for got in ask(&proxy, "GET", &format!("/{number}"), fields).await {
            let case = format!("{lines} {fields:?} {:?}", got.fields);
            assert!(got.body == text(2000), "{case}");
            assert_eq!(got.value("content-length"), Some("2000"), "{case}");
            assert_eq!(got.value("etag"), Some("\"abc\""), "{case}");
            assert_eq!(got.value("vary"), varies.then_some("Accept-Encoding"), "{case}");
        }
    }
}

#[tokio::test]
async fn responses_without_a_whole_body_stay_as_they_are() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let status = number(&request);
            let length = if matches!(status, 204 | 304) {
                ""
            } else {
                "Content-Length: 2000\r\n"
            };
            let body = if request.starts_with("HEAD") || length.is_empty() {
                vec![]
            } else {
                text(2000)
            };
            let head = format!("HTTP/1.1 {status} Status\r\n{TEXT}{length}\r\n");
            peer.send([head.as_bytes(), &body].concat()).await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    for (method, status) in [("GET", 206), ("GET", 204), ("GET", 304), ("HEAD", 200)] {
        let fields = [("accept-encoding", "gzip"), ("range", "bytes=0-1999")];
        for got in ask(&proxy, method, &format!("/{status}"), &fields).await {
            let case = format!("{method} {:?}", got.fields);
            assert_eq!(got.status, status, "{case}");
            assert_eq!(got.value("content-encoding"), None, "{case}");
            assert_eq!(got.value("etag"), Some("\"abc\""), "{case}");
            assert_eq!(got.body.len(), if status == 206 { 2000 } else { 0 }, "{case}");
        }
    }
    // The others are, whatever their status.
    for status in [404, 500] {
        for got in ask(&proxy, "GET", &format!("/{status}"), &[("accept-encoding", "gzip")]).await {
            assert_eq!((got.status, got.value("content-encoding")), (status, Some("gzip")));
            assert!(decoded("gzip", &got.body) == (text(2000), true));
        }
    }
}

#[tokio::test]
async fn what_the_route_changes_counts_as_the_clients_get_it() {
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.request().await.is_some() {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-transform\r\n\
                        Vary: Origin, accept-ENCODING\r\nETag: W/\"weak\"\r\nContent-Encoding: identity\r\n\
                        Content-Length: 2000\r\n\r\n";
            peer.send([head.as_bytes(), &text(2000)].concat()).await;
        }
    })
    .await;
    let routes = "  routes:
    off: {paths: [/off], compress: false}
    taken: {paths: [/taken], compress: true, response_headers: {remove: [Cache-Control]}}
    set: {paths: [/set], compress: true, response_headers: {set: {Cache-Control: no-cache, ETag: '\"own\"', Vary: Cookie}}}
    odd: {paths: [/odd], compress: true, response_headers: {set: {Cache-Control: no-cache, ETag: own}}}
    type: {paths: [/type], compress: true, response_headers: {set: {Cache-Control: no-cache, Content-Type: image/png}}}
    coded: {paths: [/coded], compress: true, response_headers: {set: {Cache-Control: no-cache, Content-Encoding: br}}}
";
    let proxy = proxy_to(&origin, &format!("{CLEARTEXT}{routes}")).await;
    for (path, coding, etag, vary) in [
        ("/off", "identity", Some("W/\"weak\""), &["Origin, accept-ENCODING"][..]),
        ("/taken", "zstd", Some("W/\"weak\""), &["Origin, accept-ENCODING"]),
        ("/set", "zstd", Some("W/\"own\""), &["Cookie", "Accept-Encoding"]),
        ("/odd", "zstd", None, &["Origin, accept-ENCODING"]),
        ("/type", "identity", Some("W/\"weak\""), &["Origin, accept-ENCODING"]),
        ("/coded", "br", Some("W/\"weak\""), &["Origin, accept-ENCODING"]),
    ] {
        for got in ask(&proxy, "GET", path, &[("accept-encoding", "gzip, zstd")]).await {
            let case = format!("{path} {:?}", got.fields);
            assert_eq!(got.value("content-encoding"), Some(coding), "{case}");
            assert_eq!(got.value("etag"), etag, "{case}");
            assert_eq!(got.values("vary"), vary, "{case}");
            if coding == "zstd" {
                assert!(decoded("zstd", &got.body) == (text(2000), true), "{case}");
            }
        }
    }
}

/// An origin that sends an event, and another when it is told to.
async fn events(more: watch::Receiver<bool>) -> RawOrigin {
    RawOrigin::start(move |mut peer| {
        let mut more = more.clone();
        async move {
            while peer.request().await.is_some() {
                peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await;
                peer.send("9\r\ndata: 1\n\n\r\n").await;
                let _ = more.wait_for(|more| *more).await;
                peer.send("9\r\ndata: 2\n\n\r\n0\r\n\r\n").await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_event_does_not_wait_for_the_next() {
    for coding in ["gzip", "zstd"] {
        let (tell, more) = watch::channel(false);
        let origin = events(more).await;
        let proxy = compressing(&origin).await;
        let mut first = Connection::open(proxy.address()).await;
        first
            .send(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n"
            ))
            .await;
        assert_eq!(first.head().await.header("content-encoding"), Some(coding));
        let mut body = Vec::new();
        while decoded(coding, &body).0 != b"data: 1\n\n" {
            body.extend(first.chunk().await);
        }

        let second = Http2::open(proxy.address()).await;
        let mut request = request2("GET", "/");
        request
            .headers_mut()
            .insert("accept-encoding", coding.parse().expect("a value"));
        let mut requests = second.requests.clone().ready().await.expect("it is open");
        let (response, _) = requests.send_request(request, true).expect("it is open");
        let mut response = timeout(LIMIT, response).await.expect("in time").expect("a response");
        let mut body2 = Vec::new();
        while decoded(coding, &body2).0 != b"data: 1\n\n" {
            let data = timeout(LIMIT, response.body_mut().data()).await.expect("in time");
            body2.extend_from_slice(&data.expect("more").expect("more"));
        }

        tell.send(true).expect("the origin listens");
        loop {
            let chunk = first.chunk().await;
            if chunk.is_empty() {
                break;
            }
            body.extend(chunk);
        }
        while let Some(data) = timeout(LIMIT, response.body_mut().data()).await.expect("in time") {
            body2.extend_from_slice(&data.expect("more"));
        }
        for body in [body, body2] {
            assert_eq!(decoded(coding, &body), (b"data: 1\n\ndata: 2\n\n".to_vec(), true));
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_has_no_end_for_the_client_either() {
    let origin = RawOrigin::start(framed).await;
    let proxy = compressing(&origin).await;
    for path in ["/broken-length/100000", "/broken-pieces/100000"] {
        for coding in ["gzip", "zstd"] {
            let mut first = Connection::open(proxy.address()).await;
            first
                .send(format!(
                    "GET {path} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n"
                ))
                .await;
            assert_eq!(first.head().await.header("content-encoding"), Some(coding), "{path}");
            let rest = first.rest().await;
            assert!(!rest.ends_with(b"0\r\n\r\n"), "{path} {coding}");

            let mut old = Connection::open(proxy.address()).await;
            old.send(format!("GET {path} HTTP/1.0\r\nAccept-Encoding: {coding}\r\n\r\n"))
                .await;
            assert_eq!(old.head().await.header("content-encoding"), Some(coding), "{path}");
            let (plain, ended) = decoded(coding, &old.rest().await);
            assert!(!ended && text(100_000).starts_with(&plain), "{path} {coding}");

            let mut request = request2("GET", path);
            request
                .headers_mut()
                .insert("accept-encoding", coding.parse().expect("a value"));
            let answer = Http2::open(proxy.address()).await.send(request, b"").await;
            assert!(answer.is_err_and(|error| error.is_reset()), "{path} {coding}");
        }
    }
    // Nothing of it is left in an encoder that another response gets.
    for coding in ["gzip", "zstd"] {
        for got in ask(&proxy, "GET", "/length/9000", &[("accept-encoding", coding)]).await {
            assert!(decoded(coding, &got.body) == (text(9000), true));
        }
    }
}

#[tokio::test]
async fn trailers_pass_behind_a_compressed_body() {
    if forwarder::skips("compression::trailers_pass_behind_a_compressed_body") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.request().await.is_some() {
            peer.send(format!(
                "HTTP/1.1 200 OK\r\n{TEXT}Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n"
            ))
            .await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    let mut first = Connection::open(proxy.address()).await;
    first
        .send("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nAccept-Encoding: gzip\r\n\r\n")
        .await;
    let head = first.head().await;
    assert_eq!(
        [head.header("trailer"), head.header("content-encoding")],
        [Some("X-Sum"), Some("gzip")]
    );
    let mut body = Vec::new();
    loop {
        let chunk = first.chunk().await;
        if chunk.is_empty() {
            break;
        }
        body.extend(chunk);
    }
    assert_eq!(decoded("gzip", &body), (b"hello".to_vec(), true));
    assert_eq!(first.until("\r\n\r\n").await, "X-Sum: 7\r\n\r\n");

    let mut request = request2("GET", "/");
    request
        .headers_mut()
        .insert("accept-encoding", http::HeaderValue::from_static("gzip"));
    let answer = Http2::open(proxy.address()).await.send(request, b"").await;
    let answer = answer.expect("an answer");
    assert_eq!(decoded("gzip", &answer.body), (b"hello".to_vec(), true));
    let trailers = answer.trailers.expect("trailers");
    assert_eq!(trailers["x-sum"], "7");
}

#[tokio::test]
async fn what_an_encoder_takes_counts_as_held_for_its_client() {
    let (_tell, more) = watch::channel(false);
    let origin = events(more).await;
    let proxy = proxy_to(&origin, &format!("{CLEARTEXT}  client: {{max_held: 8MiB}}\n{ROUTE}")).await;
    let held = async || proxy.metric("gopherproxy_held_bytes").await;
    let open = async |accepted: &str| {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {accepted}\r\n\r\n"
            ))
            .await;
        client.head().await;
        client.chunk().await;
        client
    };
    let plain = open("identity").await;
    let small = held().await;
    assert!(small < 100_000.0, "{small}");
    drop(plain);
    for (coding, least) in [("gzip", 300_000.0), ("zstd", 500_000.0)] {
        let client = open(coding).await;
        eventually("it is counted", async || held().await >= least).await;
        drop(client);
        eventually("it is given back", async || held().await < least).await;
    }
    // A client has a quarter of the budget: its oldest responses go.
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(open("gzip").await);
    }
    eventually("the oldest are cut", async || {
        let cut = proxy
            .metric("gopherproxy_rejections_total{reason=\"held_too_much\"}")
            .await;
        cut >= 6.0 && held().await <= f64::from(2 << 20)
    })
    .await;
    let first = clients.remove(0).rest().await;
    assert!(!first.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn a_client_that_reads_nothing_makes_its_origin_wait() {
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.request().await.is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            let mut random = fastrand::Rng::with_seed(1);
            // What can't be compressed, so that it fills the client's connection.
            for _ in 0..512 {
                let piece: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64 << 10).collect();
                let chunk = [b"10000\r\n", &piece[..], b"\r\n"].concat();
                let sent = timeout(Duration::from_secs(2), peer.send(chunk)).await;
                if sent.is_err() {
                    break;
                }
            }
            // The rest would have been sent if the proxy had taken it.
            peer.send("0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    let before = crate::support::resident_kib(&proxy);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Connection::open_with_window(proxy.address(), 4096).await;
        client
            .send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: zstd\r\n\r\n")
            .await;
        client.head().await;
        clients.push(client);
    }
    // As long as the origin tries, and a moment more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let grown = crate::support::resident_kib(&proxy).saturating_sub(before);
    // 128 MiB came, or wait at the origin.
    assert!(grown < 24 << 10, "{grown} KiB");
}

#[tokio::test]
async fn a_reload_turns_it_on_and_off_and_a_response_in_flight_ends_as_it_began() {
    let (tell, more) = watch::channel(false);
    let origin = events(more).await;
    let proxy = compressing(&origin).await;
    let mut client = Connection::open(proxy.address()).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n";
    client.send(request).await;
    assert_eq!(client.head().await.header("content-encoding"), Some("gzip"));
    let mut body = client.chunk().await;
    let routes = "  routes:\n    all: {compress: false}\n";
    proxy.reconfigure(&(embedded(&[origin.address]) + CLEARTEXT + routes));
    proxy.signal("HUP");
    eventually("it is off", async || {
        let mut other = Connection::open(proxy.address()).await;
        other.send(request).await;
        other.head().await.header("content-encoding").is_none()
    })
    .await;
    tell.send(true).expect("the origin listens");
    loop {
        let chunk = client.chunk().await;
        if chunk.is_empty() {
            break;
        }
        body.extend(chunk);
    }
    assert_eq!(decoded("gzip", &body), (b"data: 1\n\ndata: 2\n\n".to_vec(), true));
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

//! Bodies over HTTP/2 towards origins of HTTP/1.1: where one request ends, the next begins, and each client gets its own answer.

use std::sync::{Arc, Mutex};

use tokio::io::AsyncReadExt;

use crate::support::http2::{
    CLEARTEXT, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, Http2, Outcome, RST_STREAM, block, frame, head, headers,
    http2_proxy_with,
};
use crate::support::{RawOrigin, StrictOrigin, eventually};

const PROTOCOL_ERROR: u32 = 1;

/// A body that would be a request, if somebody took its beginning for the end of another.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// The head of a POST with these fields, whose body follows on stream 1.
fn post(fields: &[(&str, &str)]) -> Vec<u8> {
    headers(1, 0, &[head("POST", "/"), block(fields)].concat())
}

fn data(bytes: &[u8], last: bool) -> Vec<u8> {
    frame(DATA, u8::from(last), 1, bytes)
}

/// Pingora's issue 935: over HTTP/2 the end of an upload without a length can come in an empty frame, and was sent twice. The origin
/// took the second for the beginning of a request, and clients got each other's answers.
#[tokio::test]
async fn the_end_of_an_upload_is_sent_once_and_clients_get_their_own_answers() {
    // What has come on each connection.
    let bytes = Arc::new(Mutex::new(Vec::<String>::new()));
    let seen = Arc::clone(&bytes);
    let origin = RawOrigin::start(move |mut peer| {
        let seen = Arc::clone(&seen);
        async move {
            let mut connection = Vec::new();
            let mut answered = 0;
            let place = {
                let mut seen = seen.lock().expect("no test panics with it");
                seen.push(String::new());
                seen.len() - 1
            };
            loop {
                let text = String::from_utf8_lossy(&connection).into_owned();
                // An origin that answers whatever looks like the end of a request.
                let requests = text.matches("\r\n0\r\n\r\n").count() + text.matches("GET ").count();
                if requests > answered && text.ends_with("\r\n\r\n") {
                    answered += 1;
                    let name = if text.ends_with("\r\n0\r\n\r\n") {
                        "upload"
                    } else {
                        "other"
                    };
                    peer.send(format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
                        name.len()
                    ))
                    .await;
                    continue;
                }
                if peer.stream.read_buf(&mut connection).await.unwrap_or(0) == 0 {
                    return;
                }
                seen.lock().expect("no test panics with it")[place] = String::from_utf8_lossy(&connection).into_owned();
            }
        }
    })
    .await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    for round in 0..20 {
        let mut uploads = Frames::open(proxy.address(), &[]).await;
        uploads.send(post(&[])).await;
        uploads.send(data(b"body", false)).await;
        uploads.send(data(b"", true)).await;
        assert_eq!(uploads.outcome(1).await, Outcome::Status(200));
        let body = uploads.next().await.expect("a body");
        assert_eq!((body.kind, &body.payload[..]), (DATA, &b"upload"[..]), "{round}");
        let mut other = Http2::open(proxy.address()).await;
        assert_eq!(other.get("/other").await.text(), "other", "{round}");
    }
    let connections = bytes.lock().expect("no test panics with it");
    let mut uploads = 0;
    for text in &*connections {
        // The frames can come one by one, or together; the end is one in any case, and behind it is the next request.
        for behind in text.split("\r\n\r\n4\r\nbody\r\n0\r\n\r\n").skip(1) {
            assert!(
                behind.is_empty() || behind.starts_with("GET /") || behind.starts_with("POST /"),
                "{text}"
            );
            uploads += 1;
        }
        assert_eq!(
            text.matches("\r\n0\r\n\r\n").count(),
            text.matches("POST /").count(),
            "{text}"
        );
    }
    assert_eq!(uploads, 20, "{connections:#?}");
    assert!(connections.len() < 20, "they share connections");
}

#[tokio::test]
async fn a_body_is_as_long_as_was_announced_and_never_a_request() {
    let length = SMUGGLED.len().to_string();
    let origin = StrictOrigin::start().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let refused = [
        (
            "shorter than its length",
            [post(&[("content-length", "50")]), data(SMUGGLED, true)].concat(),
        ),
        (
            "longer than its length",
            [post(&[("content-length", "3")]), data(SMUGGLED, true)].concat(),
        ),
        (
            "longer, in another frame",
            [
                post(&[("content-length", "3")]),
                data(b"abc", false),
                data(SMUGGLED, true),
            ]
            .concat(),
        ),
        (
            "where there is none",
            [post(&[("content-length", "0")]), data(SMUGGLED, true)].concat(),
        ),
        (
            "two lengths",
            [
                post(&[("content-length", "3"), ("content-length", &length)]),
                data(SMUGGLED, true),
            ]
            .concat(),
        ),
        (
            "the same length twice",
            [
                post(&[("content-length", "3"), ("content-length", "3")]),
                data(b"abc", true),
            ]
            .concat(),
        ),
        (
            "a length of +0",
            [post(&[("content-length", "+0")]), data(SMUGGLED, true)].concat(),
        ),
    ];
    for (name, sent) in refused {
        let mut client = Frames::open(proxy.address(), &[]).await;
        client.send(sent).await;
        let outcome = client.outcome(1).await;
        assert!(
            matches!(
                outcome,
                Outcome::Reset(PROTOCOL_ERROR) | Outcome::Status(400) | Outcome::GoAway(PROTOCOL_ERROR)
            ),
            "{name}: {outcome:?}"
        );
        let mut probe = Http2::open(proxy.address()).await;
        assert_eq!(probe.get("/probe").await.text(), "GET /probe ", "{name}");
    }
    let chunks = format!("0\r\n\r\n{}", String::from_utf8_lossy(SMUGGLED));
    let passed = [
        (
            "a body that looks like the end of one",
            [post(&[]), data(chunks.as_bytes(), true)].concat(),
            &chunks[..],
        ),
        (
            "the same with its length",
            [
                post(&[("content-length", &chunks.len().to_string())]),
                data(chunks.as_bytes(), true),
            ]
            .concat(),
            &chunks,
        ),
        (
            "a trailer that is a length",
            [
                post(&[]),
                data(b"abc", false),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("content-length", "9")])),
            ]
            .concat(),
            "abc",
        ),
        (
            "many frames of nothing",
            [
                post(&[]),
                data(b"", false),
                data(b"a", false),
                data(b"", false),
                data(b"bc", false),
                data(b"", true),
            ]
            .concat(),
            "abc",
        ),
        ("nothing but the end", [post(&[]), data(b"", true)].concat(), ""),
        (
            "padding",
            [post(&[]), frame(DATA, END_STREAM | 8, 1, b"\x05abc\0\0\0\0\0")].concat(),
            "abc",
        ),
    ];
    for (name, sent, body) in passed {
        let mut client = Frames::open(proxy.address(), &[]).await;
        client.send(sent).await;
        assert_eq!(client.outcome(1).await, Outcome::Status(200), "{name}");
        let echoed = client.next().await.expect("a body");
        assert_eq!(
            String::from_utf8_lossy(&echoed.payload),
            format!("POST / {}", body.as_bytes().escape_ascii()),
            "{name}"
        );
        let mut probe = Http2::open(proxy.address()).await;
        assert_eq!(probe.get("/probe").await.text(), "GET /probe ", "{name}");
    }
    let smuggled: Vec<_> = origin
        .summaries()
        .into_iter()
        .filter(|summary| summary.starts_with("GET /smuggled"))
        .collect();
    assert_eq!((smuggled, origin.violations()), (vec![], vec![]));
}

#[tokio::test]
async fn the_body_of_any_method_is_a_body_and_never_a_request() {
    let origin = StrictOrigin::start().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let length = SMUGGLED.len().to_string();
    let mut client = Frames::open(proxy.address(), &[]).await;
    let mut stream = 1;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        for fields in [&[][..], &[("content-length", &length[..])]] {
            client
                .send(headers(stream, 0, &[head(method, "/"), block(fields)].concat()))
                .await;
            client.send(frame(DATA, END_STREAM, stream, SMUGGLED)).await;
            assert_eq!(client.outcome(stream).await, Outcome::Status(200), "{method}");
            let mut probe = Http2::open(proxy.address()).await;
            assert_eq!(probe.get("/probe").await.text(), "GET /probe ", "{method}");
            let body = SMUGGLED.escape_ascii();
            let received = origin.summaries();
            assert_eq!(received[received.len() - 2], format!("{method} / {body}"));
            stream += 2;
        }
    }
    assert_eq!((origin.summaries().len(), origin.violations()), (24, vec![]));
}

/// An origin that answers whatever looks like a head with this, at once, and reads no body; and what it has received on each connection.
async fn hasty(response: &'static str) -> (RawOrigin, Arc<Mutex<Vec<String>>>) {
    let received = Arc::new(Mutex::new(Vec::<String>::new()));
    let all = Arc::clone(&received);
    let origin = RawOrigin::start(move |mut peer| {
        let all = Arc::clone(&all);
        async move {
            let place = {
                let mut all = all.lock().expect("no test panics with it");
                all.push(String::new());
                all.len() - 1
            };
            let (mut bytes, mut answered) = (Vec::new(), 0);
            while peer.stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let heads = text.matches(" HTTP/1.1\r\n").count();
                all.lock().expect("no test panics with it")[place] = text;
                for _ in answered..heads {
                    peer.send(response).await;
                }
                answered = heads;
            }
        }
    })
    .await;
    (origin, received)
}

/// A client may go on sending a body that was answered early. Whatever it is, it's no request to anybody.
#[tokio::test]
async fn what_comes_behind_an_early_answer_is_no_request() {
    for (name, fields) in [("a length", &[("content-length", "100")][..]), ("none", &[])] {
        let (origin, received) = hasty("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
        for _ in 0..5 {
            let mut client = Frames::open(proxy.address(), &[]).await;
            client.send(post(fields)).await;
            assert_eq!(client.outcome(1).await, Outcome::Status(200), "{name}");
            client.send(data(SMUGGLED, false)).await;
            let mut probe = Http2::open(proxy.address()).await;
            assert_eq!(probe.get("/probe").await.status, 200, "{name}");
        }
        proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
        let connections = received.lock().expect("no test panics with it");
        let mut uploads = 0;
        for text in &*connections {
            if let Some((_, behind)) = text.split_once("POST / HTTP/1.1\r\n") {
                uploads += 1;
                assert!(
                    !behind.contains("/probe") && !behind.contains("POST /"),
                    "{name}: {text}"
                );
            }
        }
        assert_eq!(uploads, 5, "{name}: {connections:?}");
    }
}

/// What a client sends to a WebSocket before its origin agrees to switch isn't sent to one that does not.
#[tokio::test]
async fn what_is_sent_to_a_websocket_that_the_origin_refuses_is_no_request() {
    let (origin, received) = hasty("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let switch = block(&[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "test"),
    ]);
    for _ in 0..5 {
        let mut client = Frames::open(proxy.address(), &[]).await;
        client
            .send([headers(1, 0, &switch), data(SMUGGLED, false)].concat())
            .await;
        assert_eq!(client.outcome(1).await, Outcome::Status(403));
        client.send(data(SMUGGLED, true)).await;
        let mut probe = Http2::open(proxy.address()).await;
        assert_eq!(probe.get("/probe").await.status, 403);
    }
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    let connections = received.lock().expect("no test panics with it").concat();
    assert_eq!(
        (
            connections.matches("GET / ").count(),
            connections.matches("/smuggled").count()
        ),
        (5, 0),
        "{connections}"
    );
    // With a length, it would be a request with a body at the same time.
    let mut client = Frames::open(proxy.address(), &[]).await;
    let switch = [&switch[..], &block(&[("content-length", "3")])].concat();
    client
        .send([headers(1, 0, &switch), data(b"abc", false)].concat())
        .await;
    assert_eq!(client.outcome(1).await, Outcome::Status(400));
}

#[tokio::test]
async fn an_upload_that_is_reset_costs_its_connection_to_the_origin_and_nobody_elses_answer() {
    let origin = StrictOrigin::start().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let mut client = Frames::open(proxy.address(), &[]).await;
    for stream in [1, 3, 5] {
        let begun = origin.begun();
        client.send(headers(stream, 0, &head("POST", "/reset"))).await;
        client.send(frame(DATA, 0, stream, b"half of a body")).await;
        eventually("the origin has the beginning", async || origin.begun() > begun).await;
        client.send(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).await;
        let mut probe = Http2::open(proxy.address()).await;
        assert_eq!(probe.get("/probe").await.text(), "GET /probe ");
    }
    eventually("each is in the log", async || {
        let lines = proxy.lines("request");
        lines
            .iter()
            .filter(|line| line["path"] == "/reset" && line["reason"] == "client_gone")
            .count()
            == 3
    })
    .await;
    assert_eq!(origin.violations(), Vec::<String>::new());
}

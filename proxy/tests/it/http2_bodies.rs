//! Bodies over HTTP/2 towards origins of HTTP/1.1: where one request ends, the next begins, and each client gets its own answer.

use std::sync::{Arc, Mutex};

use tokio::io::AsyncReadExt;

use crate::support::http2::{
    CLEARTEXT, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, Http2, Outcome, RST_STREAM, block, frame, head, headers,
    http2_proxy_with,
};
use crate::support::{RawOrigin, StrictOrigin, eventually};

const PROTOCOL_ERROR: u32 = 1;

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
    let smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = smuggled.len().to_string();
    let origin = StrictOrigin::start().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let refused = [
        (
            "shorter than its length",
            [post(&[("content-length", "50")]), data(smuggled, true)].concat(),
        ),
        (
            "longer than its length",
            [post(&[("content-length", "3")]), data(smuggled, true)].concat(),
        ),
        (
            "longer, in another frame",
            [
                post(&[("content-length", "3")]),
                data(b"abc", false),
                data(smuggled, true),
            ]
            .concat(),
        ),
        (
            "where there is none",
            [post(&[("content-length", "0")]), data(smuggled, true)].concat(),
        ),
        (
            "two lengths",
            [
                post(&[("content-length", "3"), ("content-length", &length)]),
                data(smuggled, true),
            ]
            .concat(),
        ),
        (
            "a length of +0",
            [post(&[("content-length", "+0")]), data(smuggled, true)].concat(),
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
    let chunks = format!("0\r\n\r\n{}", String::from_utf8_lossy(smuggled));
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

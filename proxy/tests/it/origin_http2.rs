//! Origins that speak HTTP/2 without TLS (h2c): many requests on one connection, and what a client of HTTP/1.1 sees of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use h2::Reason;
use http::Response;

use crate::support::http2::{END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, frame};
use crate::support::http2_origin::{Answer, Http2Origin, whole};
use crate::support::{Connection, Process, RawOrigin, embedded_targets, eventually, get};

async fn proxy_to(targets: &[&Http2Origin], more: &str) -> Process {
    let targets: Vec<_> = targets.iter().map(|origin| origin.address.to_string()).collect();
    let configuration = embedded_targets(&targets) + &format!("  upstream: {{protocol: h2c{more}}}\n");
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(targets.len()).await;
    proxy
}

async fn answering(answer: Answer) -> Http2Origin {
    Http2Origin::start(None, Some(answer)).await
}

/// Answers with the body of the request, in pieces as they come and without a length.
fn echo() -> Answer {
    Arc::new(|mut request, mut respond| {
        Box::pin(async move {
            let head = Response::builder().body(()).expect("a head");
            let Ok(mut response) = respond.send_response(head, false) else {
                return;
            };
            while let Some(Ok(data)) = request.body_mut().data().await {
                let _ = request.body_mut().flow_control().release_capacity(data.len());
                if response.send_data(data, false).is_err() {
                    return;
                }
            }
            let _ = response.send_data(Bytes::new(), true);
        })
    })
}

#[tokio::test]
async fn requests_share_connections_over_http_2() {
    let origin = Http2Origin::plain().await;
    let proxy = proxy_to(&[&origin], "").await;
    assert_eq!(get(proxy.address(), "/").await.header("x-version"), Some("h2"));
    let clients = (0..20).map(|number| {
        let address = proxy.address();
        async move {
            let mut client = Connection::open(address).await;
            for round in 0..5 {
                let body = format!("{number} {round}");
                let response = client.request("POST", "/", "", &body).await;
                assert_eq!((response.status, response.text()), (200, "ok".into()));
            }
        }
    });
    join_all(clients).await;
    let requests = origin.requests();
    assert_eq!(requests.len(), 101);
    // One that looks for a connection while others do may find none and make one.
    assert!(origin.connections() < 20, "{} connections", origin.connections());
    assert!(
        requests
            .iter()
            .all(|seen| seen.head.contains("http://test/") && seen.head.contains("te: trailers\r\n"))
    );
}

#[tokio::test]
async fn bodies_pass_both_ways_without_a_length() {
    let origin = answering(echo()).await;
    let proxy = proxy_to(&[&origin], "").await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST /duplex HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")));
    for piece in ["one", "two", "three"] {
        client.send(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
        assert_eq!(client.chunk().await, piece.as_bytes());
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
    assert_eq!(client.bytes(2).await, b"\r\n");
    let large = "x".repeat(1 << 20);
    let response = client.request("POST", "/large", "", &large).await;
    assert!(response.status == 200 && response.text() == large);
    // HTTP/1.0 knows no chunks.
    let mut old = Connection::open(proxy.address()).await;
    old.send("POST /old HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody").await;
    let text = String::from_utf8(old.rest().await).expect("text");
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nbody"),
        "{text}"
    );
    assert!(!text.to_lowercase().contains("transfer-encoding"), "{text}");
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_one() {
    let origin = Http2Origin::plain().await;
    let proxy = proxy_to(&[&origin], ", read_timeout: 5s").await;
    let mut client = Connection::open(proxy.address()).await;
    for _ in 0..2 {
        client
            .send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
            .await;
        assert_eq!(client.head().await.status, 100);
        client.send("body").await;
        assert_eq!(client.response().await.status, 200);
    }
    let requests = origin.requests();
    assert!(
        requests.len() == 2
            && requests
                .iter()
                .all(|seen| seen.body == b"body" && !seen.head.contains("expect"))
    );
}

#[tokio::test]
async fn a_request_that_the_origin_has_refused_goes_out_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    // Every second request is refused, before its body is read.
    let answer: Answer = Arc::new(move |mut request, mut respond| {
        let refuses = counted.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        Box::pin(async move {
            if refuses {
                return respond.send_reset(Reason::REFUSED_STREAM);
            }
            let Some((body, _)) = whole(request.body_mut()).await else {
                return;
            };
            let head = Response::builder().body(()).expect("a head");
            if let Ok(mut response) = respond.send_response(head, false) {
                let _ = response.send_data(body.into(), true);
            }
        })
    });
    let origin = answering(answer).await;
    let proxy = proxy_to(&[&origin], "").await;
    let mut client = Connection::open(proxy.address()).await;
    for number in 0..6 {
        let (method, body) = if number % 2 == 0 {
            ("POST", "a body")
        } else {
            ("GET", "")
        };
        let response = client.request(method, &format!("/{number}"), "", body).await;
        assert_eq!(
            (response.status, response.text()),
            (200, body.into()),
            "request {number}"
        );
    }
    assert_eq!(count.load(Ordering::Relaxed), 12);
    // One that refuses for ever gets each request twice.
    let always: Answer = Arc::new(|_, mut respond| Box::pin(async move { respond.send_reset(Reason::REFUSED_STREAM) }));
    let origin_that_refuses = answering(always).await;
    let refusing = proxy_to(&[&origin_that_refuses], "").await;
    assert_eq!(get(refusing.address(), "/").await.status, 502);
    assert!(origin_that_refuses.connections() <= 2);
    assert_eq!(proxy.metric("gopherproxy_ejections_total").await, 0.0);
}

/// What an origin does with the second request of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// It leaves before it has seen it.
    Before,
    /// It says that this is the last, and answers it.
    AfterIt,
    /// It may have acted on it, and leaves with an error and without an answer.
    InTheMiddle,
}

#[tokio::test]
async fn an_origin_that_goes_away_costs_no_request_that_it_has_not_acted_on() {
    for leaves in [Leaves::Before, Leaves::AfterIt, Leaves::InTheMiddle] {
        let origin = RawOrigin::start(move |peer| async move {
            let mut frames = Frames::accepted(peer.stream).await;
            let mut heads = Vec::new();
            let mut gone = false;
            while let Some(next) = frames.next().await {
                if next.kind == HEADERS {
                    heads.push(next.stream);
                }
                if next.stream == 0 || next.flags & END_STREAM == 0 || gone {
                    continue;
                }
                // 200, by its place in the static table of RFC 7541.
                let answer = frame(HEADERS, END_STREAM | END_HEADERS, next.stream, &[0x88]);
                let goaway =
                    |last: u32, error: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), error.to_be_bytes()].concat());
                if heads.len() == 1 {
                    frames.send(answer).await;
                    continue;
                }
                gone = true;
                match leaves {
                    Leaves::Before => frames.send(goaway(heads[0], 0)).await,
                    Leaves::AfterIt => frames.send([goaway(next.stream, 0), answer].concat()).await,
                    Leaves::InTheMiddle => return frames.send(goaway(next.stream, 2)).await,
                }
            }
        })
        .await;
        let configuration = embedded_targets(&[origin.address.to_string()]) + "  upstream: {protocol: h2c}\n";
        let proxy = Process::proxy(&configuration).await;
        proxy.active_backends(1).await;
        let mut statuses = Vec::new();
        for number in 0..6 {
            let (method, body) = if number % 2 == 1 {
                ("POST", "a body")
            } else {
                ("GET", "")
            };
            let mut client = Connection::open(proxy.address()).await;
            statuses.push(client.request(method, &format!("/{number}"), "", body).await.status);
        }
        if leaves == Leaves::InTheMiddle {
            assert_eq!(
                statuses,
                [200, 502, 200, 502, 200, 502],
                "a POST may have been acted on"
            );
        } else {
            assert_eq!(statuses, [200; 6], "{leaves:?}");
        }
        assert!(origin.connections() >= 3, "{leaves:?}: {}", origin.connections());
    }
}

#[tokio::test]
async fn what_an_origin_breaks_is_tried_elsewhere_if_it_can_be() {
    let breaks: Answer = Arc::new(|_, mut respond| {
        Box::pin(async move {
            respond.send_reset(Reason::INTERNAL_ERROR);
        })
    });
    let (broken, good) = (answering(breaks).await, Http2Origin::plain().await);
    let proxy = proxy_to(&[&broken, &good], ", ejection: {failures: 1000}").await;
    let mut client = Connection::open(proxy.address()).await;
    for number in 0..6 {
        assert_eq!(client.get(&format!("/{number}")).await.status, 200, "request {number}");
    }
    let mut refused = 0;
    for _ in 0..6 {
        let mut client = Connection::open(proxy.address()).await;
        let response = client.request("POST", "/post", "", "a body").await;
        refused += usize::from(response.status == 502);
    }
    assert_eq!(refused, 3, "what may have been acted on is not sent again");
    let line = proxy.said("request", |line| line["status"] == 502).await;
    assert!(
        line["error"]
            .as_str()
            .expect("why")
            .contains("unexpected internal error"),
        "{line}"
    );
}

#[tokio::test]
async fn a_silent_origin_costs_504_and_its_connection_is_given_up() {
    let silent: Answer = Arc::new(|request, respond| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop((request, respond));
        })
    });
    let origin = answering(silent).await;
    let proxy = proxy_to(&[&origin], ", read_timeout: 300ms").await;
    let mut client = Connection::open(proxy.address()).await;
    assert_eq!(client.request("POST", "/", "", "a body").await.status, 504);
    let line = proxy.request_line("/").await;
    assert_eq!(line["error"], "the backend said nothing for upstream.read_timeout");
    // An upload that takes longer is no silence of the origin's.
    let echoing = answering(echo()).await;
    let proxy = proxy_to(&[&echoing], ", read_timeout: 300ms").await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
        .await;
    assert_eq!(client.head().await.status, 200);
    tokio::time::sleep(Duration::from_millis(700)).await;
    client.send("ok").await;
    assert_eq!(client.chunk().await, b"ok");
    assert_eq!(client.chunk().await, b"");
}

#[tokio::test]
async fn an_origin_that_speaks_http_1_1_only_gets_502_and_a_websocket_passes() {
    let origin = RawOrigin::start(|mut peer| async move {
        let Some(head) = peer.head().await else { return };
        if head.starts_with("PRI ") {
            return peer.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
            .await;
        peer.until("bye").await;
    })
    .await;
    let configuration = embedded_targets(&[origin.address.to_string()]) + "  upstream: {protocol: h2c}\n";
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.status, 502);
    let line = proxy.request_line("/").await;
    assert_eq!(line["reason"], "backend_failed");
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.bytes(5).await, b"hello");
}

#[tokio::test]
async fn requests_that_a_connection_has_no_room_for_go_over_others() {
    let slow: Answer = Arc::new(|_, mut respond| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let _ = respond.send_response(Response::builder().body(()).expect("a head"), true);
        })
    });
    let origin = Http2Origin::with(None, Some(slow), Some(2)).await;
    let proxy = proxy_to(&[&origin], "").await;
    // When the proxy knows of the limit, and when it doesn't.
    for round in 0..3 {
        let clients = (0..12).map(|_| async { get(proxy.address(), "/").await.status });
        assert_eq!(join_all(clients).await, [200; 12], "round {round}");
    }
    assert_eq!(proxy.metric("gopherproxy_ejections_total").await, 0.0);
}

#[tokio::test]
async fn an_origin_hears_that_the_client_has_left() {
    let heard = Arc::new(AtomicUsize::new(0));
    let (counted, under_way) = (Arc::clone(&heard), Arc::new(AtomicUsize::new(0)));
    let arrived = Arc::clone(&under_way);
    let waiting: Answer = Arc::new(move |_, mut respond| {
        let (counted, arrived) = (Arc::clone(&counted), Arc::clone(&arrived));
        Box::pin(async move {
            arrived.fetch_add(1, Ordering::Relaxed);
            let reset = std::future::poll_fn(|context| respond.poll_reset(context)).await;
            if reset.is_ok_and(|reason| reason == Reason::CANCEL) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let origin = answering(waiting).await;
    let proxy = proxy_to(&[&origin], "").await;
    for (number, request) in [
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf",
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Connection::open(proxy.address()).await;
        client.send(request).await;
        eventually("it is there", async || under_way.load(Ordering::Relaxed) == number + 1).await;
        drop(client);
        eventually("it hears of that", async || heard.load(Ordering::Relaxed) == number + 1).await;
        assert_eq!(proxy.request_line(&format!("/{}", number + 1)).await["status"], 499);
    }
    assert_eq!(proxy.metric("gopherproxy_ejections_total").await, 0.0);
}

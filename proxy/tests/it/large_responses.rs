//! Large responses of a known length, which the kernel moves from one connection to the other: whatever happens to one of them, no other
//! is touched.

use std::time::Duration;

use tokio::time::sleep;

use crate::connection_limits::{descriptors, limit_descriptors};
use crate::support::http::Response;
use crate::support::{Connection, Peer, Process, RawOrigin, eventually, forwarder, get, proxy_to};

/// More than is read in one go, and than both ends of a connection take from somebody whom nobody reads.
const SIZE: usize = 2 << 20;

/// `size` bytes that are another response's from the first one on.
fn body(size: usize, path: &str) -> Vec<u8> {
    path.bytes().cycle().take(size).collect()
}

fn head(size: usize) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")
}

/// Answers what the path says.
async fn serve(mut peer: Peer) {
    while let Some(request) = peer.request().await {
        let path = request.split(' ').nth(1).expect("a target");
        let whole = body(SIZE, path);
        if path == "/small" {
            peer.send(head(5) + "small").await;
            continue;
        }
        let mut bytes = head(SIZE).into_bytes();
        match path.split('-').next() {
            Some("/closed") => bytes.extend_from_slice(&whole[..SIZE / 2]),
            Some("/reset") => bytes.extend_from_slice(&whole[..SIZE / 2]),
            Some("/few") => bytes.extend_from_slice(&whole[..5]),
            Some("/more") => {
                bytes.extend_from_slice(&whole);
                bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
            }
            Some("/trickle") => {
                // Twice the time for a piece in all, and a tenth of it for each.
                peer.send(bytes).await;
                for piece in whole.chunks(SIZE.div_ceil(20)) {
                    sleep(Duration::from_millis(100)).await;
                    peer.send(piece).await;
                }
                continue;
            }
            _ => bytes.extend_from_slice(&whole),
        }
        peer.send(bytes).await;
        match path.split('-').next() {
            Some("/reset") => {
                // What was sent is not lost by it.
                sleep(Duration::from_millis(50)).await;
                return peer.reset();
            }
            Some("/closed" | "/few") => return,
            Some("/more") => drop(peer.request().await),
            _ => {}
        }
    }
}

async fn ask(client: &mut Connection, path: &str) -> std::io::Result<Response> {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    client.try_response(false).await
}

async fn check(client: &mut Connection, path: &str) {
    let answer = ask(client, path).await.expect("a whole response");
    assert!(answer.body == body(SIZE, path), "{path}: others came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_break_at_either_end_leave_nothing_behind() {
    let origin = RawOrigin::start(serve).await;
    let proxy = proxy_to(&origin, "").await;
    let mut kept = Connection::open(proxy.address()).await;
    check(&mut kept, "/whole-0").await;
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    let before = descriptors(&proxy);
    for round in 1..=40 {
        let path = format!("/{}-{round}", ["closed", "reset", "left", "few"][round % 4]);
        let mut client = Connection::open(proxy.address()).await;
        if round % 4 == 2 {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            client.head().await;
            if round % 8 == 2 {
                client.reset();
            }
        } else {
            assert!(ask(&mut client, &path).await.is_err(), "{path}");
        }
        // On the thread that had to do with it, half of the time.
        let path = format!("/whole-{round}");
        check(&mut kept, &path).await;
    }
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    proxy.reaches("gopherproxy_held_bytes", 0.0).await;
    // Each of its threads may keep a pipe, and the pool some connections.
    eventually("all is closed", async || descriptors(&proxy) <= before + 4).await;
    for (path, reason, bytes) in [
        ("/closed-4", "backend_failed", Some(SIZE / 2)),
        ("/reset-1", "backend_failed", Some(SIZE / 2)),
        ("/left-2", "client_gone", None),
        ("/few-3", "backend_failed", Some(5)),
    ] {
        let line = proxy.request_line(path).await;
        assert_eq!(line["reason"], reason, "{line}");
        assert_eq!(line["status"], 200, "{line}");
        if let Some(bytes) = bytes {
            assert_eq!(line["bytes"], bytes, "{line}");
        }
        // Pingora says it in its own words.
        if path == "/reset-1" && forwarder::variable().is_none() {
            let error = line["error"].as_str().expect("words");
            assert!(error.contains("reset"), "{line}");
        }
    }
}

#[tokio::test]
async fn what_comes_behind_one_belongs_to_nobody() {
    let origin = RawOrigin::start(serve).await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    for round in 1..=10 {
        let path = format!("/more-{round}");
        check(&mut client, &path).await;
        let own = ask(&mut client, "/small").await.expect("an answer");
        assert_eq!(own.text(), "small", "{round}");
        assert_eq!(get(proxy.address(), "/small").await.text(), "small", "{round}");
    }
}

#[tokio::test]
async fn one_that_takes_long_has_time_for_each_piece_and_requests_may_wait_behind_it() {
    let origin = RawOrigin::start(serve).await;
    let proxy = proxy_to(&origin, "  upstream: {read_timeout: 1s}\n").await;
    let mut client = Connection::open(proxy.address()).await;
    let paths = ["/trickle-1", "/whole-2", "/whole-3"];
    for path in paths {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    }
    for path in paths {
        let answer = client.response().await;
        assert!(answer.body == body(SIZE, path), "{path}");
        assert_eq!(proxy.request_line(path).await["bytes"], SIZE, "{path}");
    }
}

#[tokio::test]
async fn without_descriptors_for_a_pipe_they_arrive_all_the_same() {
    let origin = RawOrigin::start(serve).await;
    let proxy: Process = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    assert_eq!(ask(&mut client, "/small").await.expect("an answer").text(), "small");
    limit_descriptors(&proxy, descriptors(&proxy));
    check(&mut client, "/whole").await;
}

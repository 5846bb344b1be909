//! When a connection to an origin is used again, and when never: no client sees what was meant for another, and nobody pays for a
//! connection that the origin has closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::support::{Connection, Process, RawOrigin, embedded, eventually, forwarder, get, proxy_to, thorough};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";

#[tokio::test]
async fn the_body_of_an_answer_to_head_is_nobodys() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let word = request.split([' ', '/']).nth(2).expect("a path");
            let head = match word {
                "length" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", EVIL.len()),
                "chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
                _ => {
                    peer.send(GOOD).await;
                    continue;
                }
            };
            peer.send(head).await;
            // When the proxy has passed the head on, and the next request has come or is about to.
            let late = fastrand::u64(..1500);
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(late) {
                tokio::task::yield_now().await;
            }
            peer.send(EVIL).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    let mut other = Connection::open(proxy.address()).await;
    for round in 0..thorough(100, 2000) {
        for path in ["/length", "/chunked"] {
            client.send(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!(client.head().await.status, 200);
            let next = other.get("/next").await;
            assert_eq!(
                (next.status, next.text().as_str()),
                (200, "good"),
                "{path}, round {round}"
            );
        }
    }
}

#[tokio::test]
async fn a_connection_on_which_the_answer_came_before_the_end_of_the_request_is_not_used_again() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    // It answers before it has the body, and takes that for the next request. Whatever comes on such a connection is another's body.
    let origin = RawOrigin::start(|mut peer| async move {
        let mut early = false;
        while let Some(head) = peer.head().await {
            peer.send(if early { EVIL } else { GOOD }).await;
            early |= head.starts_with("POST ");
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    for round in 0..thorough(50, 1000) {
        let mut client = Connection::open(proxy.address()).await;
        let head = format!(
            "POST /in HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            smuggled.len()
        );
        // All of the body late, or half of it.
        let early = [0, 10][round % 2];
        client.send(head + &smuggled[..early]).await;
        assert_eq!(client.response().await.text(), "good");
        let _ = client.try_send(&smuggled[early..]).await;
        for _ in 0..3 {
            let next = get(proxy.address(), "/next").await;
            assert_eq!((next.status, next.text().as_str()), (200, "good"), "round {round}");
        }
    }
}

#[tokio::test]
async fn an_origin_that_does_not_promise_to_keep_its_connection_gets_no_other_request_on_it() {
    let origin = RawOrigin::start(|mut peer| async move {
        let request = peer.request().await.expect("a request");
        let fields = match request.split([' ', '/']).nth(2) {
            Some("old") => "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            Some("close") => "HTTP/1.1 200 OK\r\nConnection: x, CLOSE\r\nContent-Length: 2\r\n\r\nok",
            _ => "HTTP/1.1 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 2\r\n\r\nok",
        };
        peer.send(fields).await;
        if peer.request().await.is_some() {
            peer.send(EVIL).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    for (number, path) in ["/old", "/close", "/both"].into_iter().enumerate() {
        let mut client = Connection::open(proxy.address()).await;
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{path}");
        assert_ne!(
            answer.header("connection"),
            Some("close"),
            "{path}: the client's connection is another"
        );
        assert_eq!(origin.connections(), number + 1, "{path}");
    }
}

/// An origin that is done with a connection that was idle for a random time, and counts these. Half of them it closes then. The
/// other half it closes when something comes, as happens when both are on their way at the same time.
async fn forgetful(done: Arc<AtomicUsize>) -> RawOrigin {
    RawOrigin::start(move |mut peer| {
        let done = Arc::clone(&done);
        async move {
            while peer.request().await.is_some() {
                peer.send(OK).await;
                let idle = Duration::from_millis(fastrand::u64(700..1500));
                if timeout(idle, peer.stream.readable()).await.is_err() {
                    done.fetch_add(1, Ordering::Relaxed);
                    if fastrand::bool() {
                        let _ = peer.stream.readable().await;
                    }
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_on_connections_that_the_origin_closes_when_idle_all_arrive_once() {
    if forwarder::skips("connection_reuse::posts_on_connections_that_the_origin_closes_when_idle_all_arrive_once") {
        return;
    }
    let done = Arc::new(AtomicUsize::new(0));
    let origin = forgetful(Arc::clone(&done)).await;
    let proxy = proxy_to(&origin, "").await;
    let end = Instant::now() + Duration::from_secs(thorough(5, 60));
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Connection::open(proxy.address()).await);
    }
    let mut sent = 0;
    while Instant::now() < end {
        // All at the same time, so that each needs a connection of its own.
        let posts = clients.iter_mut().enumerate().map(async |(client, connection)| {
            let path = format!("/{client}-{sent}");
            connection.request("POST", &path, "", "x").await.status
        });
        let answers = futures::future::join_all(posts).await;
        assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
        sent += answers.len();
        sleep(Duration::from_millis(fastrand::u64(300..1800))).await;
    }
    assert!(
        done.load(Ordering::Relaxed) > 20,
        "connections were closed all the time"
    );
    let mut posts = origin.requests();
    assert_eq!(posts.len(), sent, "each arrived");
    posts.sort_unstable();
    posts.dedup();
    assert_eq!(posts.len(), sent, "and none twice");
}

#[tokio::test]
async fn what_must_not_be_repeated_is_not_put_on_a_connection_that_was_idle_for_long() {
    if forwarder::skips("connection_reuse::what_must_not_be_repeated_is_not_put_on_a_connection_that_was_idle_for_long")
    {
        return;
    }
    let origin = RawOrigin::answering(OK).await;
    for (key, connections) in [
        ("", 2),
        ("  upstream: {reuse_idle: 1m}\n", 1),
        ("  upstream: {reuse_idle: 10ms}\n", 2),
    ] {
        let before = origin.connections();
        let proxy = proxy_to(&origin, key).await;
        let mut client = Connection::open(proxy.address()).await;
        assert_eq!(client.get("/").await.text(), "ok");
        sleep(Duration::from_millis(900)).await;
        assert_eq!(client.get("/").await.text(), "ok");
        assert_eq!(origin.connections() - before, 1, "{key}: a GET may be repeated");
        sleep(Duration::from_millis(900)).await;
        assert_eq!(client.request("POST", "/", "", "x").await.text(), "ok");
        assert_eq!(origin.connections() - before, connections, "{key}");
        // None was thrown away for that.
        sleep(Duration::from_millis(100)).await;
        assert_eq!(client.get("/").await.text(), "ok");
        assert_eq!(origin.connections() - before, connections, "{key}");
    }
}

#[tokio::test]
async fn a_connection_that_the_origin_closes_when_it_is_used_again_costs_no_retry() {
    // It takes a second request on a connection and closes without a word.
    let origin = RawOrigin::start(|mut peer| async move {
        if peer.request().await.is_some() {
            peer.send(OK).await;
            peer.request().await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "  upstream: {retries: 0, ejection: {failures: 1}}\n").await;
    let mut client = Connection::open(proxy.address()).await;
    for _ in 0..10 {
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(proxy.metric("gopherproxy_ejections_total").await, 0.0);
    // What may have been done is not done again.
    let mut posts = 0;
    for _ in 0..4 {
        let mut client = Connection::open(proxy.address()).await;
        let answer = client.request("POST", "/post", "", "x").await;
        assert!(matches!(answer.status, 200 | 502), "{answer:?}");
        posts += 1;
    }
    let received = origin
        .requests()
        .iter()
        .filter(|request| request.starts_with("POST "))
        .count();
    assert_eq!(received, posts);
}

#[tokio::test]
async fn as_many_idle_connections_are_kept_as_the_pool_takes_and_as_long_as_it_may() {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let origin = RawOrigin::start(move |mut peer| {
        let open = Arc::clone(&counted);
        async move {
            open.fetch_add(1, Ordering::Relaxed);
            while peer.request().await.is_some() {
                // Until all of them have come.
                sleep(Duration::from_millis(500)).await;
                peer.send(OK).await;
            }
            open.fetch_sub(1, Ordering::Relaxed);
        }
    })
    .await;
    let configuration = embedded(&[origin.address])
        .replace("threads: 2", "threads: 1\nupstream_keepalive_pool_size: 3")
        + "  upstream: {idle_timeout: 2s}\n";
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        let mut client = Connection::open(proxy.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        clients.push(client);
    }
    eventually("all are at the origin", async || open.load(Ordering::Relaxed) == 12).await;
    for client in &mut clients {
        assert_eq!(client.response().await.text(), "ok");
    }
    eventually("the pool's are left", async || open.load(Ordering::Relaxed) == 3).await;
    assert_eq!(clients[0].get("/").await.text(), "ok");
    assert_eq!(origin.connections(), 12, "one of the three was used");
    let start = Instant::now();
    eventually("they have been idle for too long", async || {
        open.load(Ordering::Relaxed) == 0
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

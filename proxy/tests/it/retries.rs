//! What is sent again to another origin, how much of a request is held for that, and who is blamed for what.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::support::{
    BlackHole, Connection, Process, RawOrigin, Redis, eventually, origin_listener, proxy_to, with_redis,
};

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";

/// A proxy over these, whose health checks come too late to help, with these further lines of configuration.
async fn unchecked(redis: &Redis, members: &[SocketAddr], more: &str) -> Process {
    for member in members {
        let member = origin_listener::member(*member);
        redis.command(&format!("SADD gopher_backends {member}")).await;
    }
    let configuration = with_redis(redis).replace("health: {interval: 100ms}", "health: {interval: 1h}");
    let proxy = Process::proxy(&(configuration + more)).await;
    proxy.active_backends(members.len()).await;
    proxy
}

#[tokio::test]
async fn a_put_is_sent_again_if_what_was_sent_of_its_body_is_still_held() {
    // One takes the whole request and closes without a word.
    let broken = RawOrigin::start(|mut peer| async move { drop(peer.request().await) }).await;
    let whole = RawOrigin::answering(GOOD).await;
    let redis = Redis::start().await;
    for (keys, size, lost) in [
        ("", 60_000, false),
        ("", 70_000, true),
        ("retry_buffer: 128KiB, ", 70_000, false),
        ("retry_buffer: 128KiB, ", 140_000, true),
        ("retry_buffer: 1KiB, ", 2_000, true),
    ] {
        let more = format!("  upstream: {{{keys}ejection: {{max_share: 0}}}}\n");
        let proxy = unchecked(&redis, &[broken.address, whole.address], &more).await;
        let body = "x".repeat(size);
        let mut statuses = Vec::new();
        for _ in 0..8 {
            let mut client = Connection::open(proxy.address()).await;
            statuses.push(client.request("PUT", "/", "", &body).await.status);
        }
        statuses.sort_unstable();
        statuses.dedup();
        let expected = if lost { &[200, 502][..] } else { &[200] };
        assert_eq!(statuses, expected, "{keys}{size} bytes");
    }
}

#[tokio::test]
async fn silence_is_measured_from_when_the_try_began() {
    let (redis, hole) = (Redis::start().await, BlackHole::after_one());
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.request().await.is_some() {
            sleep(Duration::from_millis(400)).await;
            peer.send(GOOD).await;
        }
    })
    .await;
    let limits = "  upstream: {connect_timeout: 1500ms, read_timeout: 1s, ejection: {failures: 1, max_share: 0.9}}\n";
    let proxy = unchecked(&redis, &[hole.address, origin.address], limits).await;
    // One of the two meets the black hole first.
    for _ in 0..2 {
        let mut client = Connection::open(proxy.address()).await;
        assert_eq!(client.get("/").await.status, 200);
    }
    eventually("the hole is blamed", async || {
        proxy.metric("gopherproxy_ejections_total").await == 1.0
    })
    .await;

    let proxy = proxy_to(&origin, "  upstream: {read_timeout: 1s, ejection: {failures: 1}}\n").await;
    // A head that takes longer to arrive than an origin may be silent.
    let mut client = Connection::open(proxy.address()).await;
    for piece in ["GET / HT", "TP/1.1\r\nHo", "st: a\r", "\n\r\n"] {
        sleep(Duration::from_millis(400)).await;
        client.send(piece).await;
    }
    assert_eq!(client.response().await.status, 200);
    // The same of a body.
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
        .await;
    for piece in ["w", "i", "k", "i"] {
        sleep(Duration::from_millis(400)).await;
        client.send(piece).await;
    }
    assert_eq!(client.response().await.status, 200);
    proxy.reaches("gopherproxy_ejections_total", 0.0).await;
}

#[tokio::test]
async fn no_client_can_get_an_origin_ejected() {
    let redis = Redis::start().await;
    let origins = [patient().await, patient().await];
    let addresses = origins.each_ref().map(|origin| origin.address);
    let limits =
        "  client: {read_timeout: 500ms}\n  upstream: {read_timeout: 400ms, ejection: {failures: 1, max_share: 0.9}}\n";
    let proxy = unchecked(&redis, &addresses, limits).await;
    let mut clients = Vec::new();
    for number in 0..8 {
        let head =
            |path: &str, fields: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n{fields}\r\n");
        // It waits for a word that the origin does not say, or does not send what it has been asked for, or stops half-way, or the
        // origin loses its patience, or it goes away.
        for request in [
            head("/silent", "Expect: 100-continue\r\n"),
            head("/asks", "Expect: 100-continue\r\n"),
            head("/silent", "") + "half",
            head("/hangs-up", "") + "half",
            head("/silent", "") + "gone",
        ] {
            let mut client = Connection::open(proxy.address()).await;
            client.send(&request).await;
            if !request.ends_with("gone") {
                clients.push(client);
            } else if number % 2 == 0 {
                client.reset();
            }
        }
    }
    for mut client in clients {
        let ended = timeout(Duration::from_secs(20), client.rest()).await;
        assert!(ended.is_ok(), "it waits for ever");
    }
    eventually("all have ended", async || proxy.lines("request").len() == 40).await;
    let metrics = proxy.metrics().await;
    let blamed = proxy.lines("backend keeps failing; it is ejected");
    assert_eq!(
        metrics["gopherproxy_ejections_total"],
        0.0,
        "{blamed:#?} {:#?}",
        proxy.lines("request")
    );
    assert_eq!(metrics["gopherproxy_active_backends"], 2.0);
}

/// An origin that waits for a body and answers then.
async fn patient() -> RawOrigin {
    RawOrigin::start(|mut peer| async move {
        let head = peer.head().await.expect("a request");
        if head.contains(" /asks ") {
            peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        let hangs_up = head.contains(" /hangs-up ");
        let wait = Duration::from_millis(if hangs_up { 200 } else { 60_000 });
        let _ = timeout(wait, peer.until("the end")).await;
    })
    .await
}

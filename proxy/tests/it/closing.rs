//! How the proxy ends a connection on which the client may still send: it lingers (RFC 9112, section 9.6), so that no reset destroys
//! what the client has not read yet.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use pingora::protocols::l4::ext::get_tcp_info;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::support::{
    Connection, Process, RawOrigin, UNLIMITED, embedded, eventually, get, origin, proxy_over, proxy_to,
};

/// Sends `more` when the answer has begun, reads all, and checks that it ends in an orderly way. Returns the length of the rest.
async fn ends_in_order(name: &str, client: &mut Connection, more: &str) -> usize {
    // On both sides of the moment in which the proxy closes.
    for _ in 0..4 {
        let sent = client.try_send(more).await;
        assert!(sent.is_ok(), "{name}: {sent:?}");
        sleep(Duration::from_millis(50)).await;
    }
    match client.try_rest().await {
        Ok(rest) => rest.len(),
        Err(error) => panic!("{name}: {error}"),
    }
}

/// Takes `count` bytes and sends `more` now and then, before and after the moment in which the proxy has sent everything.
async fn takes_slowly(name: &str, client: &mut Connection, more: &str, count: usize) {
    const PIECE: usize = 10_000;
    for _ in 0..count / PIECE {
        let taken = client.try_bytes(PIECE).await;
        assert!(taken.is_ok() && client.try_send(more).await.is_ok(), "{name}, {more:?}");
    }
}

#[tokio::test]
async fn a_large_answer_on_a_connection_that_ends_arrives_whole_though_the_client_sends_on() {
    const SIZE: usize = 300_000;
    let (proxy, origins) = proxy_over(1).await;
    let once = Process::proxy(&(embedded(&[origins[0].address()]) + "  client: {max_requests: 1}\n")).await;
    once.active_backends(1).await;
    for (name, proxy, version, fields) in [
        ("Connection: close", &proxy, "1.1", "Connection: close\r\n"),
        ("HTTP/1.0", &proxy, "1.0", ""),
        ("max_requests", &once, "1.1", ""),
    ] {
        for more in ["x", "GET /more HTTP/1.1\r\nHost: a\r\n\r\n"] {
            // Most of the answer waits in the proxy's kernel when the proxy has done its part.
            let mut client = Connection::open_with_window(proxy.address(), 4096).await;
            client
                .send(format!("GET /bytes/{SIZE} HTTP/{version}\r\nHost: a\r\n{fields}\r\n"))
                .await;
            let head = client.head().await;
            assert_eq!(head.header("connection"), Some("close"), "{name}");
            takes_slowly(name, &mut client, more, SIZE - 10_000).await;
            assert_eq!(ends_in_order(name, &mut client, more).await, 10_000, "{name}, {more:?}");
        }
    }
    proxy.reaches("gopherproxy_connections", 0.0).await;
}

#[tokio::test]
async fn a_refusal_on_a_connection_that_ends_is_no_reset_though_the_client_sends_on() {
    let origin = origin();
    let base = embedded(&[origin.address()]);
    let all =
        Process::proxy(&(base.clone() + "  client: {max_body: 1KiB, read_timeout: 300ms, max_head: 4KiB}\n")).await;
    all.active_backends(1).await;
    let limited = Process::proxy(&base.replace(UNLIMITED, "  limit: {burst: 1, per_second: 0.001}\n")).await;
    limited.active_backends(1).await;
    assert_eq!(get(limited.address(), "/").await.status, 200);
    let unserved = Process::proxy(&embedded(&[([127, 0, 0, 1], 1).into()])).await;
    let full = Process::proxy(&(base.clone() + "  client: {max_connections: 1}\n")).await;
    let _first = Connection::open(full.address()).await;
    full.reaches("gopherproxy_connections", 1.0).await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(8 << 10));
    let rows = [
        (400, &all, "GET / HTTP/1.1\r\n\r\n"),
        (400, &all, "\x16\x03\x01\x02\x00\x01\x00\x01\x00\x03\x03\r\n\r\n"),
        (405, &all, "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (
            408,
            &all,
            "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf",
        ),
        (
            413,
            &all,
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2000\r\n\r\n",
        ),
        (414, &all, &long),
        (429, &limited, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        (429, &limited, "GET / HTTP/1.0\r\n\r\n"),
        (
            501,
            &all,
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        ),
        (503, &unserved, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        (503, &full, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ];
    for (status, proxy, request) in rows {
        let mut client = Connection::open(proxy.address()).await;
        client.send(request).await;
        let answer = client.response().await;
        let name = format!("{status} to {:.40}", request.escape_debug());
        assert_eq!(
            (answer.status, answer.header("connection")),
            (status, Some("close")),
            "{name}"
        );
        assert_eq!(ends_in_order(&name, &mut client, "xy").await, 0, "{name}");
    }
    for proxy in [&all, &limited, &unserved] {
        proxy.reaches("gopherproxy_connections", 0.0).await;
    }
}

#[tokio::test]
async fn the_last_answers_of_a_proxy_that_leaves_arrive_whole_though_their_clients_send_on() {
    const SIZE: usize = 300_000;
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        sleep(Duration::from_millis(500)).await;
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))
            .await;
        peer.send(vec![b'x'; SIZE]).await;
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open_with_window(proxy.address(), 4096).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("it is under way", async || !origin.requests().is_empty()).await;
    proxy.signal("TERM");
    assert_eq!(client.head().await.header("connection"), Some("close"));
    takes_slowly("leaving", &mut client, "x", SIZE - 10_000).await;
    assert_eq!(ends_in_order("leaving", &mut client, "x").await, 10_000);
    let (status, _) = proxy.ended().await;
    assert_eq!(status.code(), Some(0));
}

/// Nothing else tells a client of HTTP/1.0, such as nginx by default, that a response without a length is not whole: it may even store it.
#[tokio::test]
async fn a_response_without_a_length_that_breaks_off_ends_with_a_reset() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let framing = if request.contains("/close") {
                "Connection: close\r\n\r\nhello"
            } else {
                "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
            };
            peer.send(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
            match request.split(' ').nth(1) {
                Some("/whole") => peer.send("0\r\n\r\n").await,
                Some("/killed") => drop(peer.stream.read_u8().await),
                _ => return,
            }
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    for (path, whole) in [
        ("/whole", true),
        ("/close", true),
        ("/broken", false),
        ("/killed", false),
    ] {
        let mut client = Connection::open(proxy.address()).await;
        client.send(format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        assert_eq!(client.head().await.header("content-length"), None, "{path}");
        assert_eq!(client.try_bytes(5).await.expect("the beginning"), b"hello", "{path}");
        if path == "/killed" {
            proxy.signal("KILL");
        }
        assert_eq!(client.try_rest().await.is_ok(), whole, "{path}");
    }
}

/// How many segments a client gets for a request on a connection of its own, until the connection ends or the answer does.
async fn segments(proxy: &Process, fields: &str, ends: bool) -> u32 {
    let mut client = Connection::open(proxy.address()).await;
    client
        .send(format!("GET /bytes/100 HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
        .await;
    let response = client.response().await;
    assert_eq!((response.status, response.body.len()), (200, 100));
    if ends {
        assert!(client.rest().await.is_empty());
    }
    let info = get_tcp_info(client.stream().as_raw_fd());
    info.expect("a connection of TCP").tcpi_segs_in
}

/// The fewest of several, because the kernel may or may not acknowledge the request by itself.
#[tokio::test]
async fn the_end_of_a_connection_comes_in_the_same_segment_as_the_end_of_its_last_answer() {
    let (proxy, _origins) = proxy_over(1).await;
    let (mut kept, mut closed) = (u32::MAX, u32::MAX);
    for _ in 0..20 {
        kept = kept.min(segments(&proxy, "", false).await);
        closed = closed.min(segments(&proxy, "Connection: close\r\n", true).await);
    }
    assert_eq!(closed, kept);
}

/// Whether all threads of the process are.
fn is_stopped(process: &Process) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it runs");
    tasks.flatten().all(|task| {
        let state = std::fs::read_to_string(task.path().join("status"));
        state.is_ok_and(|state| state.contains("\nState:\tT"))
    })
}

/// A client that asks for the end of its connection is not waited for, unless the kernel would reset the connection.
#[tokio::test]
async fn what_a_client_has_sent_behind_its_last_request_makes_the_end_no_reset() {
    let go = Arc::new(Notify::new());
    let goes = Arc::clone(&go);
    let origin = RawOrigin::start(move |mut peer| {
        let goes = Arc::clone(&goes);
        async move {
            while peer.request().await.is_some() {
                goes.notified().await;
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    for (round, last) in (1..=10).zip(
        ["1.0\r\n\r\n", "1.1\r\nHost: a\r\nConnection: close\r\n\r\n"]
            .iter()
            .cycle(),
    ) {
        let mut client = Connection::open(proxy.address()).await;
        client.send(format!("GET / HTTP/{last}")).await;
        eventually("it is under way", async || origin.requests().len() == round).await;
        // Both have come when it looks again, so that it has not read what the client has sent when it ends the connection.
        proxy.signal("STOP");
        eventually("it is stopped", async || is_stopped(&proxy)).await;
        client.send("x").await;
        go.notify_one();
        eventually("it has come", async || client.unread_by_server() == 1).await;
        sleep(Duration::from_millis(50)).await;
        proxy.signal("CONT");
        assert_eq!(client.response().await.text(), "ok");
        assert_eq!(ends_in_order(last, &mut client, "x").await, 0);
    }
}

#[tokio::test]
async fn a_client_that_may_still_send_or_has_not_taken_all_is_waited_for_though_it_asked_for_the_end() {
    let origin = RawOrigin::start(|mut peer| async move {
        let large = peer.head().await.is_some_and(|request| request.contains("/slow"));
        let size = if large { 100_000 } else { 2 };
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"))
            .await;
        peer.send(vec![b'x'; size]).await;
        peer.request().await;
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000\r\n\r\nhalf",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /more HTTP/1.1\r\n",
    ] {
        let mut client = Connection::open(proxy.address()).await;
        client.send(request).await;
        assert_eq!(client.response().await.body.len(), 2);
        // What comes at once would keep the proxy from closing.
        sleep(Duration::from_millis(50)).await;
        assert_eq!(ends_in_order(request, &mut client, "x").await, 0);
    }
    proxy.reaches("gopherproxy_connections", 0.0).await;
    // The kernel has all of it, and counts it for nobody once the connection is closed.
    let mut client = Connection::open_with_window(proxy.address(), 4096).await;
    client
        .send("GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    proxy.request_line("/slow").await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(proxy.metric("gopherproxy_connections").await, 1.0);
    assert_eq!(client.response().await.body.len(), 100_000);
    assert_eq!(client.try_rest().await.expect("no reset"), b"");
    proxy.reaches("gopherproxy_connections", 0.0).await;
}

/// Some send an empty line behind a body (RFC 9112, section 2.2), at whatever moment: on both sides of the one in which the proxy closes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_arrives_though_its_client_sends_an_empty_line_at_any_moment() {
    let origin = origin();
    let proxy = Process::proxy(&embedded(&[origin.address()]).replace("threads: 2", "threads: 1")).await;
    proxy.active_backends(1).await;
    let address = proxy.address();
    let clients = (0..8).map(|_| async move {
        for _ in 0..100 {
            let mut client = Connection::open(address).await;
            client
                .send("POST /upload HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
                .await;
            sleep(Duration::from_micros(fastrand::u64(..4000))).await;
            let _ = client.try_send("\r\n").await;
            let answer = client.try_response(false).await;
            assert_eq!(answer.expect("a whole response").text(), "2\n");
        }
    });
    for client in clients.map(tokio::spawn).collect::<Vec<_>>() {
        client.await.expect("no answer is lost");
    }
}

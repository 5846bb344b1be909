//! How slow a client may be: each request has the limits of its own rules, and what a client takes counts however it is written.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::support::{Connection, LIMIT, Process, RawOrigin, embedded, eventually, origin, proxy_to};

/// Takes `bytes` at 64 times `piece` a second.
async fn take(client: &mut Connection, piece: usize, bytes: usize) -> std::io::Result<()> {
    let mut ticks = interval(Duration::from_secs(1) / 64);
    // A machine that is busy for a moment makes nobody slower on average.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for _ in 0..bytes / piece {
        ticks.tick().await;
        client.try_bytes(piece).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_reader_is_not_cut_whatever_the_pieces_and_one_below_the_minimum_rate_is() {
    let origin = RawOrigin::start(|mut peer| async move {
        let request = peer.head().await.expect("a request");
        let chunked = request.contains("/small-chunks");
        let (framing, chunk) = if chunked {
            (
                "Transfer-Encoding: chunked",
                format!("1000\r\n{}\r\n", "x".repeat(4096)),
            )
        } else {
            ("Content-Length: 1000000000000", "x".repeat(4096))
        };
        peer.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n")).await;
        while tokio::io::AsyncWriteExt::write_all(&mut peer.stream, chunk.as_bytes())
            .await
            .is_ok()
        {}
    })
    .await;
    let proxy = proxy_to(&origin, "  client: {min_rate: 100KiB}\n").await;
    let mut steady = Connection::open_with_window(proxy.address(), 4096).await;
    let mut of_length = Connection::open_with_window(proxy.address(), 4096).await;
    let mut slow = Connection::open_with_window(proxy.address(), 4096).await;
    for (path, client) in [
        ("/small-chunks", &mut steady),
        ("/length", &mut of_length),
        ("/slow", &mut slow),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(client.head().await.status, 200);
    }
    // Three times the rate that is asked for, half as much again, and a fifth.
    let cut = async {
        let taken = timeout(LIMIT, take(&mut slow, 320, usize::MAX));
        let line = tokio::select! {
            line = proxy.request_line("/slow") => line,
            taken = taken => panic!("it is still there, or got no line: {taken:?}"),
        };
        assert_eq!(line["reason"], "client_gone", "{line}");
        assert_eq!(line["error"], "the client read the response too slowly", "{line}");
    };
    let (steady, of_length, ()) = tokio::join!(
        take(&mut steady, 4800, 3_600_000),
        take(&mut of_length, 2400, 1_800_000),
        cut
    );
    for taken in [steady, of_length] {
        assert!(taken.is_ok(), "{taken:?}: {:#?}", proxy.lines("request"));
    }
}

#[tokio::test]
async fn the_limits_of_a_client_are_those_of_each_request_after_a_reload_too() {
    let origin = origin();
    let before = embedded(&[origin.address()]) + "  client: {write_timeout: 60s, min_rate: none}\n";
    let proxy = Process::proxy(&before).await;
    proxy.active_backends(1).await;
    let upload = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx");
    let mut reads = Connection::open(proxy.address()).await;
    let mut sends = Connection::open(proxy.address()).await;
    for client in [&mut reads, &mut sends] {
        assert_eq!(client.get("/").await.status, 200);
    }
    let mut began = Connection::open(proxy.address()).await;
    began.send(upload("/upload/before")).await;
    proxy.reaches("gopherproxy_inflight_requests", 1.0).await;

    proxy.reconfigure(&before.replace(
        "write_timeout: 60s, min_rate: none",
        "write_timeout: 500ms, min_rate: 1MiB",
    ));
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    sends.send(upload("/upload/after")).await;
    reads.send("GET /bytes/50000000 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let line = proxy.request_line("/bytes/50000000").await;
    assert_eq!(line["error"], "the client read the response too slowly", "{line}");
    // A rate counts when something comes.
    eventually("the upload is cut", async || {
        let _ = sends.try_send("x").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy
            .lines("request")
            .iter()
            .any(|line| line["path"] == "/upload/after")
    })
    .await;
    let line = proxy.request_line("/upload/after").await;
    assert_eq!(line["status"], 408, "{line}");
    // It has been as slow for longer, under rules that allow it.
    began.send("x".repeat(999)).await;
    assert_eq!(began.response().await.text(), "1000\n");
}

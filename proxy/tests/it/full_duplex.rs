//! Both directions at once: an answer that comes while the request is still on its way, and talk in turns.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

use crate::support::{Connection, RawOrigin, eventually, forwarder, proxy_over, proxy_to};

/// Sends zeros until the connection ends.
async fn flood(mut client: Connection) {
    while client.try_send([0; 64 << 10]).await.is_ok() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_waits_for_the_origin_does_not_hold_up_its_reports() {
    if forwarder::skips("full_duplex::an_upload_that_waits_for_the_origin_does_not_hold_up_its_reports") {
        return;
    }
    const REPORTS: usize = 120;
    // 0.8 MB a second: what the kernel holds for the origin is full after some of them.
    const PIECE: usize = 16 << 10;
    let written = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&written);
    let origin = RawOrigin::start(move |mut peer| {
        let written = Arc::clone(&noted);
        async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            for number in 0..REPORTS {
                sleep(Duration::from_millis(20)).await;
                peer.stream
                    .read_exact(&mut [0; PIECE])
                    .await
                    .expect("the upload goes on");
                written.lock().expect("no test panics with it").push(Instant::now());
                peer.send(format!("4\r\n{number:4}\r\n")).await;
            }
            // Closing on bytes that were not read is a reset.
            while peer.stream.read_exact(&mut [0; PIECE]).await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            1 << 30
        ))
        .await;
    let upload = tokio::spawn(flood(client.sender()));
    assert_eq!(client.head().await.status, 200);
    let mut delays = Vec::new();
    while delays.len() < REPORTS {
        // The proxy may send several as one.
        let chunk = client.chunk().await;
        let now = Instant::now();
        let written = written.lock().expect("no test panics with it");
        for _ in 0..chunk.len() / 4 {
            delays.push(now - written[delays.len()]);
        }
    }
    upload.abort();
    delays.sort();
    let (median, longest) = (delays[REPORTS / 2], delays[REPORTS - 1]);
    assert!(median < Duration::from_millis(100), "{median:?} in the median");
    assert!(longest < Duration::from_secs(1), "{longest:?} at most");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_arrives_at_once_though_the_origin_neither_reads_nor_closes() {
    if forwarder::skips("full_duplex::an_early_answer_arrives_at_once_though_the_origin_neither_reads_nor_closes") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        let head = peer.head().await.expect("a request");
        // Some of the body is taken, or none.
        if head.contains(" /later ") {
            peer.stream.read_exact(&mut [0; 100_000]).await.expect("a body");
            sleep(Duration::from_millis(500)).await;
        }
        peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
            .await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    for (path, chunked) in [
        ("/at-once", false),
        ("/later", false),
        ("/at-once", true),
        ("/later", true),
    ] {
        let mut client = Connection::open(proxy.address()).await;
        let framing = if chunked {
            "Transfer-Encoding: chunked\r\n\r\n40000000\r\n".to_owned()
        } else {
            format!("Content-Length: {}\r\n\r\n", 1 << 30)
        };
        client
            .send(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}"))
            .await;
        let upload = tokio::spawn(flood(client.sender()));
        // 100 ms on an idle machine.
        let answer = timeout(Duration::from_secs(3), client.response()).await;
        let answer = answer.unwrap_or_else(|_| panic!("{path}, chunked: {chunked}: no answer"));
        assert_eq!((answer.status, answer.text().as_str()), (413, "big"), "{path}");
        upload.abort();
    }
    eventually("each has its line", async || proxy.lines("request").len() == 4).await;
    for line in proxy.lines("request") {
        assert!(line["status"] == 413 && line.get("reason").is_none(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_its_upload_waits_for_the_origin_is_noticed_at_once() {
    if forwarder::skips("full_duplex::a_client_that_leaves_while_its_upload_waits_for_the_origin_is_noticed_at_once") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy_to(&origin, "  upstream: {write_timeout: 120s}\n").await;
    for (path, reset) in [("/closes", false), ("/resets", true)] {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n"
            ))
            .await;
        // Until the proxy reads no more; and then there is room for the end.
        let mut stays = 0;
        while stays < 20 {
            if client.unread_by_server() > 0 {
                stays += 1;
                sleep(Duration::from_millis(20)).await;
            } else {
                stays = 0;
                client.send([0; 16 << 10]).await;
            }
        }
        assert_eq!(
            proxy
                .lines("request")
                .iter()
                .filter(|line| line["path"] == path)
                .count(),
            0
        );
        if reset {
            client.reset();
        } else {
            drop(client);
        }
        let line = proxy.request_line(path).await;
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&499.into(), &"client_gone".into()),
            "{line}"
        );
    }
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
}

#[tokio::test]
async fn a_client_that_is_alive_may_be_slow_and_one_that_dribbles_may_not() {
    let (proxy, _origins) = proxy_over(1).await;
    let address = proxy.address();
    let head = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = |bytes: usize| format!("{bytes:x}\r\n{}\r\n", "x".repeat(bytes));
    let upload = async |bytes: usize, seconds: u64, times: usize| {
        let mut client = Connection::open(address).await;
        client.send(head("/upload")).await;
        for _ in 0..times {
            client.try_send(chunk(bytes)).await?;
            sleep(Duration::from_secs(seconds)).await;
        }
        client.try_send("0\r\n\r\n").await?;
        let answer = client.try_response(false).await?;
        std::io::Result::Ok((answer.status, answer.text()))
    };
    let talk = async {
        let mut client = Connection::open(address).await;
        client.send(head("/echo")).await;
        for turn in 0..8 {
            client.try_send(chunk(20)).await?;
            if turn == 0 {
                assert_eq!(client.head().await.status, 200);
            }
            let echo = client.try_bytes(chunk(20).len()).await?;
            assert_eq!(echo, chunk(20).as_bytes());
            sleep(Duration::from_secs(2)).await;
        }
        client.try_send("0\r\n\r\n").await?;
        client.try_bytes(5).await
    };
    let dribble = async {
        let mut client = Connection::open(address).await;
        client
            .send("POST /upload/dribble HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
            .await;
        let start = Instant::now();
        while proxy
            .lines("request")
            .iter()
            .all(|line| line["path"] != "/upload/dribble")
        {
            assert!(start.elapsed() < Duration::from_secs(45), "it is still there");
            let _ = client.try_send("x").await;
            sleep(Duration::from_secs(1)).await;
        }
        proxy.request_line("/upload/dribble").await
    };
    let (sensor, slower, talk, dribble) = tokio::join!(upload(100, 2, 7), upload(80, 5, 3), talk, dribble);
    let log = || format!("{:#?}", proxy.lines("request"));
    assert_eq!(
        sensor.ok(),
        Some((200, "700\n".to_owned())),
        "100 B every 2 s: {}",
        log()
    );
    assert_eq!(
        slower.ok(),
        Some((200, "240\n".to_owned())),
        "80 B every 5 s: {}",
        log()
    );
    assert_eq!(
        talk.ok().as_deref(),
        Some(&b"0\r\n\r\n"[..]),
        "20 B every 2 s each way: {}",
        log()
    );
    assert_eq!(
        (&dribble["status"], &dribble["reason"]),
        (&408.into(), &"request_timeout".into()),
        "{dribble}"
    );
}

#[tokio::test]
async fn a_client_that_waited_to_be_asked_keeps_its_connection() {
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.head().await.is_some() {
            peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            let mut body = [0; 4];
            peer.stream.read_exact(&mut body).await.expect("the body comes now");
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await;
            peer.send(body).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    for (framing, body) in [
        ("Content-Length: 4", "wiki"),
        ("Transfer-Encoding: chunked", "4\r\nwiki\r\n0\r\n\r\n"),
        ("Content-Length: 4", "wiki"),
    ] {
        client
            .send(format!(
                "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"
            ))
            .await;
        assert_eq!(client.response().await.status, 100);
        client.send(body).await;
        let answer = client.response().await;
        assert_eq!(answer.status, 200);
        assert_ne!(answer.header("connection"), Some("close"), "{framing}");
    }
}

#[tokio::test]
async fn a_client_that_is_refused_the_word_to_go_on_may_send_its_next_request() {
    // It has not been asked for its body, so that none comes: its connection can't be kept, unless it sends the body all the same.
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
            .await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("PUT /in HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 36\r\n\r\n")
        .await;
    assert_eq!(client.response().await.status, 417);
    client.send("GET /a HTTP/1.1\r\nHost: a\r\nX: 1234\r\n\r\n").await;
    client.rest().await;
    assert!(origin.requests().iter().all(|request| request.starts_with("PUT /in ")));
}

#[tokio::test]
async fn what_comes_after_a_handshake_and_before_its_answer_is_as_if_it_had_come_with_it() {
    let origin = RawOrigin::start(|mut peer| async move {
        let head = peer.head().await.expect("a handshake");
        sleep(Duration::from_millis(400)).await;
        if head.contains(" /refuses ") {
            return peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await;
        }
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        let mut bytes = [0; 5];
        if peer.stream.read_exact(&mut bytes).await.is_ok() {
            peer.send(bytes).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let handshake =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut client = Connection::open(proxy.address()).await;
    client.send(handshake("/switches")).await;
    sleep(Duration::from_millis(50)).await;
    client.send("early").await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.rest().await, b"early");

    // Whether the rest was meant for the tunnel or as a request, nobody knows.
    let mut client = Connection::open(proxy.address()).await;
    client.send(handshake("/refuses")).await;
    sleep(Duration::from_millis(50)).await;
    client.send("GET /evil HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = client.response().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "no"));
    assert_eq!(client.rest().await, b"");
    assert_eq!(origin.requests().len(), 2);
}

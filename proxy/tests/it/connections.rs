//! Client connections that are used in unusual ways, and stay in order or end cleanly.

use std::time::Duration;

use crate::support::{Connection, Process, RawOrigin, embedded, get, origin, proxy_over, resident_kib};

async fn over(origin: &RawOrigin, more: &str) -> Process {
    let proxy = Process::proxy(&(embedded(&[origin.address]) + more)).await;
    proxy.active_backends(1).await;
    proxy
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (proxy, _origins) = proxy_over(2).await;
    let mut client = Connection::open(proxy.address()).await;
    let request = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    client
        .send(request("/echo", "one") + &request("/echo", "two") + "\r\n" + &request("/echo", ""))
        .await;
    for body in ["one", "two", ""] {
        assert_eq!(client.response().await.text(), body);
    }
    // The second arrives while the backend works on the first.
    client.send(request("/delay/300", "one")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send(request("/echo", "two")).await;
    assert!(client.response().await.text().starts_with("hello from "));
    assert_eq!(client.response().await.text(), "two");
}

#[tokio::test]
async fn a_chunked_request_ends_where_it_ends_whatever_follows_it() {
    let (proxy, _origins) = proxy_over(1).await;
    let chunked = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut client = Connection::open(proxy.address()).await;
    client
        .send(chunked("/echo") + "3\r\none\r\n0\r\n\r\n" + &chunked("/echo") + "3\r\ntwo\r\n0\r\nA: b\r\n\r\n")
        .await;
    assert_eq!(client.response().await.text(), "one");
    assert_eq!(client.response().await.text(), "two");
    // The end of the first and the second come while the backend waits for the rest of the first.
    client.send(chunked("/upload") + "3\r\non").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client
        .send("e\r\n0\r\n\r\n".to_owned() + &chunked("/upload") + "5\r\nthree\r\n0\r\n\r\n")
        .await;
    assert_eq!(client.response().await.text(), "3\n");
    assert_eq!(client.response().await.text(), "5\n");
}

#[tokio::test]
async fn chunks_that_readers_disagree_on_are_refused_at_once_or_when_they_come() {
    let (proxy, _origins) = proxy_over(1).await;
    let head = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    let bad = ";x\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n";
    let mut client = Connection::open(proxy.address()).await;
    client.send(head("/at-once") + bad).await;
    assert_eq!(client.response().await.status, 400);
    assert_eq!(client.rest().await, b"");

    let mut client = Connection::open(proxy.address()).await;
    client.send(head("/upload") + "3\r\none\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send(bad).await;
    assert_eq!(client.response().await.status, 400);
    assert_eq!(client.rest().await, b"");
    assert_eq!(proxy.request_line("/upload").await["reason"], "bad_request");
    assert!(proxy.lines("request").iter().all(|line| line["path"] != "/smuggled"));
}

#[tokio::test]
async fn empty_lines_between_requests_are_nothing() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + "  client: {head_timeout: 200ms}\n")).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\none\r\n")
        .await;
    assert_eq!(client.response().await.text(), "one");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(client.get("/after").await.status, 200, "no deadline ran");
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_of_later_requests_is_bounded() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + "  client: {max_requests: 10000000}\n")).await;
    proxy.active_backends(1).await;
    let before = resident_kib(&proxy);
    let mut client = Connection::open(proxy.address()).await;
    // 64 MiB of requests on one connection, of which nobody reads the answers.
    let many = "GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(32 << 10);
    let flood = async {
        for _ in 0..64 {
            client.send(&many).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(3), flood).await;
    let grown = resident_kib(&proxy).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more for one connection");
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + "  client: {write_timeout: 300ms}\n")).await;
    proxy.active_backends(1).await;
    for path in ["/bytes/50000000", "/chunked/4000000"] {
        let mut client = Connection::open(proxy.address()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
        let line = proxy.request_line(path).await;
        assert_eq!(line["reason"], "client_gone", "{line}");
        proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    }
    // Heads without bodies, until the client's window is full.
    let mut client = Connection::open(proxy.address()).await;
    let heads = "HEAD / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(4096);
    let ended = async { while client.try_send(&heads).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), ended)
        .await
        .expect("the proxy gives up");
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_leaves_the_connection_in_order() {
    let early = RawOrigin::start(|mut peer| async move {
        while tokio::io::AsyncReadExt::read(&mut peer.stream, &mut [0; 4096])
            .await
            .is_ok_and(|read| read > 0)
        {
            peer.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
                .await;
        }
    })
    .await;
    let proxy = over(&early, "").await;
    // The rest of the request comes soon: the connection is kept.
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST /soon HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\none")
        .await;
    assert_eq!(client.response().await.status, 401);
    client.send("two").await;
    assert_eq!(client.get("/next").await.status, 401);
    // It never comes: the request ends all the same, and not as a failure of anybody.
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST /never HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\none")
        .await;
    assert_eq!(client.response().await.status, 401);
    let line = proxy.request_line("/never").await;
    assert!(line.get("reason").is_none(), "{line}");
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_tunnel_that_fails_ends_without_a_word_of_ours_in_it() {
    let origin = RawOrigin::start(|mut peer| async move {
        let request = peer.request().await.expect("the upgrade");
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
            .await;
        if request.starts_with("GET /reset ") {
            socket2::SockRef::from(&peer.stream)
                .set_linger(Some(Duration::ZERO))
                .expect("a socket");
        } else {
            std::future::pending::<()>().await;
        }
    })
    .await;
    let proxy = over(&origin, "  upstream: {tunnel_idle_timeout: 300ms}\n").await;
    for path in ["/reset", "/silent"] {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!(
                "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            ))
            .await;
        assert_eq!(client.response().await.status, 101);
        let rest = String::from_utf8(client.rest().await).expect("text");
        assert!("hello".starts_with(&rest), "{path}: {rest:?}");
        assert_eq!(proxy.request_line(path).await["status"], 101);
    }
}

#[tokio::test]
async fn an_upgrade_to_anything_but_websocket_is_a_plain_request_with_its_timeouts() {
    let silent = RawOrigin::start(|mut peer| async move {
        peer.request().await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = over(&silent, "  upstream: {read_timeout: 300ms}\n").await;
    let lines = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n";
    let mut client = Connection::open(proxy.address()).await;
    assert_eq!(client.request("GET", "/", lines, "").await.status, 504);
    let [request] = silent.requests().try_into().expect("one request");
    assert!(!request.to_lowercase().contains("h2c"), "{request}");
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let origin = RawOrigin::answering(OK).await;
    let proxy = over(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    let lines = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(client.request("GET", "/", lines, "").await.text(), "ok");
    assert_eq!(client.get("/next").await.text(), "ok");
}

#[tokio::test]
async fn an_answer_that_requires_an_upgrade_says_to_what() {
    let origin =
        RawOrigin::answering("HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nok")
            .await;
    let proxy = over(&origin, "").await;
    let answer = get(proxy.address(), "/").await;
    assert_eq!((answer.status, answer.header("upgrade")), (426, Some("websocket")));
}

#[tokio::test]
async fn the_last_request_that_a_connection_may_have_is_told_so() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + "  client: {max_requests: 3}\n")).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    for _ in 0..2 {
        assert_ne!(client.get("/").await.header("connection"), Some("close"));
    }
    let last = client.get("/").await;
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn whoever_sends_or_takes_a_little_now_and_then_is_cut() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + "  client: {min_rate: 1MiB}\n")).await;
    proxy.active_backends(1).await;
    let address = proxy.address();
    // Fast enough for every other deadline.
    let sending = async {
        let mut client = Connection::open(address).await;
        client
            .send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
            .await;
        while client.try_send("x").await.is_ok() && proxy.lines("request").len() < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        proxy.request_line("/upload").await
    };
    let taking = async {
        let mut client = Connection::open_with_window(address, 4096).await;
        client.send("GET /bytes/50000000 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        // What the kernel holds for it would go on for a while after the proxy has given it up.
        let cut = || {
            proxy
                .lines("request")
                .iter()
                .any(|line| line["path"] == "/bytes/50000000")
        };
        while !cut() && client.try_bytes(2048).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        proxy.request_line("/bytes/50000000").await
    };
    let (sent, taken) = tokio::join!(sending, taking);
    assert_eq!(
        (&sent["status"], &sent["reason"]),
        (&408.into(), &"request_timeout".into()),
        "{sent}"
    );
    assert_eq!(taken["reason"], "client_gone", "{taken}");
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
}

#[tokio::test]
async fn a_panic_in_a_request_costs_that_request_and_is_counted() {
    let (ordinary, _origins) = proxy_over(1).await;
    let mut client = Connection::open(ordinary.address()).await;
    let asks = client.request("GET", "/", "X-Test-Panic: yes\r\n", "").await;
    assert_eq!(asks.status, 200, "only a proxy that a test has started for it panics");

    let origin = origin();
    let proxy = Process::proxy_with(&embedded(&[origin.address()]), &[("PANIC_FOR_TESTS", "1")]).await;
    proxy.active_backends(1).await;
    let mut other = Connection::open(proxy.address()).await;
    assert_eq!(other.get("/").await.status, 200);
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("GET /panic HTTP/1.1\r\nHost: a\r\nX-Test-Panic: yes\r\n\r\n")
        .await;
    assert_eq!(client.rest().await, b"", "closed without a word");
    assert_eq!(other.get("/").await.status, 200);
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    let line = proxy
        .said("panicked", |line| line["panic"] == "asked for by a test")
        .await;
    assert!(
        line["place"].as_str().is_some_and(|place| place.contains("proxy.rs")),
        "{line}"
    );
    proxy.reaches("gopherproxy_panics_total", 1.0).await;
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"internal\"}", 1.0)
        .await;
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    proxy.reaches("gopherproxy_connections", 1.0).await;
}

#[tokio::test]
async fn without_work_stealing_every_thread_serves_connections() {
    let origin = origin();
    let text = embedded(&[origin.address()]).replace("threads: 2\n", "threads: 3\nwork_stealing: false\n");
    let proxy = Process::proxy(&text).await;
    proxy.active_backends(1).await;
    let turns = || -> Vec<u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("it runs");
        let tasks = tasks.map(|task| task.expect("a thread").path());
        let serve = tasks.filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "proxy\n"));
        serve
            .map(|task| {
                let counted = std::fs::read_to_string(task.join("schedstat")).expect("Linux counts");
                counted
                    .split_whitespace()
                    .nth(2)
                    .expect("turns")
                    .parse()
                    .expect("a number")
            })
            .collect()
    };
    let before = turns();
    assert_eq!(before.len(), 3);
    for _ in 0..60 {
        assert_eq!(get(proxy.address(), "/").await.status, 200);
    }
    let after = turns();
    let each: Vec<_> = before
        .iter()
        .zip(&after)
        .map(|(before, after)| after - before)
        .collect();
    assert!(each.iter().all(|turns| *turns > 5), "turns of each thread: {each:?}");
}

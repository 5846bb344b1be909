//! One record a request, whoever answered it and however it ended: a line in the log that says whose it was, and its counts.

use serde_json::Value;

use crate::support::{
    Connection, Process, RawOrigin, UNLIMITED, embedded, eventually, forwarder, get, origin, origin_listener, proxy_to,
};

/// What each line says.
fn is_whole(line: &Value, method: &str, path: &str) {
    assert_eq!(
        (&line["method"], &line["path"]),
        (&method.into(), &path.into()),
        "{line}"
    );
    assert_eq!(line["client"], "127.0.0.1", "{line}");
    assert!(
        line["remote_addr"]
            .as_str()
            .is_some_and(|peer| peer.starts_with("127.0.0.1:")),
        "{line}"
    );
    assert!(line["request_id"].as_str().is_some_and(|id| id.len() == 32), "{line}");
    assert!(line["duration_ms"].is_number(), "{line}");
}

#[tokio::test]
async fn a_refusal_says_whose_request_it_refused() {
    let origin = origin();
    let base = embedded(&[origin.address()]);
    let limits = "  client: {max_body: 1KiB, read_timeout: 300ms, max_head: 4KiB, max_fields: 10}\n";
    let all = Process::proxy(&(base.clone() + limits)).await;
    all.active_backends(1).await;
    let limited = Process::proxy(&base.replace(UNLIMITED, "  limit: {burst: 1, per_second: 0.001}\n")).await;
    limited.active_backends(1).await;
    assert_eq!(get(limited.address(), "/first").await.status, 200);
    let unserved = Process::proxy(&embedded(&[([127, 0, 0, 1], 1).into()])).await;
    let many = "X: y\r\n".repeat(20);
    let long = "x".repeat(8 << 10);
    let rows = [
        (&all, 400, "bad_request", "GET", "", "Host: a\r\nHost: b\r\n\r\n"),
        (&all, 400, "bad_request", "GET", "", "Host: a\r\nX : y\r\n\r\n"),
        (
            &all,
            400,
            "bad_request",
            "POST",
            "",
            "Host: a\r\nTransfer-Encoding: chunked\r\n\r\n+4\r\n",
        ),
        (&all, 405, "method_not_allowed", "TRACE", "", "Host: a\r\n\r\n"),
        (
            &all,
            408,
            "request_timeout",
            "POST",
            "",
            "Host: a\r\nContent-Length: 10\r\n\r\nhalf",
        ),
        (
            &all,
            413,
            "body_too_large",
            "PUT",
            "",
            "Host: a\r\nContent-Length: 2000\r\n\r\n",
        ),
        (&all, 414, "uri_too_long", "GET", &long, "Host: a\r\n\r\n"),
        (&all, 431, "head_too_large", "GET", "", &many),
        (
            &all,
            501,
            "not_implemented",
            "POST",
            "",
            "Host: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        ),
        (&limited, 429, "limited", "DELETE", "", "Host: a\r\n\r\n"),
        (&unserved, 503, "no_backend", "GET", "", "Host: a\r\n\r\n"),
    ];
    for (number, (proxy, status, reason, method, more, lines)) in rows.into_iter().enumerate() {
        let mut client = Connection::open(proxy.address()).await;
        let path = format!("/upload/{number}{more}");
        client.send(format!("{method} {path}?secret HTTP/1.1\r\n{lines}")).await;
        if lines == many {
            client.send("\r\n").await;
        }
        assert_eq!(client.response().await.status, status, "{number}");
        // What is longer is cut in the log.
        let path = &path[..path.len().min(2048)];
        let line = proxy.request_line(path).await;
        is_whole(&line, method, path);
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&status.into(), &reason.into()),
            "{line}"
        );
        if status == 400 {
            assert!(line["error"].is_string(), "the rule that it broke: {line}");
        }
    }
}

#[tokio::test]
async fn a_panic_is_logged_with_its_request() {
    let origin = origin();
    let proxy = Process::proxy_with(&embedded(&[origin.address()]), &[("PANIC_FOR_TESTS", "1")]).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("PUT /panic?secret HTTP/1.1\r\nHost: a\r\nX-Test-Panic: yes\r\nContent-Length: 1\r\n\r\nx")
        .await;
    client.rest().await;
    let line = proxy.request_line("/panic").await;
    is_whole(&line, "PUT", "/panic");
    assert_eq!(line["reason"], "internal", "{line}");
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"internal\"}", 1.0)
        .await;
    assert_eq!(proxy.lines("request").len(), 1, "once");
}

#[tokio::test]
async fn a_client_that_leaves_is_in_the_log_wherever_it_leaves() {
    let origin = RawOrigin::start(|mut peer| async move {
        let head = peer.head().await.expect("a request");
        if head.contains(" /answered ") {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
        }
        let _ = peer.until("the end").await;
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    for (path, rest, status) in [
        ("/waiting", "\r\n", 499),
        ("/sending", "Content-Length: 10\r\n\r\nhalf", 499),
        ("/asked", "Expect: 100-continue\r\nContent-Length: 10\r\n\r\n", 499),
        ("/answered", "\r\n", 200),
    ] {
        for reset in [false, true] {
            let before = origin.requests().len();
            let mut client = Connection::open(proxy.address()).await;
            client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{rest}")).await;
            eventually("it is under way", async || origin.requests().len() > before).await;
            if status == 200 {
                client.head().await;
            }
            let lines = proxy.lines("request").len();
            if reset {
                client.reset();
            } else {
                drop(client);
            }
            eventually("it has its line", async || proxy.lines("request").len() > lines).await;
            let line = proxy.lines("request").pop().expect("the last");
            is_whole(&line, "POST", path);
            assert_eq!(
                (&line["status"], &line["reason"]),
                (&status.into(), &"client_gone".into()),
                "{line}"
            );
            assert_eq!(line["backend"], origin_listener::target(origin.address), "{line}");
            let id = line["request_id"].as_str().expect("text");
            assert!(origin.requests().iter().any(|request| request.contains(id)), "{line}");
        }
    }
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
}

#[tokio::test]
async fn half_a_head_is_in_the_log_too() {
    let origin = origin();
    let proxy = Process::proxy(&embedded(&[origin.address()])).await;
    let mut client = Connection::open(proxy.address()).await;
    client.send("PUT /half?secret HTTP/1.1\r\nHost: a\r\nConten").await;
    proxy.reaches("gopherproxy_inflight_requests", 1.0).await;
    drop(client);
    let line = proxy.request_line("/half").await;
    is_whole(&line, "PUT", "/half");
    assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_gone".into()));
    assert_eq!(line["error"], "the client left in the middle of a head");
    assert_eq!((&line["backend"], &line["bytes"]), (&Value::Null, &Value::Null));
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"client_gone\"}", 1.0)
        .await;
}

#[tokio::test]
async fn the_log_says_which_rule_a_response_breaks() {
    if forwarder::skips("records::the_log_says_which_rule_a_response_breaks") {
        return;
    }
    let rows = [
        (
            "Content-Length: 1, 2\r\n".to_owned(),
            "Content-Length is not one number",
        ),
        (
            "Transfer-Encoding: gzip\r\n".to_owned(),
            "the transfer coding is not chunked",
        ),
        ("A: b\r\n".repeat(241), "there are more than 240 fields"),
        (
            format!("A: {}\r\n", "b".repeat(64 << 10)),
            "the head is longer than 64 KiB",
        ),
    ];
    let answers = rows.clone().map(|(fields, _)| fields);
    let origin = RawOrigin::start(move |mut peer| {
        let answers = answers.clone();
        async move {
            let head = peer.head().await.expect("a request");
            let row = head.split(['/', ' ']).nth(2).and_then(|row| row.parse().ok());
            let fields = &answers[row.unwrap_or(0_usize)];
            peer.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).await;
            let _ = peer.until("the end").await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "  upstream: {ejection: {failures: 1000}}\n").await;
    for (row, (_, rule)) in rows.iter().enumerate() {
        let path = format!("/{row}");
        assert_eq!(get(proxy.address(), &path).await.status, 502, "{rule}");
        let line = proxy.request_line(&path).await;
        assert_eq!(line["reason"], "backend_failed", "{line}");
        assert_eq!(line["error"], *rule, "{line}");
    }
}

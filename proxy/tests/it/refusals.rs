//! What the proxy answers itself, and what becomes of the connection.

use std::time::Duration;

use crate::support::{Connection, Process, UNLIMITED, embedded, eventually, get, origin, proxy_over};

#[tokio::test]
async fn what_is_no_http_is_refused_at_its_first_byte() {
    let (proxy, _origins) = proxy_over(1).await;
    // A head may take 10 s to arrive; none of these may hold a connection that long.
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\x16",
        b"\x80\x2e\x01\x03\x01",
        b"\0",
        b" GET /",
    ] {
        let mut client = Connection::open(proxy.address()).await;
        client.send(bytes).await;
        let answer = tokio::time::timeout(Duration::from_secs(5), client.response()).await;
        assert_eq!(answer.expect("refused at once").status, 400, "{bytes:?}");
        assert_eq!(client.rest().await, b"");
    }
    let tls = |line: &serde_json::Value| line["error"] == "TLS on the port for plain HTTP; use http://";
    let line = proxy.said("request", tls).await;
    assert_eq!((&line["status"], &line["reason"]), (&400.into(), &"bad_request".into()));
    assert_eq!((&line["method"], &line["path"]), (&"-".into(), &"-".into()));
}

#[tokio::test]
async fn empty_lines_do_not_keep_an_idle_connection() {
    let (origin, configuration) = (origin(), "  client: {idle_timeout: 1s}\n");
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + configuration)).await;
    let mut client = Connection::open(proxy.address()).await;
    eventually("the connection is closed", async || {
        client.try_send(b"\r\n").await.is_err()
    })
    .await;
}

#[tokio::test]
async fn a_refusal_does_not_wait_for_the_rest_of_the_body() {
    let origin = origin();
    let configuration = embedded(&[origin.address()]).replace(UNLIMITED, "  limit: {burst: 1, per_second: 0.001}\n");
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    assert_eq!(client.get("/").await.status, 200);
    client
        .send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nwi")
        .await;
    assert_eq!(client.response().await.status, 429);
    // The rest of the body comes after the answer, and the connection goes on behind it.
    client.send("ki").await;
    assert_eq!(client.get("/").await.status, 429);
    // One that never comes ends the connection.
    client
        .send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n")
        .await;
    assert_eq!(client.response().await.status, 429);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn refusals_that_nobody_waits_for_keep_their_reason() {
    let origin = origin();
    let strict = embedded(&[origin.address()]).replace(UNLIMITED, "  limit: {burst: 1, per_second: 0.001}\n");
    let proxy = Process::proxy(&strict).await;
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    for _ in 0..50 {
        let mut client = Connection::open(proxy.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(50)).await;
        client.reset();
    }
    eventually("all are counted", async || {
        proxy.metric("gopherproxy_inflight_requests").await == 0.0
    })
    .await;
    assert_eq!(
        proxy.metric("gopherproxy_rejections_total{reason=\"internal\"}").await,
        0.0
    );
    let limited = proxy.metric("gopherproxy_rejections_total{reason=\"limited\"}").await;
    assert!(limited > 0.0);
    proxy.reaches("gopherproxy_dropped_requests_total", limited).await;
}

#[tokio::test]
async fn the_log_says_which_rule_a_refused_request_breaks() {
    let origin = origin();
    let limits = "  client: {max_body: 1KiB, max_head: 1KiB, max_fields: 9, head_timeout: 500ms}\n";
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + limits)).await;
    proxy.active_backends(1).await;
    let (long, many) = ("x".repeat(2000), "X: y\r\n".repeat(9));
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}");
    let chunked = "Transfer-Encoding: chunked";
    let rows = [
        (get("Host: secret\r\n"), 400, "two Host fields"),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400, "no Host field"),
        (get("X: secret\n"), 400, "a line ends with LF alone"),
        (get("X: y\r\n secret\r\n"), 400, "a field continues on the next line"),
        (
            get("secret : y\r\n"),
            400,
            "the name of a field has a byte that no name may have",
        ),
        (
            get("X: secret\0\r\n"),
            400,
            "the value of a field has a control character",
        ),
        (
            "GET /a secret HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            400,
            "the request line is not a method, a target and a version",
        ),
        (
            "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            400,
            "the target has a byte that no target may have",
        ),
        (
            "GET /#secret HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            400,
            "the target has a fragment",
        ),
        (
            "GET / HTTP/3.0\r\nHost: a\r\n\r\n".into(),
            400,
            "the version is not HTTP/1.0 or HTTP/1.1",
        ),
        (
            "GET http://secret/ HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            400,
            "Host and the target name different hosts",
        ),
        (
            post("Content-Length: +1", "x"),
            400,
            "Content-Length is not a plain number",
        ),
        (
            post(&format!("Content-Length: 1\r\n{chunked}"), ""),
            400,
            "Transfer-Encoding together with Content-Length",
        ),
        (
            get("Connection: Host\r\n"),
            400,
            "Connection names a field that is not the connection's",
        ),
        (
            post(chunked, "secret\r\n"),
            400,
            "a chunk size is not a hexadecimal number",
        ),
        (
            "{\"secret\": 1}\r\n".into(),
            400,
            "the first byte can't begin a request",
        ),
        (
            "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            405,
            "CONNECT and TRACE are not proxied",
        ),
        (
            "GET / HTTP/1.1\r\n".into(),
            408,
            "the head takes longer than client.head_timeout",
        ),
        (
            post("Content-Length: 2000", ""),
            413,
            "the request body is longer than max_body",
        ),
        (
            format!("GET /{long} HTTP/1.1\r\n"),
            414,
            "the request line is longer than client.max_head",
        ),
        (
            get(&format!("X: {long}\r\n")),
            431,
            "the head is longer than client.max_head",
        ),
        (get(&many), 431, "it has more fields than client.max_fields"),
        (
            post("Transfer-Encoding: gzip", ""),
            501,
            "Transfer-Encoding names a coding other than chunked",
        ),
    ];
    for (number, (raw, status, rule)) in rows.iter().enumerate() {
        let mut client = Connection::open(proxy.address()).await;
        client.send(raw).await;
        assert_eq!(client.response().await.status, *status, "{raw:?}");
        eventually("it is logged", async || proxy.lines("request").len() > number).await;
        let line = proxy.lines("request").pop().expect("the last");
        assert_eq!(
            (&line["status"], &line["error"]),
            (&(*status).into(), &(*rule).into()),
            "{raw:?}"
        );
        let error = line["error"].as_str().unwrap_or_default();
        assert!(!error.contains("secret"), "{line}");
    }
    assert_eq!(origin.requests(), 0);
}

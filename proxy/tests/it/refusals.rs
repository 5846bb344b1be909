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

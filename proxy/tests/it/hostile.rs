//! What clients send that no client should.

use std::time::Duration;

use crate::support::{Connection, Process, embedded, eventually, get, origin, proxy_over};

/// A head, a body that must not become a request, and what is answered.
const REFUSED: [(&str, &str, u16); 25] = [
    ("no HTTP", "hello\r\n\r\n", 400),
    ("TLS", "\x16\x03\x01\x02\r\n\r\n", 400),
    ("no host", "GET / HTTP/1.1\r\n\r\n", 400),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("user in host", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    ("bare LF", "GET / HTTP/1.1\nHost: a\n\n", 400),
    ("one bare LF", "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    ("bare CR", "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400),
    ("obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n", 400),
    ("space before colon", "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400),
    ("NUL", "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
    ("fragment", "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("space in target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (
        "CL and TE",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "two CL",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nGET /",
        400,
    ),
    (
        "signed CL",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nGET ",
        400,
    ),
    (
        "listed CL",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nGET ",
        400,
    ),
    (
        "TE list",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    (
        "TE in 1.0",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "Connection: Host",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Host\r\n\r\n",
        400,
    ),
    (
        "absolute form of another host",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    (
        "user in target",
        "GET http://u:secret@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
    ("TRACE", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
];

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused_logged_and_never_reaches_a_backend() {
    let (proxy, origins) = proxy_over(1).await;
    for (number, (name, raw, status)) in REFUSED.into_iter().enumerate() {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(raw.to_owned() + "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
        let response = client.response().await;
        assert_eq!(response.status, status, "{name}");
        assert_eq!(response.header("connection"), Some("close"), "{name}");
        assert!(
            response.text().ends_with(")\n") && response.text().len() < 140 && !response.text().contains("secret"),
            "{name}: {:?}",
            response.text()
        );
        assert_eq!(client.rest().await, b"", "{name}: one answer and no more");
        eventually(&format!("{name} is logged"), async || {
            proxy.lines("request").len() == number + 1
        })
        .await;
        let line = proxy.lines("request").pop().expect("the last");
        assert_eq!(line["status"], status, "{name}: {line}");
        assert!(
            line["reason"].is_string() && line["remote_addr"].is_string(),
            "{name}: {line}"
        );
    }
    assert_eq!(origins[0].requests(), 0);
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"bad_request\"}", 22.0)
        .await;
    proxy.reaches("gopherproxy_responses_total{class=\"4xx\"}", 24.0).await;
    proxy.reaches("gopherproxy_responses_total{class=\"5xx\"}", 1.0).await;
    proxy.reaches("gopherproxy_dropped_requests_total", 0.0).await;
    assert!(!format!("{:?}", proxy.log()).contains("secret"));
}

#[tokio::test]
async fn a_head_that_is_too_long_or_has_too_many_fields_is_431() {
    let (proxy, origins) = proxy_over(1).await;
    let long = format!("GET /long HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40 << 10));
    let many = format!("GET /many HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200));
    let endless = format!("GET /endless HTTP/1.1\r\nX: {}", "x".repeat(64 << 10));
    for (path, head) in [("/long", long), ("/many", many), ("/endless", endless)] {
        let mut client = Connection::open(proxy.address()).await;
        client.send(head).await;
        let response = client.response().await;
        assert_eq!(response.status, 431, "{path}");
        assert!(
            response.text().starts_with("Request Header Fields Too Large: "),
            "{response:?}"
        );
        assert_eq!(proxy.request_line(path).await["reason"], "head_too_large");
    }
    assert_eq!(origins[0].requests(), 0);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_413_announced_or_not() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + "  client: {max_body: 1KiB}\n")).await;
    proxy.active_backends(1).await;
    let (fits, longer) = ("x".repeat(1024), "x".repeat(1025));
    let mut client = Connection::open(proxy.address()).await;
    assert_eq!(client.request("POST", "/echo", "", &fits).await.text(), fits);
    let announced = client.request("POST", "/announced", "", &longer).await;
    assert_eq!(announced.status, 413);
    assert!(announced.text().starts_with("Content Too Large: "), "{announced:?}");
    assert_eq!(client.get("/").await.status, 200, "the connection is in order");
    assert_eq!(origin.requests(), 2);

    let mut client = Connection::open(proxy.address()).await;
    let head = "POST /unannounced HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}401\r\n{longer}\r\n0\r\n\r\n")).await;
    let response = client.response().await;
    assert_eq!((response.status, response.header("connection")), (413, Some("close")));
    assert_eq!(proxy.request_line("/unannounced").await["reason"], "body_too_large");
}

#[tokio::test]
async fn a_slow_head_is_cut_by_its_deadline_and_an_idle_connection_by_its_own() {
    let origin = origin();
    let limits = "  client: {head_timeout: 400ms, idle_timeout: 300ms, read_timeout: 300ms}\n";
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + limits)).await;
    proxy.active_backends(1).await;
    let mut slow = Connection::open(proxy.address()).await;
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n").await;
    // A byte now and then does not buy more time.
    let mut bytes = 0;
    while slow.try_send("x").await.is_ok() && proxy.lines("request").is_empty() {
        bytes += 1;
        assert!(bytes < 1000, "it never ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(slow.response().await.status, 408);
    assert_eq!(proxy.request_line("/slow").await["reason"], "request_timeout");

    let mut idle = Connection::open(proxy.address()).await;
    assert_eq!(idle.rest().await, b"", "closed without a word");
    let mut idle = Connection::open(proxy.address()).await;
    assert_eq!(idle.get("/").await.status, 200);
    assert_eq!(idle.rest().await, b"");

    let mut body = Connection::open(proxy.address()).await;
    body.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
        .await;
    assert_eq!(body.response().await.status, 408);
    assert_eq!(proxy.request_line("/upload").await["reason"], "request_timeout");
}

#[tokio::test]
async fn no_client_can_make_a_log_line_long() {
    let (proxy, _origins) = proxy_over(1).await;
    let (method, path) = ("A".repeat(20_000), "\u{e4}".repeat(10_000));
    for request in [
        format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "\u{1}".repeat(20_000)),
    ] {
        let mut client = Connection::open(proxy.address()).await;
        client.send(request).await;
        client.response().await;
    }
    eventually("each has its line", async || proxy.lines("request").len() == 3).await;
    let longest = proxy.line_lengths().into_iter().max();
    assert!(longest < Some(3000), "{longest:?} bytes");
}

#[tokio::test]
async fn log_lines_stay_json_whatever_the_path_is() {
    let (proxy, _origins) = proxy_over(1).await;
    let paths: [&[u8]; 7] = [
        b"/\"},{\"level\":\"ERROR\",\"msg\":\"forged",
        b"/%0a%0d{\"msg\":\"forged\"}",
        b"/\\u0000\\\"\\",
        b"/\xff\xfe\x80",
        "/\u{2028}\u{202e}\u{1f600}".as_bytes(),
        b"/${jndi:ldap://x}/%s%n",
        b"/'<script>",
    ];
    for path in paths {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send([b"GET ", path, b"?secret=1 HTTP/1.1\r\nHost: a\r\n\r\n"].concat())
            .await;
        let status = client.response().await.status;
        assert!(matches!(status, 200 | 400), "{status}");
    }
    // `lines` parses every line of the log, and fails on one that is no JSON object.
    eventually("each has its line", async || {
        proxy.lines("request").len() == paths.len()
    })
    .await;
    let logged = proxy.lines("request");
    assert_eq!(logged[0]["path"], "/\"},{\"level\":\"ERROR\",\"msg\":\"forged");
    assert!(
        logged
            .iter()
            .all(|line| line["level"] == "INFO" && !line.to_string().contains("secret"))
    );
    assert_eq!(proxy.lines("forged").len(), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_is_logged_and_counted_as_neither_processed_nor_dropped() {
    let (proxy, origins) = proxy_over(1).await;
    let mut client = Connection::open(proxy.address()).await;
    client.send("GET /delay/60000 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("it is under way", async || origins[0].requests() == 1).await;
    drop(client);
    let line = proxy.request_line("/delay/60000").await;
    assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_gone".into()));
    proxy.reaches("gopherproxy_processed_requests_total", 0.0).await;
    proxy.reaches("gopherproxy_dropped_requests_total", 0.0).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

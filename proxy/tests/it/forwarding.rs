//! What is passed on, in both directions.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::support::{Connection, Process, RawOrigin, embedded, eventually, origin, proxy_over, resident_kib};

async fn over(origin: &RawOrigin) -> Process {
    let proxy = Process::proxy(&embedded(&[origin.address])).await;
    proxy.active_backends(1).await;
    proxy
}

#[tokio::test]
async fn the_backend_learns_whose_request_it_is_and_hop_by_hop_fields_stop_here() {
    let (proxy, _origins) = proxy_over(1).await;
    let mut client = Connection::open(proxy.address()).await;
    let lines = "X-Forwarded-For: 6.6.6.6\r\nX-Real-Ip: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Port: 1\r\n\
                 X-Request-Id: mine\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n\
                 Proxy-Authorization: secret\r\nX-End: 2\r\n";
    let seen = client.request("GET", "/headers?q=1", lines, "").await.text();
    for line in [
        "GET /headers?q=1\n",
        "host: test\n",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-proto: http\n",
        "x-forwarded-host: test\n",
        "via: 1.1 gopherproxy\n",
        "x-end: 2\n",
    ] {
        assert!(seen.contains(line), "{line:?} not in {seen}");
    }
    for word in [
        "6.6.6.6",
        "forwarded-port",
        "mine",
        "x-hop",
        "keep-alive",
        "trailers",
        "secret",
    ] {
        assert!(!seen.contains(word), "{word:?} in {seen}");
    }
    let id = seen
        .split("x-request-id: ")
        .nth(1)
        .and_then(|rest| rest.lines().next())
        .expect("an id");
    assert_eq!(proxy.request_line("/headers").await["request_id"], id);
}

#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let origin = origin();
    let trusting = embedded(&[origin.address()]) + "  trusted_proxies: [127.0.0.0/8]\n";
    let proxy = Process::proxy(&trusting).await;
    proxy.active_backends(1).await;
    let lines = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Request-Id: mine\r\n";
    let seen = Connection::open(proxy.address())
        .await
        .request("GET", "/headers", lines, "")
        .await
        .text();
    for line in [
        "x-forwarded-for: 192.0.2.7, 127.0.0.1\n",
        "x-forwarded-proto: https\n",
        "x-request-id: mine\n",
    ] {
        assert!(seen.contains(line), "{line:?} not in {seen}");
    }
    let line = proxy.request_line("/headers").await;
    assert_eq!(
        (&line["client"], &line["request_id"]),
        (&"192.0.2.7".into(), &"mine".into())
    );
}

#[tokio::test]
async fn other_spellings_of_framing_and_hop_by_hop_fields_go_no_further() {
    let (proxy, _origins) = proxy_over(1).await;
    let lines =
        "Content_Length: 5\r\nTransfer_Encoding: chunked\r\nProxy_Authorization: x\r\nKeep_Alive: 5\r\nA_B: kept\r\n";
    let mut client = Connection::open(proxy.address()).await;
    let seen = client.request("GET", "/headers", lines, "").await.text();
    assert!(seen.contains("a_b: kept\n"), "{seen}");
    for name in [
        "content_length",
        "transfer_encoding",
        "proxy_authorization",
        "keep_alive",
    ] {
        assert!(!seen.contains(name), "{name} in {seen}");
    }
}

#[tokio::test]
async fn the_origin_is_told_of_the_same_hops_that_the_limit_and_the_log_know() {
    let origins = [origin()];
    let trusting = embedded(&[origins[0].address()]) + "  trusted_proxies: [127.0.0.1]\n";
    let proxy = Process::proxy(&trusting).await;
    proxy.active_backends(1).await;
    for (number, (lines, told, client)) in [
        (
            &b"X-Forwarded-For: \xff, 1.2.3.4\r\n"[..],
            "1.2.3.4, 127.0.0.1",
            "1.2.3.4",
        ),
        (
            b"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: \xff, 1.2.3.4\r\n",
            "1.2.3.4, 127.0.0.1",
            "1.2.3.4",
        ),
        (
            b"X-Forwarded-For: 9.9.9.9, \xff\r\nX-Forwarded-For: 1.2.3.4\r\n",
            "1.2.3.4, 127.0.0.1",
            "1.2.3.4",
        ),
        (b"X-Forwarded-For: 1.2.3.4, \xff\r\n", "127.0.0.1", "127.0.0.1"),
        (
            b"X-Forwarded-For: 9.9.9.9, 1.2.3.4\r\nX-Forwarded-For:\r\n",
            "9.9.9.9, 1.2.3.4, 127.0.0.1",
            "1.2.3.4",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut connection = Connection::open(proxy.address()).await;
        let path = format!("/headers?{number}");
        connection
            .send([format!("GET {path} HTTP/1.1\r\nHost: a\r\n").as_bytes(), lines, b"\r\n"].concat())
            .await;
        let seen = connection.response().await.text();
        assert!(
            seen.contains(&format!("x-forwarded-for: {told}\n")),
            "{lines:?}: {seen}"
        );
        eventually("it is logged", async || proxy.lines("request").len() == number + 1).await;
        assert_eq!(proxy.lines("request")[number]["client"], client, "{lines:?}");
    }
}

#[tokio::test]
async fn via_names_the_version_that_the_client_speaks() {
    let (proxy, _origins) = proxy_over(1).await;
    for version in ["1.0", "1.1"] {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!("GET /headers HTTP/{version}\r\nHost: a\r\n\r\n"))
            .await;
        let seen = client.response().await.text();
        assert!(seen.contains(&format!("via: {version} gopherproxy\n")), "{seen}");
    }
}

#[tokio::test]
async fn bodies_go_through_whole_in_both_directions_and_connections_are_kept() {
    let (proxy, origins) = proxy_over(1).await;
    let mut client = Connection::open(proxy.address()).await;
    let body = "0123456789abcdef".repeat(64 << 10);
    assert_eq!(client.request("POST", "/echo", "", &body).await.text(), body);
    let chunked = "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    client
        .send(chunked.to_owned() + "4\r\nwiki\r\n5\r\npedia\r\n0\r\n\r\n")
        .await;
    assert_eq!(client.response().await.text(), "wikipedia");
    assert_eq!(client.get("/bytes/3000000").await.body.len(), 3_000_000);
    let chunks = client.get("/chunked/3").await;
    assert_eq!(chunks.header("transfer-encoding"), Some("chunked"));
    assert_eq!(chunks.text(), "chunk 0\nchunk 1\nchunk 2\n");
    let head = client.request("HEAD", "/bytes/5", "", "").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("5")));
    assert_eq!(client.get("/status/204").await.status, 204);
    assert_eq!(client.get("/status/304").await.status, 304);
    assert_eq!(client.get("/status/500").await.status, 500);
    assert_eq!(client.get("/after-all").await.status, 200);
    assert_eq!(origins[0].requests(), 9);
}

#[tokio::test]
async fn a_body_is_streamed_and_not_collected() {
    let (proxy, _origins) = proxy_over(1).await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .await;
    // The first piece comes back while the request is far from its end.
    let mut seen = String::new();
    while !seen.contains("first") {
        seen += &String::from_utf8_lossy(&client.bytes(1).await);
    }
    client.send("0\r\n\r\n").await;

    // The other way: the backend takes nothing of a body that is far longer than what the proxy may hold.
    let before = resident_kib(&proxy);
    let mut client = Connection::open(proxy.address()).await;
    client
        .send(format!(
            "POST /delay/60000 HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n",
            1 << 30
        ))
        .await;
    let piece = "x".repeat(1 << 20);
    let flood = async {
        for _ in 0..64 {
            client.send(&piece).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(1), flood).await.is_err(),
        "the client is held back"
    );
    let grown = resident_kib(&proxy).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more for a request that nobody takes");

    let before = resident_kib(&proxy);
    let size = 64 << 20;
    let body = Connection::open(proxy.address())
        .await
        .get(&format!("/bytes/{size}"))
        .await
        .body;
    assert_eq!(body.len(), size);
    let grown = resident_kib(&proxy).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more for a response of 64 MiB");
}

#[tokio::test]
async fn a_piece_of_a_response_does_not_wait_for_the_next() {
    let origin = RawOrigin::start(|mut peer| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(peer.stream.read_u8().await.expect("a head"));
        }
        for piece in ["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "wiki", "pedia"] {
            peer.send(piece).await;
            // The client has had this piece when it says so.
            peer.stream.read_u8().await.expect("a word of the client");
        }
    })
    .await;
    let proxy = over(&origin).await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\n")
        .await;
    let mut seen = String::new();
    for end in ["\r\n\r\n", "wiki", "pedia"] {
        while !seen.ends_with(end) {
            seen += &String::from_utf8_lossy(&client.bytes(1).await);
        }
        client.send("x").await;
    }
}

#[tokio::test]
async fn connections_to_a_backend_are_reused() {
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let proxy = over(&origin).await;
    // On one connection of the client, so that the backend's is back in its place when the next request comes.
    let mut client = Connection::open(proxy.address()).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.text(), "ok");
    }
    assert_eq!((origin.requests().len(), origin.connections()), (10, 1));
}

#[tokio::test]
async fn interim_responses_go_through_before_the_final_one() {
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let origin = RawOrigin::answering(answer).await;
    let proxy = over(&origin).await;
    let mut client = Connection::open(proxy.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let hints = client.response().await;
    assert_eq!((hints.status, hints.header("link")), (103, Some("</style.css>")));
    assert_eq!(client.response().await.text(), "ok");
    assert_eq!(proxy.request_line("/").await["status"], 200);

    // A client of HTTP/1.0 knows none.
    client.send("GET /old HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn a_client_that_expects_continue_gets_it_from_the_backend() {
    let origin = RawOrigin::start(|mut peer| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && peer.stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
        assert!(
            String::from_utf8_lossy(&head)
                .to_lowercase()
                .contains("expect: 100-continue")
        );
        peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        let mut body = [0; 3];
        peer.stream.read_exact(&mut body).await.expect("the body comes now");
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n").await;
        peer.send(body).await;
    })
    .await;
    let proxy = over(&origin).await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        .await;
    assert_eq!(client.response().await.status, 100);
    client.send("yes").await;
    assert_eq!(client.response().await.text(), "yes");
}

/// Otherwise the next request of the client would be taken for the body.
#[tokio::test]
async fn an_interim_response_other_than_100_does_not_ask_for_the_body() {
    let origin = RawOrigin::start(|mut peer| async move {
        let mut head = [0; 1024];
        if peer.stream.read(&mut head).await.is_ok() {
            peer.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
                .await;
            // Until the proxy closes.
            while peer.stream.read(&mut head).await.is_ok_and(|read| read > 0) {}
        }
    })
    .await;
    for forwarder in ["direct", "pingora"] {
        let proxy = Process::proxy_with(&embedded(&[origin.address]), &[("FORWARDER", forwarder)]).await;
        proxy.active_backends(1).await;
        let mut client = Connection::open(proxy.address()).await;
        client
            .send("PUT /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .await;
        assert_eq!(client.response().await.status, 103);
        let response = client.response().await;
        assert_eq!((response.status, &*response.text()), (200, "no"));
        assert_eq!(response.header("connection"), Some("close"), "{forwarder}");
        assert_eq!(client.rest().await, b"");
        assert_eq!(proxy.request_line("/a").await["status"], 200);
    }
}

#[tokio::test]
async fn upgraded_connections_carry_bytes_both_ways_and_outlive_the_timeouts_of_requests() {
    let origin = origin();
    let impatient = embedded(&[origin.address()])
        + "  client: {read_timeout: 200ms, idle_timeout: 200ms}\n  upstream: {read_timeout: 200ms, idle_timeout: 200ms}\n";
    let proxy = Process::proxy(&impatient).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("GET /upgrade HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    let switched = client.response().await;
    assert_eq!((switched.status, switched.header("upgrade")), (101, Some("websocket")));
    client.send("hello").await;
    assert_eq!(client.bytes(5).await, b"hello");
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.send("a later word").await;
    assert_eq!(client.bytes(12).await, b"a later word");
    drop(client);
    let line = proxy.request_line("/upgrade").await;
    assert_eq!(line["status"], 101);
    assert!(proxy.metric("gopherproxy_processed_requests_total").await >= 1.0);
    // The time is that of the switch, not of the conversation.
    let sum = proxy
        .metric(&format!(
            "gopherproxy_request_duration_seconds_sum{{backend=\"{}\"}}",
            origin.address()
        ))
        .await;
    assert!(sum < 1.0, "{sum}");
}

#[tokio::test]
async fn responses_lose_their_hop_by_hop_fields_and_old_clients_get_no_chunks() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
                  Keep-Alive: timeout=9\r\nX-End: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let origin = RawOrigin::answering(answer).await;
    let proxy = over(&origin).await;
    let mut client = Connection::open(proxy.address()).await;
    let response = client.get("/").await;
    assert_eq!((response.header("x-hop"), response.header("keep-alive")), (None, None));
    assert_eq!(
        (response.header("x-end"), response.header("connection")),
        (Some("2"), Some("keep-alive"))
    );
    assert_eq!(response.text(), "ok");

    client.send("GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(
        (response.header("transfer-encoding"), response.header("connection")),
        (None, Some("close"))
    );
    assert_eq!(response.text(), "ok");
}

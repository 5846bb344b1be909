//! HTTP/2 to backends, tunnels and expectations.

use super::*;

#[tokio::test]
async fn a_backend_that_speaks_http2_gets_the_fields_of_the_answer() {
    let service = service().await;
    let origin = Http2Origin::plain().await;
    let more = format!(
        "  upstream: {{protocol: h2c}}\n  http2: {{cleartext: true}}\n  routes:\n    shop: {{{}}}\n",
        asks(&service)
    );
    let proxy = Process::proxy(&(embedded_targets(&[origin.address.to_string()]) + &more)).await;
    proxy.active_backends(1).await;
    for seen in ask(
        &proxy,
        "POST",
        "/",
        &[("Remote-User", "admin"), ("remote_user", "admin")],
        "body",
    )
    .await
    {
        assert_eq!(seen.status, 200);
    }
    let requests = origin.requests();
    assert_eq!(requests.len(), 3);
    for seen in requests {
        assert!(
            seen.head.contains("remote-user: alice\r\n") && !seen.head.contains("admin"),
            "{}",
            seen.head
        );
        assert!(
            seen.head.contains("remote-groups: a\r\nremote-groups: b\r\n"),
            "{}",
            seen.head
        );
    }
}

#[tokio::test]
async fn a_websocket_is_asked_about_and_switches() {
    let service = service().await;
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.head().await.is_some() {
            peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
                .await;
            let _ = peer.stream.read_u8().await;
        }
    })
    .await;
    let more = format!("{CLEARTEXT}  routes:\n    chat: {{{}}}\n", asks(&service));
    let proxy = proxy_to(&origin, &more).await;
    let handshake =
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nRemote-User: admin\r\n";
    let mut client = Connection::open(proxy.address()).await;
    client.send(format!("{handshake}\r\n")).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.bytes(5).await, b"hello");
    assert_eq!(values(&origin.requests()[0], "remote-user"), ["alice"]);
    let question = service.requests().concat().to_lowercase();
    assert!(
        !question.contains("upgrade") && !question.contains("connection"),
        "{question}"
    );
    let mut refused = Connection::open(proxy.address()).await;
    refused.send(format!("{handshake}X-Want: 401\r\n\r\n")).await;
    let response = refused.response().await;
    assert_eq!((response.status, response.text().as_str()), (401, "login"));
    assert_eq!(origin.requests().len(), 1);

    // Over HTTP/2 (RFC 8441).
    let mut client = Http2::open(proxy.address()).await;
    eventually("it is offered", async || {
        client.requests.is_extended_connect_protocol_enabled()
    })
    .await;
    for (wanted, status) in [("401", 401), ("in", 200)] {
        let mut asked = request2("CONNECT", "/chat");
        asked.extensions_mut().insert(Protocol::from_static("websocket"));
        for (name, value) in [("x-want", wanted), ("remote-user", "admin")] {
            asked.headers_mut().insert(name, value.parse().expect("a value"));
        }
        let (response, _up) = client.requests.send_request(asked, false).expect("it is open");
        assert_eq!(response.await.expect("an answer").status(), status);
    }
    let requests = origin.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(values(&requests[1], "remote-user"), ["alice"]);
    let question = service.requests().pop().expect("a question");
    assert_eq!(values(&question, "x-forwarded-method"), ["GET"]);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_sends_its_body_only_if_it_may_pass() {
    let service = service().await;
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.head().await.is_some() {
            peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            let body = peer.until("body").await;
            assert_eq!(body.as_deref(), Some("body"));
            peer.send(ANSWER).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, &format!("  routes:\n    shop: {{{}}}\n", asks(&service))).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n";
    let mut client = Connection::open(proxy.address()).await;
    client.send(format!("{head}\r\n")).await;
    assert_eq!(client.response().await.status, 100);
    client.send("body").await;
    assert_eq!(client.response().await.status, 200);
    let mut refused = Connection::open(proxy.address()).await;
    refused.send(format!("{head}X-Want: 401\r\n\r\n")).await;
    let response = refused.response().await;
    assert_eq!((response.status, response.header("connection")), (401, Some("close")));
    assert_eq!(origin.requests().len(), 1);
    let questions = service.requests().concat().to_lowercase();
    assert!(
        !questions.contains("expect") && !questions.contains("content-length"),
        "{questions}"
    );
}

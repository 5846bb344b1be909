//! Connections that switch to another protocol.

use tokio::io::AsyncReadExt;

use crate::support::{Connection, Process, RawOrigin, embedded};

/// An origin that switches to the protocol that it is asked for, and echoes what comes then. It answers other requests.
async fn origin() -> RawOrigin {
    RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let mut fields = request.split("\r\n").filter_map(|line| line.split_once(": "));
            let Some((_, protocol)) = fields.find(|(name, _)| *name == "Upgrade") else {
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                continue;
            };
            peer.send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
            ))
            .await;
            let mut bytes = Vec::new();
            while peer.stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                peer.send(std::mem::take(&mut bytes)).await;
            }
            break;
        }
    })
    .await
}

/// A proxy over `origin` whose clients may switch to `upgrades`.
async fn switching(origin: &RawOrigin, upgrades: &str) -> Process {
    let proxy = Process::proxy(&(embedded(&[origin.address]) + &format!("  client: {{upgrades: {upgrades}}}\n"))).await;
    proxy.active_backends(1).await;
    proxy
}

#[tokio::test]
async fn a_connection_switches_to_any_protocol_that_the_configuration_allows() {
    let origin = origin().await;
    let proxy = switching(&origin, "[irc/6.9, WebSocket]").await;
    for (upgrade, chosen) in [
        ("Upgrade: IRC/6.9", "IRC/6.9"),
        ("Upgrade: h2c, irc/6.9, websocket", "irc/6.9"),
        ("Upgrade: h2c\r\nUpgrade: websocket", "websocket"),
    ] {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n{upgrade}\r\n\r\n"
            ))
            .await;
        let answer = client.response().await;
        assert_eq!((answer.status, answer.header("upgrade")), (101, Some(chosen)));
        client.send("hello").await;
        assert_eq!(client.bytes(5).await, b"hello");
        let request = origin.requests().pop().expect("the last");
        let upgrades: Vec<_> = request.split("\r\n").filter(|line| line.contains("pgrade")).collect();
        assert_eq!(upgrades, ["Connection: Upgrade", &format!("Upgrade: {chosen}")]);
        assert!(!request.contains("h2c") && !request.contains("HTTP2"), "{request}");
    }
}

#[tokio::test]
async fn a_request_to_switch_to_a_protocol_that_is_not_allowed_is_an_ordinary_one() {
    let origin = origin().await;
    for (upgrades, upgrade) in [
        ("[]", "websocket"),
        ("[irc/6.9]", "websocket, irc, irc/6.8"),
        ("[websocket]", "irc/6.9, h2c, TLS/1.0"),
    ] {
        let proxy = switching(&origin, upgrades).await;
        let mut client = Connection::open(proxy.address()).await;
        let lines = format!("Connection: Upgrade\r\nUpgrade: {upgrade}\r\n");
        assert_eq!(client.request("GET", "/", &lines, "").await.text(), "ok", "{upgrade}");
        assert_eq!(client.get("/next").await.text(), "ok", "{upgrade}");
    }
    assert!(origin.requests().iter().all(|request| !request.contains("pgrade")));
}

//! Connections that switch to another protocol: no byte is lost, whenever it comes, and the record says what became of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Connection, RawOrigin, eventually, forwarder, proxy_to, thorough};

fn handshake(path: &str, protocol: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

fn switching(protocol: &str) -> String {
    format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

/// Threads that keep every core busy until they are dropped.
struct Burners(Arc<AtomicBool>);

impl Burners {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_talks_at_once_is_heard_though_every_core_is_busy() {
    let handshakes = thorough(300, 10_000);
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        peer.send(switching("websocket") + "hello").await;
        // Until the client has said something.
        if let Ok(word) = peer.stream.read_u8().await {
            peer.send([word]).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let address = proxy.address();
    let burners = Burners::start();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(async move {
                let mut cut = 0;
                for _ in 0..handshakes / 4 {
                    let mut client = Connection::open(address).await;
                    client.send(handshake("/", "websocket")).await;
                    assert_eq!(client.head().await.status, 101);
                    let heard = client.try_bytes(5).await.is_ok_and(|word| word == b"hello");
                    let talked = client.try_send("x").await.is_ok() && client.try_bytes(1).await.is_ok();
                    cut += usize::from(!(heard && talked));
                }
                cut
            })
        })
        .collect();
    let mut cut = 0;
    for client in clients {
        cut += client.await.expect("each was answered");
    }
    drop(burners);
    assert_eq!(cut, 0, "of {handshakes}");
    eventually("each has its line", async || proxy.lines("request").len() == handshakes).await;
    for line in proxy.lines("request") {
        assert!(
            line["status"] == 101 && line["bytes"] == 6 && line.get("reason").is_none(),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_tunnel_that_the_origin_cuts_has_a_reason_in_the_log() {
    let origin = RawOrigin::start(|mut peer| async move {
        let request = peer.head().await.expect("a handshake");
        peer.send(switching("websocket")).await;
        if request.contains(" /reset ") {
            peer.reset();
        } else {
            let _ = peer.stream.read(&mut [0]).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "  upstream: {tunnel_idle_timeout: 300ms}\n").await;
    for path in ["/reset", "/silent"] {
        let mut client = Connection::open(proxy.address()).await;
        client.send(handshake(path, "websocket")).await;
        assert_eq!(client.head().await.status, 101);
        assert_eq!(client.rest().await, b"");
        let line = proxy.request_line(path).await;
        let reason = &line["reason"];
        assert!(line["status"] == 101 && line["error"].is_string(), "{line}");
        assert!(
            *reason == "backend_timeout" || (path == "/reset" && *reason == "backend_failed"),
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_much_both_ways_at_the_same_time() {
    if forwarder::skips("websocket::a_tunnel_carries_much_both_ways_at_the_same_time") {
        return;
    }
    const SIZE: usize = 8 << 20;
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        peer.send(switching("websocket")).await;
        let (mut from, mut to) = peer.stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client.send(handshake("/", "websocket")).await;
    assert_eq!(client.head().await.status, 101);
    let sent: Vec<u8> = (0..SIZE).map(|_| fastrand::u8(..)).collect();
    let (mut sender, shared) = (client.sender(), sent.clone());
    let sending = tokio::spawn(async move { sender.send(shared).await });
    assert!(client.bytes(SIZE).await == sent, "it came back otherwise");
    sending.await.expect("all was sent");
    drop(client);
    assert_eq!(proxy.request_line("/").await["bytes"], SIZE);
}

//! Connections that switch to another protocol: no byte is lost, whenever it comes, and the record says what became of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use crate::support::{Connection, Process, RawOrigin, eventually, forwarder, proxy_to, thorough};

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
        peer.head().await.expect("a handshake");
        peer.send(switching("websocket")).await;
        peer.reset();
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client.send(handshake("/", "websocket")).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.rest().await, b"");
    let line = proxy.request_line("/").await;
    assert!(line["status"] == 101 && line["error"].is_string(), "{line}");
    assert_eq!(line["reason"], "backend_failed", "{line}");
}

/// An end after which no backend and no request counts as failed.
async fn is_nobodys_failure(proxy: &Process) {
    let line = proxy.request_line("/").await;
    assert_eq!(line["status"], 101, "{line}");
    assert!(line.get("reason").is_none() && line.get("error").is_none(), "{line}");
    for (name, value) in [
        ("gopherproxy_rejections_total{reason=\"backend_timeout\"}", 0.0),
        ("gopherproxy_rejections_total{reason=\"backend_failed\"}", 0.0),
        ("gopherproxy_rejections_total{reason=\"client_gone\"}", 0.0),
        ("gopherproxy_active_backends", 1.0),
    ] {
        assert_eq!(proxy.metric(name).await, value, "{name}");
    }
}

const IMPATIENT: &str = "  upstream: {tunnel_idle_timeout: 300ms, ejection: {failures: 1}}\n";

#[tokio::test]
async fn a_tunnel_that_ends_because_it_is_idle_is_nobodys_failure() {
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        peer.send(switching("websocket")).await;
        let _ = peer.stream.read(&mut [0]).await;
    })
    .await;
    let proxy = proxy_to(&origin, IMPATIENT).await;
    let mut client = Connection::open(proxy.address()).await;
    client.send(handshake("/", "websocket")).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.rest().await, b"");
    is_nobodys_failure(&proxy).await;
}

#[tokio::test]
async fn a_tunnel_that_ends_because_one_end_takes_nothing_is_nobodys_failure() {
    if forwarder::skips("websocket::a_tunnel_that_ends_because_one_end_takes_nothing_is_nobodys_failure") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        peer.send(switching("websocket")).await;
        let _ = peer.stream.write_all(&vec![b'x'; 32 << 20]).await;
    })
    .await;
    let proxy = proxy_to(&origin, IMPATIENT).await;
    let mut client = Connection::open(proxy.address()).await;
    client.send(handshake("/", "websocket")).await;
    assert_eq!(client.head().await.status, 101);
    is_nobodys_failure(&proxy).await;
}

#[tokio::test]
async fn either_end_of_a_tunnel_may_close_its_half_and_still_be_sent_the_other() {
    if forwarder::skips("websocket::either_end_of_a_tunnel_may_close_its_half_and_still_be_sent_the_other") {
        return;
    }
    let heard_last = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard_last);
    let origin = RawOrigin::start(move |mut peer| {
        let noted = Arc::clone(&noted);
        async move {
            let request = peer.head().await.expect("a handshake");
            peer.send(switching("websocket")).await;
            let mut heard = Vec::new();
            if request.contains(" /client ") {
                let _ = peer.stream.read_to_end(&mut heard).await;
                // Not at once, so that an end that comes too early is seen.
                sleep(Duration::from_millis(100)).await;
                let _ = peer.stream.write_all(&heard).await;
            } else {
                peer.send("first").await;
                let _ = peer.stream.shutdown().await;
                let _ = peer.stream.read_to_end(&mut heard).await;
                *noted.lock().expect("no panic") = heard;
            }
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client.send(handshake("/client", "websocket")).await;
    assert_eq!(client.head().await.status, 101);
    client.send("an answer, please").await;
    client.finish().await;
    assert_eq!(client.rest().await, b"an answer, please");
    assert!(proxy.request_line("/client").await.get("reason").is_none());

    let mut client = Connection::open(proxy.address()).await;
    client.send(handshake("/origin", "websocket")).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.rest().await, b"first");
    sleep(Duration::from_millis(100)).await;
    assert_eq!(proxy.metric("gopherproxy_inflight_requests").await, 1.0);
    client.send("still here").await;
    client.finish().await;
    assert!(proxy.request_line("/origin").await.get("reason").is_none());
    assert_eq!(*heard_last.lock().expect("no panic"), b"still here");
}

#[tokio::test]
async fn a_tunnel_whose_client_is_gone_ends_though_the_origin_says_nothing() {
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        peer.send(switching("websocket")).await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client.send(handshake("/", "websocket")).await;
    assert_eq!(client.head().await.status, 101);
    client.reset();
    assert!(proxy.request_line("/").await.get("reason").is_none());
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

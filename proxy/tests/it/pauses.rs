//! A process that was stopped for a while does not hold that against its clients.

use std::time::Duration;

use crate::support::{Connection, Process, RawOrigin, embedded, eventually, origin, proxy_over, proxy_to};

/// Stops the process for `time`.
async fn pause(process: &Process, time: Duration) {
    process.signal("STOP");
    tokio::time::sleep(time).await;
    process.signal("CONT");
    // It runs, and its deadlines have fired, before the clients go on.
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test]
async fn who_asks_the_admin_port_has_its_time_after_a_pause_too() {
    let (proxy, _origins) = proxy_over(1).await;
    let mut client = Connection::open(proxy.admin()).await;
    client.send("GET /healthz HTTP/1.1\r\nHo").await;
    // Longer than the admin port waits for a head.
    pause(&proxy, Duration::from_millis(3500)).await;
    client.send("st: a\r\n\r\n").await;
    assert_eq!(client.response().await.status, 200);
    // Who is slow while it runs is not waited for.
    let mut client = Connection::open(proxy.admin()).await;
    client.send("GET /healthz HTTP/1.1\r\nHo").await;
    assert_eq!(client.response().await.status, 408);
}
#[tokio::test]
async fn clients_in_the_middle_of_a_request_go_on_after_a_pause() {
    let origin = origin();
    let limits = "  client: {head_timeout: 1s, read_timeout: 1s}\n";
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + limits)).await;
    proxy.active_backends(1).await;
    let mut heads = Connection::open(proxy.address()).await;
    let mut length = Connection::open(proxy.address()).await;
    let mut chunked = Connection::open(proxy.address()).await;
    heads.send("GET / HTTP/1.1\r\nHo").await;
    length
        .send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello")
        .await;
    chunked
        .send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
        .await;
    // The pause meets them in the middle, and not before the proxy has seen them.
    proxy.reaches("gopherproxy_inflight_requests", 3.0).await;
    pause(&proxy, Duration::from_secs(2)).await;
    heads.send("st: test\r\n\r\n").await;
    length.send("world").await;
    chunked.send("lo\r\n0\r\n\r\n").await;
    assert_eq!(heads.response().await.status, 200);
    assert_eq!(length.response().await.text(), "helloworld");
    assert_eq!(chunked.response().await.text(), "hello");

    // Who is slow while it runs gets no longer than ever.
    let mut slow = Connection::open(proxy.address()).await;
    slow.send("GET / HTTP/1.1\r\nHo").await;
    assert_eq!(slow.response().await.status, 408);
}

#[tokio::test]
async fn an_idle_client_and_a_slow_backend_have_their_time_after_a_pause() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(head) = peer.head().await {
            if head.contains(" /slow ") {
                tokio::time::sleep(Duration::from_millis(3300)).await;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let limits = "  client: {idle_timeout: 1500ms}\n  upstream: {read_timeout: 1500ms}\n";
    let proxy = proxy_to(&origin, limits).await;
    let mut new = Connection::open(proxy.address()).await;
    let mut kept = Connection::open(proxy.address()).await;
    let mut waits = Connection::open(proxy.address()).await;
    assert_eq!(kept.get("/").await.text(), "ok");
    waits.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("the backend has both", async || origin.requests().len() == 2).await;
    pause(&proxy, Duration::from_millis(2500)).await;
    // The backend answers half a second later.
    for client in [&mut new, &mut kept] {
        assert_eq!(client.get("/").await.text(), "ok");
    }
    assert_eq!(waits.response().await.text(), "ok");

    // Without a pause both are waited for no longer than ever.
    assert_eq!(new.rest().await, b"");
    assert_eq!(Connection::open(proxy.address()).await.get("/slow").await.status, 504);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_makes_no_client_slow() {
    const SIZE: usize = 20_000_000;
    let origin = origin();
    let limits = "  client: {write_timeout: 2s, min_rate: 1MiB}\n";
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + limits)).await;
    proxy.active_backends(1).await;
    let mut sends = Connection::open(proxy.address()).await;
    let mut reads = Connection::open(proxy.address()).await;
    sends
        .send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
        .await;
    reads
        .send(format!("GET /bytes/{SIZE} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .await;
    assert_eq!(reads.head().await.status, 200);
    proxy.reaches("gopherproxy_inflight_requests", 2.0).await;
    // Longer than a client may be waited for before its rate counts.
    pause(&proxy, Duration::from_secs(7)).await;
    sends.send("world").await;
    assert_eq!(sends.response().await.text(), "10\n");
    assert_eq!(reads.bytes(SIZE).await.len(), SIZE);
    assert_eq!(
        proxy.request_line(&format!("/bytes/{SIZE}")).await["reason"],
        serde_json::Value::Null
    );
}

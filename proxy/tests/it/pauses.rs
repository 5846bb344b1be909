//! A process that was stopped for a while does not hold that against its clients.

use std::time::Duration;

use crate::support::{Connection, Process, embedded, origin, proxy_over};

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

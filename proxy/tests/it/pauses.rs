//! A process that was stopped for a while does not hold that against its clients.

use std::time::Duration;

use crate::support::{Connection, Process, proxy_over};

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

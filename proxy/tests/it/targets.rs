//! Targets, which pass as they come unless they could be read in two ways.

use crate::support::{Connection, proxy_over};

#[tokio::test]
async fn a_refused_target_is_logged_and_says_which_key_lets_it_in() {
    let (proxy, _origins) = proxy_over(1).await;
    let mut client = Connection::open(proxy.address()).await;
    client.send(b"GET /caf\xe9?secret HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.status, 400);
    let line = proxy.request_line("/caf\u{fffd}").await;
    assert_eq!(line["error"], "the target is not UTF-8, and client.raw_targets is off");
}

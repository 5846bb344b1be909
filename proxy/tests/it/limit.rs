//! The limit for each client.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::support::{Connection, Process, UNLIMITED, embedded, origin};

/// A burst of 5 and a token every two seconds: slow enough that no pause of the machine gives one back unseen.
const SLOW: &str = "  limit: {burst: 5, per_second: 0.5, exempt: [127.0.0.9]}\n  trusted_proxies: [127.0.0.8]\n";

async fn limited_proxy() -> (Process, origin::Origin) {
    let origin = origin();
    let proxy = Process::proxy(&embedded(&[origin.address()]).replace(UNLIMITED, SLOW)).await;
    proxy.active_backends(1).await;
    (proxy, origin)
}

async fn connect(proxy: &Process, from: &str) -> Connection {
    Connection::open_from(proxy.address(), from.parse::<IpAddr>().expect("an address")).await
}

#[tokio::test]
async fn a_burst_of_five_then_no_then_one_after_the_time_it_was_told() {
    let (proxy, origin) = limited_proxy().await;
    let mut client = connect(&proxy, "127.0.0.1").await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.status, 200);
    }
    let refused = client.get("/").await;
    assert_eq!(refused.status, 429);
    assert!(refused.text().starts_with("Too Many Requests: "), "{refused:?}");
    assert_eq!(refused.header("connection"), Some("keep-alive"));
    assert_eq!(refused.header("ratelimit-policy"), Some("\"client\";q=5;w=10"));
    let wait: u64 = refused
        .header("retry-after")
        .expect("it says when")
        .parse()
        .expect("whole seconds");
    assert!((1..=2).contains(&wait), "{wait}");
    assert_eq!(
        refused.header("ratelimit"),
        Some(format!("\"client\";r=0;t={wait}").as_str())
    );
    assert_eq!(origin.requests(), 5);

    // On the same connection, which stayed open.
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(client.get("/").await.status, 429);
}

#[tokio::test]
async fn clients_do_not_touch_each_other() {
    let (proxy, _origin) = limited_proxy().await;
    let mut greedy = connect(&proxy, "127.0.0.2").await;
    let mut modest = connect(&proxy, "127.0.0.3").await;
    for _ in 0..20 {
        greedy.get("/").await;
    }
    assert_eq!(greedy.get("/").await.status, 429);
    for _ in 0..5 {
        assert_eq!(modest.get("/").await.status, 200);
    }
    // A second connection is the same client.
    assert_eq!(connect(&proxy, "127.0.0.2").await.get("/").await.status, 429);
}

#[tokio::test]
async fn every_method_and_upgrades_are_limited_alike_and_bodies_do_not_confuse_the_connection() {
    let (proxy, origin) = limited_proxy().await;
    let mut client = connect(&proxy, "127.0.0.1").await;
    for _ in 0..5 {
        client.get("/").await;
    }
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let body = if method == "GET" {
            ""
        } else {
            "GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"
        };
        assert_eq!(client.request(method, "/", "", body).await.status, 429, "{method}");
    }
    let length = client.get("/").await.body.len().to_string();
    let head = client.request("HEAD", "/", "", "").await;
    assert_eq!(
        (head.status, head.header("content-length")),
        (429, Some(length.as_str()))
    );
    let upgrade = client
        .request("GET", "/upgrade", "Connection: upgrade\r\nUpgrade: websocket\r\n", "")
        .await;
    assert_eq!(upgrade.status, 429);
    assert_eq!(origin.requests(), 5);

    // A client that waits for 100 Continue has not sent its body: what it sends next must not be taken for a request.
    client
        .send("POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        .await;
    let refused = client.response().await;
    assert_eq!((refused.status, refused.header("connection")), (429, Some("close")));
}

#[tokio::test]
async fn exempt_clients_have_no_limit() {
    let (proxy, _origin) = limited_proxy().await;
    let mut client = connect(&proxy, "127.0.0.9").await;
    for _ in 0..50 {
        assert_eq!(client.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn the_client_is_the_peer_or_behind_a_trusted_proxy_whom_it_names() {
    let (proxy, _origin) = limited_proxy().await;
    // An untrusted peer may name whom it likes: it stays one client.
    let mut liar = connect(&proxy, "127.0.0.1").await;
    for number in 0..6 {
        let claim = format!("X-Forwarded-For: 192.0.2.{number}\r\n");
        let status = liar.request("GET", "/", &claim, "").await.status;
        assert_eq!(status, if number < 5 { 200 } else { 429 });
    }
    let mut trusted = connect(&proxy, "127.0.0.8").await;
    for round in 0..6 {
        for client in ["192.0.2.1", "192.0.2.2"] {
            let lines = format!("X-Forwarded-For: 10.0.{round}.1, {client}\r\n");
            let status = trusted.request("GET", "/", &lines, "").await.status;
            assert_eq!(status, if round < 5 { 200 } else { 429 }, "{client} in round {round}");
        }
    }
    proxy.reaches("gopherproxy_limiter_clients", 3.0).await;
}

#[tokio::test]
async fn a_trusted_proxys_own_health_checks_are_not_limited() {
    let (proxy, _origin) = limited_proxy().await;
    let mut balancer = connect(&proxy, "127.0.0.8").await;
    for _ in 0..20 {
        assert_eq!(balancer.get("/health").await.status, 200);
    }
    // One that names somebody, even badly, is limited as whoever can be known.
    for number in 0..6 {
        let status = balancer
            .request("GET", "/", "X-Forwarded-For: unknown\r\n", "")
            .await
            .status;
        assert_eq!(status, if number < 5 { 200 } else { 429 });
    }
}

#[tokio::test]
async fn the_first_refusal_explains_the_limit_and_how_to_change_it_once() {
    let (proxy, _origin) = limited_proxy().await;
    let explanation = "a client is over the limit and gets 429";
    let mut client = connect(&proxy, "127.0.0.1").await;
    for _ in 0..5 {
        client.get("/").await;
    }
    assert!(proxy.lines(explanation).is_empty(), "nobody was refused yet");
    for _ in 0..3 {
        assert_eq!(client.get("/").await.status, 429);
    }
    let line = proxy.said(explanation, |_| true).await;
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!((&line["burst"], &line["per_second"]), (&5.into(), &0.5.into()));
    assert!(line["help"].as_str().expect("a text").contains("RATE_LIMIT"), "{line}");
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"limited\"}", 3.0)
        .await;
    assert_eq!(proxy.lines(explanation).len(), 1);
}

#[tokio::test]
async fn refusing_keeps_up_with_a_flood_on_one_connection() {
    let (proxy, origin) = limited_proxy().await;
    let mut client = connect(&proxy, "127.0.0.1").await;
    let start = Instant::now();
    let flood = "GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(500);
    client.send(flood).await;
    let mut refused = 0;
    for _ in 0..500 {
        refused += u64::from(client.response().await.status == 429);
    }
    let given_back = start.elapsed().as_secs() / 2 + 1;
    assert!((495 - given_back..=495).contains(&refused), "{refused}");
    assert_eq!(origin.requests(), 500 - refused);
}

//! How many connections there may be, in all, for each client, and with few descriptors; and those who find no place.

use std::time::Duration;

use crate::support::{Connection, Process, RawOrigin, embedded, eventually, get, origin, proxy_to};

#[tokio::test]
async fn connections_have_a_maximum_in_all_and_for_each_client() {
    let origin = origin();
    let limits = "  client: {max_connections: 6, max_connections_per_client: 4}\n  trusted_proxies: [127.0.0.9]\n";
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + limits)).await;
    proxy.active_backends(1).await;
    let from = async |last: u8| Connection::open_from(proxy.address(), [127, 0, 0, last].into()).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut connection = from(2).await;
        assert_eq!(connection.get("/").await.status, 200);
        open.push(connection);
    }
    let refused = async |last: u8| {
        let response = from(last).await.response().await;
        assert_eq!((response.status, response.header("connection")), (503, Some("close")));
    };
    refused(2).await;
    for last in [3, 9] {
        let mut connection = from(last).await;
        assert_eq!(connection.get("/").await.status, 200, "others have their own");
        open.push(connection);
    }
    refused(4).await;
    proxy.reaches("gopherproxy_connections", 6.0).await;
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"too_many_connections\"}", 2.0)
        .await;
    for connection in &mut open {
        assert_eq!(connection.get("/").await.status, 200, "who is in stays in");
    }
    open.clear();
    proxy.reaches("gopherproxy_connections", 0.0).await;
    assert_eq!(from(2).await.get("/").await.status, 200);
}

#[tokio::test]
async fn a_trusted_proxy_may_have_more_connections_than_a_client() {
    let origin = origin();
    let limits = "  client: {max_connections_per_client: 1}\n  trusted_proxies: [127.0.0.9]\n";
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + limits)).await;
    proxy.active_backends(1).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut connection = Connection::open_from(proxy.address(), [127, 0, 0, 9].into()).await;
        assert_eq!(connection.get("/").await.status, 200);
        open.push(connection);
    }
}

pub fn descriptors(proxy: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", proxy.pid()))
        .expect("it is ours")
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_finds_no_place_costs_those_inside_nothing() {
    const CROWD: usize = 300;
    // What may linger, to read that there is no place, and what is open for a moment.
    const MOST: usize = 64 + 128;
    // Each request inside takes a descriptor.
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
    let proxy = proxy_to(&origin, "  client: {max_connections: 2}\n").await;
    let mut inside = Vec::new();
    for _ in 0..2 {
        let mut client = Connection::open(proxy.address()).await;
        assert_eq!(client.get("/").await.status, 200);
        inside.push(client);
    }
    let before = descriptors(&proxy);
    limit_descriptors(&proxy, before + MOST);
    let address = proxy.address();
    let refused = "gopherproxy_rejections_total{reason=\"too_many_connections\"}";
    let (mut crowd, mut most) = (Vec::new(), 0);
    for number in 1..=CROWD {
        crowd.push(Connection::open(address).await);
        if number % 15 == 0 {
            for client in &mut inside {
                assert_eq!(client.get("/").await.status, 200);
            }
            proxy.reaches(refused, number as f64).await;
            most = most.max(descriptors(&proxy));
        }
    }
    assert!(most <= before + MOST, "{before} descriptors, then {most}");
    // Whoever comes alone reads all of its answer, though it sends on.
    eventually("the others are gone", async || descriptors(&proxy) <= before + 8).await;
    let mut alone = Connection::open(address).await;
    alone.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = alone.response().await;
    assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
    assert_eq!(
        answer.text().len().to_string(),
        answer.header("content-length").expect("a length")
    );
    alone.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(alone.try_rest().await.expect("no reset"), b"");
    drop(crowd);
}

/// Sets the limit on open descriptors of a running process.
pub fn limit_descriptors(proxy: &Process, limit: usize) {
    let set = std::process::Command::new("prlimit")
        .args(["--pid", &proxy.pid().to_string(), &format!("--nofile={limit}:")])
        .status();
    assert!(set.expect("prlimit is part of every Linux").success());
}

#[tokio::test]
async fn with_no_descriptor_left_new_connections_wait_and_the_others_are_served() {
    let origin = origin();
    let proxy = Process::proxy(&embedded(&[origin.address()])).await;
    proxy.active_backends(1).await;
    let mut kept = Connection::open(proxy.address()).await;
    assert_eq!(kept.get("/").await.status, 200);
    let before = descriptors(&proxy);
    let mut admin = Connection::open(proxy.admin()).await;
    eventually("it is accepted", async || descriptors(&proxy) > before).await;
    // As many as it has open: not one more.
    limit_descriptors(&proxy, descriptors(&proxy).saturating_sub(8));
    let mut waiting = Connection::open(proxy.address()).await;
    waiting.send("GET /waited HTTP/1.1\r\nHost: a\r\n\r\n").await;
    proxy
        .said_somehow("Accept() failed", |line| line["level"] == "ERROR")
        .await;
    // Some rounds of health checks and probes, none of which can open a connection.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..20 {
        assert_eq!(kept.get("/").await.status, 200);
    }
    let ready = admin.get("/readyz").await;
    assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
    assert_eq!(proxy.lines("backend went down").len(), 0);
    assert_eq!(proxy.lines("target is down").len(), 0);

    limit_descriptors(&proxy, 1024);
    assert_eq!(waiting.response().await.status, 200, "it was only kept waiting");
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

/// What the log says when `client.max_connections` takes more descriptors than there are.
const FEWER: &str = "the limit on open files allows fewer connections than client.max_connections";

/// A proxy that may have so many files open.
async fn proxy_with_descriptors(limits: &str, configuration: &str) -> Process {
    let script = format!("ulimit {limits} && exec \"$0\" \"$@\"");
    let binary = Process::binary("gopherproxy").display().to_string();
    let proxy = Process::start_with("sh".into(), Some(configuration), &[], &["-c", &script, &binary]);
    for service in ["proxy", "admin"] {
        proxy.said("listening", |line| line["service"] == service).await;
    }
    proxy
}

#[tokio::test]
async fn a_usual_limit_on_open_files_is_no_warning_unless_more_was_asked_for() {
    let origin = origin();
    let usual = embedded(&[origin.address()]);
    let with = |connections: usize| usual.clone() + &format!("  client: {{max_connections: {connections}}}\n");
    for (limits, configuration, level, connections) in [
        ("-S -n 1024 && ulimit -H -n 4096", &usual, "INFO", 1536),
        ("-S -n 1024 && ulimit -H -n 4096", &with(2000), "WARN", 1536),
        ("-n 20000", &usual, "INFO", 7500),
    ] {
        let proxy = proxy_with_descriptors(limits, configuration).await;
        let line = proxy.said(FEWER, |_| true).await;
        assert_eq!(
            (&line["level"], &line["connections"]),
            (&level.into(), &connections.into()),
            "{line}"
        );
        let warnings = proxy.log().into_iter().filter(|line| line["level"] == "WARN");
        assert_eq!(warnings.count(), usize::from(level == "WARN"));
    }
    let proxy = proxy_with_descriptors("-n 4096", &with(1000)).await;
    proxy.reconfigure(&with(3000));
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    let levels: Vec<_> = proxy.lines(FEWER).iter().map(|line| line["level"].clone()).collect();
    assert_eq!(levels, ["WARN"], "only since the reload");
}

#[tokio::test]
async fn clients_can_not_use_up_the_descriptors() {
    let origin = origin();
    let proxy = proxy_with_descriptors("-n 160", &embedded(&[origin.address()])).await;
    proxy.active_backends(1).await;
    let mut open = Vec::new();
    for number in 0..200 {
        let mut connection = Connection::open(proxy.address()).await;
        let response = if number < 35 {
            connection.get("/").await
        } else {
            connection.response().await
        };
        assert_eq!(response.status, if number < 35 { 200 } else { 503 }, "{number}");
        open.push(connection);
    }
    let warned = proxy.lines(FEWER).into_iter().filter(|line| line["level"] == "WARN");
    let warned: Vec<_> = warned.map(|line| line["connections"].clone()).collect();
    assert_eq!(warned, [35], "once, and when it mattered");
    // Each of those that are in gets an answer, all at the same time, and while others are turned away, who have descriptors too.
    open.truncate(35);
    let mut crowd = Vec::new();
    for _ in 0..60 {
        crowd.push(Connection::open(proxy.address()).await);
    }
    for connection in &mut open {
        connection.send("GET /delay/300 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    }
    for connection in &mut open {
        assert_eq!(connection.response().await.status, 200);
    }
    drop((open, crowd));
    eventually("there is room again", async || {
        Connection::open(proxy.address())
            .await
            .try_request("GET", "/", "", "")
            .await
            .is_ok_and(|response| response.status == 200)
    })
    .await;
}

//! Backends that die, break and come back, under traffic: what is tried again, and which are ejected.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    Connection, Load, Process, RawOrigin, Redis, embedded, eventually, free_port, get, origin, origin_listener,
    origin_process, thorough, with_redis,
};

const EJECTED: &str = "backend keeps failing; it is ejected";

/// A proxy whose health checks come too late to help, with these settings for ejection.
async fn unchecked(redis: &Redis, members: &[SocketAddr], ejection: &str) -> Process {
    for member in members {
        let member = origin_listener::member(*member);
        redis.command(&format!("SADD gopher_backends {member}")).await;
    }
    let configuration = with_redis(redis).replace("health: {interval: 100ms}", "health: {interval: 1h}");
    let proxy = Process::proxy(&format!("{configuration}  upstream: {{ejection: {{{ejection}}}}}\n")).await;
    proxy.active_backends(members.len()).await;
    proxy
}

/// It takes each request and closes without a word.
async fn broken() -> RawOrigin {
    RawOrigin::start(|mut peer| async move { drop(peer.request().await) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_killed_and_started_again_and_again_costs_no_get() {
    let addresses: Vec<SocketAddr> = (0..3).map(|_| ([127, 0, 0, 9], free_port()).into()).collect();
    let mut origins: Vec<Process> = addresses.iter().map(|address| origin_process(*address)).collect();
    let proxy = Process::proxy(&embedded(&addresses)).await;
    proxy.active_backends(3).await;
    let load = Load::start(proxy.address(), "/delay/5", 500);
    for round in 0..thorough(3, 30) {
        let before = load.answered();
        eventually("traffic flows", async || load.answered() > before + 100).await;
        let victim = round % 3;
        origins[victim].signal("KILL");
        origins[victim].ended().await;
        proxy.active_backends(2).await;
        origins[victim] = origin_process(addresses[victim]);
        proxy.active_backends(3).await;
    }
    load.lost_none().await;
    proxy.reaches("gopherproxy_dropped_requests_total", 0.0).await;
}

#[tokio::test]
async fn a_backend_that_keeps_failing_is_left_alone_for_a_growing_time() {
    let (redis, broken, whole) = (Redis::start().await, broken().await, origin());
    let proxy = unchecked(&redis, &[broken.address, whole.address()], "failures: 3, time: 200ms").await;
    eventually("it is ejected for a third time", async || {
        assert_eq!(get(proxy.address(), "/").await.status, 200, "clients see nothing of it");
        proxy.lines(EJECTED).len() >= 3
    })
    .await;
    let lines = proxy.lines(EJECTED);
    for (line, (failures, seconds)) in lines.iter().zip([(3, 0.2), (3, 0.4), (3, 0.8)]) {
        assert_eq!(line["backend"], origin_listener::target(broken.address));
        assert_eq!(
            (&line["failures"], &line["seconds"]),
            (&failures.into(), &seconds.into()),
            "{line}"
        );
    }
    // Three failures the first time; on trial, one is enough.
    assert_eq!(broken.requests().len(), 5);
    proxy.active_backends(1).await;
    proxy.reaches("gopherproxy_ejections_total", 3.0).await;
    for _ in 0..5 {
        assert_eq!(get(proxy.address(), "/").await.status, 200);
    }
    proxy.active_backends(2).await;
}

#[tokio::test]
async fn no_more_than_a_share_is_left_alone() {
    let redis = Redis::start().await;
    let fleet = [broken().await, broken().await, broken().await, broken().await];
    let addresses = fleet.each_ref().map(|origin| origin.address);
    let proxy = unchecked(
        &redis,
        &addresses,
        "failures: 2, time: 1h, max_time: 1h, max_share: 0.5",
    )
    .await;
    for _ in 0..20 {
        assert_eq!(get(proxy.address(), "/").await.status, 502);
    }
    proxy.active_backends(2).await;
    proxy.reaches("gopherproxy_ejections_total", 2.0).await;
}

#[tokio::test]
async fn when_nobody_else_is_alive_those_left_alone_are_tried_again() {
    let (redis, broken, dying) = (Redis::start().await, broken().await, origin());
    for member in [broken.address, dying.address()] {
        let member = origin_listener::member(member);
        redis.command(&format!("SADD gopher_backends {member}")).await;
    }
    let configuration = with_redis(&redis) + "  upstream: {ejection: {failures: 1, time: 1h, max_time: 1h}}\n";
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(2).await;
    eventually("the broken one is ejected", async || {
        assert_eq!(get(proxy.address(), "/").await.status, 200);
        proxy.lines(EJECTED).len() == 1
    })
    .await;
    dying.stop().await;
    proxy.said("backend went down", |_| true).await;
    let before = broken.requests().len();
    eventually("it is asked, though in vain", async || {
        assert_eq!(get(proxy.address(), "/").await.status, 502);
        broken.requests().len() > before
    })
    .await;
}

#[tokio::test]
async fn a_dead_fleet_gets_at_most_a_third_more_than_its_traffic() {
    const REQUESTS: usize = 400;

    let redis = Redis::start().await;
    let fleet = [broken().await, broken().await, broken().await];
    let addresses = fleet.each_ref().map(|origin| origin.address);
    let proxy = unchecked(&redis, &addresses, "max_share: 0").await;
    for _ in 0..REQUESTS {
        assert_eq!(get(proxy.address(), "/").await.status, 502);
    }
    let received: usize = fleet.iter().map(|origin| origin.requests().len()).sum();
    assert!(received > REQUESTS, "some were tried again");
    assert!(received * 10 <= REQUESTS * 13, "{received} for {REQUESTS}");
    proxy
        .reaches("gopherproxy_upstream_retries_total", (received - REQUESTS) as f64)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_close_idle_connections_at_any_moment_cost_no_get_and_double_no_post() {
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&closed);
    // Each connection lives for some requests and then ends a random moment after an answer.
    let fickle = RawOrigin::start(move |mut peer| {
        let closed = Arc::clone(&counted);
        async move {
            for _ in 0..1 + fastrand::usize(..4) {
                if peer.request().await.is_none() {
                    return;
                }
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..3_000))).await;
            closed.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    let proxy = Process::proxy(&embedded(&[fickle.address])).await;
    proxy.active_backends(1).await;
    let address = proxy.address();
    let clients: Vec<_> = (0..8)
        .map(|client| {
            tokio::spawn(async move {
                let mut connection = Connection::open(address).await;
                for number in 0..thorough(250, 5_000) {
                    tokio::time::sleep(Duration::from_micros(fastrand::u64(..3_000))).await;
                    if client % 2 == 0 {
                        assert_eq!(connection.get("/").await.status, 200);
                        continue;
                    }
                    let answer = connection
                        .request("POST", &format!("/{client}-{number}"), "", "x")
                        .await;
                    // Whether a POST was done nobody can know, so that it is not done again.
                    assert!(matches!(answer.status, 200 | 502), "{}", answer.status);
                    if answer.header("connection") == Some("close") {
                        connection = Connection::open(address).await;
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("no GET failed");
    }
    assert!(
        closed.load(Ordering::Relaxed) > 50,
        "connections were closed all the time"
    );
    let mut posts: Vec<String> = fickle
        .requests()
        .into_iter()
        .filter(|request| request.starts_with("POST "))
        .map(|request| request.lines().next().unwrap_or_default().to_owned())
        .collect();
    let received = posts.len();
    posts.sort_unstable();
    posts.dedup();
    assert_eq!(posts.len(), received, "none came twice");
}

//! Whose turn it is, and what happens when a backend breaks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::{
    BlackHole, Connection, Process, RawOrigin, Redis, embedded, eventually, free_port, get, origin, origin_at,
    proxy_over, with_redis,
};

/// How many of `count` requests in sequence each origin answers.
async fn shares(proxy: &Process, count: usize) -> BTreeMap<SocketAddr, usize> {
    let mut client = Connection::open(proxy.address()).await;
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        *shares.entry(client.get("/").await.origin()).or_default() += 1;
    }
    shares
}

#[tokio::test]
async fn turns_are_exact_with_all_alive_and_with_one_dead() {
    let (proxy, mut origins) = proxy_over(4).await;
    assert_eq!(shares(&proxy, 40).await.into_values().collect::<Vec<_>>(), [10; 4]);
    origins.remove(1).stop().await;
    proxy.active_backends(3).await;
    assert_eq!(shares(&proxy, 30).await.into_values().collect::<Vec<_>>(), [10; 3]);
}

#[tokio::test]
async fn with_nobody_alive_the_answer_is_503_at_once_and_the_connection_stays() {
    let (proxy, origins) = proxy_over(1).await;
    drop(origins);
    proxy.active_backends(0).await;
    let mut client = Connection::open(proxy.address()).await;
    let response = client.get("/nobody").await;
    assert_eq!(response.status, 503);
    let text = response.text();
    assert!(
        text.starts_with("Service Unavailable: no backend is available"),
        "{text}"
    );
    assert_eq!(response.header("connection"), Some("keep-alive"));
    assert_eq!(client.request("POST", "/", "", "body").await.status, 503);
    let line = proxy.request_line("/nobody").await;
    assert_eq!((&line["status"], &line["reason"]), (&503.into(), &"no_backend".into()));
    assert!(line["duration_ms"].as_f64().expect("a number") < 1000.0);
    proxy.reaches("gopherproxy_dropped_requests_total", 2.0).await;
}

#[tokio::test]
async fn a_backend_that_starts_late_joins_and_one_that_stops_leaves() {
    let early = origin();
    let late = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let proxy = Process::proxy(&embedded(&[early.address(), late])).await;
    proxy.active_backends(1).await;
    let started = origin_at(late);
    proxy.active_backends(2).await;
    assert_eq!(shares(&proxy, 20).await[&late], 10);
    proxy
        .said("target is up", |line| line["target"] == late.to_string())
        .await;

    started.stop().await;
    proxy.active_backends(1).await;
    assert_eq!(shares(&proxy, 20).await[&early.address()], 20);
    proxy
        .said("target is down", |line| line["target"] == late.to_string())
        .await;
    // Its series has left with it.
    let series = format!("gopherproxy_request_duration_seconds_count{{backend=\"{late}\"}}");
    eventually("the series leaves", async || {
        !proxy.metrics().await.contains_key(&series)
    })
    .await;
}

#[tokio::test]
async fn the_proxys_own_check_takes_a_dead_backend_out_of_a_set_that_still_has_it() {
    let (redis, alive, dying) = (Redis::start().await, origin(), origin());
    let name = dying.address().to_string();
    redis
        .command(&format!(
            "SADD gopher_backends http://{} http://{name}",
            alive.address()
        ))
        .await;
    let proxy = Process::proxy(&with_redis(&redis)).await;
    proxy.active_backends(2).await;
    let address = dying.address();
    dying.stop().await;
    proxy.said("backend went down", |line| line["backend"] == name).await;
    proxy.active_backends(1).await;
    let _again = origin_at(address);
    proxy.said("backend recovered", |line| line["backend"] == name).await;
    proxy.active_backends(2).await;
    for message in ["backend went down", "backend recovered"] {
        assert_eq!(proxy.lines(message).len(), 1, "{message}");
    }
}

/// A proxy over the backends that the set names, with nothing that takes one out: health checks come too late to help, and
/// failures count for nothing.
async fn unchecked(redis: &Redis, members: &[SocketAddr]) -> Process {
    for member in members {
        redis.command(&format!("SADD gopher_backends http://{member}")).await;
    }
    let configuration = with_redis(redis).replace("health: {interval: 100ms}", "health: {interval: 1h}");
    let proxy = Process::proxy(&(configuration + "  upstream: {ejection: {max_share: 0}}\n")).await;
    proxy.active_backends(members.len()).await;
    proxy
}

#[tokio::test]
async fn a_refused_connection_goes_to_another_backend_unseen_whatever_the_method() {
    let (redis, alive, dying) = (Redis::start().await, origin(), origin());
    let proxy = unchecked(&redis, &[alive.address(), dying.address()]).await;
    dying.stop().await;
    for _ in 0..10 {
        let response = Connection::open(proxy.address())
            .await
            .request("POST", "/echo", "", "body")
            .await;
        assert_eq!((response.status, response.text().as_str()), (200, "body"));
    }
    assert_eq!(alive.requests(), 10);
    proxy.reaches("gopherproxy_upstream_retries_total", 5.0).await;
    proxy.reaches("gopherproxy_processed_requests_total", 10.0).await;
    proxy.reaches("gopherproxy_dropped_requests_total", 0.0).await;
}

#[tokio::test]
async fn at_most_two_more_backends_are_tried() {
    let (redis, origins) = (Redis::start().await, [origin(), origin(), origin(), origin()]);
    let addresses = origins.each_ref().map(|origin| origin.address());
    let proxy = unchecked(&redis, &addresses).await;
    for origin in origins {
        origin.stop().await;
    }
    let response = get(proxy.address(), "/").await;
    assert_eq!(response.status, 502);
    assert!(response.text().starts_with("Bad Gateway: "), "{response:?}");
    proxy.reaches("gopherproxy_upstream_retries_total", 2.0).await;
    let line = proxy.request_line("/").await;
    assert_eq!(line["reason"], "backend_failed");
    assert!(
        line["error"].as_str().expect("the error's words").contains("refused"),
        "{line}"
    );
}

#[tokio::test]
async fn what_was_sent_is_repeated_only_for_idempotent_methods() {
    let redis = Redis::start().await;
    // It takes the request and closes without a word: nobody can know whether it did what it was asked.
    let broken = RawOrigin::start(|mut peer| async move { drop(peer.request().await) }).await;
    let whole = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let proxy = unchecked(&redis, &[broken.address, whole.address]).await;

    for number in 0..4 {
        let path = format!("/get/{number}");
        assert_eq!(get(proxy.address(), &path).await.status, 200, "{path}");
        let put = Connection::open(proxy.address())
            .await
            .request("PUT", &format!("/put/{number}"), "", "body")
            .await;
        assert_eq!(put.status, 200);
    }
    assert!(!broken.requests().is_empty(), "some went to it first");

    let mut statuses = Vec::new();
    for number in 0..4 {
        let path = format!("/post/{number}");
        statuses.push(
            Connection::open(proxy.address())
                .await
                .request("POST", &path, "", "body")
                .await
                .status,
        );
        let all = [broken.requests(), whole.requests()].concat();
        let received = all
            .iter()
            .filter(|request| request.starts_with(&format!("POST {path} ")))
            .count();
        assert_eq!(received, 1, "{path}");
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 502, 502]);
}

#[tokio::test]
async fn a_kept_connection_that_the_backend_has_closed_costs_no_get() {
    let origin = RawOrigin::start(|mut peer| async move {
        // One answer that promises to keep the connection, and then it is closed at the next request.
        peer.request().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let _ = peer.stream.readable().await;
    })
    .await;
    let proxy = Process::proxy(&embedded(&[origin.address])).await;
    proxy.active_backends(1).await;
    for _ in 0..20 {
        assert_eq!(get(proxy.address(), "/").await.text(), "ok");
    }
    assert!(proxy.metric("gopherproxy_upstream_retries_total").await > 0.0);
}

#[tokio::test]
async fn slow_and_senseless_backends_are_504_and_502() {
    for (answer, status, reason) in [
        (None, 504, "backend_timeout"),
        (Some("this is not HTTP\r\n\r\n"), 502, "backend_failed"),
        (Some("HTTP/1.1 200 OK\r\nContent-Le"), 502, "backend_failed"),
    ] {
        let origin = RawOrigin::start(move |mut peer| async move {
            peer.request().await;
            match answer {
                Some(answer) => peer.send(answer).await,
                None => std::future::pending().await,
            }
        })
        .await;
        let configuration = embedded(&[origin.address]) + "  upstream: {read_timeout: 300ms}\n";
        let proxy = Process::proxy(&configuration).await;
        proxy.active_backends(1).await;
        let response = Connection::open(proxy.address())
            .await
            .request("POST", "/", "", "body")
            .await;
        assert_eq!(response.status, status, "{answer:?}");
        assert!(!response.text().contains("127.0.0.1"));
        let line = proxy.request_line("/").await;
        assert_eq!(
            (&line["reason"], &line["backend"]),
            (&reason.into(), &origin.address.to_string().into())
        );
        assert_eq!(origin.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_backend_that_dies_in_the_middle_of_a_body_is_not_hidden() {
    let origin = RawOrigin::start(|mut peer| async move {
        peer.request().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    })
    .await;
    let proxy = Process::proxy(&embedded(&[origin.address])).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let all = String::from_utf8(client.rest().await).expect("text");
    assert!(all.ends_with("\r\n\r\nhalf"), "{all}");
    assert_eq!(proxy.request_line("/").await["reason"], "backend_failed");
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"backend_failed\"}", 1.0)
        .await;
    proxy.reaches("gopherproxy_processed_requests_total", 1.0).await;
    proxy.reaches("gopherproxy_dropped_requests_total", 0.0).await;
}

#[tokio::test]
async fn a_request_in_flight_on_a_backend_that_leaves_the_set_is_finished() {
    let (redis, staying, leaving) = (Redis::start().await, origin(), origin());
    let proxy = unchecked(&redis, &[staying.address(), leaving.address()]).await;
    let address = proxy.address();
    let slow = [(); 2].map(|()| tokio::spawn(async move { get(address, "/delay/1500").await }));
    eventually("both are under way", async || {
        staying.requests() + leaving.requests() == 2
    })
    .await;
    redis
        .command(&format!("SREM gopher_backends http://{}", leaving.address()))
        .await;
    proxy.active_backends(1).await;
    let start = Instant::now();
    for slow in slow {
        assert_eq!(slow.await.expect("it ends").status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(shares(&proxy, 4).await[&staying.address()], 4);
}

#[tokio::test]
async fn a_backend_that_swallows_packets_costs_the_connect_timeout_and_no_request() {
    // The one connection that it takes is the health check's.
    let (redis, alive, hole) = (Redis::start().await, origin(), BlackHole::after_one());
    for member in [alive.address(), hole.address] {
        redis.command(&format!("SADD gopher_backends http://{member}")).await;
    }
    let patient = with_redis(&redis).replace("health: {interval: 100ms}", "health: {interval: 1h}");
    let upstream = "  upstream: {connect_timeout: 200ms, ejection: {max_share: 0}}\n";
    let proxy = Process::proxy(&(patient + upstream)).await;
    proxy.active_backends(2).await;
    for _ in 0..6 {
        assert_eq!(get(proxy.address(), "/").await.origin(), alive.address());
    }
    assert_eq!(proxy.metric("gopherproxy_upstream_retries_total").await, 3.0);
    alive.stop().await;
    let response = get(proxy.address(), "/alone").await;
    assert!(matches!(response.status, 502 | 504), "{}", response.status);
}

#[tokio::test]
async fn a_check_that_hangs_keeps_no_other_backend_waiting() {
    let (redis, first, hole, second) = (Redis::start().await, origin(), BlackHole::new(), origin());
    for member in [first.address(), hole.address] {
        redis.command(&format!("SADD gopher_backends http://{member}")).await;
    }
    let patient = with_redis(&redis).replace("health: {interval: 100ms}", "health: {interval: 100ms, timeout: 1h}");
    let proxy = Process::proxy(&patient).await;
    proxy.active_backends(1).await;
    // The round that checks these two does not end any more.
    tokio::time::sleep(Duration::from_millis(300)).await;
    redis
        .command(&format!("SADD gopher_backends http://{}", second.address()))
        .await;
    proxy.active_backends(2).await;
}

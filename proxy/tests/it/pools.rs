//! Several pools: each with its set, its state file, its series and its place in what the process says of itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::discovery::readyz;
use crate::support::http2_origin::Http2Origin;
use crate::support::{Load, Process, RawOrigin, Redis, UNLIMITED, eventually, free_port, get, origin, with_redis};

const RELOADED: &str = "configuration reloaded";

/// One sample of a pool's backends.
fn active(pool: &str) -> String {
    format!("gopherproxy_active_backends{{pool=\"{pool}\"}}")
}

/// `configuration` with these lines under `pools`.
fn with_pools(configuration: &str, pools: &[&str]) -> String {
    let lines: Vec<_> = pools.iter().map(|line| format!("    {line}\n")).collect();
    format!("{configuration}  pools:\n{}", lines.concat())
}

/// Makes an origin a member of this set.
async fn register(redis: &Redis, set: &str, origin: SocketAddr) {
    redis.command(&format!("SADD {set} http://{origin}")).await;
}

async fn reload(proxy: &Process, configuration: &str) {
    let before = proxy.lines(RELOADED).len();
    proxy.reconfigure(configuration);
    proxy.signal("HUP");
    eventually("it is reloaded", async || proxy.lines(RELOADED).len() > before).await;
}

#[tokio::test]
async fn each_pool_has_its_set_and_its_series_and_one_alone_has_those_of_version_1() {
    let redis = Redis::start().await;
    let (web, fixed, api) = (origin(), origin(), Http2Origin::plain().await);
    register(&redis, "gopher_backends", web.address()).await;
    register(&redis, "gopher_backends:api", api.address).await;
    let plain = with_redis(&redis);
    let api_line = "api: {protocol: h2c, health: {kind: http, path: /healthz}}";
    let old_line = format!("old: {{backends: ['localhost:{}']}}", fixed.address().port());
    let all = with_pools(&plain, &["default:", api_line, &old_line]);
    let proxy = Process::proxy(&all).await;
    for pool in ["default", "api", "old"] {
        proxy.reaches(&active(pool), 1.0).await;
        proxy
            .reaches(&format!("gopherproxy_discovery_backends{{pool=\"{pool}\"}}"), 1.0)
            .await;
    }
    eventually("it is ready", async || readyz(&proxy).await == (200, "ready\n".into())).await;
    assert!(api.requests().iter().all(|seen| seen.version == "h2"), "its checks");
    assert_eq!(get(proxy.address(), "/").await.origin(), web.address());
    let of_web = |labels: &str| {
        format!(
            "gopherproxy_request_duration_seconds_count{{backend=\"{}\"{labels}}}",
            web.address()
        )
    };
    proxy.reaches(&of_web(",pool=\"default\""), 1.0).await;

    // A member of one pool is nothing to another.
    redis.command("DEL gopher_backends:api").await;
    register(&redis, "gopher_backends:api", ([127, 0, 0, 1], free_port()).into()).await;
    proxy.reaches(&active("api"), 0.0).await;
    assert_eq!(proxy.metric(&active("default")).await, 1.0);
    let line = proxy.said("backend went down", |_| true).await;
    assert_eq!(line["pool"], "api");

    reload(&proxy, &plain).await;
    eventually("the label is gone", async || {
        let metrics = proxy.metrics().await;
        metrics.keys().all(|name| !name.contains("pool=")) && metrics.contains_key("gopherproxy_active_backends")
    })
    .await;
    assert_eq!(proxy.metric(&of_web("")).await, 1.0, "what was counted stays");
    assert_eq!(get(proxy.address(), "/").await.origin(), web.address());
    assert!(
        proxy
            .log()
            .iter()
            .all(|line| line["msg"] == "request" || line["pool"] != "default"),
        "but for requests only others are named"
    );

    reload(&proxy, &all).await;
    // The reload has waited for it.
    assert_eq!(proxy.metric(&active("old")).await, 1.0);
}

#[tokio::test]
async fn each_pool_has_a_state_file_and_starts_from_it() {
    let (redis, files) = (Redis::start().await, tempfile::tempdir().expect("a directory"));
    let (web, api, fixed) = (origin(), origin(), origin());
    register(&redis, "gopher_backends", web.address()).await;
    register(&redis, "gopher_backends:api", api.address()).await;
    let file = files.path().join("set");
    let state_file = format!("discovery: {{interval: 100ms, state_file: {}}}", file.display());
    let plain = with_redis(&redis).replace("discovery: {interval: 100ms}", &state_file);
    let old_line = format!("old: {{backends: ['{}']}}", fixed.address());
    let configuration = with_pools(&plain, &["default:", "api:", &old_line]);
    let proxy = Process::proxy(&configuration).await;
    let saved = |name: &str, address| {
        let path = files.path().join(name);
        move || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(&format!("http://{address} {address}\n")))
    };
    let (of_web, of_api) = (saved("set", web.address()), saved("set.api", api.address()));
    eventually("both are saved", async || of_web() && of_api()).await;
    drop(proxy);
    assert!(!files.path().join("set.old").exists());

    redis.kill();
    let proxy = Process::proxy(&configuration).await;
    for pool in ["default", "api", "old"] {
        proxy.reaches(&active(pool), 1.0).await;
    }
    let from_file = proxy.lines("starting with the backends that an earlier process saved");
    let mut pools: Vec<_> = from_file.iter().map(|line| line["pool"].as_str()).collect();
    pools.sort();
    assert_eq!(pools, [None, Some("api")]);
    assert_eq!(readyz(&proxy).await.0, 200);

    // One that a reload removes and brings back goes on with it.
    reload(&proxy, &plain).await;
    reload(&proxy, &configuration).await;
    assert_eq!(proxy.metric(&active("api")).await, 1.0);
}

#[tokio::test]
async fn a_dead_pool_is_named_and_keeps_the_process_from_being_ready_only_while_it_is_not_known_to_be_dead() {
    let redis = Redis::start().await;
    let dead = format!("dead: {{backends: ['127.0.0.1:{}']}}", free_port());
    let configuration = with_pools(&with_redis(&redis), &["default:", &dead, "empty:"]);
    let proxy = Process::proxy(&configuration).await;
    // No pool has anything.
    let (status, text) = readyz(&proxy).await;
    assert_eq!(status, 503);
    assert!(text.contains("pool default: no backends discovered yet"), "{text}");
    let web = origin();
    register(&redis, "gopher_backends", web.address()).await;
    eventually("it is ready without those", async || {
        let (status, text) = readyz(&proxy).await;
        status == 200
            && text.starts_with(
                "ready, but pool dead: no backend passes its health check yet; pool empty: no backends discovered yet",
            )
    })
    .await;

    let while_alive = configuration.clone() + "  readiness: while-alive\n";
    reload(&proxy, &while_alive).await;
    assert_eq!(readyz(&proxy).await.0, 200, "one is alive");
    web.stop().await;
    proxy.reaches(&active("default"), 0.0).await;
    let (status, text) = readyz(&proxy).await;
    assert_eq!(status, 503, "{text}");
    reload(&proxy, &configuration).await;
    assert_eq!(readyz(&proxy).await.0, 200, "it was ready once");
    // A pool that is new and has nothing yet does not change that.
    let more = configuration.replace("    empty:\n", "    empty:\n    more:\n");
    reload(&proxy, &more).await;
    assert_eq!(readyz(&proxy).await.0, 200);
}

#[tokio::test]
async fn a_set_that_can_not_be_read_yet_is_waited_for() {
    let redis = Redis::stopped();
    let fixed = origin();
    let line = format!("fixed: {{backends: ['{}']}}", fixed.address());
    let proxy = Process::proxy(&with_pools(&with_redis(&redis), &["default:", &line])).await;
    proxy.reaches(&active("fixed"), 1.0).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let (status, text) = readyz(&proxy).await;
    assert!(
        status == 503 && text.contains("pool default: no backends discovered yet"),
        "{text}"
    );
    redis.go().await;
    let web = origin();
    register(&redis, "gopher_backends", web.address()).await;
    eventually("it is ready", async || readyz(&proxy).await == (200, "ready\n".into())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_come_change_and_go_under_traffic_and_no_request_is_lost() {
    let redis = Redis::start().await;
    let (one, other, third) = (origin(), origin(), origin());
    register(&redis, "gopher_backends", one.address()).await;
    register(&redis, "gopher_backends:more", third.address()).await;
    let plain = with_redis(&redis);
    let proxy = Process::proxy(&plain).await;
    proxy.active_backends(1).await;
    let load = Load::start(proxy.address(), "/", 200);
    eventually("traffic flows", async || load.answered() > 50).await;
    let fixed = format!("default: {{backends: ['{}', '{}']}}", one.address(), other.address());
    let moved = format!("default: {{backends: ['{}']}}", other.address());
    let dead = format!("dead: {{backends: ['127.0.0.1:{}']}}", free_port());
    let mut threads = Vec::new();
    for round in 0..4 {
        for pools in [
            &[&*fixed, "more:"][..],
            &[&moved, "more: {retries: 0}", &dead],
            &["default:", "more:"],
            &[],
        ] {
            let configuration = if pools.is_empty() {
                plain.clone()
            } else {
                with_pools(&plain, pools)
            };
            reload(&proxy, &configuration).await;
            if round == 0 && pools.len() > 2 {
                eventually("the file's are used", async || other.requests() > 0).await;
            }
        }
        eventually(&format!("round {round}: it is as it was"), async || {
            get(proxy.address(), "/").await.origin() == one.address()
        })
        .await;
        threads.push(proxy.metric("process_threads").await);
    }
    load.lost_none().await;
    assert_eq!(proxy.metric("gopherproxy_panics_total").await, 0.0);
}

#[tokio::test]
async fn a_bad_pool_refuses_the_whole_reload() {
    let redis = Redis::start().await;
    let web = origin();
    register(&redis, "gopher_backends", web.address()).await;
    let plain = with_redis(&redis);
    let proxy = Process::proxy(&plain).await;
    proxy.active_backends(1).await;
    let strict = plain.replace(UNLIMITED, "  limit: {burst: 1, per_second: 0.001}\n");
    for (pools, named) in [
        (
            &["default:", "api: {backends: [nowhere]}"][..],
            "gopherproxy.pools.api.backends: entry 1",
        ),
        (&["api:"], "requests go to the pool default"),
        (
            &["default:", "api: {tls: {ca_file: /nowhere/ca.pem}}"],
            "gopherproxy.pools.api.tls.ca_file: /nowhere/ca.pem",
        ),
    ] {
        proxy.reconfigure(&with_pools(&strict, pools));
        proxy.signal("HUP");
        proxy
            .said("configuration not reloaded; the old one stays", |line| {
                line["error"].as_str().is_some_and(|error| error.contains(named))
            })
            .await;
        for _ in 0..3 {
            assert_eq!(get(proxy.address(), "/").await.status, 200, "the old limit stays");
        }
    }
    assert!(proxy.metrics().await.keys().all(|name| !name.contains("pool=")));
}

#[tokio::test]
async fn requests_go_to_the_pool_of_their_route_in_its_way() {
    let redis = Redis::start().await;
    let (web, fixed, api) = (origin(), origin(), Http2Origin::plain().await);
    register(&redis, "gopher_backends", web.address()).await;
    register(&redis, "gopher_backends:api", api.address).await;
    let old_line = format!("old: {{backends: ['{}'], read_timeout: 200ms}}", fixed.address());
    let configuration = with_pools(&with_redis(&redis), &["default:", "api: {protocol: h2c}", &old_line])
        + "  routes:\n    app: {}\n    api: {paths: [/v1/], pool: api}\n    old: {paths: [/old/, /delay/], pool: old}\n";
    let proxy = Process::proxy(&configuration).await;
    for pool in ["default", "api", "old"] {
        proxy.reaches(&active(pool), 1.0).await;
    }
    assert_eq!(get(proxy.address(), "/").await.origin(), web.address());
    assert_eq!(get(proxy.address(), "/old/x").await.origin(), fixed.address());
    assert_eq!(get(proxy.address(), "/v1/x").await.status, 200);
    let seen = api.requests().pop().expect("a request");
    assert_eq!(seen.version, "h2");
    assert!(seen.head.contains("/v1/x"), "{}", seen.head);
    assert_eq!(get(proxy.address(), "/delay/3000").await.status, 504, "its own timeout");
    for (path, pool) in [("/", "default"), ("/v1/x", "api"), ("/old/x", "old")] {
        assert_eq!(proxy.request_line(path).await["pool"], pool);
    }
    // A pool without a backend is one for its own requests.
    redis.command("DEL gopher_backends:api").await;
    register(&redis, "gopher_backends:api", ([127, 0, 0, 1], free_port()).into()).await;
    proxy.reaches(&active("api"), 0.0).await;
    assert_eq!(get(proxy.address(), "/v1/x").await.status, 503);
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

#[tokio::test]
async fn a_request_to_a_pool_that_a_reload_removes_finishes_there_and_then_nothing_of_the_pool_is_left() {
    let (release, closed) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (released, seen_closed) = (Arc::clone(&release), Arc::clone(&closed));
    let old = RawOrigin::start(move |mut peer| {
        let (released, seen_closed) = (Arc::clone(&released), Arc::clone(&seen_closed));
        async move {
            if peer.request().await.is_some() {
                released.notified().await;
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                seen_closed.store(peer.request().await.is_none(), Ordering::SeqCst);
            }
        }
    })
    .await;
    let web = origin();
    let file = |pools: &str, routes: &str| {
        format!(
            "threads: 2
gopherproxy:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  discovery: {{interval: 100ms}}
  health: {{interval: 100ms}}
  upstream: {{idle_timeout: 1s}}
  pools:
    default: {{backends: ['{}']}}
{pools}  routes:
    app: {{}}
{routes}",
            web.address()
        )
    };
    let before = file(
        &format!("    old: {{backends: ['{}']}}\n", old.address),
        "    old: {paths: [/old/], pool: old}\n",
    );
    let proxy = Process::proxy(&before).await;
    proxy.reaches(&active("old"), 1.0).await;
    let address = proxy.address();
    let in_flight = tokio::spawn(async move { get(address, "/old/x").await.status });
    eventually("it is in flight", async || old.requests().len() == 1).await;
    reload(&proxy, &file("", "")).await;
    assert_eq!(get(proxy.address(), "/old/x").await.origin(), web.address());
    assert_eq!(proxy.metric(&active("old")).await, 1.0, "it is still used");
    release.notify_one();
    assert_eq!(in_flight.await.expect("it ends"), 200);
    eventually("its series are gone", async || {
        proxy.metrics().await.keys().all(|name| !name.contains("pool="))
    })
    .await;
    eventually("its connection is gone", async || closed.load(Ordering::SeqCst)).await;
    proxy.active_backends(1).await;
}

//! The connection to Redis: when it is kept, when it is replaced, and what is said of a Redis that refuses.

use std::time::Duration;

use registry::{PoolName, RedisStore, RedisUrl, Registry};

use crate::support::{Forwarder, Process, Redis, eventually, free_port, origin, with_redis};

/// How often `process` has failed to read the registry or to write to it.
async fn errors(process: &Process) -> f64 {
    let metrics = process.metrics().await;
    let of = |name: &str| metrics.get(name).copied().unwrap_or_default();
    of("gopherproxy_discovery_errors_total") + of("gopherproxy_sentinel_registry_errors_total")
}

/// What it writes when it says nothing but warnings, and on which port it listens.
const QUIET: (&str, &str) = ("RUST_LOG", "warn,chassis=info");

#[tokio::test]
async fn a_connection_that_redis_closed_while_it_was_idle_costs_no_read_and_no_line() {
    let (redis, origin) = (Redis::start().await, origin());
    let (url, target) = (redis.address().to_string(), origin.address().to_string());
    let sentinel = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &target),
        ("SENTINEL_INTERVAL", "2s"),
        QUIET,
    ];
    let sentinel = Process::sentinel(&sentinel).await;
    let seldom = with_redis(&redis).replace("discovery: {interval: 100ms}", "discovery: {interval: 2s}");
    assert!(seldom.contains("{interval: 2s}"), "{seldom}");
    let proxy = Process::proxy_with(&seldom, &[QUIET]).await;
    proxy.active_backends(1).await;
    // A start before the first set counts reads that found none.
    let counted = [errors(&sentinel).await, errors(&proxy).await];
    let mut before = redis.connections().await;
    assert_eq!(before.len(), 2);
    // Both are idle for longer between their reads.
    redis.command("CONFIG SET timeout 1").await;
    for _ in 0..2 {
        eventually("both were closed and are back", async || {
            let now = redis.connections().await;
            let back = now.len() == 2 && now.iter().all(|connection| !before.contains(connection));
            if back {
                before = now;
            }
            back
        })
        .await;
    }
    for (process, counted) in [&sentinel, &proxy].into_iter().zip(counted) {
        assert_eq!(errors(process).await, counted);
        let said: Vec<_> = process
            .log()
            .into_iter()
            .filter(|line| line["level"] != "INFO")
            .collect();
        assert!(said.iter().all(|line| !line.to_string().contains("redis")), "{said:#?}");
    }
}

#[tokio::test]
async fn a_redis_that_answers_with_errors_keeps_its_connections() {
    let (redis, origin) = (Redis::start().await, origin());
    let (url, target) = (redis.address().to_string(), origin.address().to_string());
    let sentinel = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &target),
        ("SENTINEL_INTERVAL", "100ms"),
    ];
    let sentinel = Process::sentinel(&sentinel).await;
    let proxy = Process::proxy(&with_redis(&redis)).await;
    proxy.active_backends(1).await;
    for (number, (fault, cure)) in [
        ("SET gopher_backends text", "DEL gopher_backends"),
        ("ACL SETUSER default -@write -@read", "ACL SETUSER default +@all"),
    ]
    .into_iter()
    .enumerate()
    {
        let (before, counted) = (
            redis.connections().await,
            [errors(&proxy).await, errors(&sentinel).await],
        );
        redis.command("DEL gopher_backends").await;
        redis.command(fault).await;
        eventually("both are refused a few times", async || {
            errors(&proxy).await > counted[0] + 3.0 && errors(&sentinel).await > counted[1] + 3.0
        })
        .await;
        assert_eq!(redis.connections().await, before, "{fault}");
        redis.command(cure).await;
        eventually("the set is read again", async || {
            proxy.lines("registry is back").len() == number + 1
        })
        .await;
        assert_eq!(redis.connections().await, before, "{fault}");
    }
}

#[tokio::test]
async fn what_redis_refuses_for_good_is_an_error_said_once_with_the_way_out() {
    let (redis, origin) = (Redis::start().await, origin());
    redis.command("CONFIG SET requirepass right-one").await;
    let target = origin.address().to_string();
    for (credentials, error, way_out) in [
        (
            ":wrong-one@",
            "WRONGPASS",
            "the user or the password in REDIS_URL is wrong",
        ),
        ("", "NOAUTH", "put the password into REDIS_URL"),
    ] {
        let url = format!("redis://{credentials}{}", redis.address());
        let variables = [
            ("REDIS_URL", url.as_str()),
            ("SENTINEL_TARGETS", &target),
            ("SENTINEL_INTERVAL", "50ms"),
            QUIET,
        ];
        let sentinel = Process::sentinel(&variables).await;
        let proxy = Process::proxy_with(&with_redis(&redis), &variables[..1]).await;
        for (process, message) in [
            (
                &sentinel,
                "registry refuses what the sentinel publishes; probing goes on",
            ),
            (&proxy, "registry gives no usable set"),
        ] {
            let line = process.said(message, |line| line["level"] == "ERROR").await;
            let text = line["error"].as_str().expect("the error's words");
            assert!(text.contains(error) && text.contains(way_out), "{text}");
            assert!(!text.contains("wrong-one"), "{text}");
            eventually("it tries on", async || errors(process).await > 4.0).await;
            let unhappy = process.log();
            let unhappy: Vec<_> = unhappy.iter().filter(|line| line["level"] == "ERROR").collect();
            assert_eq!(unhappy.len(), 1, "{unhappy:#?}");
        }
    }
}

#[tokio::test]
async fn another_refusal_is_another_error() {
    let redis = Redis::start().await;
    redis.command("SET gopher_backends text").await;
    let url = redis.address().to_string();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", "127.0.0.1:1"),
        ("SENTINEL_INTERVAL", "50ms"),
    ];
    let sentinel = Process::sentinel(&variables).await;
    let proxy = Process::proxy(&with_redis(&redis)).await;
    for (word, next) in [("WRONGTYPE", "ACL SETUSER default -smembers"), ("NOPERM", "PING")] {
        let refused = |line: &serde_json::Value| line["error"].as_str().is_some_and(|text| text.contains(word));
        for (process, message) in [
            (
                &sentinel,
                "registry refuses what the sentinel publishes; probing goes on",
            ),
            (&proxy, "registry gives no usable set"),
        ] {
            assert_eq!(process.said(message, refused).await["level"], "ERROR");
        }
        redis.command(next).await;
    }
}

#[tokio::test]
async fn a_wrong_url_ends_both_processes_and_nothing_of_it_is_shown() {
    for url in [
        "redis+unix:///run/redis.sock?pass=se-cret",
        "redis://user:se-cret:host:6379",
        "redis//user:se-cret@host:6379",
        "user:se-cret@host:6379",
        "redis://user:pa/se-cret@host:6379",
        "redis://user@host:6379/se-cret",
        "rediss://host:6379#se-cret",
        "se-cret",
    ] {
        for binary in ["sentinel", "gopherproxy"] {
            let process = Process::start(Process::binary(binary), None, &[("REDIS_URL", url)]);
            let (status, _) = process.ended().await;
            assert_eq!(status.code(), Some(1), "{url}");
            let line = process.said("can't start", |_| true).await.to_string();
            assert!(line.contains("REDIS_URL: expected host:port"), "{line}");
            let log = process.log();
            assert!(!format!("{log:?}").contains("cret"), "{log:#?}");
        }
    }
}

#[tokio::test]
async fn a_connection_has_a_greatest_age_so_a_failover_by_name_is_seen_while_the_old_node_answers() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    old.command("SADD gopher_backends http://10.0.0.1:80").await;
    new.command("SADD gopher_backends http://10.0.0.2:80").await;
    let name = Forwarder::to(&old).await;
    let url = RedisUrl::parse(&name.address.to_string()).expect("an address");
    let store = RedisStore::new(&url)
        .expect("a store")
        .with_max_age(Duration::from_millis(300));
    let read = async || {
        let members = store
            .members(&PoolName::default())
            .await
            .expect("Redis answers")
            .members;
        members.into_iter().map(|member| member.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(read().await, ["10.0.0.1:80"]);
    name.switch(&new);
    eventually("the new node is read", async || read().await == ["10.0.0.2:80"]).await;
    assert_eq!(old.connections().await.len(), 0);

    // When no new connection is to be had, the old one is better than none.
    let nobody = Redis::stopped();
    name.switch(&nobody);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(read().await, ["10.0.0.2:80"]);
    }
}

#[tokio::test]
async fn a_replica_is_read_reported_once_and_left_when_the_name_leads_to_the_primary() {
    let (old, new, first, second) = (Redis::start().await, Redis::start().await, origin(), origin());
    old.command(&format!("SADD gopher_backends http://{}", first.address()))
        .await;
    new.command(&format!("SADD gopher_backends http://{}", second.address()))
        .await;
    // It has lost its primary and goes on serving what it knew.
    old.command(&format!("REPLICAOF 127.0.0.1 {}", free_port())).await;
    let name = Forwarder::to(&old).await;
    let url = name.address.to_string();
    let proxy = Process::proxy_with(&with_redis(&old), &[("REDIS_URL", &url)]).await;
    proxy.active_backends(1).await;
    let replica = "Redis node is a replica, whose data can be old; reconnecting by name at this age";
    let line = proxy.said(replica, |_| true).await;
    assert_eq!(line["redis"], format!("redis://{url}"));
    let connection = old.connections().await;
    eventually("it looks again", async || old.connections().await != connection).await;
    name.switch(&new);
    eventually("the primary's set is taken", async || {
        crate::support::get(proxy.address(), "/").await.origin() == second.address()
    })
    .await;
    proxy.said("Redis node is the primary again", |_| true).await;
    assert_eq!(proxy.lines(replica).len(), 1);
}

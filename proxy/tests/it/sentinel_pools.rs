//! The sentinel with several pools.

use std::time::Duration;

use crate::support::{Process, Redis, eventually, free_port, get, origin};

/// The members of a set, in order.
async fn set(redis: &Redis, key: &str) -> Vec<String> {
    let mut members = redis.command(&format!("SMEMBERS {key}")).await;
    members.sort();
    members
}

/// Waits until a set has these origins and no others.
async fn set_is(redis: &Redis, key: &str, origins: &[&str]) {
    let mut expected: Vec<String> = origins.iter().map(|origin| format!("http://{origin}")).collect();
    expected.sort();
    eventually(&format!("{key} is {expected:?}"), async || {
        set(redis, key).await == expected
    })
    .await;
}

async fn sentinel(redis: &Redis, targets: &str) -> Process {
    let url = redis.address().to_string();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", targets),
        ("SENTINEL_INTERVAL", "50ms"),
        ("SENTINEL_ID", "one"),
    ];
    Process::sentinel(&variables).await
}

#[tokio::test]
async fn each_pool_has_its_own_set_metrics_and_lines_and_a_target_can_be_in_two() {
    let (redis, origins) = (Redis::start().await, [origin(), origin(), origin()]);
    let [a, b, c] = origins.each_ref().map(|origin| origin.address().to_string());
    redis.command("SADD gopher_backends:api http://10.9.9.9:80").await;
    let sentinel = sentinel(&redis, &format!("{a},{b};api={b},{c}")).await;
    set_is(&redis, "gopher_backends", &[&a, &b]).await;
    set_is(&redis, "gopher_backends:api", &[&b, &c, "10.9.9.9:80"]).await;
    eventually("a cycle ends", async || {
        get(sentinel.admin(), "/readyz").await.status == 200
    })
    .await;
    for (pool, up) in [("default", 2.0), ("api", 2.0)] {
        let metrics = sentinel.metrics().await;
        let metric = |name: &str| *metrics.get(name).unwrap_or_else(|| panic!("no {name} in {metrics:#?}"));
        assert_eq!(
            metric(&format!("gopherproxy_sentinel_targets{{pool=\"{pool}\",state=\"up\"}}")),
            up
        );
        let probes = format!("gopherproxy_sentinel_probes_total{{pool=\"{pool}\",result=\"success\"}}");
        assert!(metric(&probes) >= 2.0);
        let success = format!("gopherproxy_sentinel_last_success_timestamp_seconds{{pool=\"{pool}\"}}");
        assert!(metric(&success) > 1.7e9);
    }
    let ups: Vec<_> = sentinel.lines("target is up");
    let mut pools_of_b: Vec<_> = ups
        .iter()
        .filter(|line| line["target"] == *b)
        .map(|line| line["pool"].clone())
        .collect();
    pools_of_b.sort_by_key(ToString::to_string);
    assert_eq!(pools_of_b, ["api", "default"]);

    // What another removes from one set is back in that one, and what dies leaves its own.
    redis.command("DEL gopher_backends:api").await;
    set_is(&redis, "gopher_backends:api", &[&b, &c]).await;
    let [first, _, third] = origins;
    third.stop().await;
    set_is(&redis, "gopher_backends:api", &[&b]).await;
    first.stop().await;
    set_is(&redis, "gopher_backends", &[&b]).await;
}

#[tokio::test]
async fn a_set_that_redis_refuses_holds_up_no_other() {
    let (redis, origins) = (Redis::start().await, [origin(), origin()]);
    let [a, b] = origins.each_ref().map(|origin| origin.address().to_string());
    redis.command("SET gopher_backends:api text").await;
    let sentinel = sentinel(&redis, &format!("{a};api={b}")).await;
    let refused = sentinel
        .said("registry refuses what the sentinel publishes; probing goes on", |_| {
            true
        })
        .await;
    assert_eq!((&refused["pool"], &refused["level"]), (&"api".into(), &"ERROR".into()));
    set_is(&redis, "gopher_backends", &[&a]).await;
    let errors = |pool: &str| format!("gopherproxy_sentinel_registry_errors_total{{pool=\"{pool}\"}}");
    eventually("it keeps trying", async || sentinel.metric(&errors("api")).await > 5.0).await;
    // A flush of the good set is made up for all the while.
    redis.command("DEL gopher_backends").await;
    set_is(&redis, "gopher_backends", &[&a]).await;
    assert_eq!(sentinel.metric(&errors("default")).await, 0.0);
    let ready = get(sentinel.admin(), "/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(
        ready
            .text()
            .contains("no cycle of the pool api has reached the registry yet")
    );

    redis.command("DEL gopher_backends:api").await;
    set_is(&redis, "gopher_backends:api", &[&b]).await;
    let back = sentinel
        .said("registry is back; the targets are published again", |_| true)
        .await;
    assert_eq!(back["pool"], "api");
    eventually("it is ready", async || {
        get(sentinel.admin(), "/readyz").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn a_dispute_about_a_target_is_one_of_its_pool() {
    let (redis, shared) = (Redis::start().await, origin());
    let target = shared.address().to_string();
    let sentinel = sentinel(&redis, &format!("{target};api={target}")).await;
    set_is(&redis, "gopher_backends", &[&target]).await;
    set_is(&redis, "gopher_backends:api", &[&target]).await;
    let message = "another writer of the registry disagrees about this target; publishing it less often";
    eventually("it finds the dispute", async || {
        redis
            .command(&format!("SREM gopher_backends:api http://{target}"))
            .await;
        !sentinel.lines(message).is_empty()
    })
    .await;
    let lines = sentinel.lines(message);
    assert_eq!((lines.len(), &lines[0]["pool"]), (1, &"api".into()), "{lines:?}");
    // In the other pool it is published at once, as ever.
    redis.command(&format!("SREM gopher_backends http://{target}")).await;
    set_is(&redis, "gopher_backends", &[&target]).await;
}

#[tokio::test]
async fn started_again_without_a_pool_it_removes_what_it_had_registered_there() {
    let (redis, origins) = (Redis::start().await, [origin(), origin(), origin()]);
    let [a, b, c] = origins.each_ref().map(|origin| origin.address().to_string());
    let all = [
        ("gopher_backends", &a),
        ("gopher_backends:api", &b),
        ("gopher_backends:web", &c),
    ];
    for (targets, left) in [
        (format!("{a};api={b}"), 2),
        (format!("api={b};web={c}"), 0),
        (format!("{a};web={c}"), 1),
    ] {
        let first = sentinel(&redis, &format!("{a};api={b};web={c}")).await;
        for (key, target) in all {
            set_is(&redis, key, &[target]).await;
        }
        redis.command(&format!("SADD {} http://10.9.9.9:80", all[left].0)).await;
        first.signal("TERM");
        first.ended().await;
        let second = sentinel(&redis, &targets).await;
        for (number, (key, target)) in all.into_iter().enumerate() {
            let expected: &[&str] = if number == left { &["10.9.9.9:80"] } else { &[target] };
            set_is(&redis, key, expected).await;
        }
        second.signal("TERM");
        second.ended().await;
        redis.command("FLUSHALL").await;
    }
}

#[tokio::test]
async fn inside_the_proxy_pools_come_and_go_with_a_reload() {
    let (redis, origins) = (Redis::start().await, [origin(), origin()]);
    let [a, b] = origins.each_ref().map(|origin| origin.address().to_string());
    let configuration = |sentinel: &str| {
        format!(
            "gopherproxy:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  registry: {{redis: '{}'}}
  discovery: {{interval: 100ms}}
  sentinel: {{enabled: true, interval: 100ms, targets: ['{a}']{sentinel}}}",
            redis.address(),
        )
    };
    let proxy = Process::proxy(&configuration("")).await;
    set_is(&redis, "gopher_backends", &[&a]).await;
    let alone = "gopherproxy_sentinel_targets{state=\"up\"}";
    let of_api = "gopherproxy_sentinel_targets{pool=\"api\",state=\"up\"}";
    proxy.reaches(alone, 1.0).await;

    proxy.reconfigure(&configuration(&format!(", pools: {{api: ['{b}']}}")));
    proxy.signal("HUP");
    set_is(&redis, "gopher_backends:api", &[&b]).await;
    proxy.reaches(of_api, 1.0).await;
    let labelled = "gopherproxy_sentinel_targets{pool=\"default\",state=\"up\"}";
    proxy.reaches(labelled, 1.0).await;

    proxy.reconfigure(&configuration(""));
    proxy.signal("HUP");
    set_is(&redis, "gopher_backends:api", &[]).await;
    set_is(&redis, "gopher_backends", &[&a]).await;
    proxy.reaches(alone, 1.0).await;
    assert!(!proxy.metrics().await.contains_key(of_api));
}

#[tokio::test]
async fn the_user_of_version_1_that_the_security_notes_had_is_enough_for_one_pool() {
    let (redis, origins) = (Redis::start().await, [origin(), origin()]);
    let [a, b] = origins.each_ref().map(|origin| origin.address().to_string());
    let rights = "~gopher_backends ~{gopher_backends}:registered:* -@all +smembers +sadd +srem +expire +multi +exec";
    redis.command(&format!("ACL SETUSER v1 on >pass {rights}")).await;
    let url = format!("redis://v1:pass@{}", redis.address());
    for targets in [&format!("{a},{b}"), &a] {
        let variables = [
            ("REDIS_URL", url.as_str()),
            ("SENTINEL_TARGETS", targets),
            ("SENTINEL_INTERVAL", "50ms"),
            ("SENTINEL_ID", "one"),
        ];
        let sentinel = Process::sentinel(&variables).await;
        set_is(&redis, "gopher_backends", &targets.split(',').collect::<Vec<_>>()).await;
        eventually("it is ready", async || {
            get(sentinel.admin(), "/readyz").await.status == 200
        })
        .await;
        assert_eq!(sentinel.metric("gopherproxy_sentinel_registry_errors_total").await, 0.0);
        sentinel.signal("TERM");
        sentinel.ended().await;
    }
}

#[tokio::test]
async fn pools_that_make_no_sense_end_it_with_their_names() {
    for (targets, named) in [
        ("a:1;api=", "api: expected at least one host:port, got none"),
        ("a:1;b:1", "the targets of the pool default are there twice"),
        ("a:1;Api=b:1", "expected a name of 1 to 63 of a-z, 0-9, _ and -, got"),
    ] {
        let port = free_port().to_string();
        let variables = [("SENTINEL_TARGETS", targets), ("SENTINEL_METRICS_PORT", port.as_str())];
        let sentinel = Process::start(Process::binary("sentinel"), None, &variables);
        let (status, took) = sentinel.ended().await;
        assert_eq!(status.code(), Some(1));
        assert!(took < Duration::from_secs(20));
        let line = sentinel.said("can't start", |_| true).await.to_string();
        assert!(line.contains(named), "{line}");
    }
}

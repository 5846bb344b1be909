//! The sentinel in a process of its own.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::{BlackHole, Process, Redis, eventually, free_port, get, loopback, origin, origin_at};

fn member(address: impl ToString) -> String {
    format!("http://{}", address.to_string())
}

#[tokio::test]
async fn targets_are_added_and_removed_and_other_members_stay() {
    let (redis, steady, moving) = (Redis::start().await, origin(), origin());
    redis.command("SADD gopher_backends http://10.9.9.9:80 whatever").await;
    let late = free_port();
    let targets = format!("{}, {} ,localhost:{late}", steady.address(), moving.address());
    let url = redis.address().to_string();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &targets),
        ("SENTINEL_INTERVAL", "50ms"),
    ];
    let sentinel = Process::sentinel(&variables).await;
    let set = async |members: &[String]| {
        let mut expected = [&[member("10.9.9.9:80"), "whatever".into()], members].concat();
        expected.sort();
        eventually(&format!("the set is {expected:?}"), async || {
            redis.members().await == expected
        })
        .await;
    };
    let (steady_member, moving_member) = (member(steady.address()), member(moving.address()));
    set(&[steady_member.clone(), moving_member.clone()]).await;

    let address = moving.address();
    moving.stop().await;
    set(std::slice::from_ref(&steady_member)).await;
    let _again = origin_at(address);
    let _late = origin_at(([127, 0, 0, 1], late).into());
    set(&[steady_member, moving_member, member(format!("localhost:{late}"))]).await;

    // One line at each change, and none in between.
    let about = |message: &str, target: &str| {
        sentinel
            .lines(message)
            .into_iter()
            .filter(|line| line["target"] == target)
            .count()
    };
    assert_eq!(about("target is up", &steady.address().to_string()), 1);
    assert_eq!(about("target is up", &address.to_string()), 2);
    assert_eq!(about("target is down", &address.to_string()), 1);
    assert_eq!(about("target is down", &format!("localhost:{late}")), 1);

    redis.command("DEL gopher_backends").await;
    eventually("the set is whole again", async || redis.members().await.len() == 3).await;
}

#[tokio::test]
async fn it_tells_how_it_is_and_leaves_within_a_second_with_its_targets_registered() {
    for signal in ["TERM", "INT"] {
        let (redis, origin) = (Redis::start().await, origin());
        let targets = format!("{},127.0.0.1:{}", origin.address(), free_port());
        let url = redis.address().to_string();
        let sentinel = Process::sentinel(&[("REDIS_URL", &url), ("SENTINEL_TARGETS", &targets)]).await;
        eventually("a cycle ends", async || {
            get(sentinel.admin(), "/readyz").await.status == 200
        })
        .await;
        assert_eq!(get(sentinel.admin(), "/healthz").await.text(), "ok\n");
        assert_eq!(get(sentinel.admin(), "/other").await.status, 404);
        let metrics = sentinel.metrics().await;
        let metric = |name: &str| *metrics.get(name).unwrap_or_else(|| panic!("no {name} in {metrics:#?}"));
        assert_eq!(metric("gopherproxy_sentinel_targets{state=\"up\"}"), 1.0);
        assert_eq!(metric("gopherproxy_sentinel_targets{state=\"down\"}"), 1.0);
        assert!(metric("gopherproxy_sentinel_probes_total{result=\"success\"}") >= 1.0);
        assert!(metric("gopherproxy_sentinel_probes_total{result=\"failure\"}") >= 1.0);
        assert!(metric("gopherproxy_sentinel_probe_duration_seconds_count") >= 2.0);
        assert!(metric("gopherproxy_sentinel_last_success_timestamp_seconds") > 1.7e9);
        assert_eq!(metric("gopherproxy_sentinel_registry_errors_total"), 0.0);

        // What a reload of the proxy, or a terminal that closes, may send to it too.
        sentinel.signal("HUP");
        sentinel
            .said_somehow("SIGHUP changes nothing", |line| line["level"] == "WARN")
            .await;
        sentinel.signal(signal);
        let (status, took) = sentinel.ended().await;
        assert!(status.success(), "{status}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(redis.members().await, [member(origin.address())]);
    }
}

#[tokio::test]
async fn without_redis_it_starts_says_so_once_and_publishes_when_redis_comes() {
    let (redis, origin) = (Redis::stopped(), origin());
    let (url, target) = (redis.address().to_string(), origin.address().to_string());
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &target),
        ("SENTINEL_INTERVAL", "50ms"),
    ];
    let sentinel = Process::sentinel(&variables).await;
    eventually("it keeps trying", async || {
        sentinel.metric("gopherproxy_sentinel_registry_errors_total").await > 5.0
    })
    .await;
    assert_eq!(get(sentinel.admin(), "/readyz").await.status, 503);
    redis.go().await;
    eventually("it publishes", async || redis.members().await == [member(&target)]).await;
    sentinel
        .said("registry is back; the targets are published again", |_| true)
        .await;
    assert_eq!(sentinel.lines("registry unavailable; probing goes on").len(), 1);
}

#[tokio::test]
async fn targets_that_make_no_sense_end_it_with_their_names() {
    for (targets, named) in [
        ("none", "expected at least one host:port, got none"),
        ("a:1,a:1", "a:1 is there twice"),
        ("a:1,b:x", "entry 2: expected a host and a port, such as"),
    ] {
        let variables = [
            ("SENTINEL_TARGETS", targets),
            ("REDIS_URL", "nonsense"),
            ("SENTINEL_METRICS_PORT", "0"),
        ];
        let sentinel = Process::start(Process::binary("sentinel"), None, &variables);
        let (status, _) = sentinel.ended().await;
        assert_eq!(status.code(), Some(1));
        let line = sentinel.said("can't start", |_| true).await;
        let error = line["error"].as_str().expect("the error's words");
        assert!(
            error.contains(named) && error.contains("REDIS_URL: expected host:port") && !error.contains("nonsense"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn inside_the_proxy_it_writes_to_redis_too() {
    let (redis, origin) = (Redis::start().await, origin());
    let configuration = format!(
        "gopherproxy:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  registry: {{redis: '{}'}}
  discovery: {{interval: 100ms}}
  sentinel: {{enabled: true, interval: 100ms, targets: ['{}']}}",
        redis.address(),
        origin.address()
    );
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    assert_eq!(redis.members().await, [member(origin.address())]);
    proxy.reaches("gopherproxy_sentinel_targets{state=\"up\"}", 1.0).await;
}

#[tokio::test]
async fn a_target_that_swallows_packets_is_down_after_the_dial_timeout_and_holds_up_no_other() {
    let (redis, origin) = (Redis::start().await, origin());
    let holes: Vec<BlackHole> = (0..20).map(|_| BlackHole::new()).collect();
    let mut targets: Vec<String> = holes.iter().map(|hole| hole.address.to_string()).collect();
    targets.push(origin.address().to_string());
    let (url, targets) = (redis.address().to_string(), targets.join(","));
    // One after the other they would take 40 s, which is longer than this test waits for anything.
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &targets),
        ("SENTINEL_TIMEOUT", "2s"),
    ];
    let sentinel = Process::sentinel(&variables).await;
    eventually("the one that answers is published", async || {
        redis.members().await == [member(origin.address())]
    })
    .await;
    eventually("the others are down", async || {
        sentinel.lines("target is down").len() == 20
    })
    .await;
    let line = sentinel.said("target is down", |_| true).await;
    assert_eq!(line["error"], "no connection within 2s");
    sentinel
        .reaches("gopherproxy_sentinel_targets{state=\"down\"}", 20.0)
        .await;
}

#[tokio::test]
async fn its_port_is_reached_by_ipv4_and_by_ipv6() {
    let (redis, origin, port) = (Redis::start().await, origin(), free_port().to_string());
    let (url, target) = (redis.address().to_string(), origin.address().to_string());
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &target),
        ("SENTINEL_METRICS_PORT", &port),
    ];
    let sentinel = Process::sentinel(&variables).await;
    let port = sentinel.admin().port();
    for host in loopback() {
        let at = SocketAddr::new(host, port);
        eventually("it is ready", async || get(at, "/readyz").await.status == 200).await;
    }
    let healthcheck = Process::start_with(Process::binary("sentinel"), None, &variables, &["--healthcheck"]);
    assert_eq!(healthcheck.ended().await.0.code(), Some(0), "{:?}", healthcheck.log());
}

#[tokio::test]
async fn started_again_with_fewer_targets_it_removes_what_it_had_registered_and_nothing_else() {
    let (redis, origins) = (Redis::start().await, [origin(), origin(), origin(), origin()]);
    let [a, b, c, other] = origins.each_ref().map(|origin| origin.address().to_string());
    let url = redis.address().to_string();
    let sentinel = async |id: (&str, &str), targets: &[&String]| {
        let targets = targets
            .iter()
            .map(|target| target.as_str())
            .collect::<Vec<_>>()
            .join(",");
        Process::sentinel(&[
            ("REDIS_URL", &url),
            ("SENTINEL_TARGETS", &targets),
            ("SENTINEL_INTERVAL", "50ms"),
            id,
        ])
        .await
    };
    let set_is = async |members: &[&String]| {
        let mut expected: Vec<String> = members.iter().map(member).collect();
        expected.push(member("10.9.9.9:80"));
        expected.sort();
        eventually(&format!("the set is {expected:?}"), async || {
            redis.members().await == expected
        })
        .await;
    };
    redis.command("SADD gopher_backends http://10.9.9.9:80").await;
    let _other = sentinel(("SENTINEL_ID", "other"), &[&other]).await;
    set_is(&[&other]).await;

    // Without an id, the host's name and the admin port are one: the same again after a restart.
    let port = free_port().to_string();
    for (number, id) in [("SENTINEL_ID", "one"), ("SENTINEL_METRICS_PORT", port.as_str())]
        .into_iter()
        .enumerate()
    {
        let first = sentinel(id, &[&a, &b, &c]).await;
        set_is(&[&a, &b, &c, &other]).await;
        first.signal(["TERM", "KILL"][number]);
        first.ended().await;
        set_is(&[&a, &b, &c, &other]).await;
        let second = sentinel(id, &[&a, &b]).await;
        set_is(&[&a, &b, &other]).await;
        second.signal("TERM");
        second.ended().await;
    }
}

#[tokio::test]
async fn a_slow_probe_holds_up_no_other_target() {
    let (redis, origin, hole) = (Redis::start().await, origin(), BlackHole::new());
    let (url, address) = (redis.address().to_string(), origin.address());
    let targets = format!("{},{address}", hole.address);
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &targets),
        ("SENTINEL_INTERVAL", "1s"),
        ("SENTINEL_TIMEOUT", "60s"),
    ];
    let sentinel = Process::sentinel(&variables).await;
    let unknown = "gopherproxy_sentinel_targets{state=\"unknown\"}";
    eventually("the healthy one joins", async || {
        redis.members().await == [member(address)]
    })
    .await;
    assert_eq!(sentinel.metric(unknown).await, 1.0);
    origin.stop().await;
    eventually("it leaves", async || redis.members().await.is_empty()).await;
    let _again = origin_at(address);
    eventually("it joins again", async || redis.members().await == [member(address)]).await;
    assert_eq!(
        sentinel.metric(unknown).await,
        1.0,
        "the first probe of the black hole goes on"
    );
}

#[tokio::test]
async fn a_writer_that_disagrees_is_reported_once_and_its_target_moves_ever_more_seldom() {
    let (redis, origins) = (Redis::start().await, [origin(), origin()]);
    let [steady, disputed] = origins.each_ref().map(|origin| origin.address().to_string());
    let (url, targets) = (redis.address().to_string(), format!("{steady},{disputed}"));
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &targets),
        ("SENTINEL_INTERVAL", "50ms"),
    ];
    let sentinel = Process::sentinel(&variables).await;
    eventually("both are published", async || redis.members().await.len() == 2).await;
    let mut removals = 0;
    let probes = "gopherproxy_sentinel_probes_total{result=\"success\"}";
    // A hundred cycles.
    let end = sentinel.metric(probes).await + 200.0;
    while sentinel.metric(probes).await < end {
        let removed = redis
            .command(&format!("SREM gopher_backends {}", member(&disputed)))
            .await;
        removals += usize::from(removed == ["1"]);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!((3..20).contains(&removals), "{removals} changes in 100 cycles");
    let message = "another writer of the registry disagrees about this target; publishing it less often";
    let lines = sentinel.lines(message);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (&lines[0]["target"], &lines[0]["state"]),
        (&disputed.into(), &"up".into())
    );
    assert!(redis.members().await.contains(&member(steady)));

    redis.command("FLUSHALL").await;
    eventually("what was lost is no dispute", async || redis.members().await.len() == 2).await;
}

#[tokio::test]
async fn the_service_manager_hears_that_it_is_ready_when_it_serves_and_the_first_cycle_has_ended() {
    for redis in [Redis::start().await, Redis::stopped()] {
        let (origin, hole, files) = (origin(), BlackHole::new(), tempfile::tempdir().expect("a directory"));
        let path = files.path().join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(crate::support::LIMIT)).expect("a limit");
        let (url, targets) = (
            redis.address().to_string(),
            format!("{},{}", origin.address(), hole.address),
        );
        let variables = [
            ("REDIS_URL", url.as_str()),
            ("SENTINEL_TARGETS", &targets),
            ("SENTINEL_TIMEOUT", "300ms"),
            ("SENTINEL_METRICS_PORT", "0"),
            ("NOTIFY_SOCKET", path.to_str().expect("text")),
        ];
        let sentinel = Process::start(Process::binary("sentinel"), None, &variables);
        let heard = tokio::task::spawn_blocking(move || {
            let mut bytes = [0; 1024];
            let length = socket.recv(&mut bytes).expect("it says something");
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        });
        assert!(heard.await.expect("no panic").contains("READY=1"));
        assert_eq!(
            sentinel.metric("gopherproxy_sentinel_targets{state=\"unknown\"}").await,
            0.0
        );
        sentinel.said("target is down", |_| true).await;
        assert_eq!(sentinel.lines("target is down").len(), 1);
        let published = redis
            .try_members()
            .await
            .is_some_and(|members| members == [member(origin.address())]);
        let status = get(sentinel.admin(), "/readyz").await.status;
        assert!(
            matches!((published, status), (true, 200) | (false, 503)),
            "{published} {status}"
        );
    }
}

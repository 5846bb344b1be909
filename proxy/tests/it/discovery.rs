//! The set in Redis, and what happens when Redis is not well.

use std::net::SocketAddr;
use std::time::Duration;

use crate::registry_faults::with_hosts;
use crate::support::{
    Connection, Load, Process, Redis, embedded, eventually, free_port, get, origin, origin_at, origin_process,
    with_redis,
};

pub async fn readyz(proxy: &Process) -> (u16, String) {
    let response = get(proxy.admin(), "/readyz").await;
    (response.status, response.text())
}

#[tokio::test]
async fn members_come_and_go_and_what_is_no_member_is_skipped_counted_and_logged_once() {
    let (redis, one, two) = (Redis::start().await, origin(), origin());
    redis
        .command(&format!(
            "SADD gopher_backends http://{} https://10.0.0.1 \"no\\nmember\" \"\\xff\"",
            one.address()
        ))
        .await;
    let proxy = Process::proxy(&with_redis(&redis)).await;
    proxy.active_backends(1).await;
    proxy.reaches("gopherproxy_discovery_malformed_members", 3.0).await;

    redis
        .command(&format!("SADD gopher_backends http://{}", two.address()))
        .await;
    proxy.active_backends(2).await;
    proxy.reaches("gopherproxy_discovery_backends", 2.0).await;
    redis
        .command(&format!("SREM gopher_backends http://{}", one.address()))
        .await;
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.origin(), two.address());

    let skipped = proxy.lines("skipping a member of the registry that does not parse");
    let mut members: Vec<&str> = skipped.iter().filter_map(|line| line["member"].as_str()).collect();
    members.sort_unstable();
    assert_eq!(members.len(), 3, "{members:?}");
    assert!(members[0].starts_with("\"\\xff\": not UTF-8"), "{members:?}");
    assert!(
        members[1].starts_with("\"https://10.0.0.1\": expected host:port, and the port is missing"),
        "{members:?}"
    );
    assert!(
        members[2].starts_with("\"no\\nmember\": expected http://host:port"),
        "{members:?}"
    );
}

#[tokio::test]
async fn a_set_full_of_nonsense_does_not_fill_the_log() {
    let (redis, origin) = (Redis::start().await, origin());
    let nonsense: String = (0..200).map(|number| format!(" nonsense{number}")).collect();
    redis
        .command(&format!("SADD gopher_backends http://{}{nonsense}", origin.address()))
        .await;
    let proxy = Process::proxy(&with_redis(&redis)).await;
    proxy.active_backends(1).await;
    proxy.reaches("gopherproxy_discovery_malformed_members", 200.0).await;
    let skipped = proxy.lines("skipping a member of the registry that does not parse");
    let more = proxy.lines("skipping more members of the registry that do not parse");
    assert_eq!(skipped.len(), 10, "{skipped:?}");
    assert_eq!((more.len(), &more[0]["members"]), (1, &190.into()), "{more:?}");
}

#[tokio::test]
async fn a_name_is_resolved_and_keeps_its_name_in_metrics_and_log() {
    let (redis, origin) = (Redis::start().await, origin());
    let name = format!("localhost:{}", origin.address().port());
    redis
        .command(&format!(
            "SADD gopher_backends http://{name} http://no-such-name.invalid:80"
        ))
        .await;
    let proxy = Process::proxy(&with_redis(&redis)).await;
    // "localhost" may be ::1 too, where nobody listens: the health check finds out.
    eventually("the name has an address that answers", async || {
        get(proxy.address(), "/").await.status == 200 && proxy.metric("gopherproxy_active_backends").await == 1.0
    })
    .await;
    let line = proxy.said("request", |line| line["status"] == 200).await;
    assert_eq!(line["backend"], name);
    assert!(
        proxy
            .metric(&format!(
                "gopherproxy_request_duration_seconds_count{{backend=\"{name}\"}}"
            ))
            .await
            >= 1.0
    );
    proxy
        .said("name does not resolve", |line| {
            line["backend"] == "no-such-name.invalid:80"
        })
        .await;
    assert_eq!(proxy.lines("name does not resolve").len(), 1);
}

#[tokio::test]
async fn started_without_redis_it_waits_says_so_once_and_serves_when_redis_comes() {
    let (redis, origin) = (Redis::stopped(), origin());
    let proxy = Process::proxy(&with_redis(&redis)).await;
    let line = proxy.said("waiting for the first backends", |_| true).await;
    assert!(
        line["error"]
            .as_str()
            .expect("the error's words")
            .contains(&redis.address().to_string()),
        "{line}"
    );
    let (status, reason) = readyz(&proxy).await;
    assert_eq!(status, 503);
    assert!(
        reason.starts_with("no backends discovered yet: redis://127.0.0.8:"),
        "{reason}"
    );
    assert_eq!(get(proxy.address(), "/").await.status, 503);
    eventually("it keeps trying", async || {
        proxy.metric("gopherproxy_discovery_errors_total").await > 5.0
    })
    .await;

    redis.go().await;
    redis
        .command(&format!("SADD gopher_backends http://{}", origin.address()))
        .await;
    eventually("a check has passed", async || {
        readyz(&proxy).await == (200, "ready\n".into())
    })
    .await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    proxy.said("first backends discovered", |_| true).await;
    assert_eq!(proxy.lines("waiting for the first backends").len(), 1);
    assert_eq!(proxy.lines("first backends discovered").len(), 1);
}

#[tokio::test]
async fn an_error_a_hang_and_an_empty_answer_keep_the_last_known_set() {
    let (redis, origin) = (Redis::start().await, origin());
    let member = format!("SADD gopher_backends http://{}", origin.address());
    redis.command(&member).await;
    let proxy = Process::proxy(&with_redis(&redis)).await;
    proxy.active_backends(1).await;

    for (number, fault) in ["FLUSHALL", "SET gopher_backends x", "STOP", "KILL"]
        .into_iter()
        .enumerate()
    {
        match fault {
            "STOP" => redis.signal("STOP"),
            "KILL" => redis.kill(),
            command => drop(redis.command(command).await),
        }
        eventually(&format!("{fault} is noticed"), async || {
            proxy.lines("registry gives no usable set").len() == number + 1
        })
        .await;
        let errors = proxy.metric("gopherproxy_discovery_errors_total").await;
        eventually("it is counted on", async || {
            proxy.metric("gopherproxy_discovery_errors_total").await > errors
        })
        .await;
        let (status, text) = readyz(&proxy).await;
        assert_eq!(status, 200);
        assert!(
            text.starts_with("ready, but the set of backends is "),
            "{fault}: {text}"
        );
        assert_eq!(get(proxy.address(), "/").await.status, 200, "{fault}");
        proxy.reaches("gopherproxy_active_backends", 1.0).await;

        match fault {
            "STOP" => redis.signal("CONT"),
            "KILL" => redis.go().await,
            _ => drop(redis.command("DEL gopher_backends").await),
        }
        redis.command(&member).await;
        eventually("it is well again", async || {
            proxy.lines("registry is back").len() == number + 1
        })
        .await;
        assert_eq!(readyz(&proxy).await, (200, "ready\n".into()));
    }
    assert_eq!(
        proxy.lines("registry gives no usable set").len(),
        4,
        "each fault is told once"
    );
}

/// The intervals that users have, and Redis gone for half a minute: the one slow test of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_gone_for_30_s_and_flushed_under_traffic_loses_no_request() {
    let (redis, origins) = (Redis::start().await, [origin(), origin(), origin()]);
    let targets = origins.each_ref().map(|origin| origin.address().to_string()).join(", ");
    let url = redis.address().to_string();
    let sentinel = Process::sentinel(&[("REDIS_URL", &url), ("SENTINEL_TARGETS", &targets)]).await;
    let configuration = "gopherproxy: {listen: '127.0.0.1:0', admin_listen: '127.0.0.1:0'}";
    let limit = [
        ("REDIS_URL", url.as_str()),
        ("RATE_LIMIT_BURST", "1000000"),
        ("RATE_LIMIT_PER_SECOND", "1000000"),
    ];
    let proxy = Process::proxy_with(configuration, &limit).await;
    proxy.active_backends(3).await;

    let address = proxy.address();
    let (end, mut ended) = tokio::sync::watch::channel(false);
    let traffic = tokio::spawn(async move {
        let mut client = Connection::open(address).await;
        let mut answered = 0u32;
        while !*ended.borrow_and_update() {
            assert_eq!(client.get("/").await.status, 200, "after {answered} requests");
            answered += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        answered
    });

    redis.command("FLUSHALL").await;
    eventually("the set is whole again", async || redis.members().await.len() == 3).await;
    redis.kill();
    tokio::time::sleep(Duration::from_secs(30)).await;
    redis.go().await;
    eventually("the set is whole again", async || redis.members().await.len() == 3).await;
    eventually("the proxy reads it again", async || {
        readyz(&proxy).await == (200, "ready\n".into())
    })
    .await;

    end.send(true).expect("the traffic goes on");
    let answered = traffic.await.expect("no request was lost");
    proxy
        .reaches("gopherproxy_processed_requests_total", f64::from(answered))
        .await;
    proxy.reaches("gopherproxy_dropped_requests_total", 0.0).await;
    assert_eq!(sentinel.lines("registry unavailable; probing goes on").len(), 1);
    assert_eq!(
        sentinel
            .lines("registry is back; the targets are published again")
            .len(),
        1
    );
    assert_eq!(sentinel.lines("target is up").len(), 3, "the targets were never down");
}

#[tokio::test]
async fn in_process_a_set_whose_targets_are_all_down_is_kept_and_answers_503() {
    let target = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let first = origin_at(target);
    let proxy = Process::proxy(&embedded(&[target])).await;
    proxy.active_backends(1).await;
    first.stop().await;
    proxy.active_backends(0).await;
    assert_eq!(get(proxy.address(), "/").await.status, 503);
    let _second = origin_at(target);
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

#[tokio::test]
async fn redis_is_reached_with_user_password_and_database() {
    let origin = origin();
    let redis = Redis::with(&["--user", "gopher", "on", ">se-cret", "~*", "+@all"], &[]).await;
    redis.command("SELECT 3").await;
    let url = format!("redis://gopher:se-cret@{}/3", redis.address());
    let target = origin.address().to_string();
    let _sentinel = Process::sentinel(&[("REDIS_URL", &url), ("SENTINEL_TARGETS", &target)]).await;
    let proxy = Process::proxy_with(&with_redis(&redis), &[("REDIS_URL", &url)]).await;
    proxy.active_backends(1).await;
    assert_eq!(redis.members().await, [""; 0], "it is not in database 0");

    let wrong = url.replace("se-cret", "wrong");
    let refused = Process::proxy_with(&with_redis(&redis), &[("REDIS_URL", &wrong)]).await;
    let line = refused
        .said("registry gives no usable set", |line| line["level"] == "ERROR")
        .await
        .to_string();
    assert!(line.contains("WRONGPASS") && !line.contains(":wrong"), "{line}");
}

#[tokio::test]
async fn redis_is_reached_over_tls_when_its_certificate_is_trusted() {
    let origin = origin();
    let certified = rcgen::generate_simple_self_signed(["127.0.0.8".to_owned()]).expect("a certificate");
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let tls_port = free_port().to_string();
    let arguments = [
        ["--tls-port", &tls_port],
        ["--tls-cert-file", "certificate.pem"],
        ["--tls-key-file", "key.pem"],
        ["--tls-ca-cert-file", "certificate.pem"],
        ["--tls-auth-clients", "no"],
    ];
    let redis = Redis::with(
        &arguments.concat(),
        &[("certificate.pem", &certificate), ("key.pem", &key)],
    )
    .await;
    redis
        .command(&format!("SADD gopher_backends http://{}", origin.address()))
        .await;
    let url = format!("rediss://127.0.0.8:{tls_port}");

    let trusted = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(trusted.path(), &certificate).expect("it is written");
    let store = trusted.path().to_str().expect("text");
    let proxy = Process::proxy_with(&with_redis(&redis), &[("REDIS_URL", &url), ("SSL_CERT_FILE", store)]).await;
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);

    let wary = Process::proxy_with(&with_redis(&redis), &[("REDIS_URL", &url)]).await;
    let line = wary
        .said("registry gives no usable set", |line| line["level"] == "ERROR")
        .await
        .to_string();
    assert!(line.to_lowercase().contains("certificate"), "{line}");
}

#[tokio::test]
async fn a_member_with_two_addresses_has_one_turn_and_is_counted_once() {
    let (redis, files) = (Redis::start().await, tempfile::tempdir().expect("a directory"));
    let (hosts, port) = (files.path().join("hosts"), free_port());
    std::fs::write(&hosts, "127.0.0.5 two.test\n127.0.0.6 two.test\n127.0.0.7 one.test\n").expect("written");
    redis
        .command(&format!(
            "SADD gopher_backends http://one.test:{port} http://two.test:{port}"
        ))
        .await;
    let addresses =
        ["127.0.0.5", "127.0.0.6", "127.0.0.7"].map(|host| SocketAddr::new(host.parse().expect("one"), port));
    let [mut five, _six, _seven] = addresses.map(origin_process);
    let unchecked = with_redis(&redis).replace("health: {interval: 100ms}", "health: {interval: 1h}");
    let Some(proxy) = with_hosts(&unchecked, &hosts).await else {
        // The unit tests of pool.rs have the same without names.
        return;
    };
    let shares = async || {
        let mut client = Connection::open(proxy.address()).await;
        let mut shares = [0; 3];
        for _ in 0..40 {
            let origin = client.get("/").await.origin();
            let index = addresses.iter().position(|address| *address == origin);
            shares[index.expect("one of them")] += 1;
        }
        shares
    };
    proxy.active_backends(2).await;
    proxy.reaches("gopherproxy_discovery_backends", 2.0).await;
    eventually("all three have passed a check", async || shares().await == [10, 10, 20]).await;

    // An address that is gone costs one request a second connection, and its member no turn.
    five.signal("KILL");
    five.ended().await;
    let load = Load::start(proxy.address(), "/", 500);
    eventually("traffic flows", async || load.answered() > 200).await;
    load.lost_none().await;
    assert_eq!(shares().await, [0, 20, 20]);
    proxy.active_backends(2).await;
    assert_eq!(proxy.metric("gopherproxy_ejections_total").await, 0.0);
    let line = proxy
        .said("no connection to an address of a backend; its others serve on", |_| {
            true
        })
        .await;
    assert_eq!(line["backend"], format!("two.test:{port}"));
    assert_eq!(line["address"], addresses[0].to_string());

    // It comes back with the next check that it passes.
    five = origin_process(addresses[0]);
    five.said("listening", |_| true).await;
    proxy.reconfigure(&with_redis(&redis));
    proxy.signal("HUP");
    eventually("it has its turns again", async || shares().await == [10, 10, 20]).await;
}

#[tokio::test]
async fn a_reloaded_interval_counts_at_once() {
    let (redis, first, second) = (Redis::start().await, origin(), origin());
    redis
        .command(&format!("SADD gopher_backends http://{}", first.address()))
        .await;
    let quick = with_redis(&redis);
    let slow = quick.replace("interval: 100ms", "interval: 1h");
    let proxy = Process::proxy(&slow).await;
    proxy.active_backends(1).await;
    redis
        .command(&format!("SADD gopher_backends http://{}", second.address()))
        .await;
    proxy.reconfigure(&slow.replace("discovery: {interval: 1h}", "discovery: {interval: 100ms}"));
    proxy.signal("HUP");
    proxy.active_backends(2).await;
    first.stop().await;
    proxy.reconfigure(&quick);
    proxy.signal("HUP");
    proxy.active_backends(1).await;
}

//! SIGHUP: the configuration read again, all of it or none.

use crate::support::{Connection, Load, Process, Redis, embedded, eventually, get, origin, with_redis};

const RELOADED: &str = "configuration reloaded";
const REFUSED: &str = "configuration not reloaded; the old one stays";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_timeouts_trust_and_targets_change_without_a_lost_request() {
    let (first, second) = (origin(), origin());
    let before = embedded(&[first.address()]) + "  upstream: {read_timeout: 60s}\n";
    let proxy = Process::proxy(&before).await;
    proxy.active_backends(1).await;
    let load = Load::start(proxy.address(), "/", 300);
    let slow = {
        let address = proxy.address();
        tokio::spawn(async move { get(address, "/delay/1500").await.status })
    };
    eventually("traffic flows", async || load.answered() > 50).await;

    // The exempt address is the load's; trust is what makes 127.0.0.2's word of its clients count.
    let after = before
        .replace("read_timeout: 60s", "read_timeout: 300ms")
        .replace(
            "limit: {burst: 1000000, per_second: 1000000}",
            "limit: {burst: 2, per_second: 0.01, exempt: [127.0.0.1]}\n  trusted_proxies: [127.0.0.2]",
        )
        .replace(&first.address().to_string(), &second.address().to_string());
    proxy.reconfigure(&after);
    proxy.signal("HUP");
    proxy.said(RELOADED, |_| true).await;
    proxy
        .reaches("gopherproxy_config_reloads_total{result=\"ok\"}", 1.0)
        .await;

    let mut trusted = Connection::open_from(proxy.address(), [127, 0, 0, 2].into()).await;
    for (client, expected) in [("192.0.2.1", [200, 200, 429]), ("192.0.2.2", [200, 200, 429])] {
        let mut statuses = Vec::new();
        for _ in 0..3 {
            let line = format!("X-Forwarded-For: {client}\r\n");
            statuses.push(trusted.request("GET", "/", &line, "").await.status);
        }
        assert_eq!(statuses, expected, "{client}");
    }
    eventually("the old target gets no more", async || {
        get(proxy.address(), "/").await.origin() == second.address()
    })
    .await;
    assert_eq!(slow.await.expect("it ends"), 200, "it began under the old timeout");
    assert_eq!(get(proxy.address(), "/delay/1500").await.status, 504, "the new one");
    load.lost_none().await;
}

#[tokio::test]
async fn a_bad_file_and_a_change_that_takes_a_restart_are_refused_whole() {
    let origin = origin();
    let good = embedded(&[origin.address()]);
    let proxy = Process::proxy(&good).await;
    proxy.active_backends(1).await;
    let stricter = good.replace("burst: 1000000, per_second: 1000000", "burst: 1, per_second: 0.01");
    let cases = [
        (
            stricter.clone() + "  nonsense: 1\n",
            "gopherproxy.nonsense: unknown key",
        ),
        (
            stricter.replacen("listen: 127.0.0.1:0", "listen: 127.0.0.1:1", 1),
            "listen can't change in a running process",
        ),
        (
            stricter.replacen("threads: 2", "threads: 3", 1),
            "Pingora's own keys can't change",
        ),
        ("}".into(), "not YAML"),
    ];
    let count = cases.len();
    for (number, (configuration, named)) in cases.into_iter().enumerate() {
        proxy.reconfigure(&configuration);
        proxy.signal("HUP");
        eventually("it is refused", async || proxy.lines(REFUSED).len() == number + 1).await;
        let line = proxy.lines(REFUSED).pop().expect("the last");
        assert!(
            line["error"].as_str().is_some_and(|error| error.contains(named)),
            "{line}"
        );
        for _ in 0..5 {
            assert_eq!(get(proxy.address(), "/").await.status, 200, "the old limit stays");
        }
    }
    proxy
        .reaches("gopherproxy_config_reloads_total{result=\"refused\"}", count as f64)
        .await;
    proxy
        .reaches("gopherproxy_config_reloads_total{result=\"ok\"}", 0.0)
        .await;
}

#[tokio::test]
async fn the_limit_can_be_turned_off_and_on_again() {
    let origin = origin();
    let off = embedded(&[origin.address()]).replace("limit: {burst: 1000000, per_second: 1000000}", "limit: off");
    let strict = off.replace("limit: off", "limit: {burst: 1, per_second: 0.001}");
    let proxy = Process::proxy(&off).await;
    proxy.active_backends(1).await;
    for (reloads, file, expected) in [(0, &off, 200), (1, &strict, 429), (2, &off, 200)] {
        if reloads > 0 {
            proxy.reconfigure(file);
            proxy.signal("HUP");
            eventually("it is reloaded", async || proxy.lines(RELOADED).len() == reloads).await;
            assert_eq!(get(proxy.address(), "/").await.status, 200, "a full bucket, or none");
        }
        for _ in 0..20 {
            assert_eq!(get(proxy.address(), "/").await.status, expected, "{file}");
        }
    }
}

#[tokio::test]
async fn a_reload_tells_which_keys_a_variable_overrides() {
    const OVERRIDES: &str = "a variable overrides a key in the configuration";
    let origin = origin();
    let before = embedded(&[origin.address()]);
    let proxy = Process::proxy_with(&before, &[("RATE_LIMIT_BURST", "1000000")]).await;
    proxy.active_backends(1).await;
    assert_eq!(proxy.lines(OVERRIDES).len(), 0, "both say the same");
    proxy.reconfigure(&before.replace("burst: 1000000", "burst: 7"));
    proxy.signal("HUP");
    proxy.said(RELOADED, |_| true).await;
    let lines = proxy.lines(OVERRIDES);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["level"], "INFO");
    assert_eq!(lines[0]["key"], "gopherproxy.limit.burst");
    assert_eq!(lines[0]["variable"], "RATE_LIMIT_BURST");
}

#[tokio::test]
async fn a_new_redis_password_is_taken() {
    let redis = Redis::start().await;
    let (first, second) = (origin(), origin());
    redis
        .command(&format!("SADD gopher_backends http://{}", first.address()))
        .await;
    for (user, password) in [("first", "old"), ("second", "new")] {
        redis
            .command(&format!("ACL SETUSER {user} on >{password} ~* +@all"))
            .await;
    }
    let url = |credentials: &str| format!("redis://{credentials}@{}/0", redis.address());
    let with = |url: &str| with_redis(&redis).replace(&redis.address().to_string(), url);
    let proxy = Process::proxy(&with(&url("first:hunter2"))).await;
    proxy.said("registry gives no usable set", |_| true).await;
    // From a wrong password to a right one, and on to the next user before the first is removed.
    for credentials in ["first:old", "second:new"] {
        let before = proxy.lines(RELOADED).len();
        proxy.reconfigure(&with(&url(credentials)));
        proxy.signal("HUP");
        eventually("it is reloaded", async || proxy.lines(RELOADED).len() > before).await;
        proxy.active_backends(1).await;
    }
    redis.command("ACL DELUSER first").await;
    redis
        .command(&format!("SADD gopher_backends http://{}", second.address()))
        .await;
    proxy.active_backends(2).await;
    assert!(
        !format!("{:?}", proxy.log()).contains("hunter2"),
        "no password in the log"
    );
}

#[tokio::test]
async fn a_signal_that_asks_for_a_reload_does_not_end_a_process_that_starts() {
    let origin = origin();
    let configuration = embedded(&[origin.address()]);
    for _ in 0..10 {
        // The variable has it say something before it binds its ports.
        let variable = [("SENTINEL_INTERVAL", "1s")];
        let proxy = Process::start(Process::binary("gopherproxy"), Some(&configuration), &variable);
        while proxy.text().is_empty() {
            std::thread::yield_now();
        }
        proxy.signal("HUP");
        proxy.said(RELOADED, |_| true).await;
    }
}

#[tokio::test]
async fn nor_does_it_end_a_sentinel_that_starts() {
    for _ in 0..10 {
        let variables = [
            ("REDIS_URL", "127.0.0.1:1"),
            ("SENTINEL_TARGETS", "127.0.0.1:1"),
            ("SENTINEL_METRICS_PORT", "0"),
        ];
        let sentinel = Process::start(Process::binary("sentinel"), None, &variables);
        while sentinel.text().is_empty() {
            std::thread::yield_now();
        }
        sentinel.signal("HUP");
        sentinel
            .said_somehow("SIGHUP changes nothing", |line| line["level"] == "WARN")
            .await;
    }
}

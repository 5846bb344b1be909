//! What can happen to Redis and to DNS, under traffic: nothing of it costs a request.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{
    Load, Process, Redis, embedded, eventually, free_port, get, origin, origin_process, thorough, with_redis,
};

/// How long each fault lasts.
async fn last() {
    tokio::time::sleep(thorough(Duration::from_millis(300), Duration::from_secs(60))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_redis_says_or_does_costs_a_request() {
    let (redis, origins) = (Redis::start().await, [origin(), origin(), origin()]);
    let addresses = origins.each_ref().map(origin::Origin::address);
    let targets = addresses.map(|address| address.to_string()).join(",");
    let url = redis.address().to_string();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &targets),
        ("SENTINEL_INTERVAL", "100ms"),
    ];
    let _sentinels = [Process::sentinel(&variables).await, Process::sentinel(&variables).await];
    let proxy = Process::proxy(&with_redis(&redis)).await;
    proxy.active_backends(3).await;
    let load = Load::start(proxy.address(), "/", 500);
    let whole = async |fault: &str| {
        eventually(&format!("after {fault} the set is read again"), async || {
            get(proxy.admin(), "/readyz").await.text() == "ready\n" && redis.members().await.len() >= 3
        })
        .await;
        proxy.active_backends(3).await;
    };

    // What can be said to a server that runs, and how it is made good.
    for (fault, cure) in [
        ("FLUSHALL", ""),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        ("CLIENT PAUSE 900 ALL", ""),
        ("ACL SETUSER default -@all +ping +acl", "ACL SETUSER default +@all"),
        (
            r#"SADD gopher_backends "http://\xff:1" nonsense """#,
            r#"SREM gopher_backends "http://\xff:1" nonsense """#,
        ),
    ] {
        redis.command(fault).await;
        last().await;
        if !cure.is_empty() {
            redis.command(cure).await;
        }
        whole(fault).await;
    }
    redis.command("DEL gopher_backends").await;
    redis.command("SET gopher_backends text").await;
    last().await;
    redis.command("DEL gopher_backends").await;
    whole("another type at the key").await;

    for (fault, cure) in [("STOP", "CONT")] {
        redis.signal(fault);
        last().await;
        redis.signal(cure);
        whole(fault).await;
    }
    redis.kill();
    last().await;
    for reply in [
        "-LOADING Redis is loading the dataset in memory\r\n",
        "-OOM command not allowed\r\n",
        "gibberish\r\n",
        "",
    ] {
        let answering = answer_everything_with(redis.address(), reply).await;
        last().await;
        answering.abort();
        let _ = answering.await;
    }
    redis.go().await;
    whole("a server that says nothing but errors").await;

    // Members of all sizes, nearly all of which are dead: none gets a request before it has passed a check.
    let long = format!("http://{}:80", "a".repeat(100_000));
    redis.command_of(&["SADD", "gopher_backends", &long]).await;
    for part in 0..100 {
        let members: Vec<String> = (0..100)
            .map(|number| format!("http://127.1.{part}.{number}:9"))
            .collect();
        redis
            .command(&format!("SADD gopher_backends {}", members.join(" ")))
            .await;
    }
    proxy.reaches("gopherproxy_discovery_backends", 10_003.0).await;
    last().await;
    proxy.active_backends(3).await;
    redis.command("DEL gopher_backends").await;
    proxy.reaches("gopherproxy_discovery_backends", 3.0).await;

    let answered = load.lost_none().await;
    proxy
        .reaches("gopherproxy_processed_requests_total", answered as f64)
        .await;
    proxy.reaches("gopherproxy_dropped_requests_total", 0.0).await;
    assert_eq!(
        proxy
            .lines("backend went down")
            .iter()
            .filter(|line| { addresses.iter().any(|address| line["backend"] == address.to_string()) })
            .count(),
        0,
        "no origin was ever taken for dead"
    );
}

/// Something at Redis's address that answers every command with `reply`.
async fn answer_everything_with(address: SocketAddr, reply: &'static str) -> tokio::task::JoinHandle<()> {
    let listener = TcpListener::bind(address).await.expect("Redis has left it");
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(1..) = stream.read(&mut bytes).await {
                    if stream.write_all(reply.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_killed_and_one_that_is_cut_off_cost_nothing() {
    let (redis, origins) = (Redis::start().await, [origin(), origin()]);
    let targets = origins.each_ref().map(|origin| origin.address().to_string()).join(",");
    let url = redis.address().to_string();
    let nobody = format!("127.0.0.1:{}", free_port());
    let sentinel = async |url: &str| {
        Process::sentinel(&[
            ("REDIS_URL", url),
            ("SENTINEL_TARGETS", &targets),
            ("SENTINEL_INTERVAL", "100ms"),
        ])
        .await
    };
    // The second can't reach Redis.
    let (first, _second) = (sentinel(&url).await, sentinel(&nobody).await);
    let proxy = Process::proxy(&with_redis(&redis)).await;
    proxy.active_backends(2).await;
    let load = Load::start(proxy.address(), "/", 500);
    last().await;
    first.signal("KILL");
    first.ended().await;
    last().await;
    assert_eq!(redis.members().await.len(), 2, "its targets stay registered");
    let _third = sentinel(&url).await;
    last().await;
    load.lost_none().await;
    assert_eq!(proxy.lines("backend went down").len(), 0);
    assert_eq!(proxy.lines("registry gives no usable set").len(), 0);
}

#[tokio::test]
async fn started_with_redis_down_it_serves_what_the_last_process_saved() {
    let (redis, origin, files) = (
        Redis::start().await,
        origin(),
        tempfile::tempdir().expect("a directory"),
    );
    let file = files.path().join("backends");
    let configuration = with_redis(&redis).replace(
        "discovery: {interval: 100ms}",
        &format!("discovery: {{interval: 100ms, state_file: {}}}", file.display()),
    );
    redis
        .command(&format!("SADD gopher_backends http://{}", origin.address()))
        .await;
    let first = Process::proxy(&configuration).await;
    first.active_backends(1).await;
    eventually("it is saved", async || file.exists()).await;
    first.signal("TERM");
    first.ended().await;

    for fault in ["KILL", "STOP"] {
        if fault == "STOP" {
            redis.go().await;
        }
        redis.signal(fault);
        let second = Process::proxy(&configuration).await;
        second.active_backends(1).await;
        assert_eq!(get(second.address(), "/").await.origin(), origin.address());
        second
            .said("starting with the backends that an earlier process saved", |line| {
                line["backends"] == 1
            })
            .await;
        let mut ready = get(second.admin(), "/readyz").await;
        eventually("readyz tells where they are from", async || {
            ready = get(second.admin(), "/readyz").await;
            ready
                .text()
                .starts_with("ready, but the set of backends is what an earlier process saved: ")
        })
        .await;
        assert_eq!(ready.status, 200);
        redis.kill();
    }

    // A file that is none of ours is no reason not to start.
    std::fs::write(&file, "gopherproxy backends, version 99\n").expect("written");
    redis.go().await;
    redis
        .command(&format!("SADD gopher_backends http://{}", origin.address()))
        .await;
    let third = Process::proxy(&configuration).await;
    let line = third.said("can't use the saved set of backends", |_| true).await;
    assert!(
        line["error"].as_str().is_some_and(|error| error.contains("version 99")),
        "{line}"
    );
    third.active_backends(1).await;
    eventually("it is saved again", async || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&origin.address().to_string()))
    })
    .await;
}

/// A process of `binary` that sees each `file` where it belongs, such as at /etc/hosts, in a mount namespace of its own.
/// `None` where this user may not have one.
fn with_files(
    files: &[(&Path, &str)],
    binary: &str,
    configuration: Option<&str>,
    variables: &[(&str, &str)],
) -> Option<Process> {
    let mounts = files
        .iter()
        .map(|(file, place)| format!("mount --bind {} {place}", file.display()));
    let script = mounts.collect::<Vec<_>>().join(" && ");
    let allowed = std::process::Command::new("unshare")
        .args(["-rm", "sh", "-c", &script])
        .status();
    if !allowed.is_ok_and(|status| status.success()) {
        return None;
    }
    let script = format!("{script} && exec {} \"$@\"", Process::binary(binary).display());
    let variables = [&[("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")], variables].concat();
    let arguments = ["-rm", "sh", "-c", &script, "sh"];
    Some(Process::start_with(
        "unshare".into(),
        configuration,
        &variables,
        &arguments,
    ))
}

/// A proxy that sees `hosts` as /etc/hosts.
pub async fn with_hosts(configuration: &str, hosts: &Path) -> Option<Process> {
    let proxy = with_files(&[(hosts, "/etc/hosts")], "gopherproxy", Some(configuration), &[])?;
    proxy.said("listening", |line| line["service"] == "proxy").await;
    proxy.said("listening", |line| line["service"] == "admin").await;
    Some(proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_moves_or_is_gone_costs_no_request() {
    let (files, port) = (tempfile::tempdir().expect("a directory"), free_port());
    let hosts = files.path().join("hosts");
    let write = |line: &str| std::fs::write(&hosts, format!("127.0.0.1 localhost\n{line}\n")).expect("written");
    let addresses = ["127.0.0.7", "127.0.0.8"].map(|address| SocketAddr::new(address.parse().expect("one"), port));
    let _origins = addresses.map(origin_process);
    let redis = Redis::start().await;
    redis
        .command(&format!("SADD gopher_backends http://moving.test:{port}"))
        .await;
    write("127.0.0.7 moving.test");
    let Some(proxy) = with_hosts(&with_redis(&redis), &hosts).await else {
        // There is no other way to change DNS for one process. The unit tests of discovery.rs know what it does with the answers.
        return;
    };
    proxy.active_backends(1).await;
    eventually("it answers", async || get(proxy.address(), "/").await.status == 200).await;
    let load = Load::start(proxy.address(), "/", 500);
    for (line, expected) in [
        ("127.0.0.8 moving.test", addresses[1]),
        ("", addresses[1]),
        ("127.0.0.7 moving.test", addresses[0]),
    ] {
        write(line);
        last().await;
        eventually("traffic follows the name", async || {
            get(proxy.address(), "/").await.origin() == expected
        })
        .await;
    }
    load.lost_none().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_one_process_an_origin_that_moves_costs_no_request() {
    let (first, second) = (origin(), origin());
    let proxy = Process::proxy(&embedded(&[first.address(), second.address()])).await;
    proxy.active_backends(2).await;
    let load = Load::start(proxy.address(), "/", 300);
    last().await;
    first.stop().await;
    proxy.active_backends(1).await;
    load.lost_none().await;
}

/// A sentinel whose look-ups hang, except those of `healthy.test`: its name server, at `address`, never answers. `None` where this
/// user may not have that port, or a mount namespace.
pub async fn with_hanging_look_ups(address: Ipv4Addr, variables: &[(&str, &str)]) -> Option<HangingLookUps> {
    let silent = std::net::UdpSocket::bind((address, 53)).ok()?;
    let files = tempfile::tempdir().expect("a directory");
    let (hosts, resolv) = (files.path().join("hosts"), files.path().join("resolv.conf"));
    std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.1 healthy.test\n").expect("written");
    std::fs::write(
        &resolv,
        format!("nameserver {address}\noptions timeout:10 attempts:2\n"),
    )
    .expect("written");
    let mounts = [(hosts.as_path(), "/etc/hosts"), (resolv.as_path(), "/etc/resolv.conf")];
    let sentinel = with_files(&mounts, "sentinel", None, variables)?;
    sentinel.said("listening", |line| line["service"] == "admin").await;
    Some(HangingLookUps {
        sentinel,
        _silent: silent,
        _files: files,
    })
}

/// A sentinel, and what keeps its look-ups hanging.
pub struct HangingLookUps {
    pub sentinel: Process,
    _silent: std::net::UdpSocket,
    _files: tempfile::TempDir,
}

#[tokio::test]
async fn names_whose_look_up_hangs_do_no_harm_to_others() {
    let redis = Redis::start().await;
    let origin = origin();
    let healthy = format!("healthy.test:{}", origin.address().port());
    let hung: Vec<String> = (0..6).map(|number| format!("hung{number}.test:80")).collect();
    let (url, targets) = (redis.address().to_string(), format!("{healthy},{}", hung.join(",")));
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &targets),
        ("SENTINEL_INTERVAL", "100ms"),
        ("SENTINEL_TIMEOUT", "200ms"),
        ("SENTINEL_METRICS_PORT", "0"),
    ];
    let Some(hanging) = with_hanging_look_ups(Ipv4Addr::new(127, 0, 0, 77), &variables).await else {
        return;
    };
    let sentinel = &hanging.sentinel;
    eventually("the healthy one is published", async || {
        redis.members().await == [format!("http://{healthy}")]
    })
    .await;
    // Far more look-ups than there are places for.
    eventually("the others are probed a hundred times", async || {
        sentinel
            .metric("gopherproxy_sentinel_probes_total{result=\"failure\"}")
            .await
            > 100.0
    })
    .await;
    let down = sentinel.lines("target is down");
    assert_eq!(down.len(), hung.len(), "{down:#?}");
    assert!(down.iter().all(|line| line["target"] != healthy), "{down:#?}");
    assert_eq!(redis.members().await, [format!("http://{healthy}")]);
    let threads = std::fs::read_dir(format!("/proc/{}/task", sentinel.pid()))
        .expect("it runs")
        .count();
    assert!(threads < 30, "{threads} threads");
}

#[tokio::test]
async fn two_sentinels_that_resolve_a_name_differently_say_so_and_do_not_make_it_flap() {
    let (redis, files, origin) = (
        Redis::start().await,
        tempfile::tempdir().expect("a directory"),
        origin(),
    );
    let target = format!("origin.test:{}", origin.address().port());
    let url = redis.address().to_string();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("SENTINEL_TARGETS", &target),
        ("SENTINEL_INTERVAL", "50ms"),
        ("SENTINEL_METRICS_PORT", "0"),
    ];
    let mut sentinels = Vec::new();
    for address in ["127.0.0.1", "127.0.0.99"] {
        let hosts = files.path().join(address);
        std::fs::write(&hosts, format!("{address} origin.test\n")).expect("written");
        let Some(sentinel) = with_files(&[(&hosts, "/etc/hosts")], "sentinel", None, &variables) else {
            return;
        };
        sentinel.said("listening", |line| line["service"] == "admin").await;
        sentinels.push(sentinel);
    }
    let message = "another writer of the registry disagrees about this target; publishing it less often";
    for sentinel in &sentinels {
        sentinel.said(message, |line| line["target"] == target.as_str()).await;
    }
    let changes = async || {
        let statistics = redis.command("INFO commandstats").await.concat();
        let calls = |line: &str| {
            line.strip_prefix("cmdstat_s")?
                .split_once(":calls=")?
                .1
                .split_once(',')?
                .0
                .parse::<u64>()
                .ok()
        };
        let writes = statistics
            .lines()
            .filter(|line| line.contains("sadd") || line.contains("srem"));
        writes.filter_map(calls).sum::<u64>()
    };
    let probes = "gopherproxy_sentinel_probes_total{result=\"success\"}";
    let (before, probed) = (changes().await, sentinels[0].metric(probes).await);
    eventually("a hundred cycles pass", async || {
        sentinels[0].metric(probes).await > probed + 100.0
    })
    .await;
    let changes = changes().await - before;
    // Two commands for each change.
    assert!(changes < 40, "{changes} writes");
    for sentinel in &sentinels {
        assert_eq!(sentinel.lines(message).len(), 1);
    }
}

//! The admin port, and that the two ports are two.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Connection, Process, eventually, free_port, get, proxy_over, resident_kib};

#[tokio::test]
async fn the_admin_port_has_three_pages_and_nothing_else() {
    let (proxy, origins) = proxy_over(1).await;
    let health = get(proxy.admin(), "/healthz").await;
    assert_eq!((health.status, health.text().as_str()), (200, "ok\n"));
    eventually("a check has passed", async || {
        get(proxy.admin(), "/readyz").await.text() == "ready\n"
    })
    .await;
    let metrics = get(proxy.admin(), "/metrics").await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4"));
    assert!(metrics.text().contains("\n# TYPE gopherproxy_active_backends gauge\n"));
    for path in ["/", "/metrics/", "/healthz/x", "/headers", "//metrics"] {
        assert_eq!(get(proxy.admin(), path).await.status, 404, "{path}");
    }
    let mut client = Connection::open(proxy.admin()).await;
    assert_eq!(client.request("POST", "/metrics", "", "x").await.status, 405);
    let head = Connection::open(proxy.admin())
        .await
        .request("HEAD", "/healthz", "", "")
        .await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("3")));
    // One request a connection, whoever asks for more.
    let mut client = Connection::open(proxy.admin()).await;
    let health = client.get("/healthz").await;
    assert_eq!(health.header("connection"), Some("close"));
    assert!(health.header("date").is_some_and(|date| date.ends_with(" GMT")));
    assert_eq!(client.rest().await, b"");
    assert_eq!(origins[0].requests(), 0);
}

#[tokio::test]
async fn through_the_proxy_port_the_admin_pages_are_the_backends() {
    let (proxy, origins) = proxy_over(1).await;
    for path in ["/metrics", "/healthz", "/readyz"] {
        let response = get(proxy.address(), path).await;
        assert_eq!((response.status, response.origin()), (200, origins[0].address()));
    }
}

#[tokio::test]
async fn a_binary_can_ask_a_running_one_whether_it_is_ready() {
    let (proxy, _origins) = proxy_over(1).await;
    let ask = |port: u16| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gopherproxy"));
        let command = command
            .arg("--healthcheck")
            .env_clear()
            .env("METRICS_PORT", port.to_string());
        let output = command.output().expect("the binary starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    assert_eq!(ask(proxy.admin().port()), (Some(0), String::new()));
    let (code, said) = ask(free_port());
    assert_eq!(code, Some(1));
    assert!(said.contains("nobody answers at 127.0.0.1:"), "{said}");
    let unready = Process::proxy(
        "gopherproxy: {listen: '127.0.0.1:0', admin_listen: '127.0.0.1:0', registry: {redis: '127.0.0.1:1'}}",
    )
    .await;
    let (code, said) = ask(unready.admin().port());
    assert_eq!(code, Some(1));
    assert!(said.contains("no backends discovered yet"), "{said}");
}

/// The value of `gopherproxy_admin_rejections_total` with this reason.
async fn rejections(process: &Process, reason: &str) -> f64 {
    process
        .metric(&format!("gopherproxy_admin_rejections_total{{reason=\"{reason}\"}}"))
        .await
}

/// Limits the descriptors of a process to as many more than it has.
fn limit_descriptors(process: &Process, more: usize) {
    let open = std::fs::read_dir(format!("/proc/{}/fd", process.pid()))
        .expect("it is ours")
        .count();
    let limit = format!("--nofile={}:", open + more);
    let set = Command::new("prlimit")
        .args(["--pid", &process.pid().to_string(), &limit])
        .status();
    assert!(set.expect("prlimit is part of every Linux").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_to_the_admin_port_starve_nobody() {
    let (proxy, _origins) = proxy_over(1).await;
    // Far fewer than come.
    limit_descriptors(&proxy, 200);
    let mut idle = Vec::new();
    for _ in 0..1100 {
        idle.push(Connection::open(proxy.admin()).await);
    }
    // Neither a client nor Prometheus waits for any of them to end.
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(get(proxy.address(), "/").await.status, 200);
        assert_eq!(get(proxy.admin(), "/healthz").await.status, 200);
        assert_eq!(get(proxy.admin(), "/metrics").await.status, 200);
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    let rejected = rejections(&proxy, "too_many_connections").await;
    assert!(rejected > 900.0, "{rejected}");
    // The others end without being displaced.
    eventually("each idle connection is cut", async || {
        rejections(&proxy, "too_many_connections").await + rejections(&proxy, "request_timeout").await >= 1100.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_heads_of_a_megabyte_take_no_memory_and_no_time_of_others() {
    let (proxy, _origins) = proxy_over(1).await;
    let before = resident_kib(&proxy);
    let head = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(1 << 20));
    let mut clients = Vec::new();
    for _ in 0..200 {
        let (head, to) = (head.clone(), proxy.admin());
        clients.push(tokio::spawn(async move {
            let mut client = Connection::open(to).await;
            // It is cut before it has sent all.
            let _ = client.try_send(head).await;
            client
        }));
    }
    let mut most = 0;
    for client in clients {
        drop(client.await.expect("it ends"));
        most = most.max(resident_kib(&proxy));
    }
    assert!(most < before + (16 << 10), "{before} KiB, then {most}");
    let start = Instant::now();
    assert_eq!(get(proxy.admin(), "/metrics").await.status, 200);
    assert!(start.elapsed() < Duration::from_secs(2));
    let rejected = rejections(&proxy, "head_too_large").await + rejections(&proxy, "too_many_connections").await;
    assert!(rejected >= 190.0, "{rejected}");
}

#[tokio::test]
async fn a_head_that_drips_is_cut_and_a_garbled_one_is_refused_and_neither_is_logged() {
    let (proxy, _origins) = proxy_over(1).await;
    let sentinel = Process::sentinel(&[("REDIS_URL", "127.0.0.1:1"), ("SENTINEL_TARGETS", "127.0.0.1:1")]).await;
    for process in [&proxy, &sentinel] {
        let started = Instant::now();
        let mut dripping = Connection::open(process.admin()).await;
        dripping
            .send("GET /metrics HTTP/1.1\r\nAuthorization: Bearer sesame\r\n")
            .await;
        let garbled: [(&[u8], u16); 5] = [
            (
                b"GET /metrics HTTP/1.1\r\nAuthorization: Bearer sesame\r\nno field\r\n\r\n",
                400,
            ),
            (b"GET /sesame\x80\xff HTTP/1.1\r\n\r\n", 400),
            (b"\x16\x03\x01sesame\r\n", 400),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
            (&[b"GET / HTTP/1.1\r\nsesame: ".as_slice(), &[b'x'; 9000]].concat(), 431),
        ];
        for (head, status) in garbled {
            let mut client = Connection::open(process.admin()).await;
            client.send(head).await;
            assert_eq!(
                client.response().await.status,
                status,
                "{}",
                String::from_utf8_lossy(head)
            );
        }
        while started.elapsed() < Duration::from_secs(10) && dripping.try_send("a: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        assert_eq!(rejections(process, "bad_request").await, 4.0);
        assert_eq!(rejections(process, "head_too_large").await, 1.0);
        assert_eq!(rejections(process, "request_timeout").await, 1.0);
        assert!(!process.text().contains("sesame"), "{}", process.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_descriptor_left_prometheus_is_still_answered() {
    let (proxy, _origins) = proxy_over(1).await;
    limit_descriptors(&proxy, 8);
    let flood = |to: SocketAddr| async move {
        let mut clients = Vec::new();
        for _ in 0..100 {
            clients.push(Connection::open(to).await);
        }
        clients
    };
    let _clients = flood(proxy.address()).await;
    proxy.said_somehow("Accept() failed", |_| true).await;
    for _ in 0..20 {
        let metrics = proxy.metrics().await;
        assert!(metrics.contains_key("process_cpu_seconds_total"));
    }
    // Nor while others take all that the admin port has.
    let _idle = flood(proxy.admin()).await;
    for _ in 0..20 {
        assert_eq!(get(proxy.admin(), "/healthz").await.status, 200);
    }
}

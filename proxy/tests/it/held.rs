//! What all clients together make the proxy hold: `client.max_held`, and that the process stays within a container's memory.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{
    Connection, LIMIT, Process, RawOrigin, embedded, eventually, forwarder, get, origin, proxy_to, resident_kib,
    thorough,
};

/// The smallest budget that can be configured; a client gets a quarter of it.
const SMALLEST: &str = "  client: {max_held: 8MiB}\n";

/// How many half heads one client can have waiting within [`SMALLEST`], at the very most.
const MOST_HEADS: usize = 2048 / 32;

fn half_head(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(31 << 10))
}

fn address(number: usize) -> IpAddr {
    let number = u32::try_from(number).expect("few");
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 3, 0, 1).to_bits() + number).into()
}

async fn held_too_much(proxy: &Process) -> f64 {
    proxy
        .metric("gopherproxy_rejections_total{reason=\"held_too_much\"}")
        .await
}

async fn is_served(proxy: &Process, from: IpAddr) {
    let mut client = Connection::open_from(proxy.address(), from).await;
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test]
async fn the_oldest_half_heads_of_one_client_get_503_and_the_newest_pass() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + SMALLEST)).await;
    proxy.active_backends(1).await;
    let mut clients = Vec::new();
    for number in 0..MOST_HEADS / 2 {
        let mut client = Connection::open(proxy.address()).await;
        client.send(half_head(&format!("/{number}"))).await;
        clients.push(client);
    }
    proxy
        .reaches("gopherproxy_inflight_requests", (MOST_HEADS / 2) as f64)
        .await;
    assert_eq!(held_too_much(&proxy).await, 0.0);
    let mut newer = Vec::new();
    for _ in 0..MOST_HEADS {
        let mut client = Connection::open(proxy.address()).await;
        client.send(half_head("/newer")).await;
        newer.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.response().await.status, 503);
        assert_eq!(client.rest().await, b"");
    }
    let mut newest = Connection::open(proxy.address()).await;
    newest.send(half_head("/newest")).await;
    newest.send("\r\n\r\n").await;
    assert_eq!(newest.response().await.status, 200);
    is_served(&proxy, IpAddr::from([127, 0, 0, 1])).await;
    assert!(held_too_much(&proxy).await >= (MOST_HEADS / 2) as f64);
    let line = proxy.request_line("/0").await;
    assert_eq!(
        (&line["status"], &line["reason"]),
        (&503.into(), &"held_too_much".into())
    );
    assert!(
        line["error"]
            .as_str()
            .is_some_and(|error| error.contains("client.max_held")),
        "{line}"
    );
    drop((clients, newer, newest));
    proxy.reaches("gopherproxy_held_bytes", 0.0).await;
}

#[tokio::test]
async fn half_heads_of_many_clients_cut_each_other_and_nobody_else() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + SMALLEST)).await;
    proxy.active_backends(1).await;
    let mut slow = Connection::open_from(proxy.address(), address(900)).await;
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n").await;
    let mut clients = Vec::new();
    for number in 0..8 * MOST_HEADS {
        let mut client = Connection::open_from(proxy.address(), address(number % 64)).await;
        client.send(half_head("/half")).await;
        clients.push(client);
        if number % MOST_HEADS == 0 {
            is_served(&proxy, address(901)).await;
        }
    }
    assert_eq!(slow.response().await.status, 503, "it has waited longest");
    eventually("the others wait", async || {
        held_too_much(&proxy).await >= (4 * MOST_HEADS) as f64
    })
    .await;
    let held = proxy.metric("gopherproxy_held_bytes").await;
    assert!(held > 0.0 && held <= f64::from(8 << 20), "{held}");
    is_served(&proxy, address(902)).await;
}

#[tokio::test]
async fn a_response_that_nobody_reads_is_cut_so_that_others_have_room() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + SMALLEST)).await;
    proxy.active_backends(1).await;
    let mut clients = Vec::new();
    for number in 0..40 {
        let mut client = Connection::open_with_window(proxy.address(), 4096).await;
        client
            .send(format!("GET /bytes/{}?{number} HTTP/1.1\r\nHost: a\r\n\r\n", 64 << 20))
            .await;
        clients.push(client);
    }
    eventually("some are cut", async || held_too_much(&proxy).await >= 20.0).await;
    is_served(&proxy, address(1)).await;
    let lines = proxy.lines("request");
    let cut: Vec<_> = lines.iter().filter(|line| line["reason"] == "held_too_much").collect();
    for line in &cut {
        assert_eq!(line["status"], 200, "{line}");
        assert!(line["bytes"].as_u64().is_some_and(|bytes| bytes < 64 << 20), "{line}");
    }
    assert_eq!(proxy.metric("gopherproxy_ejections_total").await, 0.0);
    drop(clients);
    proxy.reaches("gopherproxy_held_bytes", 0.0).await;
}

#[tokio::test]
async fn an_upload_that_the_origin_does_not_take_gets_503() {
    if forwarder::skips("held::an_upload_that_the_origin_does_not_take_gets_503") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(head) = peer.head().await {
            if head.starts_with("POST ") {
                std::future::pending::<()>().await;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, SMALLEST).await;
    let mut floods = Vec::new();
    for _ in 0..16 {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
            .await;
        floods.push(tokio::spawn(async move {
            client.flood().await;
            client
        }));
    }
    eventually("some are cut", async || held_too_much(&proxy).await >= 8.0).await;
    is_served(&proxy, address(1)).await;
    let line = proxy.request_line("/up").await;
    assert_eq!(
        (&line["status"], &line["reason"]),
        (&503.into(), &"held_too_much".into())
    );
    assert_eq!(
        proxy.metric("gopherproxy_ejections_total").await,
        0.0,
        "it is no backend's failure"
    );
    for flood in floods {
        flood.await.expect("it is held back");
    }
}

/// The body of a PUT is held to be sent again. Where room is short, that is given up, and the request is not.
#[tokio::test]
async fn another_try_is_given_up_before_a_request_is() {
    const BODY: usize = 60_000;
    let (taken, answers) = (watch::Sender::new(0), watch::Sender::new(false));
    let (counts, waits) = (taken.clone(), answers.clone());
    let origin = RawOrigin::start(move |mut peer| {
        let (counts, mut waits) = (counts.clone(), waits.subscribe());
        async move {
            while peer.head().await.is_some() {
                if peer.stream.read_exact(&mut vec![0; BODY]).await.is_err() {
                    return;
                }
                counts.send_modify(|count| *count += 1);
                if waits.wait_for(|answers| *answers).await.is_err() {
                    return;
                }
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let proxy = proxy_to(&origin, SMALLEST).await;
    let mut clients = Vec::new();
    // What they hold in all is more than the budget.
    for number in 0..160 {
        let mut client = Connection::open_from(proxy.address(), address(number)).await;
        client
            .send(format!(
                "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n{}",
                "x".repeat(BODY)
            ))
            .await;
        let all = taken.subscribe().wait_for(|count| *count > number).await.is_ok();
        assert!(all, "the origin takes each");
        clients.push(client);
    }
    answers.send_replace(true);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    assert_eq!(held_too_much(&proxy).await, 0.0);
}

#[tokio::test]
async fn requests_that_a_backend_does_not_answer_make_room_for_those_that_it_does() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(head) = peer.head().await {
            if head.starts_with("GET /silent ") {
                std::future::pending::<()>().await;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, SMALLEST).await;
    let mut clients = Vec::new();
    for number in 0..1000 {
        let mut client = Connection::open_from(proxy.address(), address(number % 200)).await;
        client.send("GET /silent HTTP/1.1\r\nHost: a\r\n\r\n").await;
        clients.push(client);
    }
    eventually("some are cut", async || held_too_much(&proxy).await >= 400.0).await;
    for number in 300..310 {
        is_served(&proxy, address(number)).await;
    }
}

/// A control group of its own for a process, with a limit; gone when it is dropped.
struct Group(PathBuf);

impl Group {
    /// `None` where control groups can't be made: not root, or a container.
    #[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn new(limit: usize) -> Option<Self> {
        let name = format!("gopherproxy-test-{}-{}", std::process::id(), fastrand::u32(..));
        let roots = [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ];
        for (root, file) in roots {
            let path = Path::new(root).join(&name);
            if fs::create_dir(&path).is_err() {
                continue;
            }
            if path.join(file).exists() && fs::write(path.join(file), limit.to_string()).is_ok() {
                // Version 1 counts the buffers of sockets apart, and only if they have a limit.
                let _ = fs::write(path.join("memory.kmem.tcp.limit_in_bytes"), limit.to_string());
                return Some(Self(path));
            }
            let _ = fs::remove_dir(&path);
        }
        eprintln!("not tested under a real limit: /sys/fs/cgroup takes no group with one");
        None
    }

    fn take(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("it is there");
    }

    /// The most that it has held, with the kernel's buffers, in MiB.
    fn peak_mib(&self) -> Option<u64> {
        let read = |file: &str| fs::read_to_string(self.0.join(file)).ok()?.trim().parse::<u64>().ok();
        let bytes = read("memory.peak").or_else(|| read("memory.max_usage_in_bytes"))?;
        Some((bytes + read("memory.kmem.tcp.max_usage_in_bytes").unwrap_or(0)) >> 20)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel needs a moment for the pages of a process that was killed.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// What the compose stack gives the proxy.
const CONTAINER: usize = 128 << 20;

/// How much of that it may have taken before it comes into its group, which counts only what comes later.
const BEFORE: usize = 24 << 20;

/// Attacks a proxy that has the memory of its container, as `attack` does for each number; honest clients beside it are served.
async fn survives(origin: SocketAddr, attacks: usize, attack: impl AsyncFn(&Process, usize) -> Connection) {
    // In a group with a limit the default is a quarter of that.
    let held = format!("  client: {{max_held: {}MiB}}\n", CONTAINER >> 22);
    let configuration = embedded(&[origin]) + &held;
    let group = Group::new(CONTAINER - BEFORE);
    let proxy = Process::proxy(&configuration).await;
    if let Some(group) = &group {
        group.take(proxy.pid());
    }
    proxy.active_backends(1).await;
    let mut clients = Vec::new();
    for number in 0..attacks {
        clients.push(attack(&proxy, number).await);
        if number % (attacks / 20) == 0 {
            let from = address(10_000 + number);
            let mut honest = timeout(LIMIT, Connection::try_open(proxy.address(), from)).await;
            let honest = honest.as_mut().expect("in time").as_mut().expect("it listens");
            assert_eq!(honest.get("/").await.status, 200, "{number}");
        }
    }
    assert!(!proxy.has_ended());
    let resident = resident_kib(&proxy) >> 10;
    assert!(resident <= CONTAINER >> 20, "{resident} MiB");
    if let Some(peak) = group.as_ref().and_then(Group::peak_mib) {
        assert!(
            peak <= ((CONTAINER - BEFORE) >> 20) as u64,
            "{peak} MiB with the kernel's buffers"
        );
    }
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_heads_do_not_end_a_proxy_in_its_container() {
    let origin = origin();
    survives(origin.address(), thorough(3000, 4900), async |proxy, _| {
        let mut client = Connection::open(proxy.address()).await;
        // Whoever was cut meanwhile can't.
        let _ = client.try_send(half_head("/half")).await;
        client
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_that_nobody_reads_do_not_end_a_proxy_in_its_container() {
    if forwarder::skips("held::responses_that_nobody_reads_do_not_end_a_proxy_in_its_container") {
        return;
    }
    let origin = origin();
    survives(origin.address(), thorough(300, 1000), async |proxy, number| {
        let mut client = Connection::open_from(proxy.address(), address(number / 5)).await;
        client
            .send(format!("GET /bytes/{} HTTP/1.1\r\nHost: a\r\n\r\n", 64 << 20))
            .await;
        client
    })
    .await;
}

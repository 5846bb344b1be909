//! What the tests stand on: processes, an HTTP client that shows what is on the wire, and waiting for a condition.

pub mod attack;
pub mod authority;
pub mod child;
pub mod forwarder;
pub mod http;
pub mod http2;
pub mod http2_origin;
pub mod load;
pub mod origin_listener;
pub mod pebble;
pub mod process;
pub mod raw_origin;
pub mod redis;
pub mod strict_origin;
pub mod tls;
pub mod traffic;
pub mod unprivileged;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use origin::Origin;

pub use child::Started;
pub use http::{Connection, get};
pub use load::Load;
pub use origin_listener::OriginListener;
pub use process::Process;
pub use raw_origin::{Peer, RawOrigin};
pub use redis::{Forwarder, Redis};
pub use strict_origin::StrictOrigin;

/// Far more than anything here takes on a slow machine: it ends a test that would never end.
pub const LIMIT: Duration = Duration::from_secs(30);

/// How much of something that can be done any number of times: `usual`, or `long` in a thorough run (`make test-thorough`).
pub fn thorough<T>(usual: T, long: T) -> T {
    if std::env::var_os("THOROUGH").is_some() {
        long
    } else {
        usual
    }
}

/// Polls until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition().await {
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An origin on a free port.
pub fn origin() -> Origin {
    loop {
        // Another run of the tests may take the port first.
        if let Ok(socket) = chassis::listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))) {
            return Origin::serve(socket).expect("a runtime");
        }
    }
}

/// An origin at `address`.
pub fn origin_at(address: SocketAddr) -> Origin {
    let socket = chassis::listener::bind(address).expect("a free port");
    Origin::serve(socket).expect("a runtime")
}

/// An origin in a process of its own, at `address`, so that it can be killed.
pub fn origin_process(address: SocketAddr) -> Process {
    Process::start_with(Process::binary("origin"), None, &[], &[&address.to_string()])
}

/// A port that was free a moment ago, that no other test has been given, and that no connection can have: it lies below those
/// that the kernel takes for them.
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 10_000..32_000;
    // Where another run of the tests on this machine is unlikely to be.
    static NEXT: LazyLock<Mutex<u16>> = LazyLock::new(|| Mutex::new(fastrand::u16(PORTS)));
    let mut next = NEXT.lock().expect("no test panics with it");
    loop {
        let port = *next;
        *next = if port + 1 < PORTS.end { port + 1 } else { PORTS.start };
        if std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// The loopback addresses that this machine has. In many containers IPv6 is turned off, and a test that tests less says so.
#[allow(clippy::print_stderr, reason = "for whoever runs the tests")]
pub fn loopback() -> Vec<IpAddr> {
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        addresses.push(Ipv6Addr::LOCALHOST.into());
    } else {
        eprintln!("not tested with ::1, which this machine does not have");
    }
    addresses
}

/// A proxy over this origin, with these further lines of configuration.
pub async fn proxy_to(origin: &RawOrigin, more: &str) -> Process {
    let proxy = Process::proxy(&(embedded(&[origin.address]) + more)).await;
    proxy.active_backends(1).await;
    proxy
}

/// A configuration for a proxy with the sentinel inside it, so quick that a test need not wait, and without a limit.
pub fn embedded(targets: &[SocketAddr]) -> String {
    let targets: Vec<String> = targets.iter().copied().map(origin_listener::target).collect();
    embedded_targets(&targets)
}

/// The same for targets as they are written.
pub fn embedded_targets(targets: &[String]) -> String {
    format!(
        "threads: 2
gopherproxy:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  registry: {{kind: in-process}}
  sentinel: {{enabled: true, interval: 100ms, timeout: 10s, targets: [{}]}}
  discovery: {{interval: 100ms}}
  health: {{interval: 100ms}}
",
        targets
            .iter()
            .map(|target| format!("'{target}'"))
            .collect::<Vec<_>>()
            .join(", ")
    ) + UNLIMITED
}

/// A configuration for a proxy that reads the set from Redis.
pub fn with_redis(redis: &Redis) -> String {
    format!(
        "threads: 2
gopherproxy:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  registry: {{redis: '{}'}}
  discovery: {{interval: 100ms}}
  health: {{interval: 100ms}}
",
        redis.address()
    ) + UNLIMITED
}

/// The last lines of a configuration: a limit that no test reaches. Tests of the limit replace it.
pub const UNLIMITED: &str = "  limit: {burst: 1000000, per_second: 1000000}\n";

/// A proxy over `count` origins that all get traffic.
pub async fn proxy_over(count: usize) -> (Process, Vec<Origin>) {
    let origins: Vec<Origin> = (0..count).map(|_| origin()).collect();
    let addresses: Vec<SocketAddr> = origins.iter().map(Origin::address).collect();
    let proxy = Process::proxy(&embedded(&addresses)).await;
    proxy.active_backends(count).await;
    (proxy, origins)
}

/// How much memory a process has, in KiB.
pub fn resident_kib(process: &Process) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("Linux tells");
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .expect("a number")
}

/// An address that takes no connection and refuses none, like a host behind a firewall: its backlog is full.
pub struct BlackHole {
    pub address: SocketAddr,
    _sockets: Vec<socket2::Socket>,
}

impl BlackHole {
    pub fn new() -> Self {
        let mut hole = Self::after_one();
        // A second is for kernels that count otherwise.
        for _ in 0..2 {
            let client = socket();
            client.set_nonblocking(true).expect("a socket");
            let _ = client.connect(&hole.address.into());
            hole._sockets.push(client);
        }
        hole
    }

    /// One that takes a single connection first, as Linux does with a backlog of none.
    pub fn after_one() -> Self {
        let listener = socket();
        listener
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .expect("a free port");
        listener.listen(0).expect("it is bound");
        let address = listener
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket())
            .expect("it is bound");
        Self {
            address,
            _sockets: vec![listener],
        }
    }
}

fn socket() -> socket2::Socket {
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket")
}

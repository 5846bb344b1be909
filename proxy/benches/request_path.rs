//! What each request pays for: the limiter's check, the pick of a backend, the response's head and chunks, and its line in the log.
//!
//! `make microbench` runs them. The goals: a check 100 ns (on one thread and on two), a pick 100 ns (of 16 by requests in flight 50 ns), a
//! head 500 ns, a byte in a chunk of its own 60 ns, a line 500 ns, a route of a thousand 300 ns, a field that a route sets or removes
//! 150 ns.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use chassis::settings::Settings;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use gopherproxy::config::{Config, Limit};
use gopherproxy::exchange::request::RequestId;
use gopherproxy::headers::origin_response::{self, Delivery};
use gopherproxy::headers::request::{Origination, Shaping, write_request};
use gopherproxy::http1::chunked::{Decoder, write_chunk};
use gopherproxy::http1::{head, path};
use gopherproxy::limit::ClientLimiter;
use gopherproxy::observe::access_log;
use gopherproxy::observe::pools::PoolsMetrics;
use gopherproxy::pool::Pool;
use gopherproxy::pool::balance::{Asked, Candidate, List, Rules};
use gopherproxy::pool::endpoint::Upstream;
use gopherproxy::pool::kept::Room;
use gopherproxy::pool::pools::{Pools, PoolsService};
use gopherproxy::snapshot::table::Table;
use pingora::services::background::BackgroundService;
use registry::{InProcess, PoolName};

/// The proxy's own.
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

/// In each sample, so that reading the clock is no part of the result.
const ITERATIONS: u32 = 1000;

fn main() {
    // Nobody reads the lines, so that none is dropped because a terminal is slow.
    chassis::json_log::init_to("access=info", io::sink()).expect("the first logger of this process");
    divan::main();
}

/// Whether the clients keep to their limit or are over it.
#[derive(Debug, Clone, Copy)]
enum Clients {
    Good,
    Hasty,
}

/// Each client has a bucket already; each check is another one's.
#[divan::bench(args = [Clients::Good, Clients::Hasty], threads = [1, 2], sample_size = ITERATIONS)]
fn limiter_check(bencher: Bencher<'_, '_>, clients: Clients) {
    const CLIENTS: u32 = 10_000;
    let start = Instant::now();
    let limit = Limit {
        burst: match clients {
            Clients::Good => 1_000_000,
            Clients::Hasty => 1,
        },
        per_second: match clients {
            Clients::Good => 1e6,
            Clients::Hasty => 0.001,
        },
        clients: 131_072,
        ipv6_prefix: 64,
        exempt: Vec::new(),
    };
    let limiter = ClientLimiter::new(&limit, start);
    let client = |number: u32| IpAddr::V4(Ipv4Addr::from_bits((10 << 24) + number % CLIENTS));
    for number in 0..CLIENTS {
        limiter.check(client(number), start);
    }
    // Threads begin far apart, as clients of different connections are.
    let threads = AtomicU32::new(0);
    bencher
        .with_inputs(|| {
            thread_local!(static NEXT: std::cell::Cell<Option<u32>> = const { std::cell::Cell::new(None) });
            let number = NEXT
                .get()
                .unwrap_or_else(|| threads.fetch_add(CLIENTS / 2, Ordering::Relaxed));
            NEXT.set(Some(number.wrapping_add(1)));
            client(number)
        })
        .bench_values(|client| limiter.check(black_box(client), start));
}

/// A pool of so many backends, all alive: sockets of this process that listen and never answer.
fn pool_of(backends: u16) -> Arc<Pool> {
    let (first, rest) = (Ipv4Addr::new(127, 3, 0, 1).to_bits(), u32::from(backends));
    let mut port = 0;
    let listeners: Vec<TcpListener> = (first..first + rest)
        .map(|address| {
            let listener = TcpListener::bind((Ipv4Addr::from_bits(address), port)).expect("a free port");
            port = listener.local_addr().expect("bound").port();
            listener
        })
        .collect();
    let addresses: Vec<_> = listeners
        .iter()
        .filter_map(|listener| Some(listener.local_addr().ok()?.to_string()))
        .collect();
    let file = format!(
        "gopherproxy: {{health: {{interval: 1h}}, pools: {{default: {{backends: [{}]}}}}}}",
        addresses.join(", ")
    );
    let config = Config::parse(&file, Settings::new([])).expect("a configuration");
    let metrics = PoolsMetrics::new().expect("names that Prometheus takes");
    let pools = Pools::new(&config, Arc::new(InProcess::default()), metrics).expect("no state file");
    let service = PoolsService(Arc::new(pools));
    let pool = service.0.all().values().next().map(Arc::clone).expect("one pool");
    thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let (_running, shutdown) = tokio::sync::watch::channel(false);
            service.start(shutdown).await;
        });
        drop(listeners);
    });
    while pool.metrics.active_backends.get() != i64::from(backends) {
        thread::yield_now();
    }
    pool
}

const ASKED: Asked<'static> = Asked {
    bodiless: true,
    client: IpAddr::V4(Ipv4Addr::LOCALHOST),
    path: b"/some/path?with=a-query",
    fields: &[],
};

#[divan::bench(args = [3, 1000], threads = [1, 2], sample_size = ITERATIONS)]
fn backend_pick(bencher: Bencher<'_, '_>, backends: u16) {
    static THREE: LazyLock<Arc<Pool>> = LazyLock::new(|| pool_of(3));
    static THOUSAND: LazyLock<Arc<Pool>> = LazyLock::new(|| pool_of(1000));
    let pool = LazyLock::force(if backends == 3 { &THREE } else { &THOUSAND });
    bencher.bench(|| pool.pick(black_box(ASKED)));
}

/// One of a thousand routes over 300 hosts, a third of them wildcards: by an exact path, by a prefix, and after what is more specific
/// did not match. Reading the path is a part of it.
#[divan::bench(sample_size = ITERATIONS)]
fn route_pick(bencher: Bencher<'_, '_>) {
    let mut text = "gopherproxy:\n  routes:\n".to_owned();
    for number in 0..1000 {
        let (host, path) = (number % 300, number / 300);
        let wildcard = if host % 3 == 0 { "*." } else { "" };
        let path = ["/", "/api/v1", "=/health", "/static"][path];
        text += &format!("    r{number}: {{hosts: ['{wildcard}site{host}.example.com'], paths: [{path}]}}\n");
    }
    let config = Config::parse(&text, Settings::new([])).expect("it is valid");
    let table = Table::new(config.routes.iter().map(|route| &route.matches));
    let requests: Vec<_> = (0..300)
        .map(|host| {
            let label = if host % 3 == 0 { "www." } else { "" };
            let path = ["/", "/api/v1/users/42?full", "/health", "/some/page.html"][host % 4];
            (format!("{label}site{host}.example.com:8443"), path)
        })
        .collect();
    let mut next = 0;
    bencher.bench_local(|| {
        next = (next + 1) % requests.len();
        let (host, target) = &requests[next];
        let path = path::plain(black_box(target.as_bytes())).expect("it is unambiguous");
        table.pick(Some(black_box(host.as_bytes())), &path, "GET")
    });
}

/// How a pool of 16 chooses, with the same weights or with others.
const BALANCED: [(&str, u32); 6] = [
    ("round_robin", 1),
    ("round_robin", 7),
    ("least_requests", 1),
    ("least_requests", 7),
    ("hash:client", 1),
    ("hash:client", 7),
];

/// The place that the request has is given back, too.
#[divan::bench(args = BALANCED, sample_size = ITERATIONS)]
fn balanced_pick(bencher: Bencher<'_, '_>, (balance, weights): (&str, u32)) {
    let file = format!("gopherproxy: {{pools: {{default: {{balance: '{balance}'}}}}}}");
    let config = Config::parse(&file, Settings::new([])).expect("a configuration");
    let name = PoolName::default();
    let metrics = PoolsMetrics::new().and_then(|metrics| metrics.of(&name));
    let metrics = metrics.expect("names that Prometheus takes");
    let candidate = |number| {
        let address = SocketAddr::from((Ipv4Addr::from_bits((10 << 24) + number), 80));
        let (room, metrics) = (Arc::new(Room::new(0)), Arc::clone(&metrics));
        let upstream = Arc::new(Upstream::new(address.to_string().into(), vec![address], room, metrics));
        upstream.pace.answered(Duration::from_millis(5));
        Candidate {
            upstream,
            weight: 1 + number % weights,
            backup: false,
            drain: false,
        }
    };
    let rules = Rules::new(&config.pools[&name].balance, name.as_str());
    let list = List::new(Arc::new(rules), (0..16).map(candidate).collect());
    let turn = AtomicUsize::new(0);
    bencher.bench(|| list.pick(black_box(ASKED), &turn).map(drop));
}

/// The head of a small response of nginx, read and written for the client.
#[divan::bench(sample_size = ITERATIONS)]
fn response_head(bencher: Bencher<'_, '_>) {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx/1.27.3\r\nDate: Tue, 24 Nov 2026 09:00:00 GMT\r\nContent-Type: text/html\r\n\
        Content-Length: 615\r\nLast-Modified: Tue, 29 Oct 2024 16:43:51 GMT\r\nConnection: keep-alive\r\nETag: \"67211147-267\"\r\n\
        Accept-Ranges: bytes\r\n\r\n";
    let delivery = Delivery {
        keeps: true,
        old: false,
        trailers: false,
        hsts: None,
        cookie: None,
        edits: None,
    };
    let mut out = BytesMut::with_capacity(4096);
    bencher.bench_local(|| {
        let mut room = head::room();
        out.clear();
        match origin_response::parse(black_box(HEAD), &mut room, false) {
            Ok(Some((head, length))) => Some((head.write(&delivery, &mut out), length)),
            _ => None,
        }
    });
}

/// The head of a request as a backend gets it, with so many fields that the route sets and as many that it removes.
#[divan::bench(args = [0, 1, 10], sample_size = ITERATIONS)]
fn request_head(bencher: Bencher<'_, '_>, edits: usize) {
    const HEAD: &[u8] =
        b"GET /some/path?with=a-query HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: Mozilla/5.0\r\nAccept: */*\r\n\
        Accept-Language: en\r\nAccept-Encoding: gzip, br\r\nCookie: a=b\r\nReferer: https://www.example.com/\r\n\r\n";
    let keys = |text: &str| {
        (0..edits)
            .map(|number| text.replace('N', &number.to_string()))
            .collect::<String>()
    };
    let route = format!(
        "gopherproxy: {{routes: {{shop: {{request_headers: {{set: {{{}}}, remove: [{}]}}}}}}}}",
        keys("X-Set-N: 'for {client}', "),
        keys("X-Removed-N, ").trim_end_matches(", "),
    );
    let config = Config::parse(&route, Settings::new([])).expect("a configuration");
    let id = RequestId::random();
    let mut scratch = head::scratch();
    let head = head::parse(HEAD, &mut scratch, &head::Rules::default()).expect("a head");
    let about = Origination {
        peer: "192.0.2.1",
        trusted_peer: false,
        tls: None,
        backend: "127.0.0.1:8081",
        id: &id,
        shape: (edits > 0).then_some(Shaping {
            shape: &config.routes[0].shape,
            client: "192.0.2.1",
            route: "shop",
        }),
    };
    let (mut out, mut spans) = (Vec::with_capacity(4096), Vec::with_capacity(64));
    bencher.bench_local(|| {
        out.clear();
        spans.clear();
        write_request(black_box(&head), about, &mut out, &mut spans);
        out.len()
    });
}

/// A chunked body of 16 KiB, decoded and encoded again as one chunk; the chunks of the origin have this size.
#[divan::bench(args = [1, 16 << 10])]
fn chunks(bencher: Bencher<'_, '_>, size: usize) {
    const BODY: usize = 16 << 10;
    let body = format!("{size:x}\r\n{}\r\n", "x".repeat(size)).repeat(BODY / size);
    let mut out = BytesMut::with_capacity(2 * BODY);
    bencher.counter(BytesCount::new(BODY)).bench_local(|| {
        let mut decoder = Decoder::default();
        out.clear();
        write_chunk(&mut out, |out| {
            decoder.decode(black_box(body.as_bytes()), out, usize::MAX).map(drop)
        })
    });
}

/// Made and handed to the writer's thread.
#[divan::bench(threads = [1, 2], sample_size = ITERATIONS)]
fn access_log_line(bencher: Bencher<'_, '_>) {
    let line = access_log::Line {
        method: "GET",
        target: "/some/path?with=a-query",
        remote_addr: "127.0.0.1:51440",
        protocol: "h1",
        status: 200,
        duration: Duration::from_nanos(1_886_123),
        client: "127.0.0.1",
        backend: Some("127.0.0.1:8081"),
        request_id: Some("915cae9096c17214589afa967fd2af4d"),
        bytes: Some(26),
        grpc_status: None,
        reason: None,
        error: None,
        tls: None,
        route: None,
        pool: None,
    };
    bencher.bench(|| black_box(&line).write());
}

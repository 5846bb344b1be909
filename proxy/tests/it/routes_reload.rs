//! Routes that change under traffic.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::http2::{self, CLEARTEXT, Http2};
use crate::support::{Connection, Process, embedded, eventually, origin, thorough};

const PATHS: u64 = 6;

/// How many requests go on beside the reloads, each over twice as many of them.
const LONG: usize = 3;

/// The statuses of redirects; an answer has 400 and its generation's last digits.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// The routes of a generation. Whatever a client sees of one names the generation in several places, which must all be the same.
fn routes(generation: u64, random: &mut fastrand::Rng) -> String {
    let mut routes = "  routes:\n".to_owned();
    for path in 0..PATHS {
        let action = match random.u8(..4) {
            0 => continue,
            1 => format!(
                "answer: g{generation}, status: {}, content_type: text/g{generation}",
                400 + generation % 100
            ),
            2 => format!(
                "redirect: 'https://g{generation}.example{{path}}', status: {}",
                REDIRECTS[usize::try_from(generation).unwrap_or(0) % REDIRECTS.len()]
            ),
            _ => format!("limit: {{burst: 1000000, per_second: {}}}", 1000 + generation),
        };
        let methods = if random.bool() { "methods: [GET, POST], " } else { "" };
        let host = if random.bool() {
            "hosts: [test, '*.example'], "
        } else {
            ""
        };
        routes += &format!(
            "    r{path}-{}: {{{host}{methods}paths: [/p{path}], {action}}}\n",
            random.u8(..2)
        );
    }
    // In every other generation there is no route for this one.
    if generation.is_multiple_of(2) {
        routes += "    echo: {paths: [/echo]}\n";
    }
    routes
}

/// What a client saw: the status, Location, the media type and the body.
struct Seen<'s> {
    status: u16,
    location: Option<&'s str>,
    kind: Option<&'s str>,
    body: &'s str,
}

impl Seen<'_> {
    /// The generation that answered, if it can be told. Panics if there is more than one.
    fn generation(&self, path: &str) -> Option<u64> {
        let number = |text: &str| text.parse::<u64>().expect("a generation");
        if let Some(location) = self.location {
            let rest = location.strip_prefix("https://g").expect("one of ours");
            let (generation, rest) = rest.split_once(".example").expect("one of ours");
            assert_eq!(rest, path);
            let generation = number(generation);
            let status = REDIRECTS[usize::try_from(generation).expect("it is small") % REDIRECTS.len()];
            assert_eq!(self.status, status, "{location}");
            return Some(generation);
        }
        let generation = number(self.body.strip_prefix('g')?);
        assert_eq!(self.kind, Some(format!("text/g{generation}").as_str()));
        assert_eq!(u64::from(self.status), 400 + generation % 100);
        Some(generation)
    }
}

/// What all clients share.
#[derive(Default)]
struct Shared {
    /// All processes have taken this generation, or a later one.
    taken: AtomicU64,
    /// No later one than this has been written.
    written: AtomicU64,
    requests: AtomicU64,
    over: AtomicBool,
}

impl Shared {
    fn check(&self, seen: &Seen<'_>, path: &str, taken: u64) {
        let proxied = seen.status == 200 && seen.body.starts_with("hello from");
        let generation = seen.generation(path);
        assert!(
            proxied || seen.status == 404 || generation.is_some(),
            "{} {}",
            seen.status,
            seen.body
        );
        if let Some(generation) = generation {
            assert!(generation >= taken, "{generation} after {taken} was taken");
            assert!(generation <= self.written.load(Ordering::SeqCst));
        }
        self.requests.fetch_add(1, Ordering::SeqCst);
    }

    fn next(&self) -> Option<(String, u64)> {
        let path = format!("/p{}/x", fastrand::u64(..PATHS));
        (!self.over.load(Ordering::SeqCst)).then(|| (path, self.taken.load(Ordering::SeqCst)))
    }
}

async fn over_http1(to: std::net::SocketAddr, shared: Arc<Shared>) {
    let mut client = Connection::open(to).await;
    while let Some((path, taken)) = shared.next() {
        let response = client.get(&path).await;
        let seen = Seen {
            status: response.status,
            location: response.header("location"),
            kind: response.header("content-type"),
            body: &response.text(),
        };
        shared.check(&seen, &path, taken);
        // A limit that is refused would close nothing, but the largest number of requests on a connection does.
        if response.header("connection") == Some("close") {
            client = Connection::open(to).await;
        }
    }
}

async fn over_http2(to: std::net::SocketAddr, shared: Arc<Shared>) {
    let mut client = Http2::open(to).await;
    let mut requests = 0;
    while let Some((path, taken)) = shared.next() {
        requests += 1;
        if requests % 5_000 == 0 {
            client = Http2::open(to).await;
        }
        let answer = client.send(http2::get(&path), b"").await.expect("an answer");
        let seen = Seen {
            status: answer.status,
            location: answer.header("location"),
            kind: answer.header("content-type"),
            body: &answer.text(),
        };
        shared.check(&seen, &path, taken);
    }
}

/// Sends a piece of a long request, and reads it in the response.
async fn go_on(client: &mut Connection) {
    client.send("3\r\ntwo\r\n").await;
    assert_eq!(client.chunk().await, b"two");
}

async fn end(mut client: Connection) {
    go_on(&mut client).await;
    client.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_routes_replace_each_other_whole_and_lose_no_request() {
    let origin = origin();
    let base = embedded(&[origin.address()]) + CLEARTEXT;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let proxy = Process::proxy(&(base.clone() + &routes(0, &mut random))).await;
    proxy.active_backends(1).await;
    let shared = Arc::new(Shared::default());
    let clients = [
        tokio::spawn(over_http1(proxy.address(), Arc::clone(&shared))),
        tokio::spawn(over_http1(proxy.address(), Arc::clone(&shared))),
        tokio::spawn(over_http2(proxy.address(), Arc::clone(&shared))),
    ];
    let (mut refused, mut long) = (0.0, VecDeque::new());
    #[allow(clippy::print_stdout, reason = "who wants to repeat a run finds it there")]
    {
        println!("SEED={seed}");
    }
    let generations = thorough(12, 200);
    for generation in 1..=generations {
        if generation % 5 == 0 {
            // A mistake in one route keeps all of them from being taken.
            let broken = base.clone() + &routes(generation, &mut random) + "    broken: {pool: nowhere}\n";
            proxy.reconfigure(&broken);
            proxy.signal("HUP");
            refused += 1.0;
            proxy
                .reaches("gopherproxy_config_reloads_total{result=\"refused\"}", refused)
                .await;
        }
        if generation % 2 == 1 {
            // It has no route in the next generation, where it goes on.
            let mut client = Connection::open(proxy.address()).await;
            client
                .send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
                .await;
            assert_eq!(client.head().await.status, 200);
            assert_eq!(client.chunk().await, b"one");
            long.push_back(client);
            if long.len() > LONG {
                end(long.pop_front().expect("there are several")).await;
            }
        }
        shared.written.store(generation, Ordering::SeqCst);
        proxy.reconfigure(&(base.clone() + &routes(generation, &mut random)));
        proxy.signal("HUP");
        let count = f64::from(u32::try_from(generation).expect("it is small"));
        proxy
            .reaches("gopherproxy_config_reloads_total{result=\"ok\"}", count)
            .await;
        shared.taken.store(generation, Ordering::SeqCst);
        for client in &mut long {
            go_on(client).await;
        }
        let served = shared.requests.load(Ordering::SeqCst);
        eventually("traffic flows", async || {
            shared.requests.load(Ordering::SeqCst) > served + 20
                || clients.iter().any(tokio::task::JoinHandle::is_finished)
        })
        .await;
    }
    shared.over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("no panic");
    }
    for client in long {
        end(client).await;
    }
    assert!(
        proxy
            .lines("request")
            .iter()
            .all(|line| line["reason"] != "backend_failed")
    );
}

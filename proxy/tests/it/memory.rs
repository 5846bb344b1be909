//! What one client can make the proxy hold.
//!
//! The allocator keeps some of what it was given back, and threads have arenas, so that one connection can't be measured. These tests
//! measure many, beside as many that do nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::time::sleep;

use crate::support::http2::{CLEARTEXT, END_STREAM, Frames, Outcome, block, head, headers, http2_proxy_with, literal};
use crate::support::origin_listener::is_secure;
use crate::support::tls::{Authority, with_tls};
use crate::support::{
    Connection, Peer, Process, RawOrigin, embedded, eventually, forwarder, origin, proxy_to, resident_kib,
};

const CLIENTS: usize = 160;

/// The most for each, in KiB.
const MOST: usize = 128;

/// The same with what rustls has of a connection to `origin` if that speaks TLS: records that have arrived or wait to be sent, and what
/// was decrypted last.
fn most_with(origin: &RawOrigin) -> usize {
    MOST + if is_secure(origin.address) { 96 } else { 0 }
}

/// So many connections at once, and floods beside them, are much for one accepting task.
const PATIENT: &str = "  upstream: {connect_timeout: 20s}\n";

/// Clients that have had a response, and their connections to an origin that waited for all of them with [`small_response`]: what a
/// handshake takes, and leaves behind in the allocator, was taken before anything is measured.
async fn idle_clients(proxy: &Process, window: u32) -> Vec<Connection> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Connection::open_with_window(proxy.address(), window).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    clients
}

/// Answers once every client has asked.
async fn small_response(peer: &mut Peer, all: &Barrier) {
    all.wait().await;
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
}

/// How much more memory the process has than `before` once it no longer grows, for each client in KiB.
async fn held_by_each(proxy: &Process, before: usize) -> usize {
    let mut last = 0;
    eventually("it grows no more", async || {
        sleep(Duration::from_millis(500)).await;
        let now = resident_kib(proxy);
        let grows = now > last + 64;
        last = now;
        !grows
    })
    .await;
    last.saturating_sub(before) / CLIENTS
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_its_client_does_not_read_waits_at_the_origin() {
    if forwarder::skips("memory::a_response_that_its_client_does_not_read_waits_at_the_origin") {
        return;
    }
    let all = Arc::new(Barrier::new(CLIENTS));
    let origin = RawOrigin::start(move |mut peer| {
        let all = Arc::clone(&all);
        async move {
            while let Some(head) = peer.head().await {
                let path = head.split(' ').nth(1).unwrap_or_default();
                let large = path
                    .rsplit_once('/')
                    .and_then(|(framing, mib)| Some((framing, mib.parse().ok()?)));
                let Some((framing, mib)): Option<(&str, usize)> = large else {
                    small_response(&mut peer, &all).await;
                    continue;
                };
                peer.send(match framing {
                    "/length" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", mib << 20),
                    _ => format!(
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
                        mib << 20
                    ),
                })
                .await;
                // Nobody reads it to its end.
                for _ in 0..mib {
                    peer.send(vec![b'a'; 1 << 20]).await;
                }
            }
        }
    })
    .await;
    for path in ["/length/10", "/length/64", "/chunked/10"] {
        let proxy = proxy_to(&origin, PATIENT).await;
        let mut clients = idle_clients(&proxy, 64 << 10).await;
        let before = resident_kib(&proxy);
        for client in &mut clients {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        }
        for client in &mut clients {
            assert_eq!(client.head().await.status, 200);
        }
        let held = held_by_each(&proxy, before).await;
        assert!(held <= most_with(&origin), "{path}: {held} KiB for each");
        drop(clients);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_the_origin_does_not_read_waits_at_the_client() {
    if forwarder::skips("memory::an_upload_that_the_origin_does_not_read_waits_at_the_client") {
        return;
    }
    let all = Arc::new(Barrier::new(CLIENTS));
    let origin = RawOrigin::start(move |mut peer| {
        let all = Arc::clone(&all);
        async move {
            while let Some(head) = peer.head().await {
                if head.starts_with("POST ") || head.starts_with("PUT ") {
                    std::future::pending::<()>().await;
                }
                small_response(&mut peer, &all).await;
            }
        }
    })
    .await;
    for (method, framing, more) in [
        ("POST", format!("Content-Length: {}\r\n\r\n", 1 << 30), 0),
        // The piece that goes out now follows what was held to be sent again, and the allocator may have both for a while. And what
        // Pingora has for a request in flight grew by 5 KB with TLS to backends.
        ("PUT", "Transfer-Encoding: chunked\r\n\r\n40000000\r\n".to_owned(), 72),
    ] {
        let proxy = proxy_to(&origin, PATIENT).await;
        let clients = idle_clients(&proxy, 64 << 10).await;
        let before = resident_kib(&proxy);
        let mut floods = Vec::new();
        for mut client in clients {
            client
                .send(format!("{method} / HTTP/1.1\r\nHost: a\r\n{framing}"))
                .await;
            floods.push(tokio::spawn(async move {
                client.flood().await;
                client
            }));
        }
        let mut clients = Vec::new();
        for flood in floods {
            clients.push(flood.await.expect("it is held back"));
        }
        let held = held_by_each(&proxy, before).await;
        assert!(held <= most_with(&origin) + more, "{method}: {held} KiB for each");
        let inflight = proxy.metric("gopherproxy_inflight_requests").await;
        let ended: Vec<_> = proxy
            .lines("request")
            .into_iter()
            .filter(|line| line["method"] != "GET")
            .collect();
        assert!(inflight == CLIENTS as f64 && ended.is_empty(), "{inflight}: {ended:#?}");
        drop(clients);
    }
}

/// What each of many idle connections over TLS holds after one request, in bytes. Each is opened by `open`.
async fn held_by_idle<C>(open: impl AsyncFn(&Authority, &Process) -> C) -> usize {
    const CLIENTS: usize = 400;
    let (origin, files, authority) = (origin(), tempfile::tempdir().expect("a directory"), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let proxy = Process::proxy(&with_tls(&embedded(&[origin.address()]), files.path(), "")).await;
    proxy.active_backends(1).await;
    let connected = async || {
        let mut connections = Vec::new();
        for _ in 0..CLIENTS {
            // Each is a new one, without a session to resume.
            connections.push(open(&authority, &proxy).await);
        }
        connections
    };
    // The allocator keeps what the first took, so that only the others count.
    let first = connected().await;
    let before = resident_kib(&proxy);
    let (second, third) = (connected().await, connected().await);
    let each = resident_kib(&proxy).saturating_sub(before) * 1024 / (2 * CLIENTS);
    drop((first, second, third));
    each
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_over_tls_holds_little() {
    /// In KiB. Without optimisation the state of a connection takes twice what it takes with it; a buffer of a record would be seen.
    const MOST: usize = 32;
    let each = held_by_idle(async |authority, proxy| {
        let mut connection = authority.client().open(proxy.tls_address(), "a.example").await;
        assert_eq!(connection.get("/").await.status, 200);
        connection
    })
    .await;
    assert!((1 << 10..=MOST << 10).contains(&each), "{each} bytes for each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_of_http2_holds_little() {
    /// In KiB. It takes 18, without optimisation too; each of the buffers that `h2` would keep is another 4 to 16.
    const MOST: usize = 24;
    let each = held_by_idle(async |authority, proxy| {
        let mut connection = authority.client().open_http2(proxy.tls_address(), "a.example").await;
        assert_eq!(connection.get("/").await.status, 200);
        connection
    })
    .await;
    assert!((1 << 10..=MOST << 10).contains(&each), "{each} bytes for each");
}

/// A path in the table of HPACK is a few bytes, and may not keep the buffer that it came in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_a_client_of_http2_has_stored_take_what_they_say() {
    const CLIENTS: usize = 40;
    /// As many as the table has room for.
    const FIELDS: u32 = 90;
    /// In KiB. The table has 4, and its entries take some beside it.
    const MOST: usize = 96;
    let origin = origin();
    let proxy = http2_proxy_with(origin.address(), CLEARTEXT).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Frames::open(proxy.address(), &[]).await;
        client.send(headers(1, END_STREAM, &head("GET", "/"))).await;
        assert_eq!(client.outcome(1).await, Outcome::Status(200));
        clients.push(client);
    }
    let before = resident_kib(&proxy);
    // So long that each request takes a buffer of its own.
    let padding = literal(b"padding", &[b'p'; 8000]);
    for client in &mut clients {
        for number in 1..=FIELDS {
            // GET, http, and a path that is stored (RFC 7541, sections 6.1 and 6.2.1).
            let path = format!("/{number:03}");
            let host = block(&[(":authority", "test")]);
            let fields = [&[0x82, 0x86, 0x44, 4], path.as_bytes(), &host, &padding].concat();
            let stream = 2 * number + 1;
            client.send(headers(stream, END_STREAM, &fields)).await;
            assert_eq!(client.outcome(stream).await, Outcome::Status(200));
        }
    }
    let held = resident_kib(&proxy).saturating_sub(before) / CLIENTS;
    assert!(held <= MOST, "{held} KiB for each");
}

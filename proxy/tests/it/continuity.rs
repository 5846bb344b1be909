//! What is open goes on while certificates, and the process itself, are replaced.

#![allow(
    clippy::print_stdout,
    reason = "whoever runs it thoroughly wants to see what was done"
)]

use std::path::Path;

use h2::client::Builder;
use tokio::net::TcpStream;

use crate::support::http2::{CLEARTEXT, END_STREAM, Frames, GOAWAY, HEADERS, Http2, get, head, headers};
use crate::support::tls::{Authority, shown, with_tls};
use crate::support::traffic::{CONNECTIONS, HOST, Traffic, is_goodbye};
use crate::support::{Process, embedded, eventually, free_port, origin, thorough};
use crate::upgrade::{TOOK_OVER, WAITING, upgradable};

const RELOADED: &str = "configuration reloaded";

/// A configuration with TLS on a port that a successor finds in it, too.
fn configuration(origin: &origin::Origin, certificates: &Path, files: &Path) -> String {
    let plain = upgradable(&embedded(&[origin.address()]), files);
    let port = format!("    listen: 127.0.0.1:{}", free_port());
    with_tls(&plain, certificates, "").replace("    listen: 127.0.0.1:0", &port)
}

/// GOAWAYs that the proxy has sent.
async fn goaways(proxy: &Process) -> f64 {
    let metrics = proxy.metrics().await;
    let goaways = metrics
        .iter()
        .filter(|(name, _)| name.starts_with("gopherproxy_http2_goaways_total"));
    goaways.map(|(_, count)| count).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_under_traffic_of_both_protocols_and_every_connection_goes_on() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    let certificates = files.path().join("certificates");
    std::fs::create_dir(&certificates).unwrap();
    authority.issue(&[HOST]).write(&certificates, "a");
    let proxy = Process::proxy(&configuration(&origin, &certificates, files.path())).await;
    proxy.active_backends(1).await;
    let (address, client) = (proxy.tls_address(), authority.client());
    let traffic = Traffic::start(address, &client);
    traffic.flows().await;
    let opened = (traffic.streams.connections(), traffic.sockets.opened());
    let replacements = thorough(10, 100);
    for number in 1..=replacements {
        let next = authority.issue(&[HOST]);
        next.write(&certificates, "a");
        proxy.signal("HUP");
        eventually("it is reloaded", async || proxy.lines(RELOADED).len() == number).await;
        // Of a client without a session, for a resumed one shows none.
        let shown = shown(&authority.client().open(address, HOST).await);
        assert_eq!(shown, next.der(), "the new one is used from then on");
        traffic.flows().await;
    }
    let open = (traffic.streams.connections(), traffic.sockets.opened());
    assert_eq!(open, opened, "all that were open at first have remained so");
    assert_eq!(goaways(&proxy).await, 0.0);
    let answered = traffic.lost_none().await;
    assert_eq!(origin.requests(), answered, "each request reached the origin once");
    let metrics = proxy.metrics().await;
    for result in ["failed", "timeout"] {
        let series = format!("gopherproxy_tls_handshakes_total{{result=\"{result}\"}}");
        assert_eq!(metrics.get(&series).copied().unwrap_or(0.0), 0.0, "{result}");
    }
    println!("{replacements} replacements, {answered} requests answered and none lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_tls_http2_and_websockets_end_connections_with_goaway_and_lose_nothing() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    let certificates = files.path().join("certificates");
    std::fs::create_dir(&certificates).unwrap();
    authority.issue(&[HOST]).write(&certificates, "a");
    let configuration = configuration(&origin, &certificates, files.path());
    let mut proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let traffic = Traffic::start(proxy.tls_address(), &authority.client());
    let (upgrades, mut logged) = (thorough(4, 50), 0);
    for round in 0..upgrades {
        traffic.flows().await;
        let (streams, sockets) = (traffic.streams.connections(), traffic.sockets.opened());
        let successor = Process::successor(&configuration);
        successor.said(WAITING, |_| true).await;
        proxy.signal(if round % 2 == 0 { "TERM" } else { "QUIT" });
        successor.said(TOOK_OVER, |_| true).await;
        // A WebSocket stays with the process that it began with, which waits for its end.
        traffic.flows().await;
        assert_eq!(traffic.sockets.opened(), sockets);
        assert!(!proxy.has_ended());
        eventually("every connection of HTTP/2 is replaced", async || {
            traffic.streams.connections() >= streams + CONNECTIONS
        })
        .await;
        traffic.sockets.replace();
        let (status, _) = proxy.ended().await;
        assert_eq!(status.code(), Some(0));
        proxy.said("drained; leaving", |_| true).await;
        logged += proxy.lines("request").len();
        proxy = successor;
    }
    traffic.flows().await;
    let (connections, sockets) = (traffic.streams.connections(), traffic.sockets.opened());
    let answered = traffic.lost_none().await;
    assert_eq!(origin.requests(), answered, "each request reached the origin once");
    eventually("and has its line", async || {
        (logged + proxy.lines("request").len()) as u64 == answered
    })
    .await;
    println!(
        "{upgrades} upgrades, {answered} requests answered and none lost; {connections} connections of HTTP/2 and {sockets} \
         WebSockets in all, none reset"
    );
}

#[tokio::test]
async fn a_connection_that_is_accepted_before_an_upgrade_and_begins_after_it_is_served_and_told_to_go() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    let certificates = files.path().join("certificates");
    std::fs::create_dir(&certificates).unwrap();
    authority.issue(&[HOST]).write(&certificates, "a");
    let configuration = configuration(&origin, &certificates, files.path()) + CLEARTEXT;
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let open = Http2::open(proxy.address()).await;
    let plain = TcpStream::connect(proxy.address()).await.unwrap();
    let secure = TcpStream::connect(proxy.tls_address()).await.unwrap();
    proxy.reaches("gopherproxy_connections", 3.0).await;
    let successor = Process::successor(&configuration);
    successor.said(WAITING, |_| true).await;
    proxy.signal("QUIT");
    successor.said(TOOK_OVER, |_| true).await;
    told_to_go(open).await;
    let mut plain = Frames::over(plain, &[]).await;
    plain.send(headers(1, END_STREAM, &head("GET", "/"))).await;
    let (mut answered, mut told) = (false, false);
    while !(answered && told) {
        let frame = plain.next().await.expect("an answer and a GOAWAY");
        answered |= frame.kind == HEADERS;
        told |= frame.kind == GOAWAY && frame.code() == 0;
    }
    drop(plain);
    let secure = authority.client().over_http2().shake(secure, HOST).await.unwrap();
    told_to_go(Http2::over(secure.into_stream(), &Builder::new()).await).await;
    let (status, _) = proxy.ended().await;
    assert_eq!(status.code(), Some(0));
}

/// Sends requests, which are answered, until a GOAWAY comes.
async fn told_to_go(mut client: Http2) {
    let goodbye = loop {
        if let Err(error) = client.send(get("/"), b"").await {
            break error;
        }
    };
    assert!(is_goodbye(&goodbye), "{goodbye}");
}

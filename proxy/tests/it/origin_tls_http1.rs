//! Origins that speak HTTP/1.1 over TLS, and those that choose between that and HTTP/2.
//!
//! `ORIGINS=tls` runs the tests of what is on the wire over TLS; here is what TLS adds to that.

use std::net::{Ipv4Addr, SocketAddr};

use rustls::version::{TLS12, TLS13};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::server::TlsStream;

use crate::support::authority::Authority;
use crate::support::http2_origin::Http2Origin;
use crate::support::{Connection, Process, embedded_targets, eventually, forwarder, get};

/// An authority, and the configuration that trusts it.
struct Files {
    authority: Authority,
    _directory: TempDir,
    upstream: String,
}

impl Files {
    fn new() -> Self {
        let (authority, directory) = (Authority::new(), tempfile::tempdir().expect("a directory"));
        let ca_file = authority.write(directory.path());
        Self {
            authority,
            upstream: format!("  upstream: {{tls: {{ca_file: '{ca_file}'}}, ejection: {{failures: 1}}}}\n"),
            _directory: directory,
        }
    }

    /// A proxy over these origins.
    async fn proxy_to(&self, origins: &[SocketAddr]) -> Process {
        let targets: Vec<_> = origins.iter().map(|address| format!("https://{address}")).collect();
        let proxy = Process::proxy(&(embedded_targets(&targets) + &self.upstream)).await;
        proxy.active_backends(targets.len()).await;
        proxy
    }

    /// An origin that runs `serve` with each connection after its handshake.
    async fn origin<F>(&self, serve: impl Fn(TlsStream<TcpStream>) -> F + Send + 'static) -> (SocketAddr, Accepting)
    where
        F: Future<Output = Option<()>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let acceptor = self.authority.issue("127.0.0.1").acceptor(&["http/1.1"], None);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A health check says nothing.
                if let Ok(stream) = acceptor.accept(stream).await {
                    tokio::spawn(serve(stream));
                }
            }
        });
        (address, Accepting(accepting))
    }
}

struct Accepting(JoinHandle<()>);

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads a request without a body.
async fn request(stream: &mut TlsStream<TcpStream>) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

async fn send(stream: &mut TlsStream<TcpStream>, text: &str) -> Option<()> {
    stream.write_all(text.as_bytes()).await.ok()?;
    stream.flush().await.ok()
}

#[tokio::test]
async fn a_session_is_resumed_by_the_next_connection() {
    if forwarder::skips("origin_tls_http1::a_session_is_resumed_by_the_next_connection") {
        return;
    }
    let files = Files::new();
    let identity = files.authority.issue("127.0.0.1");
    for version in [&TLS12, &TLS13] {
        let acceptor = || identity.acceptor_of(&[version], &["http/1.1"], None);
        let origin = Http2Origin::over_tls(acceptor()).await;
        let proxy = files.proxy_to(&[origin.address]).await;
        let mut client = Connection::open(proxy.address()).await;
        // Each has a connection of its own.
        for _ in 0..10 {
            assert_eq!(client.request("HEAD", "/", "", "").await.status, 200);
        }
        assert_eq!((origin.connections(), origin.resumed()), (10, 9), "{version:?}");
        // One that knows no session any more is no failure.
        origin.change(acceptor());
        for _ in 0..2 {
            assert_eq!(client.request("HEAD", "/", "", "").await.status, 200);
        }
        assert_eq!((origin.connections(), origin.resumed()), (12, 10), "{version:?}");
        // What is read anew verifies anew.
        proxy.signal("HUP");
        eventually("it has", async || proxy.lines("configuration reloaded").len() == 1).await;
        assert_eq!(client.request("HEAD", "/", "", "").await.status, 200);
        assert_eq!((origin.connections(), origin.resumed()), (13, 10), "{version:?}");
    }
}

#[tokio::test]
async fn an_origin_that_chooses_http_2_is_asked_once_until_it_chooses_otherwise() {
    if forwarder::skips("origin_tls_http1::an_origin_that_chooses_http_2_is_asked_once_until_it_chooses_otherwise") {
        return;
    }
    let files = Files::new();
    let acceptor = |protocols: &[&str]| files.authority.issue("127.0.0.1").acceptor(protocols, None);
    let origin = Http2Origin::over_tls(acceptor(&["h2", "http/1.1"])).await;
    let proxy = files.proxy_to(&[origin.address]).await;
    let mut client = Connection::open(proxy.address()).await;
    let upload = "x".repeat(200_000);
    let mut version_of = async |method: &str, body: &str| {
        let response = client.request(method, "/", "", body).await;
        assert_eq!(response.status, 200);
        response.header("x-version").expect("it says").to_owned()
    };
    // The first request of all, which moves with its body.
    assert_eq!(version_of("POST", &upload).await, "h2");
    for _ in 0..20 {
        assert_eq!(version_of("GET", "").await, "h2");
    }
    assert_eq!(origin.connections(), 2, "one to ask");
    assert_eq!(origin.requests()[0].body, upload.as_bytes());
    // HEAD opens connections, so that it meets the change.
    origin.change(acceptor(&["http/1.1"]));
    assert_eq!(version_of("HEAD", "").await, "h1");
    for _ in 0..20 {
        assert_eq!(version_of("GET", "").await, "h1");
    }
    assert_eq!(origin.connections(), 4, "it chose by itself, and then was kept");
    origin.change(acceptor(&["h2", "http/1.1"]));
    assert_eq!(version_of("HEAD", "").await, "h1", "on the kept one");
    for _ in 0..20 {
        assert_eq!(version_of("GET", "").await, "h2");
    }
    assert_eq!(origin.connections(), 5, "one to ask; the first of all was kept");
    let seen = origin.requests();
    assert_eq!(seen.len(), 63, "each once");
    assert_eq!(proxy.metric("gopherproxy_upstream_retries_total").await, 0.0);
    assert_eq!(proxy.metric("gopherproxy_ejections_total").await, 0.0);
}

#[tokio::test]
async fn what_http_2_can_not_carry_is_nobodys_failure_where_there_is_nothing_else() {
    let files = Files::new();
    let acceptor = || files.authority.issue("127.0.0.1").acceptor(&["h2"], None);
    let origins = [
        Http2Origin::over_tls(acceptor()).await,
        Http2Origin::over_tls(acceptor()).await,
    ];
    let proxy = files.proxy_to(&origins.each_ref().map(|origin| origin.address)).await;
    for number in 0..6 {
        let mut client = Connection::open(proxy.address()).await;
        let path = format!("/socket/{number}");
        client
            .send(format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            ))
            .await;
        assert_eq!(client.head().await.status, 502);
        let line = proxy.request_line(&path).await;
        let error = line["error"].as_str().expect("why");
        assert!(error.contains("speaks HTTP/2 alone"), "{error}");
        assert_eq!(get(proxy.address(), "/").await.status, 200);
    }
    assert_eq!(proxy.metric("gopherproxy_ejections_total").await, 0.0);
    proxy.active_backends(2).await;
}

#[tokio::test]
async fn a_response_until_the_end_that_tls_does_not_end_is_cut() {
    let files = Files::new();
    let (address, _accepting) = files
        .origin(|mut stream| async move {
            let request = request(&mut stream).await?;
            let framing = if request.contains("/length") {
                "Content-Length: 4\r\n"
            } else {
                ""
            };
            send(
                &mut stream,
                &format!("HTTP/1.1 200 OK\r\n{framing}Connection: close\r\n\r\nbody"),
            )
            .await?;
            if request.contains("/clean") {
                stream.shutdown().await.ok()?;
            }
            None
        })
        .await;
    let proxy = files.proxy_to(&[address]).await;
    for (path, whole) in [
        ("/clean", true),
        ("/cut", false),
        ("/length/clean", true),
        // Nothing is missing.
        ("/length/cut", true),
    ] {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
            .await;
        let text = String::from_utf8_lossy(&client.rest().await).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        let ends = head.to_lowercase().contains("content-length") || body.ends_with("0\r\n\r\n");
        assert!(body.contains("body") && ends == whole, "{path}: {text}");
        let line = proxy.request_line(path).await;
        assert_eq!(line.get("reason").is_none(), whole, "{line}");
    }
}

#[tokio::test]
async fn a_new_key_leaves_an_idle_connection_and_an_end_does_not() {
    let files = Files::new();
    let (address, _accepting) = files
        .origin(|mut stream| async move {
            let port = stream.get_ref().0.peer_addr().ok()?.port().to_string();
            loop {
                let request = request(&mut stream).await?;
                let length = port.len();
                send(
                    &mut stream,
                    &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{port}"),
                )
                .await?;
                if request.contains("/key") {
                    stream.get_mut().1.refresh_traffic_keys().ok()?;
                    // It goes out with the next record, which is empty.
                    send(&mut stream, "").await?;
                } else if request.contains("/end") {
                    return stream.shutdown().await.ok();
                }
            }
        })
        .await;
    let proxy = files.proxy_to(&[address]).await;
    let mut client = Connection::open(proxy.address()).await;
    let mut port = async |path: &str| {
        // Not repeatable, so it can't be saved by another try.
        let response = client.request("POST", path, "", "").await;
        assert_eq!(response.status, 200, "{path}");
        // Time for what comes behind it.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        response.text()
    };
    let first = port("/").await;
    for path in ["/key", "/key", "/"] {
        assert_eq!(port(path).await, first);
    }
    assert_eq!(port("/end").await, first);
    assert_ne!(port("/").await, first);
}

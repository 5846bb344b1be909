//! conf/sites.yaml, as a new user would drive it: two sites with TLS, a canary, a WebSocket and gRPC.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

use crate::support::http::Response;
use crate::support::tls::{Authority, Client, shown};
use crate::support::{Connection, Process, origin};

/// A connection from this address to a site.
async fn connect(to: SocketAddr, from: IpAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(from, 0)).expect("it is free");
    socket.connect(to).await.expect("a connection")
}

async fn get(proxy: &Process, client: &Client, from: IpAddr, host: &str, path: &str) -> Response {
    // For names that are no site's there is the first certificate.
    let name = if host == "api.localhost" {
        host
    } else {
        "shop.localhost"
    };
    let stream = client.shake(connect(proxy.tls_address(), from).await, name).await;
    let mut connection = stream.expect("a handshake");
    connection
        .send(format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
        .await;
    connection.response().await
}

#[tokio::test]
async fn two_sites_with_a_canary_a_websocket_and_grpc_are_served_by_the_file_in_conf() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().expect("a directory");
    let sites = ["shop", "api"].map(|site| {
        let pair = authority.issue(&[&format!("{site}.localhost")]);
        let directory = directory.path().join(site);
        std::fs::create_dir(&directory).expect("a directory");
        pair.write(&directory, "site");
        pair
    });
    let mut file = include_str!("../../../conf/sites.yaml")
        .replace("  listen: 8080", "  listen: 127.0.0.1:0\n  admin_listen: 127.0.0.1:0")
        .replace("listen: 8443", "listen: 127.0.0.1:0")
        .replace("/etc/gopherproxy/tls", directory.path().to_str().expect("text"));
    let origins: [_; 4] = std::array::from_fn(|_| origin());
    for (number, origin) in origins.iter().enumerate() {
        let listed = format!("127.0.0.1:{}", 8081 + number);
        assert!(file.contains(&listed));
        file = file.replace(&listed, &origin.address().to_string());
    }
    let proxy = Process::proxy(&file).await;
    for pool in ["stable", "canary", "chat", "api"] {
        proxy
            .reaches(&format!("gopherproxy_active_backends{{pool=\"{pool}\"}}"), 1.0)
            .await;
    }
    let client = authority.client();
    let this = IpAddr::from([127, 0, 0, 1]);

    for (pair, host) in sites.iter().zip(["shop.localhost", "api.localhost"]) {
        let connection = client.open(proxy.tls_address(), host).await;
        assert_eq!(shown(&connection), pair.der(), "{host}");
    }

    let mut pools = BTreeSet::new();
    for last in 2..40 {
        let from = IpAddr::from([127, 0, 0, last]);
        let first = get(&proxy, &client, from, "shop.localhost", "/").await.origin();
        assert_eq!(get(&proxy, &client, from, "shop.localhost", "/a").await.origin(), first);
        pools.insert(first);
    }
    assert_eq!(pools, [origins[0].address(), origins[1].address()].into());

    for (host, path, status, body) in [
        ("shop.localhost", "/%61dmin/users", 403, "not from outside\n"),
        ("shop.localhost", "/ping", 200, "hello"),
        ("other.localhost", "/ping", 200, "ok\n"),
        ("other.localhost", "/", 404, "Not Found"),
        ("shop.localhost", "/x/../admin/", 400, "Bad Request"),
    ] {
        let response = get(&proxy, &client, this, host, path).await;
        assert_eq!(response.status, status, "{host}{path}");
        assert!(response.text().starts_with(body), "{host}{path}: {}", response.text());
    }
    let moved = get(&proxy, &client, this, "old.localhost", "/a?b").await;
    assert_eq!(moved.header("location"), Some("https://shop.localhost:8443/a?b"));
    let mut plain = Connection::open(proxy.address()).await;
    plain.send("GET /a HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").await;
    assert_eq!(plain.response().await.status, 308);

    let mut chat = client.open(proxy.tls_address(), "shop.localhost").await;
    chat.send("GET /upgrade HTTP/1.1\r\nHost: shop.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    let switched = chat.head().await;
    assert_eq!((switched.status, switched.origin()), (101, origins[2].address()));
    chat.send("hello").await;
    assert_eq!(chat.bytes(5).await, b"hello");

    let mut calls = client.open_http2(proxy.tls_address(), "api.localhost").await;
    let call = http::Request::builder()
        .method("POST")
        .uri("https://api.localhost/demo.Echo/Say")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let answer = calls.send(call.body(()).expect("a request"), b"\0\0\0\0\x02hi").await;
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"\0\0\0\0\x02hi"[..]));
    assert_eq!(answer.trailers.expect("trailers")["grpc-status"], "0");

    let line = proxy.request_line("/demo.Echo/Say").await;
    assert_eq!((&line["route"], &line["pool"]), (&"api".into(), &"api".into()));
    let line = proxy.request_line("/%61dmin/users").await;
    assert_eq!(
        (&line["route"], &line["pool"]),
        (&"admin".into(), &serde_json::Value::Null)
    );
}

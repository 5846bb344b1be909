//! A service that is asked whether a request may pass.

mod protocols;
mod refusals;

use std::sync::Arc;

use h2::ext::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::support::http2::{CLEARTEXT, Http2, request as request2};
use crate::support::http2_origin::Http2Origin;
use crate::support::{
    Connection, LIMIT, Process, RawOrigin, embedded, embedded_targets, eventually, free_port, proxy_to,
};

/// What the origin of these tests answers.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The answers of the authentication service, by what the client wants it to say.
const ANSWERS: [(&str, &str); 16] = [
    (
        "in",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nRemote-User: alice\r\nRemote-Groups: a\r\nremote-groups: b\r\nRemote_Email: no\r\n\
         X-Other: no\r\n\r\n3\r\nyes\r\n0\r\n\r\n",
    ),
    ("bare", "HTTP/1.1 204 No Content\r\n\r\n"),
    (
        "early",
        "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\nRemote-User: alice\r\n\r\n",
    ),
    (
        "hop",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Remote-User\r\nRemote-User: alice\r\n\r\n",
    ),
    (
        "401",
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 5\r\nKeep-Alive: 9\r\n\r\nlogin",
    ),
    (
        "login",
        "HTTP/1.1 302 Found\r\nLocation: https://login.example/?back=%2F\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
         Transfer-Encoding: chunked\r\n\r\n5\r\nlogin\r\n0\r\n\r\n",
    ),
    ("silent", ""),
    ("large", "HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n"),
    ("head", "HTTP/1.1 200 OK\r\n"),
    ("body", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nno"),
    ("junk", "SSH-2.0-OpenSSH\r\n\r\n"),
    (
        "101",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: a\r\n\r\n",
    ),
    ("700", "HTTP/1.1 700 What\r\nContent-Length: 0\r\n\r\n"),
    (
        "lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\nRemote-User: alice\r\n\r\n",
    ),
    (
        "fold",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRemote-User: alice\r\n X-Admin: yes\r\n\r\n",
    ),
    (
        "return",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRemote-User: alice\rX-Admin: yes\r\n\r\n",
    ),
];

/// A service that answers as the field `X-Want` says.
async fn service() -> RawOrigin {
    RawOrigin::start(|mut peer| async move {
        while let Some(question) = peer.request().await {
            let wanted = question.to_lowercase();
            let wanted = wanted
                .split("\r\nx-want: ")
                .nth(1)
                .and_then(|rest| rest.split("\r\n").next());
            let wanted = wanted.unwrap_or("in");
            if wanted == "chunks" {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                for _ in 0..17 {
                    peer.send(format!("1000\r\n{}\r\n", "x".repeat(4096))).await;
                }
                continue;
            }
            if wanted == "endless" {
                peer.send(format!("HTTP/1.0 200 OK\r\n\r\n{}", "x".repeat(65_537)))
                    .await;
                continue;
            }
            let (_, answer) = ANSWERS.iter().find(|(name, _)| *name == wanted).expect("an answer");
            peer.send(answer).await;
            if ["head", "body"].contains(&wanted) {
                return;
            }
            if wanted == "silent" {
                let _ = peer.stream.read_u8().await;
                return;
            }
        }
    })
    .await
}

/// The keys of a route that asks `service`.
fn asks(service: &RawOrigin) -> String {
    format!(
        "forward_auth: {{url: 'http://{}/verify?a=b', copy: [Remote-User, Remote-Groups, Remote_Email], timeout: 20s}}",
        service.address
    )
}

/// A proxy with these keys in its only route, over an origin that notes what it gets.
async fn routed(keys: &str) -> (Process, RawOrigin) {
    let origin = RawOrigin::answering(ANSWER).await;
    let proxy = proxy_to(&origin, &format!("{CLEARTEXT}  routes:\n    shop: {{{keys}}}\n")).await;
    (proxy, origin)
}

/// A response over either protocol: its status, its fields in lower case, each a line, and its body.
#[derive(Debug)]
struct Seen {
    status: u16,
    fields: String,
    body: String,
}

/// Asks over HTTP/1.1 and over HTTP/2, each on a connection of its own.
async fn ask(proxy: &Process, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> [Seen; 2] {
    let lines: String = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let mut client = Connection::open(proxy.address()).await;
    let first = client.request(method, path, &lines, body).await;
    let line = |name: &str, value: &str| format!("{name}: {value}\n").to_lowercase();
    let first = Seen {
        status: first.status,
        fields: first.headers.iter().map(|(name, value)| line(name, value)).collect(),
        body: first.text(),
    };
    // The connection is in order.
    assert_eq!(client.request(method, path, &lines, body).await.status, first.status);
    let mut request = request2(method, path);
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().expect("a name");
        request.headers_mut().append(name, value.parse().expect("a value"));
    }
    if !body.is_empty() {
        request.headers_mut().insert("content-length", body.len().into());
    }
    let second = Http2::open(proxy.address()).await.send(request, body.as_bytes()).await;
    let second = second.expect("an answer");
    let second = Seen {
        status: second.status,
        fields: second
            .headers
            .iter()
            .map(|(name, value)| line(name.as_str(), value.to_str().expect("text")))
            .collect(),
        body: second.text(),
    };
    [first, second]
}

/// The values of the field `name` in the head of `request`.
fn values<'r>(request: &'r str, name: &str) -> Vec<&'r str> {
    let head = request.split("\r\n\r\n").next().unwrap_or_default();
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
    fields
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

#[tokio::test]
async fn a_request_that_may_pass_has_the_fields_of_the_answer_and_none_of_the_client_s() {
    let service = service().await;
    let (proxy, origin) = routed(&asks(&service)).await;
    let spoofs = [
        ("Remote-User", "admin"),
        ("remote_user", "admin"),
        ("Remote.User", "admin"),
        ("Remote_Groups", "admin"),
        ("remote~groups", "admin"),
        ("Remote-Email", "admin"),
        ("Cookie", "session=1"),
        ("Authorization", "Bearer token"),
        ("X-Forwarded-Uri", "/public"),
        ("X-Forwarded-Method", "HEAD"),
        ("X-Forwarded-For", "10.9.9.9"),
        ("X_Forwarded_Host", "public"),
        ("X.Forwarded.Host", "public"),
        ("X-Original-URL", "http://public/"),
        ("X.Original.URL", "http://public/"),
        ("X-Rewrite-Url", "/public"),
        ("If-None-Match", "x"),
        ("Range", "bytes=0-1"),
        ("Accept", "text/html"),
    ];
    for seen in ask(&proxy, "POST", "/cart?a=b%20c", &spoofs, "body").await {
        assert_eq!((seen.status, seen.body.as_str()), (200, "ok"), "{seen:?}");
    }
    let requests = origin.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert!(
            request.starts_with("POST /cart?a=b%20c HTTP/1.1\r\n") && request.ends_with("\r\n\r\nbody"),
            "{request}"
        );
        assert_eq!(values(request, "remote-user"), ["alice"]);
        assert_eq!(values(request, "remote-groups"), ["a", "b"]);
        assert_eq!(values(request, "remote_email"), ["no"]);
        assert_eq!(values(request, "authorization"), ["Bearer token"]);
        assert!(
            !request.contains("admin") && !request.to_lowercase().contains("x-other"),
            "{request}"
        );
    }
    // What the service was asked, and nothing else.
    let questions = service.requests();
    assert_eq!((questions.len(), service.connections()), (3, 1));
    for (question, request) in questions.iter().zip(&requests) {
        let (head, body) = question.split_once("\r\n\r\n").expect("a head");
        let mut lines: Vec<_> = head.split("\r\n").map(str::to_lowercase).collect();
        lines.sort_unstable();
        let id = format!("x-request-id: {}", values(request, "x-request-id")[0]);
        let host = format!("host: {}", service.address);
        let mut expected = vec![
            "get /verify?a=b http/1.1",
            "accept: text/html",
            "authorization: bearer token",
            "cookie: session=1",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: test",
            "x-forwarded-method: post",
            "x-forwarded-proto: http",
            "x-forwarded-uri: /cart?a=b%20c",
            &host,
            &id,
        ];
        expected.sort_unstable();
        assert_eq!((lines, body), (expected.into_iter().map(str::to_owned).collect(), ""));
    }

    for (wanted, user) in [("bare", &[][..]), ("early", &["alice"]), ("hop", &[])] {
        let fields = [("X-Want", wanted), ("Remote-User", "admin"), ("remote_user", "admin")];
        let before = origin.requests().len();
        for seen in ask(&proxy, "GET", "/", &fields, "").await {
            assert_eq!(seen.status, 200, "{wanted}");
        }
        for request in &origin.requests()[before..] {
            assert_eq!(values(request, "remote-user"), user, "{request}");
            assert!(!request.contains("admin"), "{request}");
        }
    }
    assert_eq!(service.connections(), 1);
}

#[tokio::test]
async fn a_trailer_is_no_way_to_a_field_that_the_service_sets() {
    let service = service().await;
    let (proxy, origin) = routed(&asks(&service)).await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: a\r\nTrailer: Remote-User\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nRemote-User: admin\r\n\
             remote_groups: admin\r\nRemote.User: admin\r\nX-Sum: 1\r\n\r\n",
        )
        .await;
    // The origin reads no chunks.
    eventually("it arrives", async || !origin.requests().is_empty()).await;
    let request = origin.requests().concat();
    assert!(!request.contains("admin"), "{request}");
}

#[tokio::test]
async fn connections_that_the_service_closes_cost_no_request() {
    // It says nothing of closing.
    let service = RawOrigin::start(|mut peer| async move {
        peer.request().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRemote-User: alice\r\n\r\n")
            .await;
    })
    .await;
    let (proxy, origin) = routed(&asks(&service)).await;
    let mut client = Connection::open(proxy.address()).await;
    for _ in 0..50 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!((origin.requests().len(), service.requests().len()), (50, 50));

    // It closes what it has read a question of, without an answer: one that was kept is not the last word.
    let fickle = RawOrigin::start(|mut peer| async move {
        if peer.request().await.is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            peer.request().await;
        }
    })
    .await;
    let (proxy, _origin) = routed(&asks(&fickle)).await;
    let mut client = Connection::open(proxy.address()).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn connections_to_the_service_stay_through_a_reload_that_keeps_it_and_end_without_another_question() {
    let (end, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (ends, sees) = (Arc::clone(&end), Arc::clone(&ended));
    let service = RawOrigin::start(move |mut peer| {
        let (ends, sees) = (Arc::clone(&ends), Arc::clone(&sees));
        async move {
            loop {
                tokio::select! {
                    question = peer.request() => {
                        assert!(question.is_some(), "the proxy has no reason to close it");
                        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    }
                    () = ends.notified() => break,
                }
            }
            peer.stream.shutdown().await.expect("it is open");
            let _ = peer.stream.read_u8().await;
            sees.notify_one();
        }
    })
    .await;
    let origin = RawOrigin::answering(ANSWER).await;
    let config =
        |keys: &str| embedded(&[origin.address]) + &format!("  routes:\n    shop: {{{}{keys}}}\n", asks(&service));
    let proxy = Process::proxy(&config("")).await;
    proxy.active_backends(1).await;
    for (count, keys) in [(1.0, ", max_body: 1KiB"), (2.0, ""), (3.0, ", methods: [GET]")] {
        assert_eq!(Connection::open(proxy.address()).await.get("/").await.status, 200);
        proxy.reconfigure(&config(keys));
        proxy.signal("HUP");
        proxy
            .reaches("gopherproxy_config_reloads_total{result=\"ok\"}", count)
            .await;
    }
    assert_eq!(Connection::open(proxy.address()).await.get("/").await.status, 200);
    assert_eq!((service.requests().len(), service.connections()), (4, 1));
    end.notify_one();
    timeout(LIMIT, ended.notified())
        .await
        .expect("the proxy closes its end too");
}

#[tokio::test]
async fn a_reload_begins_and_ends_it_and_a_request_that_waits_ends_as_it_began() {
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let service = RawOrigin::start(move |mut peer| {
        let released = Arc::clone(&released);
        async move {
            while let Some(question) = peer.request().await {
                if question.contains("X-Forwarded-Uri: /wait\r\n") {
                    released.notified().await;
                }
                peer.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
                    .await;
            }
        }
    })
    .await;
    let origin = RawOrigin::answering(ANSWER).await;
    let config = |keys: &str| embedded(&[origin.address]) + &format!("  routes:\n    shop: {{{keys}}}\n");
    let proxy = Process::proxy(&config("")).await;
    proxy.active_backends(1).await;
    let status = async || Connection::open(proxy.address()).await.get("/").await.status;
    assert_eq!(status().await, 200);
    proxy.reconfigure(&config(&asks(&service)));
    proxy.signal("HUP");
    eventually("it is asked", async || status().await == 401).await;
    let mut waiting = Connection::open(proxy.address()).await;
    waiting.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("it is asked about", async || {
        service.requests().concat().contains("/wait")
    })
    .await;
    proxy.reconfigure(&config("forward_auth: off"));
    proxy.signal("HUP");
    eventually("it is not asked", async || status().await == 200).await;
    release.notify_one();
    assert_eq!(waiting.response().await.status, 401);
}

#[tokio::test]
async fn a_route_that_would_ask_nobody_is_a_mistake() {
    for (keys, problem) in [
        (
            "answer: a, forward_auth: {url: http://a}",
            "shop.forward_auth: the proxy answers the requests of this route itself",
        ),
        (
            "redirect: 'https://a', forward_auth: {url: http://a}",
            "and asks no service; only routes to a pool can have one",
        ),
        (
            "forward_auth: {copy: [A]}",
            "gopherproxy.routes.shop.forward_auth.url: expected a URL",
        ),
        (
            "forward_auth: {url: 'https://a/?k=secret'}",
            "the proxy speaks no TLS with authentication services",
        ),
        (
            "forward_auth: {url: http://a, copy: [Transfer-Encoding]}",
            "gopherproxy.routes.shop.forward_auth.copy: entry 1",
        ),
    ] {
        let checked = Process::check(&format!("gopherproxy:\n  routes:\n    shop: {{{keys}}}\n"));
        assert!(!checked.ended().await.0.success(), "{keys}");
        eventually(problem, async || checked.text().contains(problem)).await;
        assert!(!checked.text().contains("secret"), "{}", checked.text());
    }
}

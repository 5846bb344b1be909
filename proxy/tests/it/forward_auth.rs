//! A service that is asked whether a request may pass.

use std::sync::Arc;

use h2::ext::Protocol;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use crate::support::http2::{CLEARTEXT, Http2, request as request2};
use crate::support::http2_origin::Http2Origin;
use crate::support::{Connection, Process, RawOrigin, embedded, embedded_targets, eventually, free_port, proxy_to};

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
        ("Remote_Groups", "admin"),
        ("Remote-Email", "admin"),
        ("Cookie", "session=1"),
        ("Authorization", "Bearer token"),
        ("X-Forwarded-Uri", "/public"),
        ("X-Forwarded-Method", "HEAD"),
        ("X-Forwarded-For", "10.9.9.9"),
        ("X_Forwarded_Host", "public"),
        ("X-Original-URL", "http://public/"),
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
             remote_groups: admin\r\nX-Sum: 1\r\n\r\n",
        )
        .await;
    // The origin reads no chunks.
    eventually("it arrives", async || !origin.requests().is_empty()).await;
    let request = origin.requests().concat();
    assert!(!request.contains("admin"), "{request}");
}

#[tokio::test]
async fn a_refusal_is_given_to_the_client_as_the_service_has_made_it() {
    let service = service().await;
    let (proxy, origin) = routed(&format!(
        "{}, response_headers: {{set: {{X-Served: a}}}}",
        asks(&service)
    ))
    .await;
    for (wanted, status, lines) in [
        ("401", 401, &["www-authenticate: bearer\n"][..]),
        (
            "login",
            302,
            &[
                "location: https://login.example/?back=%2f\n",
                "set-cookie: a=1\n",
                "set-cookie: b=2\n",
            ],
        ),
    ] {
        for method in ["GET", "POST", "HEAD"] {
            let body = if method == "POST" { "body" } else { "" };
            for seen in ask(&proxy, method, "/", &[("X-Want", wanted)], body).await {
                assert_eq!(seen.status, status, "{seen:?}");
                assert_eq!(seen.body, if method == "HEAD" { "" } else { "login" });
                for line in lines {
                    assert!(seen.fields.contains(line), "{line}: {seen:?}");
                }
                for none in ["keep-alive: 9", "transfer-encoding", "x-served"] {
                    assert!(!seen.fields.contains(none), "{seen:?}");
                }
                assert!(
                    method == "HEAD" || seen.fields.contains("content-length: 5\n"),
                    "{seen:?}"
                );
            }
        }
    }
    assert_eq!((origin.requests().len(), service.connections()), (0, 1));
    let why = format!("forward_auth: http://{}/verify answered 302", service.address);
    proxy
        .said("request", |line| {
            line["reason"] == "auth_refused" && line["status"] == 302 && line["error"] == *why && line["bytes"] == 5
        })
        .await;
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"auth_refused\"}", 18.0)
        .await;
}

#[tokio::test]
async fn a_service_that_says_nothing_sensible_is_503() {
    let service = service().await;
    let (proxy, origin) = routed(&asks(&service)).await;
    for (wanted, why) in [
        ("large", "the body of the answer is longer than 64 KiB"),
        ("chunks", "the body of the answer is longer than 64 KiB"),
        ("endless", "the body of the answer is longer than 64 KiB"),
        ("head", "the connection ended in the head of the answer"),
        ("body", "the connection ended in the body of the answer"),
        ("junk", "the version is neither HTTP/1.1 nor HTTP/1.0"),
        ("101", "the status of the answer means nothing here"),
        ("700", "the status of the answer means nothing here"),
        ("lengths", "Content-Length is not one number"),
        ("fold", "the name of a field is not a token"),
        ("return", "a field has a control character"),
    ] {
        for seen in ask(&proxy, "GET", &format!("/{wanted}"), &[("X-Want", wanted)], "").await {
            assert_eq!(seen.status, 503, "{wanted}: {seen:?}");
            let line = "Service Unavailable: your access can't be checked at the moment; try again later (request ";
            assert!(seen.body.starts_with(line), "{seen:?}");
        }
        let line = proxy.request_line(&format!("/{wanted}")).await;
        assert_eq!(line["reason"], "auth_unavailable");
        let why = format!("forward_auth: http://{}/verify: {why}", service.address);
        assert_eq!(line["error"], *why);
    }
    let fields = [("X-Want", "junk"), ("Accept", "application/json")];
    for seen in ask(&proxy, "GET", "/", &fields, "").await {
        assert!(
            seen.status == 503 && seen.body.starts_with("{\"error\":\"Service Unavailable: "),
            "{seen:?}"
        );
    }
    let mut call = request2("POST", "/a.B/C");
    for (name, value) in [("content-type", "application/grpc"), ("x-want", "junk")] {
        call.headers_mut().insert(name, value.parse().expect("a value"));
    }
    let answer = Http2::open(proxy.address())
        .await
        .send(call, b"")
        .await
        .expect("an answer");
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("14")));
    assert!(origin.requests().is_empty());
    assert!(
        proxy
            .metric("gopherproxy_rejections_total{reason=\"auth_unavailable\"}")
            .await
            >= 37.0
    );
}

#[tokio::test]
async fn a_service_that_is_dead_or_slow_holds_up_nobody_else() {
    let service = service().await;
    let dead = free_port();
    let origin = RawOrigin::answering(ANSWER).await;
    let url = format!("http://{}/", service.address);
    let proxy = proxy_to(
        &origin,
        &format!(
            "{CLEARTEXT}  pools:\n    default: {{max_inflight: 3}}\n  routes:\n    \
             dead: {{paths: [/dead], forward_auth: {{url: 'http://127.0.0.1:{dead}'}}}}\n    \
             late: {{paths: [/late], forward_auth: {{url: '{url}', timeout: 200ms}}}}\n    \
             slow: {{paths: [/slow], forward_auth: {{url: '{url}', timeout: 60s}}}}\n    open: {{}}\n"
        ),
    )
    .await;
    let silent = [("X-Want", "silent")];
    for (path, why) in [
        ("/dead", "no connection: Connection refused"),
        ("/late", "no answer within 200ms"),
    ] {
        for seen in ask(&proxy, "GET", path, &silent, "").await {
            assert_eq!(seen.status, 503, "{seen:?}");
        }
        let line = proxy.request_line(path).await;
        assert!(
            line["error"].as_str().is_some_and(|error| error.contains(why)),
            "{line}"
        );
    }
    // The backend has room for three requests. Those that wait for the service take none of it. The service has 128 questions at a time.
    let before = service.requests().len();
    let mut waiting = Vec::new();
    for _ in 0..140 {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send("GET /slow HTTP/1.1\r\nHost: a\r\nX-Want: silent\r\n\r\n")
            .await;
        waiting.push(client);
    }
    eventually("they are asked about", async || {
        service.requests().len() >= before + 128
    })
    .await;
    for _ in 0..3 {
        assert_eq!(Connection::open(proxy.address()).await.get("/").await.status, 200);
    }
    assert_eq!(service.requests().len(), before + 128);
    // Whoever leaves is waited for no longer, so that others come next.
    let mut stream = Http2::open(proxy.address()).await;
    let mut asked = request2("GET", "/slow");
    asked.headers_mut().insert("x-want", "silent".parse().expect("a value"));
    let (response, _) = stream.requests.send_request(asked, true).expect("it is open");
    drop((waiting, response));
    let in_time = Connection::open(proxy.address()).await.get("/slow").await;
    assert_eq!(in_time.status, 200);
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    proxy
        .said("request", |line| {
            line["route"] == "slow" && line["reason"] == "client_gone" && line["protocol"] == "h2"
        })
        .await;
}

#[tokio::test]
async fn a_backend_that_speaks_http2_gets_the_fields_of_the_answer() {
    let service = service().await;
    let origin = Http2Origin::plain().await;
    let more = format!(
        "  upstream: {{protocol: h2c}}\n  http2: {{cleartext: true}}\n  routes:\n    shop: {{{}}}\n",
        asks(&service)
    );
    let proxy = Process::proxy(&(embedded_targets(&[origin.address.to_string()]) + &more)).await;
    proxy.active_backends(1).await;
    for seen in ask(
        &proxy,
        "POST",
        "/",
        &[("Remote-User", "admin"), ("remote_user", "admin")],
        "body",
    )
    .await
    {
        assert_eq!(seen.status, 200);
    }
    let requests = origin.requests();
    assert_eq!(requests.len(), 3);
    for seen in requests {
        assert!(
            seen.head.contains("remote-user: alice\r\n") && !seen.head.contains("admin"),
            "{}",
            seen.head
        );
        assert!(
            seen.head.contains("remote-groups: a\r\nremote-groups: b\r\n"),
            "{}",
            seen.head
        );
    }
}

#[tokio::test]
async fn a_websocket_is_asked_about_and_switches() {
    let service = service().await;
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.head().await.is_some() {
            peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
                .await;
            let _ = peer.stream.read_u8().await;
        }
    })
    .await;
    let more = format!("{CLEARTEXT}  routes:\n    chat: {{{}}}\n", asks(&service));
    let proxy = proxy_to(&origin, &more).await;
    let handshake =
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nRemote-User: admin\r\n";
    let mut client = Connection::open(proxy.address()).await;
    client.send(format!("{handshake}\r\n")).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.bytes(5).await, b"hello");
    assert_eq!(values(&origin.requests()[0], "remote-user"), ["alice"]);
    let question = service.requests().concat().to_lowercase();
    assert!(
        !question.contains("upgrade") && !question.contains("connection"),
        "{question}"
    );
    let mut refused = Connection::open(proxy.address()).await;
    refused.send(format!("{handshake}X-Want: 401\r\n\r\n")).await;
    let response = refused.response().await;
    assert_eq!((response.status, response.text().as_str()), (401, "login"));
    assert_eq!(origin.requests().len(), 1);

    // Over HTTP/2 (RFC 8441).
    let mut client = Http2::open(proxy.address()).await;
    eventually("it is offered", async || {
        client.requests.is_extended_connect_protocol_enabled()
    })
    .await;
    for (wanted, status) in [("401", 401), ("in", 200)] {
        let mut asked = request2("CONNECT", "/chat");
        asked.extensions_mut().insert(Protocol::from_static("websocket"));
        for (name, value) in [("x-want", wanted), ("remote-user", "admin")] {
            asked.headers_mut().insert(name, value.parse().expect("a value"));
        }
        let (response, _up) = client.requests.send_request(asked, false).expect("it is open");
        assert_eq!(response.await.expect("an answer").status(), status);
    }
    let requests = origin.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(values(&requests[1], "remote-user"), ["alice"]);
    let question = service.requests().pop().expect("a question");
    assert_eq!(values(&question, "x-forwarded-method"), ["GET"]);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_sends_its_body_only_if_it_may_pass() {
    let service = service().await;
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.head().await.is_some() {
            peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            let body = peer.until("body").await;
            assert_eq!(body.as_deref(), Some("body"));
            peer.send(ANSWER).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, &format!("  routes:\n    shop: {{{}}}\n", asks(&service))).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n";
    let mut client = Connection::open(proxy.address()).await;
    client.send(format!("{head}\r\n")).await;
    assert_eq!(client.response().await.status, 100);
    client.send("body").await;
    assert_eq!(client.response().await.status, 200);
    let mut refused = Connection::open(proxy.address()).await;
    refused.send(format!("{head}X-Want: 401\r\n\r\n")).await;
    let response = refused.response().await;
    assert_eq!((response.status, response.header("connection")), (401, Some("close")));
    assert_eq!(origin.requests().len(), 1);
    let questions = service.requests().concat().to_lowercase();
    assert!(
        !questions.contains("expect") && !questions.contains("content-length"),
        "{questions}"
    );
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

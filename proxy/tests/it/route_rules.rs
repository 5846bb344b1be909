//! What a route does to requests and responses, and who may use it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::http2::{CLEARTEXT, Http2, get as get2};
use crate::support::{Connection, Process, RawOrigin, eventually, proxy_to};

/// A response with fields that the routes of these tests change.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: origin\r\nX-Frame-Options: ALLOWALL\r\n\r\nok";

/// A proxy with these keys in its only route, over an origin that notes what it gets.
async fn routed(keys: &str) -> (Process, RawOrigin) {
    let origin = RawOrigin::answering(ANSWER).await;
    let more = format!("{CLEARTEXT}  trusted_proxies: [127.0.0.8]\n  routes:\n    shop: {{{keys}}}\n");
    (proxy_to(&origin, &more).await, origin)
}

/// Asks over HTTP/1.1 and over HTTP/2 with these fields; returns what the origin got and the fields of the responses, in lower case.
async fn ask(proxy: &Process, origin: &RawOrigin, path: &str, fields: &[(&str, &str)]) -> [(String, String); 2] {
    let lines: String = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let first = Connection::open(proxy.address())
        .await
        .request("GET", path, &lines, "")
        .await;
    assert_eq!(first.status, 200, "{first:?}");
    let line = |(name, value): (&str, &str)| format!("{name}: {value}\n").to_lowercase();
    let first: String = first.headers.iter().map(|(name, value)| line((name, value))).collect();
    let mut request = get2(path);
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().expect("a name");
        request.headers_mut().append(name, value.parse().expect("a value"));
    }
    let second = Http2::open(proxy.address())
        .await
        .send(request, b"")
        .await
        .expect("an answer");
    assert_eq!(second.status, 200);
    let names = ["server", "x-frame-options", "x-served", "set-cookie"];
    let named = names.iter().filter_map(|name| Some(line((name, second.header(name)?))));
    let requests = origin.requests();
    let [.., of_first, of_second] = &requests[..] else {
        panic!("{requests:?}")
    };
    [
        (of_first.to_lowercase(), first),
        (of_second.to_lowercase(), named.collect()),
    ]
}

#[tokio::test]
async fn fields_and_paths_are_changed_for_both_protocols_and_no_client_can_send_what_a_route_sets() {
    let keys = "request_headers: {set: {X-User: '{client}', X-Where: '{route} {host}'}, add: {X-More: a}, remove: [Cookie]}, \
                response_headers: {set: {X-Frame-Options: DENY, X-Served: '{route} {request_id}'}, remove: [Server]}, \
                strip_prefix: /shop, add_prefix: /v1";
    let (proxy, origin) = routed(keys).await;
    let spoofs = [
        ("X-User", "admin"),
        ("X_User", "admin"),
        ("x.user", "admin"),
        ("x_where", "admin"),
        ("Cookie", "a=admin"),
        ("X-Forwarded-Prefix", "/admin"),
        ("X-More", "b"),
    ];
    for (request, response) in ask(&proxy, &origin, "/shop/a?b=c", &spoofs).await {
        assert!(request.starts_with("get /v1/a?b=c http/1.1\r\n"), "{request}");
        assert!(!request.contains("admin") && !request.contains("cookie"), "{request}");
        for line in [
            "x-user: 127.0.0.1",
            "x-where: shop ",
            "x-more: a",
            "x-more: b",
            "x-forwarded-prefix: /shop",
        ] {
            assert!(request.contains(&format!("\r\n{line}")), "{line}: {request}");
        }
        assert!(
            !response.contains("server:") && response.contains("x-frame-options: deny\n"),
            "{response}"
        );
        let id = request
            .split("x-request-id: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next());
        let id = id.expect("an id");
        assert!(response.contains(&format!("x-served: shop {id}\n")), "{response}");
    }
    // `Connection` can't take away what a route sets.
    let nominates = "Connection: X-User\r\n";
    Connection::open(proxy.address())
        .await
        .request("GET", "/", nominates, "")
        .await;
    let last = origin.requests().pop().expect("a request").to_lowercase();
    assert!(last.contains("\r\nx-user: 127.0.0.1\r\n"), "{last}");
}

#[tokio::test]
async fn a_route_is_for_the_clients_that_it_allows_and_not_for_those_that_it_denies() {
    let (proxy, origin) = routed("allow: [127.0.0.0/8, 192.0.2.0/24], deny: [127.0.0.2, 192.0.2.7]").await;
    for (from, client, status) in [
        ("127.0.0.1", "", 200),
        ("127.0.0.2", "", 403),
        // Nobody believes what this one says.
        ("127.0.0.2", "127.0.0.1", 403),
        ("127.0.0.8", "192.0.2.1", 200),
        ("127.0.0.8", "192.0.2.7", 403),
        ("127.0.0.8", "198.51.100.1", 403),
    ] {
        let mut connection = Connection::open_from(proxy.address(), from.parse().expect("an address")).await;
        let line = match client {
            "" => String::new(),
            client => format!("X-Forwarded-For: {client}\r\n"),
        };
        let response = connection.request("GET", "/", &line, "").await;
        assert_eq!(response.status, status, "{from} {client}");
        // It stays open.
        connection.request("GET", "/", &line, "").await;
    }
    assert_eq!(origin.requests().len(), 4);
    proxy
        .said("request", |line| line["reason"] == "forbidden" && line["status"] == 403)
        .await;
}

/// What a user with this password says.
fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

#[tokio::test]
async fn a_route_with_users_is_for_those_with_the_right_password_which_goes_nowhere() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("users");
    let write = |pairs: &[(&str, &str)]| {
        let line = |(user, password): &(&str, &str)| {
            let hash = bcrypt::hash(password, 4).expect("a hash");
            format!("{user}:{hash}\n")
        };
        std::fs::write(&file, pairs.iter().map(line).collect::<String>()).expect("written");
    };
    write(&[("alice", "open sesame")]);
    let (proxy, origin) = routed(&format!("basic_auth: {}", file.display())).await;
    let ask = async |pair: Option<&str>| {
        let value = pair.map(basic);
        let line = value
            .as_ref()
            .map_or(String::new(), |value| format!("Authorization: {value}\r\n"));
        let mut client = Connection::open(proxy.address()).await;
        let first = client.request("POST", "/", &line, "body").await;
        let challenge = first
            .header("www-authenticate")
            .is_some_and(|value| value.starts_with("Basic realm="));
        assert_eq!(challenge, first.status == 401, "{first:?}");
        // The connection is in order.
        let again = client.request("GET", "/", &line, "").await;
        let mut request = get2("/");
        if let Some(value) = value {
            request
                .headers_mut()
                .insert("authorization", value.parse().expect("a value"));
        }
        let second = Http2::open(proxy.address())
            .await
            .send(request, b"")
            .await
            .expect("an answer");
        assert_eq!([again.status, second.status], [first.status; 2], "{pair:?}");
        first.status
    };
    for pair in [
        None,
        Some("alice:wrong"),
        Some("eve:open sesame"),
        Some("alice"),
        Some(":"),
    ] {
        assert_eq!(ask(pair).await, 401, "{pair:?}");
    }
    assert_eq!(origin.requests().len(), 0);
    assert_eq!(ask(Some("alice:open sesame")).await, 200);
    assert_eq!(origin.requests().len(), 3);
    let seen = origin.requests().concat().to_lowercase();
    assert!(!seen.contains("authorization"), "{seen}");

    // The file is read again by itself, and a broken one changes nothing.
    write(&[("bob", "new")]);
    // Once, because the file may be read between two requests.
    let once = async |pair: &str| {
        let line = format!("Authorization: {}\r\n", basic(pair));
        let mut client = Connection::open(proxy.address()).await;
        client.request("GET", "/", &line, "").await.status
    };
    eventually("bob is known", async || once("bob:new").await == 200).await;
    assert_eq!(ask(Some("alice:open sesame")).await, 401);
    std::fs::write(&file, "bob:secret-in-plain").expect("written");
    eventually("the log says so", async || {
        ask(Some("bob:new")).await == 200 && !proxy.lines("users not loaded; the old ones stay").is_empty()
    })
    .await;
    let log = proxy.text();
    for secret in ["sesame", "$2", "secret-in-plain", &STANDARD.encode("alice:open sesame")] {
        assert!(!log.contains(secret), "{secret}");
    }
    proxy
        .said("request", |line| {
            line["reason"] == "unauthorized" && line["status"] == 401
        })
        .await;
}

#[tokio::test]
async fn a_route_that_would_ask_nobody_for_a_password_is_a_mistake() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("users");
    std::fs::write(&file, "alice:in-plain").expect("written");
    for (keys, problem) in [
        (
            format!("answer: secret, basic_auth: {}", file.display()),
            "only routes to a pool can have one",
        ),
        (
            format!("basic_auth: {}", file.display()),
            "users: line 1: the password is not hashed with bcrypt",
        ),
        (
            "request_headers: {set: {X-Forwarded-For: a}}".to_owned(),
            "gopherproxy.routes.shop.request_headers.set.X-Forwarded-For",
        ),
    ] {
        let checked = Process::check(&format!("gopherproxy:\n  routes:\n    shop: {{{keys}}}\n"));
        assert!(!checked.ended().await.0.success(), "{keys}");
        eventually(problem, async || checked.text().contains(problem)).await;
        assert!(!checked.text().contains("in-plain"), "{}", checked.text());
    }
}

/// Passwords of those who have gone away would hold up everybody else's.
#[tokio::test]
async fn a_client_that_leaves_is_waited_for_no_longer_and_one_client_has_eight_places() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("users");
    // Half a second of work each, two at a time.
    let slow = format!("$2b$13${}", ".".repeat(53));
    let quick = bcrypt::hash("open sesame", 4).expect("a hash");
    std::fs::write(&file, format!("alice:{slow}\nbob:{quick}\n")).expect("written");
    let (proxy, _origin) = routed(&format!("basic_auth: {}", file.display())).await;
    let asked = |pair: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n\r\n", basic(pair));
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut client = Connection::open(proxy.address()).await;
        client.send(asked("alice:wrong")).await;
        waiting.push(client);
    }
    proxy
        .said("request", |line| line["reason"] == "auth_busy" && line["status"] == 503)
        .await;
    let mut other = Connection::open_from(proxy.address(), [127, 0, 0, 2].into()).await;
    other.send(asked("bob:open sesame")).await;
    assert_eq!(other.response().await.status, 200);
    drop(waiting);
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;

    let mut left = Vec::new();
    for _ in 0..8 {
        let mut client = Connection::open(proxy.address()).await;
        client.send(asked("alice:wrong")).await;
        left.push(client);
    }
    drop(left);
    proxy.said("request", |line| line["reason"] == "client_gone").await;
}

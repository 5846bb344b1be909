//! Which requests go where, and what a route does with them.

use serde_json::Value;

use crate::support::http::Response;
use crate::support::http2::{self, CLEARTEXT, Http2};
use crate::support::{Connection, Process, RawOrigin, UNLIMITED, embedded, origin, proxy_to, resident_kib};

/// What a client of either version got.
#[derive(Debug, PartialEq)]
struct Got {
    status: u16,
    location: Option<String>,
    content_type: Option<String>,
    body: String,
}

/// Asks over HTTP/1.1 and over HTTP/2, where both must get the same.
async fn ask(proxy: &Process, method: &str, url: &str) -> Got {
    let (host, path) = url.split_at(url.find('/').expect("a path"));
    let first = {
        let mut client = Connection::open(proxy.address()).await;
        let response = exchange(&mut client, method, host, path).await;
        let field = |name| response.header(name).map(str::to_owned);
        Got {
            status: response.status,
            location: field("location"),
            content_type: field("content-type"),
            body: response.text(),
        }
    };
    let mut client = Http2::open(proxy.address()).await;
    let request = http::Request::builder().method(method).uri(format!("http://{url}"));
    let answer = client.send(request.body(()).expect("a request"), b"").await;
    let answer = answer.expect("an answer");
    let field = |name| answer.header(name).map(str::to_owned);
    let second = Got {
        status: answer.status,
        location: field("location"),
        content_type: field("content-type"),
        body: answer.text(),
    };
    // Every request has an id of its own.
    let without_id = |got: Got| Got {
        body: got.body.split(" (request ").next().unwrap_or_default().to_owned(),
        ..got
    };
    let (first, second) = (without_id(first), without_id(second));
    assert_eq!(first, second, "{method} {url}");
    first
}

async fn exchange(client: &mut Connection, method: &str, host: &str, path: &str) -> Response {
    client
        .send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
        .await;
    client.try_response(method == "HEAD").await.expect("a response")
}

/// A proxy with these routes, which speaks both versions.
async fn proxy_with(origin: &RawOrigin, routes: &str) -> Process {
    proxy_to(origin, &format!("{CLEARTEXT}  routes:\n{routes}")).await
}

async fn an_origin() -> RawOrigin {
    RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await
}

#[tokio::test]
async fn a_request_takes_the_most_specific_route_and_without_one_gets_404() {
    let origin = an_origin().await;
    let routes = "    shop: {hosts: [shop.example]}
    ping: {paths: [=/ping], answer: pong}
    admin: {hosts: [shop.example], paths: [/admin/], answer: 'no', status: 403, content_type: text/html}
    gone: {hosts: ['*.shop.example'], answer: '', status: 204}
    put: {hosts: [get.example], methods: [GET]}
";
    let proxy = proxy_with(&origin, routes).await;
    let text = Some("text/plain; charset=utf-8");
    for (method, url, status, body, content_type) in [
        ("GET", "shop.example/", 200, "hi", None),
        ("GET", "SHOP.example:80/ping", 200, "hi", None),
        ("GET", "shop.example/admin", 403, "no", Some("text/html")),
        ("GET", "shop.example/%61dmin/x?y", 403, "no", Some("text/html")),
        ("POST", "shop.example/admin", 403, "no", Some("text/html")),
        ("HEAD", "shop.example/admin", 403, "", Some("text/html")),
        ("GET", "www.shop.example/", 204, "", None),
        ("GET", "other.example/ping", 200, "pong", text),
        (
            "GET",
            "other.example/",
            404,
            "Not Found: nothing is served at this URL",
            Some("text/plain"),
        ),
        ("GET", "get.example/", 200, "hi", None),
        (
            "PUT",
            "get.example/",
            404,
            "Not Found: nothing is served at this URL",
            Some("text/plain"),
        ),
    ] {
        let expected = Got {
            status,
            location: None,
            content_type: content_type.map(str::to_owned),
            body: body.to_owned(),
        };
        assert_eq!(ask(&proxy, method, url).await, expected, "{method} {url}");
    }
    assert_eq!(origin.requests().len(), 6);
}

#[tokio::test]
async fn a_path_that_means_another_one_elsewhere_reaches_no_route() {
    let origin = an_origin().await;
    let proxy = proxy_with(&origin, "    all: {}\n").await;
    let open = proxy_to(&origin, CLEARTEXT).await;
    for path in [
        "/a/../b",
        "/a/%2e%2e/b",
        "/a%2fb",
        "/a%5Cb",
        "//b",
        "/a/..;/b",
        "/%00",
        "/%",
    ] {
        let url = format!("shop.example{path}");
        assert_eq!(ask(&proxy, "GET", &url).await.status, 400, "{path}");
        // Without routes there is no rule about paths that it could get around.
        assert_eq!(ask(&open, "GET", &url).await.status, 200, "{path}");
    }
    // The client of HTTP/2 would not send it.
    let mut client = Connection::open(proxy.address()).await;
    assert_eq!(client.get("/a\\b").await.status, 400);
    assert!(proxy.lines("request").iter().all(|line| {
        line["error"]
            .as_str()
            .is_some_and(|error| error.contains("the path has"))
    }));
    assert_eq!(
        client.get("/a?b=/../c//d%2f\\").await.status,
        200,
        "a query means what the origin says"
    );
}

#[tokio::test]
async fn a_redirect_keeps_what_it_is_asked_to_keep_and_can_not_be_led_astray() {
    let origin = an_origin().await;
    let routes = "    moved: {hosts: [old.example], redirect: 'https://www.example.com{path}'}
    whole: {hosts: ['*.old.example'], redirect: 'https://{host}.new.example{path}{query}', status: 302}
    login: {paths: [=/login], redirect: /account/login, status: 303}
";
    let proxy = proxy_with(&origin, routes).await;
    for (method, url, status, location) in [
        ("GET", "old.example/", 308, "https://www.example.com/"),
        ("GET", "old.example/a/b?c=d", 308, "https://www.example.com/a/b"),
        ("POST", "old.example/%E4%3F", 308, "https://www.example.com/%E4%3F"),
        ("HEAD", "old.example/x", 308, "https://www.example.com/x"),
        (
            "GET",
            "www.old.example:8080/a?b=http://c",
            302,
            "https://www.old.example.new.example/a?b=http://c",
        ),
        ("GET", "www.old.example/%0d%0aX:y", 400, ""),
        ("GET", "www.old.example//evil.example", 400, ""),
        ("GET", "any.example/login?x", 303, "/account/login"),
    ] {
        let got = ask(&proxy, method, url).await;
        assert_eq!(got.status, status, "{url}");
        assert_eq!(got.location.unwrap_or_default(), location, "{url}");
    }
    let mut client = Connection::open(proxy.address()).await;
    client.send("GET /\u{e4} HTTP/1.1\r\nHost: old.example\r\n\r\n").await;
    assert_eq!(
        client.response().await.header("location"),
        Some("https://www.example.com/%C3%A4")
    );
    client
        .send("GET /x HTTP/1.0\r\nHost: old.example\r\nConnection: keep-alive\r\n\r\n")
        .await;
    assert_eq!(client.response().await.status, 308, "on a connection that stays open");
    assert_eq!(origin.requests().len(), 0);
}

#[tokio::test]
async fn a_routes_limit_and_that_for_all_hold_both_and_a_refusal_costs_no_token() {
    let origin = origin();
    let limits = "  limit: {burst: 5, per_second: 0.01}\n";
    let routes = "  routes:
    narrow: {paths: [/narrow], limit: {burst: 2}}
    wide: {paths: [/wide], limit: {burst: 50}}
    free: {paths: [/free], limit: none}
    answer: {paths: [/answer], answer: x}
    rest: {}
";
    let proxy = Process::proxy(&(embedded(&[origin.address()]).replace(UNLIMITED, limits) + routes)).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open_from(proxy.address(), [127, 0, 0, 2].into()).await;
    for expected in [200, 200, 429, 429, 429, 429] {
        assert_eq!(client.get("/narrow").await.status, expected);
    }
    let refused = client.get("/narrow").await;
    assert_eq!(refused.header("ratelimit-policy"), Some("\"client\";q=2;w=200"));
    // Those refusals took nothing from the limit for all: three of five tokens are left.
    for expected in [200, 200, 200, 429] {
        assert_eq!(client.get("/answer").await.status, expected);
    }
    for _ in 0..60 {
        let refused = client.get("/wide").await;
        assert_eq!(refused.status, 429);
        assert_eq!(refused.header("ratelimit-policy"), Some("\"client\";q=5;w=500"));
        assert_eq!(client.get("/free").await.status, 200);
    }
    // Nor have the refusals by that for all taken anything from the route's.
    let exempt = "  limit: {burst: 100, per_second: 0.01}\n";
    proxy.reconfigure(
        &(embedded(&[origin.address()]).replace(UNLIMITED, exempt)
            + &routes.replace("burst: 2}", "burst: 2, per_second: 0.01}")),
    );
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    for number in 0..51 {
        let status = client.get("/wide").await.status;
        assert_eq!(status, if number < 50 { 200 } else { 429 }, "{number}");
    }
    assert_eq!(
        client.get("/narrow").await.status,
        429,
        "its bucket is as empty as before the reload"
    );
}

#[tokio::test]
async fn a_route_has_deadlines_and_a_size_of_its_own() {
    let origin = origin();
    let routes = "  upstream: {read_timeout: 30s}
  client: {max_body: 10B}
  routes:
    quick: {paths: [/delay/20000], read_timeout: 200ms}
    small: {paths: [/upload/small], max_body: 3B}
    large: {paths: [/upload/large], max_body: none}
    rest: {}
";
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + CLEARTEXT + routes)).await;
    proxy.active_backends(1).await;
    assert_eq!(ask(&proxy, "GET", "a.example/delay/20000").await.status, 504);
    assert_eq!(ask(&proxy, "GET", "a.example/delay/300").await.status, 200);
    for (path, length, expected) in [
        ("/upload/small", 3, 200),
        ("/upload/small", 4, 413),
        ("/upload/large", 100_000, 200),
        ("/upload/rest", 10, 200),
        ("/upload/rest", 11, 413),
    ] {
        let body = "x".repeat(length);
        let mut client = Connection::open(proxy.address()).await;
        assert_eq!(
            client.request("POST", path, "", &body).await.status,
            expected,
            "{path} {length}"
        );
        // Chunked, so that nobody knows the length beforehand.
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
            ))
            .await;
        assert_eq!(client.response().await.status, expected, "{path} {length} in chunks");
        let mut client = Http2::open(proxy.address()).await;
        let answer = client.send(http2::request("POST", path), body.as_bytes()).await;
        assert_eq!(
            answer.expect("an answer").status,
            expected,
            "{path} {length} over HTTP/2"
        );
    }
}

#[tokio::test]
async fn the_log_and_the_metrics_name_the_route_only_where_there_are_routes() {
    let origin = an_origin().await;
    let plain = proxy_to(&origin, "").await;
    let routes = "    shop: {hosts: [shop.example]}\n    pong: {hosts: [pong.example], answer: pong}\n";
    let configuration = embedded(&[origin.address]) + CLEARTEXT + "  routes:\n" + routes;
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    for url in ["shop.example/one", "pong.example/two", "other.example/three"] {
        ask(&proxy, "GET", url).await;
    }
    let line = |path: &'static str| async { proxy.request_line(path).await };
    let (one, two, three) = (line("/one").await, line("/two").await, line("/three").await);
    assert_eq!((&one["route"], &one["pool"]), (&"shop".into(), &Value::Null));
    assert_eq!((&two["route"], &two["reason"]), (&"pong".into(), &"answered".into()));
    assert_eq!((&two["status"], &two["bytes"]), (&200.into(), &4.into()));
    assert_eq!((&three["route"], &three["reason"]), (&Value::Null, &"no_route".into()));
    let series =
        |route: &str, class: &str| format!("gopherproxy_route_requests_total{{class=\"{class}\",route=\"{route}\"}}");
    proxy.reaches(&series("shop", "2xx"), 2.0).await;
    proxy.reaches(&series("pong", "2xx"), 2.0).await;
    proxy
        .reaches("gopherproxy_route_duration_seconds_count{route=\"shop\"}", 2.0)
        .await;
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"no_route\"}", 2.0)
        .await;
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"answered\"}", 2.0)
        .await;

    // A route that is gone has no series; one that stays goes on counting.
    proxy.reconfigure(&configuration.replace(
        "    pong: {hosts: [pong.example], answer: pong}\n",
        "    new: {hosts: [new.example]}\n",
    ));
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    let metrics = proxy.metrics().await;
    assert!(!metrics.keys().any(|name| name.contains("pong")));
    assert_eq!(metrics[&series("shop", "2xx")], 2.0);
    assert_eq!(metrics[&series("new", "2xx")], 0.0);

    assert_eq!(Connection::open(plain.address()).await.get("/four").await.status, 200);
    assert_eq!(plain.request_line("/four").await["route"], Value::Null);
    assert!(!plain.metrics().await.keys().any(|name| name.contains("_route_")));
}

#[tokio::test]
async fn a_call_of_grpc_gets_a_status_of_its_own_from_a_route_without_a_pool() {
    let origin = an_origin().await;
    let routes = "    pong: {hosts: [pong.example], answer: pong}\n    moved: {hosts: [old.example], redirect: 'https://a{path}'}\n";
    let proxy = proxy_with(&origin, routes).await;
    let mut client = Http2::open(proxy.address()).await;
    for (host, status) in [("pong.example", "12"), ("old.example", "9"), ("other.example", "12")] {
        let request = http::Request::builder()
            .method("POST")
            .uri(format!("http://{host}/a.B/C"));
        let request = request.header("content-type", "application/grpc").body(());
        let answer = client.send(request.expect("a request"), b"").await.expect("an answer");
        assert_eq!(
            (answer.status, answer.header("grpc-status")),
            (200, Some(status)),
            "{host}"
        );
        assert_eq!(answer.header("location"), None);
    }
}

#[tokio::test]
async fn a_route_has_retries_of_its_own() {
    // Origins that close every connection without a word.
    let mute = || RawOrigin::start(|mut peer| async move { drop(peer.request().await) });
    let origins = [mute().await, mute().await];
    let routes = "  upstream: {retry_budget: 1}\n  routes: {none: {paths: [/none], retries: 0}, one: {retries: 1}}\n";
    let proxy = Process::proxy(&(embedded(&origins.each_ref().map(|origin| origin.address)) + routes)).await;
    proxy.active_backends(2).await;
    for (path, tries) in [("/none", 1), ("/one", 2)] {
        let mut client = Connection::open(proxy.address()).await;
        assert_eq!(client.get(path).await.status, 502);
        let asked = origins.iter().flat_map(RawOrigin::requests);
        assert_eq!(asked.filter(|request| request.contains(path)).count(), tries, "{path}");
    }
}

#[tokio::test]
async fn a_thousand_routes_with_limits_of_their_own_take_hardly_more_memory_than_one() {
    let origin = origin();
    let resident_with = async |routes: u32| {
        let route = |number| {
            let (host, burst) = (number % 300, 50 + number % 10);
            format!("    r{number}: {{hosts: [site{host}.example], paths: [/{number}], limit: {{burst: {burst}}}}}\n")
        };
        let text: String = (0..routes).map(route).collect();
        let proxy = Process::proxy(&(embedded(&[origin.address()]) + "  routes:\n" + &text)).await;
        proxy.active_backends(1).await;
        resident_kib(&proxy)
    };
    let (one, thousand) = (resident_with(1).await, resident_with(1000).await);
    assert!(thousand.saturating_sub(one) < 32 << 10, "{one} KiB and {thousand} KiB");
}

//! Requests that may not pass, and services that say nothing sensible.

use super::*;

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
async fn requests_that_wait_for_the_service_count_as_held() {
    let service = service().await;
    let origin = RawOrigin::answering(ANSWER).await;
    let more = format!(
        "{CLEARTEXT}  client: {{max_held: 8MiB}}\n  routes:\n    shop: {{{}}}\n",
        asks(&service).replace("20s", "60s")
    );
    let proxy = proxy_to(&origin, &more).await;
    let held = async || proxy.metric("gopherproxy_held_bytes").await;
    let padding = "x".repeat(25_000);
    let mut waiting = Vec::new();
    for _ in 0..40 {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nX-Want: silent\r\nX-Padding: {padding}\r\n\r\n"
            ))
            .await;
        waiting.push(client);
        let least = 50_000.0 * waiting.len().min(10) as f64;
        eventually("it is counted", async || held().await >= least).await;
    }
    // A client has a quarter of the budget: its oldest requests go.
    let first = waiting.remove(0).response().await;
    assert_eq!(first.status, 503);
    proxy
        .said("request", |line| {
            line["reason"] == "held_too_much" && line["route"] == "shop"
        })
        .await;
    assert!(held().await <= f64::from(2 << 20));
    drop(waiting);
    eventually("it is given back", async || held().await == 0.0).await;
    for seen in ask(&proxy, "GET", "/", &[("X-Padding", &padding)], "").await {
        assert_eq!(seen.status, 200, "{seen:?}");
    }
    assert_eq!(held().await, 0.0);
}

//! Requests over HTTP/2: what the origin gets of them, what the client gets back, and what the log says.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::support::http2::{Answer, CLEARTEXT, Http2, get, http2_proxy_to, http2_proxy_with, request, upload};
use crate::support::tls::{Authority, with_tls};
use crate::support::{
    Connection, LIMIT, Process, RawOrigin, StrictOrigin, embedded, eventually, forwarder, origin, proxy_to,
};

fn refused_with(error: &h2::Error) -> Option<Reason> {
    error.reason().filter(|_| error.is_reset())
}

#[tokio::test]
async fn an_origin_sees_the_same_request_as_over_http1_and_the_client_the_same_response() {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nKeep-Alive: timeout=5\r\n\
                    Connection: x-hop\r\nX-Hop: h\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nok";
    let origin = RawOrigin::answering(response).await;
    let proxy = http2_proxy_to(&origin).await;
    let mut client = Http2::open(proxy.address()).await;
    let mut asked = get("/a?b=c");
    for (name, value) in [
        ("cookie", "a=1"),
        ("te", "trailers"),
        ("cookie", "b=2"),
        ("cookie", "c=3"),
        ("cookie", ""),
        ("x-forwarded-for", "1.1.1.1"),
        ("x-own", "z"),
    ] {
        asked.headers_mut().append(name, value.parse().expect("a value"));
    }
    let answer = client.send(asked, b"").await.expect("an answer");
    assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
    let names: Vec<_> = answer.headers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["content-length", "x-a", "date", "set-cookie"]);
    assert_eq!(answer.header("date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a", "b"]);

    let seen = origin.requests().remove(0).to_lowercase();
    assert!(seen.starts_with("get /a?b=c http/1.1\r\n"), "{seen}");
    for line in [
        "host: test",
        "cookie: a=1; b=2; c=3",
        "x-own: z",
        "via: 2.0 gopherproxy",
        "x-forwarded-for: 127.0.0.1",
    ] {
        assert_eq!(seen.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line} in {seen}");
    }
    for name in [
        "te:",
        "connection:",
        "transfer-encoding:",
        "content-length:",
        "1.1.1.1",
        ":authority",
        ":path",
    ] {
        assert!(!seen.contains(name), "{name} in {seen}");
    }
    let line = proxy.request_line("/a").await;
    assert_eq!(
        (&line["protocol"], &line["status"], &line["bytes"]),
        (&"h2".into(), &200.into(), &2.into())
    );
    assert_eq!(Connection::open(proxy.address()).await.get("/b").await.status, 200);
    assert!(proxy.request_line("/b").await["protocol"].is_null());
}

#[tokio::test]
async fn http2_without_tls_is_off_unless_it_is_asked_for() {
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(client.response().await.status, 400);

    let proxy = http2_proxy_to(&origin).await;
    let mut client = Connection::open(proxy.address()).await;
    client.send("PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n").await;
    assert_eq!(client.response().await.status, 400);
    // Not behind another request.
    let mut client = Connection::open(proxy.address()).await;
    assert_eq!(client.get("/").await.status, 200);
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(client.response().await.status, 400);
    // In whatever pieces it comes.
    let mut client = Connection::open(proxy.address()).await;
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.bytes(5).await[3..], [4, 0], "settings");
}

#[tokio::test]
async fn half_a_preface_has_the_deadline_of_a_head() {
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = proxy_to(&origin, &(CLEARTEXT.to_owned() + "  client: {head_timeout: 300ms}\n")).await;
    for part in ["PR", "PRI * HTTP/2.0\r\n\r\nSM"] {
        let mut client = Connection::open(proxy.address()).await;
        client.send(part).await;
        assert_eq!(client.response().await.status, 408, "{part}");
    }
}

#[tokio::test]
async fn a_response_without_a_body_ends_with_its_head() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let head = match request.split(' ').nth(1) {
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
                Some("/0") => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
            };
            peer.send(head).await;
        }
    })
    .await;
    let proxy = http2_proxy_to(&origin).await;
    let mut client = Http2::open(proxy.address()).await;
    for (method, path, status, length) in [
        ("HEAD", "/", 200, Some("7")),
        ("GET", "/204", 204, None),
        ("GET", "/304", 304, Some("7")),
        ("GET", "/0", 200, Some("0")),
        ("HEAD", "/refused?#", 200, Some("7")),
    ] {
        let response = client
            .requests
            .send_request(request(method, path), true)
            .expect("it is open")
            .0;
        let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
        assert!(response.body().is_end_stream(), "{method} {path}");
        let answer = Answer::of(response).await.expect("a response");
        assert_eq!(
            (answer.status, answer.header("content-length")),
            (status, length),
            "{method} {path}"
        );
        assert!(answer.header("date").is_some());
    }
}

#[tokio::test]
async fn interim_responses_and_expectations_pass() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(head) = peer.head().await {
            if head.to_lowercase().contains("expect: 100-continue") {
                peer.send("HTTP/1.1 100 Continue\r\n\r\n").await;
                let mut body = [0; 4];
                let _ = peer.stream.read_exact(&mut body).await;
            }
            peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n")
                .await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let proxy = http2_proxy_to(&origin).await;
    let mut client = Http2::open(proxy.address()).await;
    let (mut response, _) = client.requests.send_request(get("/"), true).expect("it is open");
    let interim = async {
        std::future::poll_fn(|context| response.poll_informational(context))
            .await
            .expect("one comes")
            .expect("whole")
    };
    let interim = timeout(LIMIT, interim).await.expect("in time");
    assert_eq!(
        (interim.status().as_u16(), interim.headers()["link"].as_bytes()),
        (103, &b"</a>"[..])
    );
    assert_eq!(
        Answer::of(response.await.expect("an answer"))
            .await
            .expect("whole")
            .text(),
        "ok"
    );

    let mut asked = request("PUT", "/");
    asked
        .headers_mut()
        .insert("expect", "100-continue".parse().expect("a value"));
    asked
        .headers_mut()
        .insert("content-length", "4".parse().expect("a value"));
    let (mut response, mut stream) = client.requests.send_request(asked, false).expect("it is open");
    let interim = std::future::poll_fn(|context| response.poll_informational(context));
    let interim = timeout(LIMIT, interim)
        .await
        .expect("in time")
        .expect("one comes")
        .expect("whole");
    assert_eq!(interim.status().as_u16(), 100);
    upload(&mut stream, b"body", true).await.expect("it is taken");
    let answer = timeout(LIMIT, response).await.expect("in time").expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
}

#[tokio::test]
async fn bodies_of_every_framing_arrive_as_they_were_sent() {
    let origin = origin();
    let proxy = http2_proxy_with(origin.address(), CLEARTEXT).await;
    let mut client = Http2::open(proxy.address()).await;
    for size in [1, 16_384, 70_000, 3_000_000] {
        let body: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect();
        let echoed = client.send(request("PUT", "/echo"), &body).await.expect("an answer");
        assert!(echoed.body == body, "{size} bytes without a length");
        let mut asked = request("POST", "/echo");
        asked.headers_mut().insert("content-length", size.into());
        let echoed = client.send(asked, &body).await.expect("an answer");
        assert!(echoed.body == body, "{size} bytes with a length");
        assert_eq!(echoed.header("content-length"), Some(&*size.to_string()));
    }
    let answer = client.get("/chunked/100").await;
    assert_eq!(
        (answer.text().lines().count(), answer.header("content-length")),
        (100, None)
    );
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(client.get("/bytes/5000000").await.body.len(), 5_000_000);
    // Until the connection closes.
    let closing = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        peer.send("HTTP/1.0 200 OK\r\n\r\nuntil").await;
        peer.send(" the end").await;
    })
    .await;
    let proxy = http2_proxy_to(&closing).await;
    assert_eq!(
        Http2::open(proxy.address()).await.get("/").await.text(),
        "until the end"
    );
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    if forwarder::skips("http2::trailers_pass_both_ways") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        let body = peer.until("0\r\n").await.expect("a body") + &peer.until("\r\n\r\n").await.expect("its end");
        assert_eq!(body, "4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n");
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-end\r\n\r\n2\r\nok\r\n0\r\nX-End: 2\r\nHost: evil\r\n\r\n")
            .await;
    })
    .await;
    let proxy = http2_proxy_to(&origin).await;
    let mut client = Http2::open(proxy.address()).await;
    let (response, mut stream) = client
        .requests
        .send_request(request("POST", "/"), false)
        .expect("it is open");
    upload(&mut stream, b"body", false).await.expect("it is taken");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().expect("a value"));
    trailers.insert("x-forwarded-for", "1.1.1.1".parse().expect("a value"));
    stream.send_trailers(trailers).expect("they are taken");
    let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
    let answer = Answer::of(response).await.expect("a response");
    let trailers = answer.trailers.expect("there are some");
    assert_eq!((trailers.len(), trailers["x-end"].as_bytes()), (1, &b"2"[..]));
    assert_eq!(
        (answer.body, answer.headers["trailer"].as_bytes()),
        (b"ok".to_vec(), &b"x-end"[..])
    );
}

#[tokio::test]
async fn a_response_that_breaks_off_resets_its_stream_and_no_other() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.head().await {
            let cut = request.starts_with("GET /cut");
            let body = if cut { "half" } else { "whole" };
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}"))
                .await;
            if cut {
                return;
            }
        }
    })
    .await;
    let proxy = http2_proxy_to(&origin).await;
    let mut client = Http2::open(proxy.address()).await;
    let error = client.send(get("/cut"), b"").await.expect_err("it is not whole");
    assert_eq!(refused_with(&error), Some(Reason::INTERNAL_ERROR));
    assert_eq!(client.get("/").await.text(), "whole");
    let line = proxy.request_line("/cut").await;
    assert_eq!(
        (&line["reason"], &line["status"]),
        (&"backend_failed".into(), &200.into())
    );
}

#[tokio::test]
async fn what_is_refused_is_answered_without_a_backend_and_logged_once() {
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let configuration =
        embedded(&[origin.address]).replace("{burst: 1000000, per_second: 1000000}", "{burst: 2, per_second: 1}");
    let proxy = Process::proxy(&(configuration + CLEARTEXT + "  client: {max_body: 10B}\n")).await;
    proxy.active_backends(1).await;
    let mut client = Http2::open(proxy.address()).await;
    let mut asked = request("POST", "/large");
    asked
        .headers_mut()
        .insert("content-length", "11".parse().expect("a value"));
    let answer = client.send(asked, b"01234567890").await.expect("an answer");
    assert_eq!(answer.status, 413);
    assert!(answer.text().starts_with("Content Too Large: "), "{}", answer.text());
    assert_eq!(client.get("/passes").await.status, 200);
    let answer = client.get("/limited").await;
    assert_eq!(answer.status, 429);
    assert!(answer.text().starts_with("Too Many Requests: "), "{}", answer.text());
    for (name, value) in [
        ("retry-after", "1"),
        ("ratelimit", "\"client\";r=0;t=1"),
        ("content-type", "text/plain"),
    ] {
        assert_eq!(answer.header(name), Some(value));
    }
    assert!(answer.header("date").is_some());
    let length = answer.body.len().to_string();
    let answer = client.send(request("HEAD", "/head"), b"").await.expect("an answer");
    assert_eq!(
        (answer.status, answer.body.len(), answer.header("content-length")),
        (429, 0, Some(length.as_str()))
    );
    for (path, reason, status) in [
        ("/large", "body_too_large", 413),
        ("/limited", "limited", 429),
        ("/head", "limited", 429),
    ] {
        let line = proxy.request_line(path).await;
        assert_eq!(
            (&line["reason"], &line["status"], &line["protocol"]),
            (&reason.into(), &status.into(), &"h2".into())
        );
    }
    assert_eq!(proxy.lines("request").len(), 4);
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_grows_too_large_is_answered() {
    let origin = origin();
    let proxy = http2_proxy_with(
        origin.address(),
        &(CLEARTEXT.to_owned() + "  client: {max_body: 100000B}\n"),
    )
    .await;
    let mut client = Http2::open(proxy.address()).await;
    let answer = client
        .send(request("POST", "/upload"), &[0; 200_000])
        .await
        .expect("an answer");
    assert_eq!(answer.status, 413);
    assert_eq!(
        client
            .send(request("POST", "/upload"), &[0; 100_000])
            .await
            .expect("an answer")
            .text(),
        "100000\n"
    );
}

#[tokio::test]
async fn a_panic_costs_its_own_stream() {
    let origin = origin();
    let configuration = embedded(&[origin.address()]) + CLEARTEXT;
    let proxy = Process::proxy_with(&configuration, &[("PANIC_FOR_TESTS", "1")]).await;
    proxy.active_backends(1).await;
    let mut client = Http2::open(proxy.address()).await;
    let slow = client
        .requests
        .send_request(get("/delay/300"), true)
        .expect("it is open")
        .0;
    let mut asked = get("/panics");
    asked
        .headers_mut()
        .insert("x-test-panic", "1".parse().expect("a value"));
    let error = client.send(asked, b"").await.expect_err("it has panicked");
    assert!(error.is_reset(), "{error}");
    assert_eq!(
        timeout(LIMIT, slow)
            .await
            .expect("in time")
            .expect("an answer")
            .status()
            .as_u16(),
        200
    );
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(proxy.request_line("/panics").await["reason"], "internal");
}

#[tokio::test]
async fn many_streams_at_a_time_get_each_their_own_answer() {
    let origin = StrictOrigin::start().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Http2::open(proxy.address()).await);
    }
    let mut answers = tokio::task::JoinSet::new();
    for round in 0..400_usize {
        let mut client = Http2 {
            requests: clients[round % clients.len()].requests.clone(),
            connection: tokio::spawn(async { Ok(()) }),
        };
        answers.spawn(async move {
            let body = format!("body {round}").repeat(round % 50);
            let answer = client
                .send(request("POST", &format!("/{round}")), body.as_bytes())
                .await;
            (format!("POST /{round} {body}"), answer.expect("an answer").text())
        });
    }
    while let Some(answer) = answers.join_next().await {
        let (expected, answer) = answer.expect("no panic");
        assert_eq!(answer, expected);
    }
    assert_eq!(origin.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn an_upload_waits_at_the_client_while_its_origin_takes_nothing() {
    if forwarder::skips("http2::an_upload_waits_at_the_client_while_its_origin_takes_nothing") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        if peer.head().await.is_some_and(|head| head.starts_with("GET")) {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = http2_proxy_to(&origin).await;
    let mut client = Http2::open(proxy.address()).await;
    let (_response, mut stream) = client
        .requests
        .send_request(request("POST", "/"), false)
        .expect("it is open");
    let mut sent = 0;
    loop {
        stream.reserve_capacity(1 << 20);
        let capacity = std::future::poll_fn(|context| stream.poll_capacity(context));
        let Ok(Some(Ok(capacity))) = timeout(Duration::from_secs(2), capacity).await else {
            break;
        };
        stream
            .send_data(Bytes::from(vec![0; capacity]), false)
            .expect("it is open");
        sent += capacity;
    }
    // The kernel's buffers of the connection to the origin, and the stream's window.
    assert!(sent < 8 << 20, "{sent}");
    assert_eq!(client.get("/").await.status, 200, "other streams go on");
    eventually("the upload is in the books", async || {
        proxy.metric("gopherproxy_held_bytes").await > 256_000.0
    })
    .await;
}

#[tokio::test]
async fn clients_with_tls_choose_http2_in_the_handshake() {
    let (origin, files, authority) = (
        StrictOrigin::start().await,
        tempfile::tempdir().expect("a directory"),
        Authority::new(),
    );
    authority.issue(&["a.example"]).write(files.path(), "a");
    let proxy = Process::proxy(&with_tls(&embedded(&[origin.address]), files.path(), "")).await;
    proxy.active_backends(1).await;
    let mut tls = authority.client();
    for (offered, chosen) in [
        (&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])),
        (&[b"http/1.1", b"h2"], Some(b"h2")),
        (&[b"http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        tls.0.alpn_protocols = offered.iter().map(|protocol| protocol.to_vec()).collect();
        let mut connection = tls.open(proxy.tls_address(), "a.example").await;
        assert_eq!(connection.stream().get_ref().1.alpn_protocol(), chosen);
        if chosen != Some(b"h2") {
            assert_eq!(connection.get("/h1").await.status, 200);
            continue;
        }
        let mut client = Http2::over(connection.into_stream(), &h2::client::Builder::new()).await;
        let body = vec![b'x'; 1_000_000];
        let mut asked = request("POST", "/h2");
        *asked.uri_mut() = "https://a.example/h2".parse().expect("a URL");
        let answer = client.send(asked, &body).await.expect("an answer");
        assert_eq!(
            (answer.status, answer.body.len()),
            (200, "POST /h2 ".len() + body.len())
        );
    }
    assert_eq!(origin.requests()[0].values("x-forwarded-proto"), ["https"]);
    let line = proxy.request_line("/h2").await;
    assert_eq!(
        (&line["protocol"], &line["tls"], &line["sni"]),
        (&"h2".into(), &"1.3".into(), &"a.example".into())
    );
    assert_eq!(proxy.request_line("/h1").await["protocol"], "h1");
    assert_eq!(origin.violations(), Vec::<String>::new());
}

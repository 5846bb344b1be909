//! Bodies that come in pieces, break off, or are not read.

use super::*;

/// An origin that sends an event, and another when it is told to.
async fn events(more: watch::Receiver<bool>) -> RawOrigin {
    RawOrigin::start(move |mut peer| {
        let mut more = more.clone();
        async move {
            while peer.request().await.is_some() {
                peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await;
                peer.send("9\r\ndata: 1\n\n\r\n").await;
                let _ = more.wait_for(|more| *more).await;
                peer.send("9\r\ndata: 2\n\n\r\n0\r\n\r\n").await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_event_does_not_wait_for_the_next() {
    for coding in ["gzip", "zstd"] {
        let (tell, more) = watch::channel(false);
        let origin = events(more).await;
        let proxy = compressing(&origin).await;
        let mut first = Connection::open(proxy.address()).await;
        first
            .send(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n"
            ))
            .await;
        assert_eq!(first.head().await.header("content-encoding"), Some(coding));
        let mut body = Vec::new();
        while decoded(coding, &body).0 != b"data: 1\n\n" {
            body.extend(first.chunk().await);
        }

        let second = Http2::open(proxy.address()).await;
        let mut request = request2("GET", "/");
        request
            .headers_mut()
            .insert("accept-encoding", coding.parse().expect("a value"));
        let mut requests = second.requests.clone().ready().await.expect("it is open");
        let (response, _) = requests.send_request(request, true).expect("it is open");
        let mut response = timeout(LIMIT, response).await.expect("in time").expect("a response");
        let mut body2 = Vec::new();
        while decoded(coding, &body2).0 != b"data: 1\n\n" {
            let data = timeout(LIMIT, response.body_mut().data()).await.expect("in time");
            body2.extend_from_slice(&data.expect("more").expect("more"));
        }

        tell.send(true).expect("the origin listens");
        loop {
            let chunk = first.chunk().await;
            if chunk.is_empty() {
                break;
            }
            body.extend(chunk);
        }
        while let Some(data) = timeout(LIMIT, response.body_mut().data()).await.expect("in time") {
            body2.extend_from_slice(&data.expect("more"));
        }
        for body in [body, body2] {
            assert_eq!(decoded(coding, &body), (b"data: 1\n\ndata: 2\n\n".to_vec(), true));
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_has_no_end_for_the_client_either() {
    let origin = RawOrigin::start(framed).await;
    let proxy = compressing(&origin).await;
    for path in ["/broken-length/100000", "/broken-pieces/100000"] {
        for coding in ["gzip", "zstd"] {
            let mut first = Connection::open(proxy.address()).await;
            first
                .send(format!(
                    "GET {path} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n"
                ))
                .await;
            assert_eq!(first.head().await.header("content-encoding"), Some(coding), "{path}");
            let rest = first.rest().await;
            assert!(!rest.ends_with(b"0\r\n\r\n"), "{path} {coding}");

            let mut old = Connection::open(proxy.address()).await;
            old.send(format!("GET {path} HTTP/1.0\r\nAccept-Encoding: {coding}\r\n\r\n"))
                .await;
            assert_eq!(old.head().await.header("content-encoding"), Some(coding), "{path}");
            assert!(old.try_rest().await.is_err(), "{path} {coding}: it is not reset");

            let mut request = request2("GET", path);
            request
                .headers_mut()
                .insert("accept-encoding", coding.parse().expect("a value"));
            let answer = Http2::open(proxy.address()).await.send(request, b"").await;
            assert!(answer.is_err_and(|error| error.is_reset()), "{path} {coding}");
        }
    }
    // Nothing of it is left in an encoder that another response gets.
    for coding in ["gzip", "zstd"] {
        for got in ask(&proxy, "GET", "/length/9000", &[("accept-encoding", coding)]).await {
            assert!(decoded(coding, &got.body) == (text(9000), true));
        }
    }
}

#[tokio::test]
async fn trailers_pass_behind_a_compressed_body() {
    if forwarder::skips("compression::streams::trailers_pass_behind_a_compressed_body") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.request().await.is_some() {
            peer.send(format!(
                "HTTP/1.1 200 OK\r\n{TEXT}Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-MD5: a\r\nX-Sum: 7\r\n\r\n"
            ))
            .await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    let mut first = Connection::open(proxy.address()).await;
    first
        .send("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nAccept-Encoding: gzip\r\n\r\n")
        .await;
    let head = first.head().await;
    assert_eq!(
        [head.header("trailer"), head.header("content-encoding")],
        [Some("X-Sum"), Some("gzip")]
    );
    let mut body = Vec::new();
    loop {
        let chunk = first.chunk().await;
        if chunk.is_empty() {
            break;
        }
        body.extend(chunk);
    }
    assert_eq!(decoded("gzip", &body), (b"hello".to_vec(), true));
    // The sum of what the origin has sent is left out.
    assert_eq!(first.until("\r\n\r\n").await, "X-Sum: 7\r\n\r\n");

    let mut request = request2("GET", "/");
    request
        .headers_mut()
        .insert("accept-encoding", http::HeaderValue::from_static("gzip"));
    let answer = Http2::open(proxy.address()).await.send(request, b"").await;
    let answer = answer.expect("an answer");
    assert_eq!(decoded("gzip", &answer.body), (b"hello".to_vec(), true));
    let trailers = answer.trailers.expect("trailers");
    assert_eq!(
        (trailers.len(), &trailers["x-sum"]),
        (1, &http::HeaderValue::from_static("7"))
    );
}

#[tokio::test]
async fn what_an_encoder_takes_counts_as_held_for_its_client() {
    let (_tell, more) = watch::channel(false);
    let origin = events(more).await;
    let proxy = proxy_to(&origin, &format!("{CLEARTEXT}  client: {{max_held: 8MiB}}\n{ROUTE}")).await;
    let held = async || proxy.metric("gopherproxy_held_bytes").await;
    let open = async |accepted: &str| {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!(
                "GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {accepted}\r\n\r\n"
            ))
            .await;
        client.head().await;
        client.chunk().await;
        client
    };
    let plain = open("identity").await;
    let small = held().await;
    assert!(small < 100_000.0, "{small}");
    drop(plain);
    for (coding, least) in [("gzip", 300_000.0), ("zstd", 500_000.0)] {
        let client = open(coding).await;
        eventually("it is counted", async || held().await >= least).await;
        drop(client);
        eventually("it is given back", async || held().await < least).await;
    }
    // A client has a quarter of the budget: its oldest responses go.
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(open("gzip").await);
    }
    eventually("the oldest are cut", async || {
        let cut = proxy
            .metric("gopherproxy_rejections_total{reason=\"held_too_much\"}")
            .await;
        cut >= 6.0 && held().await <= f64::from(2 << 20)
    })
    .await;
    let first = clients.remove(0).rest().await;
    assert!(!first.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn a_client_that_reads_nothing_makes_its_origin_wait() {
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.request().await.is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            let mut random = fastrand::Rng::with_seed(1);
            // What can't be compressed, so that it fills the client's connection.
            for _ in 0..512 {
                let piece: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64 << 10).collect();
                let chunk = [b"10000\r\n", &piece[..], b"\r\n"].concat();
                let sent = timeout(Duration::from_secs(2), peer.send(chunk)).await;
                if sent.is_err() {
                    break;
                }
            }
            // The rest would have been sent if the proxy had taken it.
            peer.send("0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    let before = crate::support::resident_kib(&proxy);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Connection::open_with_window(proxy.address(), 4096).await;
        client
            .send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: zstd\r\n\r\n")
            .await;
        client.head().await;
        clients.push(client);
    }
    // As long as the origin tries, and a moment more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let grown = crate::support::resident_kib(&proxy).saturating_sub(before);
    // 128 MiB came, or wait at the origin.
    assert!(grown < 24 << 10, "{grown} KiB");
}

#[tokio::test]
async fn a_reload_turns_it_on_and_off_and_a_response_in_flight_ends_as_it_began() {
    let (tell, more) = watch::channel(false);
    let origin = events(more).await;
    let proxy = compressing(&origin).await;
    let mut client = Connection::open(proxy.address()).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n";
    client.send(request).await;
    assert_eq!(client.head().await.header("content-encoding"), Some("gzip"));
    let mut body = client.chunk().await;
    let routes = "  routes:\n    all: {compress: false}\n";
    proxy.reconfigure(&(embedded(&[origin.address]) + CLEARTEXT + routes));
    proxy.signal("HUP");
    eventually("it is off", async || {
        let mut other = Connection::open(proxy.address()).await;
        other.send(request).await;
        other.head().await.header("content-encoding").is_none()
    })
    .await;
    tell.send(true).expect("the origin listens");
    loop {
        let chunk = client.chunk().await;
        if chunk.is_empty() {
            break;
        }
        body.extend(chunk);
    }
    assert_eq!(decoded("gzip", &body), (b"data: 1\n\ndata: 2\n\n".to_vec(), true));
}

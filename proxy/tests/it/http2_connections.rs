//! Connections of HTTP/2: how many streams they may have, how they switch to another protocol, and how they end.

use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::support::http2::{
    ACK, Answer, CLEARTEXT, END_STREAM, Frames, GOAWAY, HEADERS, Http2, Outcome, PING, SETTINGS, frame, get, head,
    headers, http2_proxy_to, http2_proxy_with, request, upload,
};
use crate::support::{Connection, LIMIT, Process, RawOrigin, embedded, eventually, forwarder, origin};
use crate::upgrade::{TOOK_OVER, WAITING, upgradable};

const REFUSED_STREAM: u32 = 7;

/// A request to switch to another protocol (RFC 8441).
fn extended_connect(protocol: &'static str, path: &str) -> Request<()> {
    let mut asked = request("CONNECT", path);
    asked.extensions_mut().insert(Protocol::from_static(protocol));
    asked
        .headers_mut()
        .insert("sec-websocket-version", "13".parse().expect("a value"));
    asked
}

/// A WebSocket at `path`, once the proxy offers them and has switched: its response, and where to send.
async fn websocket(client: &mut Http2, path: &str) -> (http::Response<RecvStream>, SendStream<Bytes>) {
    eventually("it is offered", async || {
        client.requests.is_extended_connect_protocol_enabled()
    })
    .await;
    let asked = extended_connect("websocket", path);
    let (response, up) = client.requests.send_request(asked, false).expect("it is open");
    let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
    assert_eq!(response.status().as_u16(), 200);
    (response, up)
}

#[tokio::test]
async fn a_websocket_over_http2_is_one_over_http1_to_the_origin() {
    let origin = RawOrigin::start(|mut peer| async move {
        let Some(head) = peer.head().await else { return };
        if head.starts_with("GET /no ") {
            return peer.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
        }
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\
             Sec-WebSocket-Protocol: chat\r\n\r\nhello",
        )
        .await;
        let mut said = [0; 4096];
        while let Ok(read @ 1..) = peer.stream.read(&mut said).await {
            let word = said[..read].to_ascii_uppercase();
            peer.send(&word).await;
            if word.ends_with(b"BYE") {
                let _ = peer.stream.shutdown().await;
            }
        }
    })
    .await;
    let proxy = http2_proxy_to(&origin).await;
    let mut client = Http2::open(proxy.address()).await;
    let (response, mut up) = websocket(&mut client, "/chat?room=1").await;
    let fields = response.headers();
    assert_eq!(fields["sec-websocket-protocol"], "chat");
    assert!(
        !fields.contains_key("sec-websocket-accept") && !fields.contains_key("upgrade"),
        "{fields:?}"
    );
    let mut down = response.into_body();
    let mut heard = Vec::new();
    for (said, answer) in [("", "hello"), ("word", "helloWORD"), ("good bye", "helloWORDGOOD BYE")] {
        if !said.is_empty() {
            upload(&mut up, said.as_bytes(), false).await.expect("it is open");
        }
        while heard.len() < answer.len() {
            let data = timeout(LIMIT, down.data())
                .await
                .expect("in time")
                .expect("more")
                .expect("data");
            let _ = down.flow_control().release_capacity(data.len());
            heard.extend_from_slice(&data);
        }
        assert_eq!(heard, answer.as_bytes());
    }
    while let Some(data) = timeout(LIMIT, down.data()).await.expect("in time") {
        assert!(data.expect("an end, and no reset").is_empty(), "the origin has closed");
    }
    let seen = origin.requests().remove(0).to_lowercase();
    assert!(seen.starts_with("get /chat?room=1 http/1.1\r\n"), "{seen}");
    for line in [
        "host: test",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
    ] {
        assert_eq!(seen.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line} in {seen}");
    }
    let key = seen
        .split("sec-websocket-key: ")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    assert!(key.is_some_and(|key| key.len() == 24 && key.ends_with("==")), "{seen}");
    // Over Pingora a tunnel ends with its first half, so this one may be closed.
    let _ = up.send_data(Bytes::new(), true);
    let line = proxy.request_line("/chat").await;
    assert_eq!((&line["method"], &line["status"]), (&"CONNECT".into(), &200.into()));

    // An origin that does not agree answers, and other streams go on.
    let (response, _up) = client
        .requests
        .send_request(extended_connect("websocket", "/no"), false)
        .expect("it is open");
    let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
    assert_eq!(response.status().as_u16(), 403);
    assert_eq!(Answer::of(response).await.expect("a response").text(), "no");
}

#[tokio::test]
async fn a_websocket_whose_stream_is_reset_behind_its_end_ends_though_the_origin_says_nothing() {
    if forwarder::skips(
        "http2_connections::a_websocket_whose_stream_is_reset_behind_its_end_ends_though_the_origin_says_nothing",
    ) {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = http2_proxy_to(&origin).await;
    let mut client = Http2::open(proxy.address()).await;
    let (_response, mut up) = websocket(&mut client, "/chat").await;
    up.send_data(Bytes::new(), true).expect("this half is open");
    // The end arrives alone, and is no end of the other half.
    sleep(Duration::from_millis(100)).await;
    assert_eq!(proxy.metric("gopherproxy_inflight_requests").await, 1.0);
    up.send_reset(h2::Reason::CANCEL);
    assert!(proxy.request_line("/chat").await.get("reason").is_none());
}

#[tokio::test]
async fn a_websocket_ends_when_its_client_ends_or_resets_its_stream() {
    let origin = origin();
    let proxy = http2_proxy_with(origin.address(), CLEARTEXT).await;
    for reset in [false, true] {
        let mut client = Http2::open(proxy.address()).await;
        assert_eq!(client.get("/").await.status, 200);
        let asked = extended_connect("websocket", "/upgrade");
        let (response, mut up) = client.requests.send_request(asked, false).expect("it is open");
        let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
        assert_eq!(response.status().as_u16(), 200);
        let mut down = response.into_body();
        upload(&mut up, b"echo", false).await.expect("it is open");
        assert_eq!(
            &timeout(LIMIT, down.data())
                .await
                .expect("in time")
                .expect("more")
                .expect("data")[..],
            b"echo"
        );
        if reset {
            up.send_reset(h2::Reason::CANCEL);
        } else {
            up.send_data(Bytes::new(), true).expect("it is open");
        }
        proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    }
}

#[tokio::test]
async fn no_protocol_that_is_not_allowed_is_offered() {
    let origin = origin();
    let more = CLEARTEXT.to_owned() + "  client: {upgrades: []}\n";
    let proxy = http2_proxy_with(origin.address(), &more).await;
    let mut client = Http2::open(proxy.address()).await;
    assert_eq!(client.get("/").await.status, 200);
    assert!(!client.requests.is_extended_connect_protocol_enabled());
}

#[tokio::test]
async fn a_stream_counts_as_a_connection() {
    let origin = RawOrigin::start(|mut peer| async move {
        if peer.head().await.is_some_and(|head| head.starts_with("GET /ends")) {
            return peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    for key in ["max_connections", "max_connections_per_client"] {
        let proxy = http2_proxy_with(origin.address, &format!("{CLEARTEXT}  client: {{{key}: 4}}\n")).await;
        // The connection is one.
        let mut client = Frames::open(proxy.address(), &[]).await;
        for stream in [1, 3, 5] {
            client.send(headers(stream, END_STREAM, &head("GET", "/waits"))).await;
        }
        client.send(headers(7, END_STREAM, &head("GET", "/refused"))).await;
        assert_eq!(client.outcome(7).await, Outcome::Reset(REFUSED_STREAM), "{key}");
        let line = proxy.request_line("/refused").await;
        assert_eq!(line["reason"], "too_many_connections");
        assert_eq!(Connection::open(proxy.address()).await.get("/").await.status, 503);
        // One that ends makes room.
        client.send(frame(3, 0, 3, &[0, 0, 0, 8])).await;
        proxy.reaches("gopherproxy_inflight_requests", 2.0).await;
        client.send(headers(9, END_STREAM, &head("GET", "/ends"))).await;
        assert_eq!(client.outcome(9).await, Outcome::Status(200), "{key}");
        assert!(
            proxy.metric("gopherproxy_connections").await <= 1.0,
            "streams are no connections to whoever counts those"
        );
    }
}

#[tokio::test]
async fn no_more_streams_than_allowed_are_open_at_a_time() {
    let origin = RawOrigin::start(|peer| async move {
        let _open = peer;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = http2_proxy_with(origin.address, "  http2: {cleartext: true, max_streams: 10}\n").await;
    let mut client = Frames::open(proxy.address(), &[]).await;
    for stream in (1..=41).step_by(2) {
        client.send(headers(stream, END_STREAM, &head("GET", "/"))).await;
    }
    assert_eq!(client.outcome(41).await, Outcome::Reset(REFUSED_STREAM));
    proxy.reaches("gopherproxy_inflight_requests", 10.0).await;
    drop(client);
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    eventually("each has a line", async || proxy.lines("request").len() == 10).await;
}

#[tokio::test]
async fn an_idle_connection_is_ended_whatever_it_pings_and_one_with_a_stream_is_not() {
    let origin = origin();
    let more = CLEARTEXT.to_owned() + "  client: {idle_timeout: 500ms}\n";
    let proxy = http2_proxy_with(origin.address(), &more).await;
    let mut busy = Http2::open(proxy.address()).await;
    let slow = tokio::spawn(async move { busy.get("/delay/2000").await.status });
    let mut idle = Frames::open(proxy.address(), &[]).await;
    idle.send(headers(1, END_STREAM, &head("GET", "/"))).await;
    assert_eq!(idle.outcome(1).await, Outcome::Status(200));
    let ended = async {
        loop {
            idle.send(frame(PING, 0, 0, b"are you?")).await;
            match idle.next().await {
                Some(frame) if frame.kind == GOAWAY => return Some(frame),
                Some(_) => sleep(Duration::from_millis(20)).await,
                None => return None,
            }
        }
    };
    let goaway = timeout(LIMIT, ended).await.expect("in time").expect("it is said");
    assert_eq!((goaway.code(), &goaway.payload[..4]), (0, &[0, 0, 0, 1][..]));
    assert_eq!(idle.goes_away().await, None, "and closed");
    assert_eq!(slow.await.expect("no panic"), 200);
    assert!(proxy.metric("gopherproxy_http2_goaways_total{reason=\"idle\"}").await >= 1.0);
}

#[tokio::test]
async fn a_connection_that_has_had_its_requests_is_ended_and_every_one_is_answered() {
    let origin = origin();
    let more = CLEARTEXT.to_owned() + "  client: {max_requests: 5}\n";
    let proxy = http2_proxy_with(origin.address(), &more).await;
    let mut client = Http2::open(proxy.address()).await;
    let mut answered = 0;
    // Those that are on their way when the client hears of it are served, later ones are not sent.
    while client
        .send(get("/"), b"")
        .await
        .is_ok_and(|answer| answer.status == 200)
    {
        answered += 1;
        assert!(answered < 50, "it goes on");
    }
    assert!(answered >= 5, "{answered}");
    assert!(
        timeout(LIMIT, client.connection)
            .await
            .expect("in time")
            .expect("no panic")
            .is_ok()
    );
    eventually("each has its line", async || proxy.lines("request").len() == answered).await;
    assert_eq!(
        proxy
            .metric("gopherproxy_http2_goaways_total{reason=\"max_requests\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn a_reload_applies_to_connections_that_are_open() {
    let origin = origin();
    let with = |limits: &str| format!("{CLEARTEXT}  client: {{{limits}}}\n");
    let proxy = http2_proxy_with(origin.address(), &with("idle_timeout: 1h")).await;
    let reload = async |limits: &str| {
        proxy.reconfigure(&(embedded(&[origin.address()]) + &with(limits)));
        let reloads = proxy.lines("configuration reloaded").len();
        proxy.signal("HUP");
        eventually("reloaded", async || {
            proxy.lines("configuration reloaded").len() > reloads
        })
        .await;
    };
    let goaways = async |reason: &str| {
        let name = format!("gopherproxy_http2_goaways_total{{reason=\"{reason}\"}}");
        proxy.metric(&name).await
    };
    let mut clients = [Http2::open(proxy.address()).await, Http2::open(proxy.address()).await];
    for client in &mut clients {
        for _ in 0..3 {
            assert_eq!(client.get("/").await.status, 200);
        }
    }
    let [mut used, mut idle] = clients;
    // It has had more than that. The next is served all the same, and is the last.
    reload("idle_timeout: 1h, max_requests: 2").await;
    assert_eq!(used.get("/").await.status, 200);
    let ended = timeout(LIMIT, used.connection).await.expect("in time");
    assert!(ended.expect("no panic").is_ok());
    assert_eq!(goaways("max_requests").await, 1.0);
    // The next request is the last that the old time follows.
    reload("idle_timeout: 300ms").await;
    assert_eq!(idle.get("/").await.status, 200);
    let ended = timeout(LIMIT, idle.connection).await.expect("in time");
    assert!(ended.expect("no panic").is_ok());
    assert_eq!(goaways("idle").await, 1.0);
}

/// A client that sends requests until it is told to stop; how many were answered.
async fn busy(mut client: Http2, path: &'static str) -> (u64, h2::Error) {
    let mut answered = 0;
    loop {
        match client.send(get(path), b"").await {
            Ok(answer) => {
                assert_eq!(answer.status, 200);
                answered += 1;
            }
            Err(error) => return (answered, error),
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_begin_with_settings_is_cut() {
    let origin = origin();
    let proxy = http2_proxy_with(origin.address(), CLEARTEXT).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [preface, &frame(SETTINGS, 0, 0, b"")[..]].concat();
    let request = headers(1, END_STREAM, &head("GET", "/"));
    let last = frame(GOAWAY, 0, 0, &[0; 8]);
    // In one piece, in several, and a byte at a time.
    for size in [1000, 25, 1] {
        for (begin, answered) in [(&preface[..], false), (&settings, true)] {
            let mut client = Connection::open(proxy.address()).await;
            for piece in [begin, &request, &last].concat().chunks(size) {
                let _ = client.try_send(piece).await;
                tokio::task::yield_now().await;
            }
            let came = client.rest().await;
            assert_eq!(came.windows(9).any(|text| text == b"127.0.0.1"), answered, "{size}");
        }
    }
    let name = "gopherproxy_http2_goaways_total{reason=\"protocol\"}";
    proxy.reaches(name, 3.0).await;
    assert_eq!(origin.requests(), 3);
}

#[tokio::test]
async fn a_drain_says_goaway_and_answers_every_stream_that_it_has_accepted() {
    let origin = origin();
    let proxy = http2_proxy_with(origin.address(), CLEARTEXT).await;
    let mut client = Http2::open(proxy.address()).await;
    let slow = client
        .requests
        .send_request(get("/delay/700"), true)
        .expect("it is open")
        .0;
    let working = tokio::spawn(busy(Http2::open(proxy.address()).await, "/delay/5"));
    proxy.reaches("gopherproxy_inflight_requests", 2.0).await;
    proxy.signal("TERM");
    let response = timeout(LIMIT, slow).await.expect("in time").expect("it is answered");
    assert_eq!(response.status().as_u16(), 200);
    let (answered, error) = working.await.expect("no panic");
    assert!(answered > 0);
    assert!(
        error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) || error.is_io(),
        "{error}"
    );
    let (status, took) = proxy.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Each has one line, and none was cut.
    let lines = proxy.lines("request");
    assert!(
        lines
            .iter()
            .all(|line| line["status"] == 200 && line["reason"].is_null()),
        "{lines:#?}"
    );
    assert_eq!(lines.len() as u64, answered + 1);
    assert_eq!(origin.requests(), answered + 1);
}

#[tokio::test]
async fn an_upgrade_loses_no_stream() {
    let (origin, files) = (origin(), tempfile::tempdir().expect("a directory"));
    let configuration = upgradable(&(embedded(&[origin.address()]) + CLEARTEXT), files.path());
    let mut proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let address = proxy.address();
    for round in 0..3 {
        let mut idle = Frames::open(address, &[]).await;
        idle.send(headers(1, END_STREAM, &head("GET", "/"))).await;
        assert_eq!(idle.outcome(1).await, Outcome::Status(200));
        let working: Vec<_> = futures::future::join_all((0..4).map(|_| Http2::open(address))).await;
        let working: Vec<_> = working
            .into_iter()
            .map(|client| tokio::spawn(busy(client, "/delay/3")))
            .collect();
        let successor = Process::successor(&configuration);
        successor.said(WAITING, |_| true).await;
        proxy.signal("QUIT");
        successor.said(TOOK_OVER, |_| true).await;
        let mut answered = 1;
        for client in working {
            let (of_it, error) = client.await.expect("no panic");
            assert!(
                error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR),
                "{round}: {error}"
            );
            answered += of_it;
        }
        // A request that was on its way when the connection was to end is answered too.
        loop {
            let frame = idle.next().await.expect("a GOAWAY");
            if frame.kind == GOAWAY {
                assert_eq!((frame.code(), &frame.payload[..4]), (0, &[0x7f, 0xff, 0xff, 0xff][..]));
                break;
            }
        }
        idle.send(headers(3, END_STREAM, &head("GET", "/late"))).await;
        loop {
            let frame = idle.next().await.expect("an answer");
            match frame.kind {
                HEADERS => break assert_eq!(frame.stream, 3),
                PING if frame.flags & ACK == 0 => {
                    idle.send(crate::support::http2::frame(PING, ACK, 0, &frame.payload))
                        .await
                }
                _ => {}
            }
        }
        let (status, _) = proxy.ended().await;
        assert_eq!(status.code(), Some(0));
        assert_eq!(proxy.lines("request").len() as u64, answered + 1, "each has its line");
        assert!(proxy.lines("request").iter().all(|line| line["status"] == 200));
        proxy = successor;
    }
    eventually("the successor serves", async || {
        Connection::open(address).await.get("/").await.status == 200
    })
    .await;
}

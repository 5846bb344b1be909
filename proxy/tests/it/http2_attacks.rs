//! What a hostile client of HTTP/2 can do: it costs its own connection, and little memory.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::http2::{
    ACK, CLEARTEXT, CONTINUATION, DATA, END_STREAM, Frames, HEADERS, Http2, Outcome, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, head, headers, http2_proxy_with, literal,
};
use crate::support::{Process, RawOrigin, eventually, forwarder, origin, resident_kib};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u32 = 11;

/// SETTINGS_INITIAL_WINDOW_SIZE.
const WINDOW: u16 = 4;

/// An origin that never answers.
async fn silent() -> RawOrigin {
    RawOrigin::start(|mut peer| async move {
        peer.head().await;
        std::future::pending::<()>().await;
    })
    .await
}

/// Nothing of the attack is left, and others are served.
async fn is_well(proxy: &Process) {
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    proxy.reaches("gopherproxy_connections", 0.0).await;
    proxy.reaches("gopherproxy_held_bytes", 0.0).await;
    assert_eq!(proxy.metric("gopherproxy_panics_total").await, 0.0);
}

/// So many connections were ended for this reason.
async fn went_away(proxy: &Process, reason: &str, count: f64) {
    let name = format!("gopherproxy_http2_goaways_total{{reason=\"{reason}\"}}");
    proxy.reaches(&name, count).await;
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection_before_they_reach_the_origin() {
    let origin = silent().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let mut client = Frames::open(proxy.address(), &[]).await;
    let attack: Vec<u8> = (1..2000)
        .step_by(2)
        .flat_map(|stream| {
            [
                headers(stream, END_STREAM, &head("GET", "/")),
                frame(RST_STREAM, 0, stream, &CANCEL),
            ]
            .concat()
        })
        .collect();
    client.send(attack).await;
    assert_eq!(client.goes_away().await, Some(ENHANCE_YOUR_CALM));
    assert!(origin.connections() < 100, "{}", origin.connections());
    went_away(&proxy, "flood", 1.0).await;
    drop(client);
    is_well(&proxy).await;
}

#[tokio::test]
async fn streams_that_are_reset_a_moment_later_end_the_connection_once_they_are_many() {
    let origin = silent().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let mut client = Frames::open(proxy.address(), &[]).await;
    let mut opened = 0_u32;
    let ended = loop {
        let stream = 2 * opened + 1;
        opened += 1;
        client.send(headers(stream, END_STREAM, &head("GET", "/"))).await;
        let there = opened as usize;
        // It has a task, a line in the log to come, and a connection to the origin.
        let reached = async || proxy.lines("request").len() >= there - 1 && origin.connections() + 1 >= there;
        let end = tokio::time::Instant::now() + Duration::from_secs(2);
        while !reached().await && tokio::time::Instant::now() < end {
            sleep(Duration::from_millis(2)).await;
        }
        client.send(frame(RST_STREAM, 0, stream, &CANCEL)).await;
        match client.next_within(Duration::from_millis(1)).await {
            Some(frame) if frame.kind == crate::support::http2::GOAWAY => break frame.code(),
            _ if opened > 400 => panic!("it goes on"),
            _ => {}
        }
    };
    assert_eq!(ended, ENHANCE_YOUR_CALM);
    assert!(opened > 100, "some clients change their mind: {opened}");
    went_away(&proxy, "resets", 1.0).await;
    drop(client);
    is_well(&proxy).await;
}

#[tokio::test]
async fn a_client_that_resets_some_of_many_streams_is_served_on() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(head) = peer.head().await {
            if head.starts_with("GET /waits") {
                std::future::pending::<()>().await;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let mut client = Http2::open(proxy.address()).await;
    for round in 0..120 {
        let waits = crate::support::http2::get("/waits");
        let (response, mut stream) = client.requests.send_request(waits, true).expect("it is open");
        assert_eq!(client.get("/").await.status, 200, "{round}");
        assert_eq!(client.get("/").await.status, 200, "{round}");
        drop(response);
        stream.send_reset(h2::Reason::CANCEL);
    }
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test]
async fn frames_without_end_or_meaning_end_the_connection() {
    let origin = silent().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    // Its data is not read before the origin agrees to switch, which this one never does.
    let switch = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "test"),
    ];
    let upload = headers(1, 0, &block(&switch));
    let field = block(&[("x", "y".repeat(1000))]);
    let bomb = {
        // A field of 4,000 bytes that is put into the table, and then named in a byte each.
        let mut block = head("GET", "/");
        block.push(0x40);
        block.extend_from_slice(&literal(b"x-bomb", &[b'b'; 4000])[1..]);
        block.extend_from_slice(&[0xbe; 16_000 - 4200]);
        block
    };
    let before = resident_kib(&proxy);
    for (name, begin, again) in [
        (
            "a head without end",
            frame(HEADERS, END_STREAM, 1, &head("GET", "/")),
            frame(CONTINUATION, 0, 1, &field),
        ),
        (
            "a head without end in empty frames",
            frame(HEADERS, END_STREAM, 1, &head("GET", "/")),
            frame(CONTINUATION, 0, 1, b""),
        ),
        (
            "fields from a byte each",
            headers(1, END_STREAM, &bomb),
            headers(3, END_STREAM, &[0xbe; 16_000]),
        ),
        ("empty data", upload.clone(), frame(DATA, 0, 1, b"")),
        ("a byte at a time", upload.clone(), frame(DATA, 0, 1, b"x")),
        (
            "padding alone",
            upload.clone(),
            frame(DATA, 8, 1, &[&[255][..], &[0; 255]].concat()),
        ),
    ] {
        let mut client = Frames::open(proxy.address(), &[]).await;
        client.send(begin).await;
        let again = again.repeat(64);
        let mut ended = None;
        for _ in 0..2000 {
            client.send(&again).await;
            if let Some(frame) = client.next_within(Duration::from_micros(10)).await
                && frame.kind == crate::support::http2::GOAWAY
            {
                ended = Some(frame.code());
                break;
            }
        }
        let ended = if ended.is_some() {
            ended
        } else {
            client.goes_away().await
        };
        assert!(
            matches!(ended, Some(ENHANCE_YOUR_CALM | FLOW_CONTROL_ERROR | PROTOCOL_ERROR)),
            "{name}: {ended:?}"
        );
    }
    let grown = resident_kib(&proxy).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB");
    is_well(&proxy).await;
}

#[tokio::test]
async fn answers_that_nobody_reads_take_little_memory_and_end_the_connection() {
    let origin = silent().await;
    let more = CLEARTEXT.to_owned() + "  client: {write_timeout: 500ms}\n";
    let proxy = http2_proxy_with(origin.address, &more).await;
    for (name, flood) in [
        ("pings", frame(PING, 0, 0, b"are you?")),
        (
            "settings",
            frame(SETTINGS, 0, 0, &[0, WINDOW.to_be_bytes()[1], 0, 1, 0, 0]),
        ),
    ] {
        let before = resident_kib(&proxy);
        let mut client = Frames::open_with_window(proxy.address(), &[], Some(4096)).await;
        client.send(&flood.repeat(10)).await;
        let mut acknowledged = 0;
        while acknowledged < 10 {
            let frame = client.next().await.expect("an answer");
            acknowledged += usize::from(frame.flags & ACK != 0 && matches!(frame.kind, PING | SETTINGS));
        }
        let flood = flood.repeat(1000);
        let sending = async {
            while tokio::io::AsyncWriteExt::write_all(&mut client.stream, &flood)
                .await
                .is_ok()
            {}
        };
        tokio::time::timeout(Duration::from_secs(20), sending)
            .await
            .expect(name);
        let grown = resident_kib(&proxy).saturating_sub(before);
        assert!(grown < 8 << 10, "{name}: {grown} KiB");
        drop(client);
        is_well(&proxy).await;
    }
    went_away(&proxy, "slow", 2.0).await;
}

#[tokio::test]
async fn frames_that_make_the_proxy_reset_streams_end_the_connection() {
    let origin = silent().await;
    let proxy = http2_proxy_with(origin.address, "  http2: {cleartext: true, max_resets: 20}\n").await;
    let open = |stream| headers(stream, END_STREAM, &head("GET", "/"));
    let window = |stream, size: u32| frame(WINDOW_UPDATE, 0, stream, &size.to_be_bytes());
    for (name, once, error) in [
        ("a window that grows by nothing", window(1, 0), PROTOCOL_ERROR),
        (
            "a window of the connection that grows by nothing",
            window(0, 0),
            PROTOCOL_ERROR,
        ),
        (
            "a window of the connection that grows too large",
            [window(0, 0x7fff_ffff), window(0, 1)].concat(),
            FLOW_CONTROL_ERROR,
        ),
        ("data behind the end", frame(DATA, 0, 1, b"abc"), PROTOCOL_ERROR),
        (
            "a stream that is its own parent",
            frame(2, 0, 1, &[0, 0, 0, 1, 0]),
            PROTOCOL_ERROR,
        ),
        ("a frame that is too large", frame(DATA, 0, 1, &[0; 16_385]), 6),
        (
            "a reset that is too short",
            frame(RST_STREAM, 0, 1, b"abc"),
            PROTOCOL_ERROR,
        ),
        ("a ping that is too short", frame(PING, 0, 0, b"abc"), PROTOCOL_ERROR),
        ("settings of a stream", frame(SETTINGS, 0, 1, b""), PROTOCOL_ERROR),
        (
            "a window that is too large",
            frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
            PROTOCOL_ERROR,
        ),
        ("a push", frame(5, 4, 1, &[0, 0, 0, 2]), PROTOCOL_ERROR),
    ] {
        let mut client = Frames::open(proxy.address(), &[]).await;
        client.send(open(1)).await;
        client.send(once).await;
        let outcome = client.outcome(1).await;
        let expected = [Outcome::GoAway(error), Outcome::Reset(error)];
        assert!(expected.contains(&outcome), "{name}: {outcome:?}");
    }
    // Where one costs its stream alone, many cost the connection (CVE-2025-8671).
    let mut client = Frames::open(proxy.address(), &[]).await;
    for stream in (1..200).step_by(2) {
        let attack = [open(stream), window(stream, 0x7fff_ffff), window(stream, 0x7fff_ffff)].concat();
        client.send(attack).await;
    }
    assert_eq!(client.goes_away().await, Some(ENHANCE_YOUR_CALM));
    drop(client);
    is_well(&proxy).await;
}

#[tokio::test]
async fn a_response_whose_window_never_opens_is_cut_and_logged_once() {
    let origin = origin();
    let more = CLEARTEXT.to_owned() + "  client: {write_timeout: 300ms}\n";
    let proxy = http2_proxy_with(origin.address(), &more).await;
    let mut client = Frames::open(proxy.address(), &[(WINDOW, 0)]).await;
    client.send(headers(1, END_STREAM, &head("GET", "/bytes/100000"))).await;
    assert_eq!(client.outcome(1).await, Outcome::Status(200));
    assert_eq!(client.outcome(1).await, Outcome::Reset(8));
    let line = proxy.request_line("/bytes/100000").await;
    assert_eq!(
        (&line["reason"], &line["bytes"].as_u64().is_some()),
        (&"client_gone".into(), &true)
    );
    assert!(
        line["error"].as_str().is_some_and(|error| error.contains("too slowly")),
        "{line}"
    );
    // The connection is not at fault.
    client.send(headers(3, END_STREAM, &head("HEAD", "/bytes/1"))).await;
    assert!(matches!(client.next().await, Some(frame) if frame.kind == HEADERS && frame.stream == 3));
    drop(client);
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    eventually("each has a line", async || proxy.lines("request").len() == 2).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_or_drips_is_answered_408() {
    let origin = silent().await;
    let more = CLEARTEXT.to_owned() + "  client: {read_timeout: 400ms}\n";
    let proxy = http2_proxy_with(origin.address, &more).await;
    let mut client = Frames::open(proxy.address(), &[]).await;
    client.send(headers(1, 0, &head("POST", "/slow"))).await;
    client.send(frame(DATA, 0, 1, b"half")).await;
    assert_eq!(client.outcome(1).await, Outcome::Status(408));
    assert_eq!(proxy.request_line("/slow").await["reason"], "request_timeout");
    drop(client);
    is_well(&proxy).await;
}

#[tokio::test]
async fn an_upload_below_the_minimum_rate_is_answered_408() {
    let origin = silent().await;
    let more = CLEARTEXT.to_owned() + "  client: {min_rate: 1000B}\n";
    let proxy = http2_proxy_with(origin.address, &more).await;
    let mut client = Frames::open(proxy.address(), &[]).await;
    client.send(headers(1, 0, &head("POST", "/drips"))).await;
    let answer = async {
        loop {
            client.send(frame(DATA, 0, 1, b"x")).await;
            match client.next_within(Duration::from_millis(200)).await {
                Some(frame) if frame.kind == HEADERS => break,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answer)
        .await
        .expect("it is judged after five seconds");
    assert_eq!(proxy.request_line("/drips").await["status"], 408);
}

#[tokio::test]
async fn a_hundred_stalled_responses_on_one_connection_hold_little() {
    if forwarder::skips("http2_attacks::a_hundred_stalled_responses_on_one_connection_hold_little") {
        return;
    }
    let origin = origin();
    let proxy = http2_proxy_with(origin.address(), CLEARTEXT).await;
    let before = resident_kib(&proxy);
    // Windows that are wide open, and a connection that nobody reads.
    let mut client = Frames::open_with_window(proxy.address(), &[(WINDOW, 0x7fff_ffff)], Some(4096)).await;
    client
        .send(frame(WINDOW_UPDATE, 0, 0, &0x7f00_0000_u32.to_be_bytes()))
        .await;
    for stream in (1..200).step_by(2) {
        client
            .send(headers(stream, END_STREAM, &head("GET", "/bytes/10000000")))
            .await;
    }
    proxy.reaches("gopherproxy_inflight_requests", 100.0).await;
    eventually("they are in the books", async || {
        proxy.metric("gopherproxy_held_bytes").await > 6_000_000.0
    })
    .await;
    let grown = resident_kib(&proxy).saturating_sub(before);
    assert!(grown < 30 << 10, "{grown} KiB");
    drop(client);
    is_well(&proxy).await;
}

#[tokio::test]
async fn clients_over_the_budget_for_memory_lose_their_oldest_streams() {
    if forwarder::skips("http2_attacks::clients_over_the_budget_for_memory_lose_their_oldest_streams") {
        return;
    }
    let origin = origin();
    let more = CLEARTEXT.to_owned() + "  client: {max_held: 8MiB}\n";
    let proxy = http2_proxy_with(origin.address(), &more).await;
    let mut client = Frames::open(proxy.address(), &[(WINDOW, 0)]).await;
    for stream in (1..80).step_by(2) {
        client
            .send(headers(stream, END_STREAM, &head("GET", "/bytes/1000000")))
            .await;
    }
    eventually("some were cut", async || {
        let lines = proxy.lines("request");
        lines.iter().any(|line| line["reason"] == "held_too_much")
    })
    .await;
    assert!(proxy.metric("gopherproxy_held_bytes").await <= 8_388_608.0);
    drop(client);
    is_well(&proxy).await;
}

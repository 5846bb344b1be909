//! What a hostile client of HTTP/2 can do: it costs its own connection, little memory and little time, and others are served meanwhile.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::support::attack::{reached, silent_origin, withstands};
use crate::support::http2::{
    ACK, CLEARTEXT, CONTINUATION, DATA, END_STREAM, Frames, GOAWAY, HEADERS, Http2, Outcome, PING, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW, WINDOW_UPDATE, block, frame, head, headers, http2_proxy_with, is_well, literal,
};
use crate::support::{LIMIT, Process, RawOrigin, eventually, origin};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u32 = 11;

/// So many connections were ended for this reason.
async fn went_away(proxy: &Process, reason: &str, count: f64) {
    let name = format!("gopherproxy_http2_goaways_total{{reason=\"{reason}\"}}");
    proxy.reaches(&name, count).await;
}

/// A request on a stream.
fn request(stream: u32) -> Vec<u8> {
    headers(stream, END_STREAM, &head("GET", "/"))
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection_before_they_reach_the_origin() {
    let origin = silent_origin().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let attack: Vec<u8> = (1..2000)
        .step_by(2)
        .flat_map(|stream| [request(stream), frame(RST_STREAM, 0, stream, &CANCEL)].concat())
        .collect();
    let ended = withstands(&proxy, "reset at once", async {
        let mut client = Frames::open(proxy.address(), &[]).await;
        client.send(attack).await;
        client.goes_away().await
    })
    .await;
    assert_eq!(ended, Some(ENHANCE_YOUR_CALM));
    assert!(reached(&origin) < 100, "{}", reached(&origin));
    went_away(&proxy, "flood", 1.0).await;
    is_well(&proxy).await;
}

#[tokio::test]
async fn streams_that_are_reset_a_moment_later_end_the_connection_once_they_are_many() {
    let origin = silent_origin().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let (ended, opened) = withstands(&proxy, "reset later", async {
        let mut client = Frames::open(proxy.address(), &[]).await;
        for opened in 1.. {
            let stream = 2 * opened - 1;
            client.send(request(stream)).await;
            // It has a task, a line in the log to come, and a connection to the origin.
            let end = Instant::now() + Duration::from_secs(2);
            while reached(&origin) < opened as usize && Instant::now() < end {
                sleep(Duration::from_millis(1)).await;
            }
            client.send(frame(RST_STREAM, 0, stream, &CANCEL)).await;
            match client.next_within(Duration::from_millis(1)).await {
                Some(frame) if frame.kind == GOAWAY => return (frame.code(), opened),
                _ if opened > 400 => panic!("it goes on"),
                _ => {}
            }
        }
        unreachable!()
    })
    .await;
    assert_eq!(ended, ENHANCE_YOUR_CALM);
    assert!(opened > 100, "some clients change their mind: {opened}");
    assert!(reached(&origin) < 150, "{}", reached(&origin));
    went_away(&proxy, "resets", 1.0).await;
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
async fn streams_beyond_those_that_may_be_open_are_refused_and_many_of_them_end_the_connection() {
    let origin = silent_origin().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    withstands(&proxy, "300 streams", async {
        let mut client = Frames::open(proxy.address(), &[]).await;
        client
            .send((1..600).step_by(2).flat_map(request).collect::<Vec<u8>>())
            .await;
        for stream in (201..600).step_by(2) {
            assert_eq!(client.outcome(stream).await, Outcome::Reset(REFUSED_STREAM), "{stream}");
        }
        eventually("the others reach the origin", async || reached(&origin) == 100).await;
        client
            .send((601..2000).step_by(2).flat_map(request).collect::<Vec<u8>>())
            .await;
        assert_eq!(client.goes_away().await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
    assert_eq!(reached(&origin), 100);
    is_well(&proxy).await;
}

/// An attack: what it begins with, and what it goes on with for as long as the connection lasts.
struct Endless {
    name: &'static str,
    begin: Vec<u8>,
    again: Vec<u8>,
}

fn endless() -> Vec<Endless> {
    // Its data is not read before the origin agrees to switch, which this one never does.
    let switch = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "test"),
    ];
    let upload = headers(1, 0, &block(&switch));
    // A field of 4,000 bytes that is put into the table, and then named in a byte each.
    let mut bomb = head("GET", "/");
    bomb.push(0x40);
    bomb.extend_from_slice(&literal(b"x-bomb", &[b'b'; 4000])[1..]);
    bomb.extend_from_slice(&[0xbe; 16_000 - 4200]);
    let rows = [
        (
            "a head without end",
            frame(HEADERS, END_STREAM, 1, &head("GET", "/")),
            frame(CONTINUATION, 0, 1, &block(&[("x", "y".repeat(1000))])),
        ),
        (
            "a head without end in empty frames",
            frame(HEADERS, END_STREAM, 1, &head("GET", "/")),
            frame(CONTINUATION, 0, 1, b""),
        ),
        (
            "a head without end, a byte at a time",
            frame(HEADERS, END_STREAM, 1, &head("GET", "/")),
            frame(CONTINUATION, 0, 1, &[0x82]),
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
            upload,
            frame(DATA, 8, 1, &[&[255][..], &[0; 255]].concat()),
        ),
        (
            "empty data, of an upload that is read",
            headers(1, 0, &head("POST", "/")),
            frame(DATA, 0, 1, b""),
        ),
    ];
    rows.map(|(name, begin, again)| Endless { name, begin, again }).into()
}

#[tokio::test]
async fn frames_without_end_or_meaning_end_the_connection() {
    let origin = silent_origin().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    for Endless { name, begin, again } in endless() {
        let ended = withstands(&proxy, name, async {
            let mut client = Frames::open(proxy.address(), &[]).await;
            client.send(begin).await;
            let again = again.repeat(64);
            for _ in 0..2000 {
                client.send(&again).await;
                if let Some(frame) = client.next_within(Duration::from_micros(10)).await
                    && frame.kind == GOAWAY
                {
                    return Some(frame.code());
                }
            }
            client.goes_away().await
        })
        .await;
        assert!(
            matches!(ended, Some(ENHANCE_YOUR_CALM | FLOW_CONTROL_ERROR | PROTOCOL_ERROR)),
            "{name}: {ended:?}"
        );
    }
    is_well(&proxy).await;
}

/// What is no more than a client may do costs what the same bytes cost otherwise, however small the pieces are.
#[tokio::test]
async fn small_frames_and_compressed_heads_cost_no_more_than_their_bytes() {
    let origin = origin();
    let proxy = http2_proxy_with(origin.address(), CLEARTEXT).await;
    let outcome = withstands(&proxy, "an upload a byte at a time", async {
        let mut client = Frames::open(proxy.address(), &[]).await;
        client.send(headers(1, 0, &head("POST", "/upload"))).await;
        // In what the stream's window has room for.
        for _ in 0..200 {
            client.send(frame(DATA, 0, 1, b"x").repeat(100)).await;
        }
        client.send(frame(DATA, END_STREAM, 1, b"")).await;
        client.outcome(1).await
    })
    .await;
    assert!(
        matches!(outcome, Outcome::Status(200) | Outcome::GoAway(ENHANCE_YOUR_CALM)),
        "{outcome:?}"
    );
    // 48 KiB of fields in a few bytes, in each of 500 heads: above max_head, and below what ends the connection.
    withstands(&proxy, "small bombs", async {
        let mut client = Frames::open(proxy.address(), &[]).await;
        let mut first = head("GET", "/");
        first.push(0x40);
        first.extend_from_slice(&literal(b"x-bomb", &[b'b'; 4000])[1..]);
        client.send(headers(1, END_STREAM, &first)).await;
        assert_eq!(client.outcome(1).await, Outcome::Status(200));
        for stream in (3..1003).step_by(2) {
            client
                .send(headers(
                    stream,
                    END_STREAM,
                    &[head("GET", "/"), vec![0xbe; 12]].concat(),
                ))
                .await;
            loop {
                let frame = client.next().await.expect("an answer");
                match frame.kind {
                    HEADERS if frame.stream == stream => break,
                    GOAWAY | RST_STREAM => panic!("{frame:?}"),
                    _ => {}
                }
            }
        }
    })
    .await;
    eventually("each is in the log", async || {
        let lines = proxy.lines("request");
        lines.iter().filter(|line| line["status"] == 431).count() == 500
    })
    .await;
    is_well(&proxy).await;
}

/// What makes the proxy answer, and is no request.
fn answered() -> [(&'static str, Vec<u8>); 2] {
    [
        ("pings", frame(PING, 0, 0, b"are you?")),
        (
            "settings",
            frame(SETTINGS, 0, 0, &[0, WINDOW.to_be_bytes()[1], 0, 1, 0, 0]),
        ),
    ]
}

#[tokio::test]
async fn pings_and_settings_are_answered_and_take_no_memory() {
    let origin = silent_origin().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    for (name, flood) in answered() {
        withstands(&proxy, name, async {
            let mut client = Frames::open(proxy.address(), &[]).await;
            let flood = flood.repeat(100);
            for _ in 0..300 {
                client.send(&flood).await;
                let mut acknowledged = 0;
                while acknowledged < 100 {
                    let frame = client.next().await.expect("an answer");
                    acknowledged += usize::from(frame.flags & ACK != 0 && matches!(frame.kind, PING | SETTINGS));
                }
            }
        })
        .await;
    }
    is_well(&proxy).await;
}

/// They are read and cost little, or end the connection, however many streams they are about.
#[tokio::test]
async fn frames_that_say_nothing_cost_little_time() {
    let origin = silent_origin().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let settings = |size: u8| frame(SETTINGS, 0, 0, &[0, WINDOW.to_be_bytes()[1], 0, 0, 0, size]);
    for (name, flood) in [
        (
            "windows of all streams, up and down",
            [settings(0), settings(9)].concat(),
        ),
        ("a window that opens by a byte", window(1, 1)),
        ("the window of the connection", window(0, 1)),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 0])),
        (
            "priorities of streams that there aren't",
            frame(PRIORITY, 0, 9999, &[0; 5]),
        ),
        ("frames that nobody knows", frame(0x16, 0, 0, b"")),
        ("a stream that is over", frame(RST_STREAM, 0, 1, &CANCEL)),
    ] {
        withstands(&proxy, name, async {
            let before = reached(&origin);
            let mut client = Frames::open(proxy.address(), &[]).await;
            client
                .send((1..200).step_by(2).flat_map(request).collect::<Vec<u8>>())
                .await;
            eventually("they are open", async || reached(&origin) >= before + 100).await;
            let flood = flood.repeat(100);
            for _ in 0..100 {
                client
                    .send([&flood, &frame(PING, 0, 0, b"are you?")[..]].concat())
                    .await;
                let answer = async {
                    loop {
                        match client.next().await {
                            Some(frame) if frame.kind == PING => return false,
                            Some(frame) if frame.kind == GOAWAY => return true,
                            Some(_) => {}
                            None => panic!("{name}: it is closed without a word"),
                        }
                    }
                };
                if answer.await {
                    break;
                }
            }
        })
        .await;
    }
    is_well(&proxy).await;
}

#[tokio::test]
async fn answers_that_nobody_reads_take_little_memory_and_end_the_connection() {
    let origin = silent_origin().await;
    let more = CLEARTEXT.to_owned() + "  client: {write_timeout: 500ms}\n";
    let proxy = http2_proxy_with(origin.address, &more).await;
    for (name, flood) in answered() {
        withstands(&proxy, name, async {
            let mut client = Frames::open_with_window(proxy.address(), &[], Some(4096)).await;
            let flood = flood.repeat(1000);
            let sending = async {
                while tokio::io::AsyncWriteExt::write_all(&mut client.stream, &flood)
                    .await
                    .is_ok()
                {}
            };
            timeout(LIMIT, sending).await.expect(name);
        })
        .await;
        is_well(&proxy).await;
    }
    went_away(&proxy, "slow", 2.0).await;
}

fn window(stream: u32, size: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &size.to_be_bytes())
}

#[tokio::test]
async fn frames_that_break_the_protocol_end_their_stream_or_the_connection() {
    let origin = silent_origin().await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
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
            frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0]),
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
        client.send(request(1)).await;
        client.send(once).await;
        let outcome = client.outcome(1).await;
        let expected = [Outcome::GoAway(error), Outcome::Reset(error)];
        assert!(expected.contains(&outcome), "{name}: {outcome:?}");
    }
    is_well(&proxy).await;
}

/// Where a fault costs its stream alone, many cost the connection (CVE-2025-8671).
#[tokio::test]
async fn a_client_that_makes_the_proxy_reset_many_streams_is_cut() {
    let origin = silent_origin().await;
    let proxy = http2_proxy_with(origin.address, "  http2: {cleartext: true, max_resets: 20}\n").await;
    let post = |stream, fields: &[(&str, &str)]| headers(stream, 0, &[head("POST", "/"), block(fields)].concat());
    type Fault<'f> = (&'f str, &'f dyn Fn(u32) -> Vec<u8>);
    let faults: [Fault<'_>; 6] = [
        ("a window that grows too large", &|stream| {
            [
                request(stream),
                window(stream, 0x7fff_ffff),
                window(stream, 0x7fff_ffff),
            ]
            .concat()
        }),
        ("a stream that is its own parent", &|stream| {
            let parent = [&stream.to_be_bytes()[..], &[0]].concat();
            [request(stream), frame(PRIORITY, 0, stream, &parent)].concat()
        }),
        ("more than was announced", &|stream| {
            [
                post(stream, &[("content-length", "1")]),
                frame(DATA, END_STREAM, stream, b"abc"),
            ]
            .concat()
        }),
        ("less than was announced", &|stream| {
            [
                post(stream, &[("content-length", "9")]),
                frame(DATA, END_STREAM, stream, b"abc"),
            ]
            .concat()
        }),
        ("trailers that don't end", &|stream| {
            [post(stream, &[]), headers(stream, 0, &block(&[("x-a", "b")]))].concat()
        }),
        ("a malformed head", &|stream| post(stream, &[("connection", "close")])),
    ];
    let most = 30 * faults.len();
    for (name, fault) in faults {
        let ended = withstands(&proxy, name, async {
            let mut client = Frames::open(proxy.address(), &[]).await;
            for stream in (1..400).step_by(2) {
                client.send(fault(stream)).await;
            }
            client.goes_away().await
        })
        .await;
        assert_eq!(ended, Some(ENHANCE_YOUR_CALM), "{name}");
    }
    is_well(&proxy).await;
    // In all, because the origin may read the last of one kind after the first of the next. Each kind has 200.
    let reached = reached(&origin);
    assert!(reached < most, "{reached}");
}

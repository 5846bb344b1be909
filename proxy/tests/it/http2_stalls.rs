//! Clients of HTTP/2 that stall: they open no window or a tiny one, send no body, or read nothing. They are cut, and hold little memory until then.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::io::AsyncWriteExt;

use crate::support::attack::{silent_origin, withstands};
use crate::support::http2::{
    Answer, CLEARTEXT, DATA, END_STREAM, Frames, HEADERS, Http2, Outcome, RST_STREAM, WINDOW, WINDOW_UPDATE, frame,
    get, head, headers, http2_proxy_with, is_well,
};
use crate::support::{RawOrigin, eventually, forwarder, origin, resident_kib};

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
async fn many_that_stall_cost_little_and_hold_up_nobody() {
    let origin = origin();
    let more = CLEARTEXT.to_owned() + "  client: {write_timeout: 500ms, read_timeout: 500ms}\n";
    let proxy = http2_proxy_with(origin.address(), &more).await;
    // As many that don't stall: what they leave in the allocator is not what stalling costs.
    let mut client = Http2::open(proxy.address()).await;
    let answers = (0..100).map(|_| {
        let (response, _) = client
            .requests
            .send_request(get("/bytes/10001"), true)
            .expect("it is open");
        async { Answer::of(response.await?).await }
    });
    for answer in join_all(answers.collect::<Vec<_>>()).await {
        let answer = answer.expect("a whole answer");
        assert_eq!((answer.status, answer.body.len()), (200, 10_001));
    }
    drop(client);
    withstands(&proxy, "closed windows", async {
        let mut client = Frames::open(proxy.address(), &[(WINDOW, 0)]).await;
        for stream in (1..200).step_by(2) {
            client
                .send(headers(stream, END_STREAM, &head("GET", "/bytes/10000")))
                .await;
        }
        let mut reset = 0;
        while reset < 100 {
            let frame = client.next().await.expect("a reset");
            reset += usize::from(frame.kind == RST_STREAM);
        }
    })
    .await;
    withstands(&proxy, "bodies that don't come", async {
        let mut client = Frames::open(proxy.address(), &[]).await;
        for stream in (1..200).step_by(2) {
            client.send(headers(stream, 0, &head("POST", "/upload"))).await;
            client.send(frame(DATA, 0, stream, b"half")).await;
        }
        let mut answered = 0;
        while answered < 100 {
            let frame = client.next().await.expect("an answer");
            answered += usize::from(frame.kind == HEADERS);
        }
    })
    .await;
    is_well(&proxy).await;
    eventually("each is in the log, once", async || {
        let lines = proxy.lines("request");
        let each = |path, reason| {
            let those = lines
                .iter()
                .filter(|line| line["path"] == path && line["reason"] == reason);
            those.count()
        };
        let all = |path| lines.iter().filter(|line| line["path"] == path).count();
        let cut = ["/bytes/10000", "/upload"];
        cut.map(all) == [100, 100] && (each(cut[0], "client_gone"), each(cut[1], "request_timeout")) == (100, 100)
    })
    .await;
}

/// Many small frames of a response are no more than what its client has asked for, and have the minimum rate.
#[tokio::test]
async fn a_response_that_is_taken_a_byte_at_a_time_costs_little() {
    let origin = origin();
    let proxy = http2_proxy_with(origin.address(), CLEARTEXT).await;
    withstands(&proxy, "a byte at a time", async {
        let mut client = Frames::open(proxy.address(), &[(WINDOW, 0)]).await;
        client.send(headers(1, END_STREAM, &head("GET", "/bytes/100000"))).await;
        let mut received = 0;
        for _ in 0..2000 {
            client.send(frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])).await;
            loop {
                let frame = client.next().await.expect("data");
                if frame.kind == DATA {
                    break received += frame.payload.len();
                }
            }
        }
        assert_eq!(received, 2000);
    })
    .await;
    is_well(&proxy).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_or_drips_is_answered_408() {
    let origin = silent_origin().await;
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
    let origin = silent_origin().await;
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
    if forwarder::skips("http2_stalls::a_hundred_stalled_responses_on_one_connection_hold_little") {
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
    if forwarder::skips("http2_stalls::clients_over_the_budget_for_memory_lose_their_oldest_streams") {
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

#[tokio::test]
async fn interim_responses_do_not_pile_up_for_a_client_that_reads_nothing() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let origin = RawOrigin::start(move |mut peer| {
        let sent = Arc::clone(&counted);
        async move {
            let Some(head) = peer.head().await else { return };
            let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: </{}>\r\n\r\n", "a".repeat(1000));
            if head.starts_with("GET /some ") {
                peer.send(hint.repeat(3)).await;
                return peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
            let hints = hint.repeat(64);
            while peer.stream.write_all(hints.as_bytes()).await.is_ok() {
                sent.fetch_add(hints.len(), Ordering::Relaxed);
            }
        }
    })
    .await;
    let proxy = http2_proxy_with(origin.address, CLEARTEXT).await;
    let mut client = Frames::open(proxy.address(), &[]).await;
    client.send(headers(1, END_STREAM, &head("GET", "/some"))).await;
    let mut heads = 0;
    while client.next().await.is_some_and(|frame| {
        heads += usize::from(frame.kind == HEADERS);
        frame.flags & END_STREAM == 0 || frame.kind != DATA
    }) {}
    assert_eq!(heads, 4, "three interim responses and the final one");
    let before = resident_kib(&proxy);
    client.send(headers(3, END_STREAM, &head("GET", "/endless"))).await;
    eventually("48 MiB for nobody", async || sent.load(Ordering::Relaxed) > 48 << 20).await;
    let grown = resident_kib(&proxy).saturating_sub(before);
    assert!(grown < 12 << 10, "{grown} KiB more");
    drop(client);
    let line = proxy.request_line("/endless").await;
    assert_eq!(line["reason"], "client_gone", "{line}");
}

//! Bodies of every framing, cut at random places, both ways at once: what arrives is what was sent.

use std::time::Duration;

use fastrand::Rng;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::time::sleep;

use crate::support::raw_origin::Peer;
use crate::support::{Connection, RawOrigin, eventually, proxy_to, thorough};

const LARGEST: usize = 400_000;

/// How much is sent at a time, now and then after a pause.
async fn next_piece(rng: &mut Rng, left: usize) -> usize {
    match rng.u8(..40) {
        0 => sleep(Duration::from_millis(rng.u64(..5))).await,
        1..10 => tokio::task::yield_now().await,
        _ => {}
    }
    let most = [1, 10, 1000, 9000, 70_000][rng.usize(..5)];
    rng.usize(1..=most).min(left)
}

/// The pieces of a body in chunks, the last of which may come alone.
fn chunk(rng: &mut Rng, piece: &[u8]) -> Vec<u8> {
    let extension = if rng.u8(..10) == 0 { ";a=\"b\"" } else { "" };
    [format!("{:x}{extension}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

fn framing(chunked: bool, length: usize) -> String {
    if chunked {
        "Transfer-Encoding: chunked\r\n\r\n".to_owned()
    } else {
        format!("Content-Length: {length}\r\n\r\n")
    }
}

/// Reads the next piece of a request's body; empty at its end.
async fn take(peer: &mut Peer, length: &mut Option<usize>) -> Vec<u8> {
    let mut piece = Vec::new();
    if let Some(left) = length {
        piece.resize((*left).min(50_000), 0);
        if piece.is_empty() {
            return piece;
        }
        let read = peer.stream.read(&mut piece).await.expect("the body goes on");
        piece.truncate(read);
        *left -= read;
    } else {
        let size = peer.until("\r\n").await.expect("a chunk");
        piece.resize(usize::from_str_radix(size.trim(), 16).expect("a size"), 0);
        peer.stream.read_exact(&mut piece).await.expect("the body goes on");
        assert_eq!(peer.until("\n").await.as_deref(), Some("\r\n"));
    }
    piece
}

/// Echoes each body as the path says: `length` once it has it all, `chunked` and `close` while it comes.
async fn echo(mut peer: Peer) {
    let mut rng = Rng::new();
    while let Some(head) = peer.head().await {
        let mode = head.split([' ', '/']).nth(2).expect("a path").to_owned();
        let mut length = head.split("Content-Length: ").nth(1).map(|rest| {
            let digits = rest.lines().next().expect("a value");
            digits.parse().expect("a length")
        });
        if length.is_none() && !head.contains("Transfer-Encoding: chunked") {
            length = Some(0);
        }
        let mut body = Vec::new();
        match &*mode {
            "chunked" => peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await,
            "close" => peer.send("HTTP/1.1 200 OK\r\n\r\n").await,
            _ => {}
        }
        loop {
            let piece = take(&mut peer, &mut length).await;
            if piece.is_empty() {
                break;
            }
            match &*mode {
                "chunked" => {
                    let piece = chunk(&mut rng, &piece);
                    let cut = rng.usize(..piece.len());
                    peer.send(&piece[..cut]).await;
                    peer.send(&piece[cut..]).await;
                }
                "close" => peer.send(piece).await,
                _ => body.extend(piece),
            }
        }
        match &*mode {
            "chunked" => peer.send("0\r\n\r\n").await,
            "close" => return,
            _ => {
                peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()))
                    .await;
                while !body.is_empty() {
                    let count = next_piece(&mut rng, body.len()).await;
                    peer.send(body.drain(..count).collect::<Vec<u8>>()).await;
                }
            }
        }
    }
}

async fn upload(mut client: Connection, mut rng: Rng, head: String, chunked: bool, body: Vec<u8>) {
    client.send(head).await;
    let mut at = 0;
    while at < body.len() {
        let count = next_piece(&mut rng, body.len() - at).await;
        let piece = &body[at..at + count];
        if chunked {
            client.send(chunk(&mut rng, piece)).await;
        } else {
            client.send(piece).await;
        }
        at += count;
    }
    if chunked {
        client.send("0\r\n\r\n").await;
    }
}

async fn client(address: std::net::SocketAddr, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut client = Connection::open(address).await;
    for round in 0..thorough(60, 2000) {
        let length = [0, 1, rng.usize(..5000), rng.usize(..LARGEST)][rng.usize(..4)];
        let body: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        let mode = ["length", "chunked", "close"][rng.usize(..3)];
        let old = rng.u8(..8) == 0;
        let chunked = !old && rng.bool();
        let version = if old { "1.0" } else { "1.1" };
        let head = format!("POST /{mode} HTTP/{version}\r\nHost: a\r\n{}", framing(chunked, length));
        let what = format!("seed {seed}, round {round}: {length} bytes, {mode}, HTTP/{version}, chunked: {chunked}");
        let sending = tokio::spawn(upload(client.sender(), rng.fork(), head, chunked, body.clone()));
        let answer = match client.try_response(false).await {
            Ok(answer) => answer,
            Err(error) => panic!("{what}: {error}"),
        };
        assert_eq!(answer.status, 200, "{what}");
        assert!(
            answer.body == body,
            "{what}: {} bytes came back, or others",
            answer.body.len()
        );
        sending.await.expect("all was taken");
        if answer.header("connection") == Some("close") {
            assert!(old, "{what}: the connection is not kept");
            client = Connection::open(address).await;
        }
    }
}

#[tokio::test]
async fn an_upload_in_tiny_chunks_reaches_the_origin_in_large_ones() {
    const SIZE: usize = 200_000;
    let (sender, mut chunks) = tokio::sync::mpsc::unbounded_channel();
    let origin = RawOrigin::start(move |mut peer| {
        let sender = sender.clone();
        async move {
            peer.head().await;
            loop {
                let chunk = take(&mut peer, &mut None).await;
                let end = chunk.is_empty();
                sender.send(chunk).expect("the test goes on");
                if end {
                    break;
                }
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let body: Vec<u8> = (0..SIZE).map(|_| fastrand::u8(..)).collect();
    let tiny: Vec<u8> = body
        .iter()
        .flat_map(|&byte| [b'1', b'\r', b'\n', byte, b'\r', b'\n'])
        .collect();
    let mut client = Connection::open(proxy.address()).await;
    client
        .send(format!("POST / HTTP/1.1\r\nHost: a\r\n{}", framing(true, 0)))
        .await;
    client.send([&tiny[..], b"0\r\n\r\n"].concat()).await;
    assert_eq!(client.response().await.text(), "ok");
    let (mut count, mut arrived) = (0, Vec::new());
    while let Ok(chunk) = chunks.try_recv() {
        count += 1;
        arrived.extend(chunk);
    }
    assert!(arrived == body, "{} bytes arrived, or others", arrived.len());
    // So many bytes come in one segment of an Ethernet or more.
    assert!(count < SIZE / 100, "{count} chunks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_arrives_as_it_was_sent_however_it_is_framed_and_cut() {
    let origin = RawOrigin::start(echo).await;
    let proxy = proxy_to(&origin, "").await;
    let seed = fastrand::u64(..);
    let clients: Vec<_> = (0..8)
        .map(|number| tokio::spawn(client(proxy.address(), seed.wrapping_add(number))))
        .collect();
    for client in clients {
        client.await.expect("every body came back");
    }
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    assert!(proxy.lines("request").iter().all(|line| line.get("reason").is_none()));
}

/// Says how long a body follows, and then sends `percent` of that.
async fn large_response(mut peer: Peer) {
    while let Some(head) = peer.head().await {
        let mut path = head
            .split(['/', ' '])
            .skip(2)
            .map_while(|number| number.parse::<usize>().ok());
        let (length, percent) = (path.next().expect("a length"), path.next().expect("a share"));
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))
            .await;
        let body = numbered(length);
        for piece in body[..length * percent / 100].chunks(300_000) {
            peer.send(piece).await;
        }
        if percent < 100 {
            return;
        }
    }
}

/// So many bytes, of which no two places look alike.
fn numbered(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(u32::to_be_bytes).take(length).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_response_reaches_a_client_that_stalls_now_and_then() {
    let origin = RawOrigin::start(large_response).await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open_with_window(proxy.address(), 32 << 10).await;
    for length in [65_536, 70_000, 3_000_000, 81_920] {
        client
            .send(format!("GET /{length}/100 HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        assert_eq!(client.head().await.status, 200);
        let mut body = Vec::new();
        while body.len() < length {
            if fastrand::u8(..10) == 0 {
                sleep(Duration::from_millis(20)).await;
            }
            body.extend(client.bytes((length - body.len()).min(100_000)).await);
        }
        assert!(body == numbered(length), "{length}: others came");
    }
    eventually("every request is logged with its length", async || {
        let lengths: Vec<_> = proxy
            .lines("request")
            .into_iter()
            .map(|line| line["bytes"].clone())
            .collect();
        lengths == [65_536, 70_000, 3_000_000, 81_920]
    })
    .await;
}

#[tokio::test]
async fn a_large_response_that_ends_early_does_not_look_whole() {
    let origin = RawOrigin::start(large_response).await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client.send("GET /1000000/60 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    assert!(client.rest().await == numbered(1_000_000)[..600_000]);
    let line = proxy.request_line("/1000000/60").await;
    assert_eq!(line["reason"], "backend_failed");
    assert_eq!(line["bytes"], 600_000);
}

/// Takes each body a little at a time, and says whether it is the right one.
async fn slow_taker(mut peer: Peer) {
    let socket = SockRef::from(&peer.stream);
    socket.set_recv_buffer_size(32 << 10).expect("a buffer");
    while let Some(head) = peer.head().await {
        let length = head
            .split("Content-Length: ")
            .nth(1)
            .and_then(|rest| rest.lines().next()?.parse().ok());
        let mut left = length;
        let mut body = Vec::new();
        loop {
            if fastrand::u8(..10) == 0 {
                sleep(Duration::from_millis(20)).await;
            }
            match take(&mut peer, &mut left).await {
                piece if piece.is_empty() => break,
                piece => body.extend(piece),
            }
        }
        let status = if body == numbered(length.expect("a length")) {
            200
        } else {
            409
        };
        peer.send(format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_reaches_an_origin_that_stalls_now_and_then() {
    let origin = RawOrigin::start(slow_taker).await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    // What may be sent again is held at first.
    for (method, length) in [
        ("POST", 65_536),
        ("PUT", 300_000),
        ("POST", 1_500_000),
        ("POST", 81_920),
    ] {
        let head = format!("{method} /{length} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        client.send(head).await;
        for piece in numbered(length).chunks(100_000) {
            client.send(piece).await;
        }
        let response = client.response().await;
        assert_eq!(response.status, 200, "{method} {length}: others came");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_large_upload_that_ends_early_does_not_look_whole() {
    let origin = RawOrigin::start(async |mut peer: Peer| {
        let head = peer.head().await.expect("a head");
        assert!(head.contains("Content-Length: 1000000\r\n"), "{head}");
        let mut body = Vec::new();
        let _ = peer.stream.read_to_end(&mut body).await;
        assert!(body == numbered(1_000_000)[..body.len()]);
        assert!(body.len() <= 600_000);
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        .await;
    client.send(&numbered(1_000_000)[..600_000]).await;
    drop(client);
    let line = proxy.request_line("/half").await;
    assert_eq!(line["reason"], "client_gone", "{line}");
    assert!(line.get("status").is_none_or(|status| status != 200), "{line}");
}

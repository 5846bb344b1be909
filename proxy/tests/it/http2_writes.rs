//! How much the proxy sends at a time over HTTP/2: what many streams have to say goes out together.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use pingora::protocols::l4::ext::get_tcp_info;
use socket2::{SockRef, Socket};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::http2::{CLEARTEXT, END_STREAM, Frames, HEADERS, block, head, headers, status};
use crate::support::{Process, RawOrigin, embedded, eventually};

const STREAMS: u32 = 50;
/// If each stream were heard by itself, it would be as many as there are streams.
const FEW: u32 = STREAMS / 3;

/// A proxy with one thread for requests: which thread runs what else comes first is not up to it then.
async fn proxy(backend: SocketAddr, more: &str) -> Process {
    let configuration = embedded(&[backend]).replace("threads: 2", "threads: 1");
    let proxy = Process::proxy(&(configuration + more + CLEARTEXT)).await;
    proxy.active_backends(1).await;
    proxy
}

/// How many segments with data have come.
fn segments(socket: &impl AsRawFd) -> u32 {
    let info = get_tcp_info(socket.as_raw_fd());
    info.expect("a connection of TCP").tcpi_data_segs_in
}

fn numbers(first: u32, count: u32) -> impl Iterator<Item = u32> {
    (first..).step_by(2).take(count as usize)
}

/// The heads of requests on so many streams, from the `first` on.
fn heads(first: u32, count: u32) -> Vec<u8> {
    let head_of = |stream| headers(stream, END_STREAM, &head("GET", "/"));
    numbers(first, count).flat_map(head_of).collect()
}

/// Waits for their answers.
async fn answers(client: &mut Frames, first: u32, count: u32, expected: u16) {
    let mut left: Vec<_> = numbers(first, count).collect();
    while !left.is_empty() {
        let frame = client.next().await.expect("an answer");
        if frame.kind == HEADERS {
            assert_eq!(status(&frame.payload), expected);
            left.retain(|stream| *stream != frame.stream);
        }
    }
}

#[tokio::test]
async fn answers_that_are_ready_together_are_sent_together() {
    let answered = Arc::new(AtomicU32::new(0));
    let (open, gate) = watch::channel(false);
    let counted = Arc::clone(&answered);
    let backend = RawOrigin::start(move |mut peer| {
        let (answered, mut gate) = (Arc::clone(&counted), gate.clone());
        async move {
            peer.request().await;
            let _ = gate.wait_for(|open| *open).await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            answered.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    let proxy = proxy(backend.address, "").await;
    let mut client = Frames::open(proxy.address(), &[]).await;
    let before = segments(&client.stream);
    client.send(heads(1, STREAMS)).await;
    eventually("all have arrived", async || {
        backend.requests().len() == STREAMS as usize
    })
    .await;
    // It finds all the answers when it goes on.
    proxy.signal("STOP");
    open.send(true).expect("somebody waits");
    eventually("all are answered", async || answered.load(Ordering::Relaxed) == STREAMS).await;
    proxy.signal("CONT");
    answers(&mut client, 1, STREAMS, 200).await;
    let count = segments(&client.stream) - before;
    assert!(count <= FEW, "{count} segments");
}

#[tokio::test]
async fn requests_that_come_together_reach_a_backend_together() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let sockets: Arc<Mutex<Vec<Socket>>> = Arc::default();
    let accepted = Arc::clone(&sockets);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let socket = SockRef::from(&stream).try_clone().expect("a descriptor");
            accepted.lock().expect("no panic").push(socket);
            tokio::spawn(async move {
                // A health check says nothing.
                if stream.peek(&mut [0]).await.unwrap_or(0) == 0 {
                    return;
                }
                let mut backend = Frames::accepted(stream).await;
                while let Some(frame) = backend.next().await {
                    if frame.kind == HEADERS {
                        let answer = headers(frame.stream, END_STREAM, &block(&[(":status", "204")]));
                        backend.send(answer).await;
                    }
                }
            });
        }
    });
    let proxy = proxy(address, "  upstream: {protocol: h2c}\n").await;
    let mut client = Frames::open(proxy.address(), &[]).await;
    client.send(heads(1, 1)).await;
    answers(&mut client, 1, 1, 204).await;
    let count = || -> u32 { sockets.lock().expect("no panic").iter().map(segments).sum() };
    let before = count();
    client.send(heads(3, STREAMS)).await;
    answers(&mut client, 3, STREAMS, 204).await;
    let count = count() - before;
    assert!(count <= FEW, "{count} segments");
}

//! Clients of HTTP/2: one that behaves, over the crate `h2`, and one that sends the frames that a test says, however wrong.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{LIMIT, Process, RawOrigin, embedded, proxy_to};

/// The lines of a configuration that let clients speak HTTP/2 without TLS.
pub const CLEARTEXT: &str = "  http2: {cleartext: true}\n";

/// A proxy over this origin that speaks HTTP/2.
pub async fn http2_proxy_to(origin: &RawOrigin) -> Process {
    proxy_to(origin, CLEARTEXT).await
}

/// A proxy over the origin at this address that speaks HTTP/2, with these further lines of configuration.
pub async fn http2_proxy_with(origin: SocketAddr, more: &str) -> Process {
    let proxy = Process::proxy(&(embedded(&[origin]) + more)).await;
    proxy.active_backends(1).await;
    proxy
}

/// Nothing of the attack is left, and others are served.
pub async fn is_well(proxy: &Process) {
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    proxy.reaches("gopherproxy_connections", 0.0).await;
    proxy.reaches("gopherproxy_held_bytes", 0.0).await;
    assert_eq!(proxy.metric("gopherproxy_panics_total").await, 0.0);
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("it is text"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Reads the body of a response, and opens the window as it does.
    pub async fn of(response: http::Response<h2::RecvStream>) -> Result<Self, h2::Error> {
        let (parts, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        while let Some(data) = incoming.data().await {
            let data = data?;
            body.extend_from_slice(&data);
            let _ = incoming.flow_control().release_capacity(data.len());
        }
        Ok(Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
            trailers: incoming.trailers().await?,
        })
    }
}

/// A connection of a client that behaves.
pub struct Http2 {
    pub requests: SendRequest<Bytes>,
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    pub async fn open(to: SocketAddr) -> Self {
        Self::open_with(to, &client::Builder::new()).await
    }

    pub async fn open_with(to: SocketAddr, builder: &client::Builder) -> Self {
        let stream = timeout(LIMIT, TcpStream::connect(to))
            .await
            .expect("in time")
            .expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Self::over(stream, builder).await
    }

    /// One over this stream.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, builder: &client::Builder) -> Self {
        let (requests, connection) = builder.handshake(stream).await.expect("a connection");
        let mut http2 = Self {
            requests,
            connection: tokio::spawn(connection),
        };
        http2.requests = http2.requests.ready().await.expect("it is open");
        http2
    }

    /// Sends a request with this body, whole.
    pub async fn send(&mut self, request: Request<()>, body: &[u8]) -> Result<Answer, h2::Error> {
        let exchange = async {
            let mut requests = self.requests.clone().ready().await?;
            let (response, mut stream) = requests.send_request(request, body.is_empty())?;
            let sending = async {
                if !body.is_empty() {
                    // It may be answered, and reset, before it has all been sent.
                    let _ = upload(&mut stream, body, true).await;
                }
            };
            let answer = async { Answer::of(response.await?).await };
            tokio::join!(sending, answer).1
        };
        timeout(LIMIT, exchange).await.expect("in time")
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(get(path), b"").await.expect("an answer")
    }
}

/// A GET of this path.
pub fn get(path: &str) -> Request<()> {
    request("GET", path)
}

pub fn request(method: &str, path: &str) -> Request<()> {
    let request = Request::builder().method(method).uri(format!("http://test{path}"));
    request.body(()).expect("a request")
}

/// Sends `body` as the window opens, and the end behind it, if this is the `last` of it.
pub async fn upload(stream: &mut h2::SendStream<Bytes>, mut body: &[u8], last: bool) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let capacity = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
        let Some(capacity) = capacity.transpose()? else { break };
        let (now, later) = body.split_at(capacity.min(body.len()));
        stream.send_data(Bytes::copy_from_slice(now), last && later.is_empty())?;
        body = later;
    }
    Ok(())
}

/// The kinds of frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const WINDOW: u16 = 4;

/// Flags.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The number in its payload, of a reset or of a GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        let bytes = self.payload[at..at + 4].try_into().expect("four bytes");
        u32::from_be_bytes(bytes)
    }
}

/// What becomes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered with this status.
    Status(u16),
    /// It is reset with this error.
    Reset(u32),
    /// The connection ends with this error.
    GoAway(u32),
    /// The connection is closed.
    Closed,
}

/// A connection on which a test says every byte.
pub struct Frames {
    pub stream: TcpStream,
    received: Vec<u8>,
}

impl Frames {
    /// One that has sent the preface and these settings.
    pub async fn open(to: SocketAddr, settings: &[(u16, u32)]) -> Self {
        Self::open_with_window(to, settings, None).await
    }

    /// The same, whose client lets so many bytes lie unread in its kernel, or what the system takes for that.
    pub async fn open_with_window(to: SocketAddr, settings: &[(u16, u32)], window: Option<u32>) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(window) = window {
            socket.set_recv_buffer_size(window).expect("a buffer");
        }
        assert_eq!(to.ip(), Ipv4Addr::LOCALHOST);
        let stream = timeout(LIMIT, socket.connect(to))
            .await
            .expect("in time")
            .expect("a connection");
        Self::over(stream, settings).await
    }

    /// One over this stream, on which nothing has been sent.
    pub async fn over(stream: TcpStream, settings: &[(u16, u32)]) -> Self {
        stream.set_nodelay(true).expect("a socket");
        let mut frames = Self {
            stream,
            received: Vec::new(),
        };
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        frames.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        frames.send(frame(SETTINGS, 0, 0, &settings)).await;
        frames
    }

    /// The origin's end of a connection, which has sent its settings and read the preface.
    pub async fn accepted(mut stream: TcpStream) -> Self {
        let mut preface = [0; 24];
        timeout(LIMIT, stream.read_exact(&mut preface))
            .await
            .expect("in time")
            .expect("a preface");
        let mut frames = Self {
            stream,
            received: Vec::new(),
        };
        frames.send(frame(SETTINGS, 0, 0, b"")).await;
        frames
    }

    /// Sends bytes that the proxy may not want.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// The next frame; `None` when the proxy has closed.
    pub async fn next(&mut self) -> Option<Frame> {
        timeout(LIMIT, self.read()).await.expect("a frame, or the end")
    }

    /// The next frame, if it comes within `patience`.
    pub async fn next_within(&mut self, patience: Duration) -> Option<Frame> {
        timeout(patience, self.read()).await.ok().flatten()
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            if let [high, middle, low, kind, flags, stream @ ..] = &self.received[..]
                && let Some(stream) = stream.first_chunk()
            {
                let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
                if self.received.len() >= 9 + length {
                    let frame = Frame {
                        kind: *kind,
                        flags: *flags,
                        stream: u32::from_be_bytes(*stream),
                        payload: self.received[9..9 + length].to_vec(),
                    };
                    self.received.drain(..9 + length);
                    return Some(frame);
                }
            }
            if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// What becomes of this stream.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Some(frame) = self.next().await else {
                return Outcome::Closed;
            };
            match frame.kind {
                HEADERS if frame.stream == stream => return Outcome::Status(status(&frame.payload)),
                RST_STREAM if frame.stream == stream => return Outcome::Reset(frame.code()),
                GOAWAY => return Outcome::GoAway(frame.code()),
                _ => {}
            }
        }
    }

    /// The error that the connection ends with; `None` if it is closed without one.
    pub async fn goes_away(&mut self) -> Option<u32> {
        loop {
            let frame = self.next().await?;
            if frame.kind == GOAWAY {
                return Some(frame.code());
            }
        }
    }
}

/// A frame as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field as HPACK has it, without any table.
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0][..], &string(name), &string(value)].concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut string = Vec::new();
    match bytes.len() {
        short @ ..127 => string.push(u8::try_from(short).expect("it is short")),
        mut long => {
            string.push(127);
            long -= 127;
            while long >= 128 {
                string.push(u8::try_from(long % 128).expect("seven bits") | 128);
                long /= 128;
            }
            string.push(u8::try_from(long).expect("seven bits"));
        }
    }
    string.extend_from_slice(bytes);
    string
}

/// A head of these fields.
pub fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let fields = fields
        .iter()
        .map(|(name, value)| literal(name.as_ref(), value.as_ref()));
    fields.collect::<Vec<_>>().concat()
}

/// The head of a request.
pub fn head(method: &str, path: &str) -> Vec<u8> {
    block(&[
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
    ])
}

/// The frame of a head with these flags beside END_HEADERS.
pub fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, block)
}

/// The status of a response, which is the first field in its head, on a connection that had no other response.
pub fn status(block: &[u8]) -> u16 {
    match block {
        [first @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)],
        [_, length, rest @ ..] if *length < 128 => std::str::from_utf8(&rest[..usize::from(*length)])
            .expect("digits")
            .parse()
            .expect("a status"),
        [_, length, rest @ ..] => digits(&rest[..usize::from(length & 127)]),
        _ => panic!("no status in {block:?}"),
    }
}

/// Three digits as Huffman has them (RFC 7541, appendix B).
fn digits(code: &[u8]) -> u16 {
    let bits: String = code.iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut number, mut at) = (0, 0);
    for _ in 0..3 {
        let short = u16::from_str_radix(&bits[at..at + 5], 2).expect("bits");
        if short < 3 {
            number = number * 10 + short;
            at += 5;
        } else {
            let long = u16::from_str_radix(&bits[at..at + 6], 2).expect("bits");
            number = number * 10 + long - 0b01_1001 + 3;
            at += 6;
        }
    }
    number
}

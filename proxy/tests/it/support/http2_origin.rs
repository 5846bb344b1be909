//! An origin that speaks HTTP/2, or HTTP/1.1 where that is negotiated, over TLS or without.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Request, Response};
use rustls::HandshakeKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `h1` or `h2`.
    pub version: &'static str,
    /// The head: over HTTP/1.1 as it came, over HTTP/2 a line for each field, in lower case.
    pub head: String,
    /// The body: over HTTP/1.1 with its framing.
    pub body: Vec<u8>,
}

/// What came, and how.
#[derive(Default)]
struct Log {
    requests: Mutex<Vec<Seen>>,
    /// How many connections there were that got as far as HTTP.
    connections: Mutex<usize>,
    /// How many there were that sent something.
    attempts: Mutex<usize>,
    /// How many handshakes resumed a session.
    resumed: Mutex<usize>,
    /// How many requests a connection may have at a time.
    max_streams: Option<u32>,
}

/// A running origin. Dropping it closes its port.
pub struct Http2Origin {
    pub address: SocketAddr,
    log: Arc<Log>,
    acceptor: Arc<Mutex<Option<TlsAcceptor>>>,
    accepting: JoinHandle<()>,
}

/// What answers a request over HTTP/2 whose body is still to come.
pub type Answer = Arc<dyn Fn(Request<RecvStream>, SendResponse<Bytes>) -> BoxFuture<'static, ()> + Send + Sync>;

impl Http2Origin {
    /// Over TLS, with 200 for everything.
    pub async fn over_tls(acceptor: TlsAcceptor) -> Self {
        Self::start(Some(acceptor), None).await
    }

    /// Without TLS, HTTP/2 from the first byte.
    pub async fn plain() -> Self {
        Self::start(None, None).await
    }

    /// The same, where `answer` answers requests over HTTP/2.
    pub async fn start(acceptor: Option<TlsAcceptor>, answer: Option<Answer>) -> Self {
        Self::with(acceptor, answer, None).await
    }

    /// The same with at most so many requests on a connection at a time.
    pub async fn with(acceptor: Option<TlsAcceptor>, answer: Option<Answer>, max_streams: Option<u32>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let log = Arc::new(Log {
            max_streams,
            ..Log::default()
        });
        let acceptor = Arc::new(Mutex::new(acceptor));
        let (shared, serving) = (Arc::clone(&log), Arc::clone(&acceptor));
        let accepting = tokio::spawn(async move {
            let mut under_way = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = serving.lock().expect("no test panics with it").clone();
                let (log, answer) = (Arc::clone(&shared), answer.clone());
                under_way.spawn(async move { serve(stream, acceptor, answer, &log).await });
            }
        });
        Self {
            address,
            log,
            acceptor,
            accepting,
        }
    }

    /// Accepts connections in another way from now on.
    pub fn change(&self, acceptor: TlsAcceptor) {
        *self.acceptor.lock().expect("no test panics with it") = Some(acceptor);
    }

    /// How many handshakes resumed a session.
    pub fn resumed(&self) -> usize {
        *self.log.resumed.lock().expect("no test panics with it")
    }

    /// Every request that came whole.
    pub fn requests(&self) -> Vec<Seen> {
        self.log.requests.lock().expect("no test panics with it").clone()
    }

    /// How many connections there were that got as far as HTTP.
    pub fn connections(&self) -> usize {
        *self.log.connections.lock().expect("no test panics with it")
    }

    /// How many there were that sent something.
    pub fn attempts(&self) -> usize {
        *self.log.attempts.lock().expect("no test panics with it")
    }
}

impl Drop for Http2Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: TcpStream, acceptor: Option<TlsAcceptor>, answer: Option<Answer>, log: &Arc<Log>) {
    // Health checks send nothing.
    if !stream.peek(&mut [0]).await.is_ok_and(|read| read > 0) {
        return;
    }
    *log.attempts.lock().expect("no test panics with it") += 1;
    let Some(acceptor) = acceptor else {
        *log.connections.lock().expect("no test panics with it") += 1;
        return http2(stream, answer, log).await;
    };
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    *log.connections.lock().expect("no test panics with it") += 1;
    if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
        *log.resumed.lock().expect("no test panics with it") += 1;
    }
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        http2(stream, answer, log).await;
    } else {
        http1(stream, log).await;
    }
}

async fn http2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, answer: Option<Answer>, log: &Arc<Log>) {
    let mut builder = h2::server::Builder::new();
    if let Some(streams) = log.max_streams {
        builder.max_concurrent_streams(streams);
    }
    let Ok(mut connection) = builder.handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        match &answer {
            Some(answer) => drop(tokio::spawn(answer(request, respond))),
            None => drop(tokio::spawn(ok(request, respond, Arc::clone(log)))),
        }
    }
}

/// A head over HTTP/2 as text.
pub fn text(request: &Request<RecvStream>) -> String {
    let mut text = format!("{} {}\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
    }
    text
}

/// Reads a whole body and its trailers.
pub async fn whole(body: &mut RecvStream) -> Option<(Vec<u8>, Option<HeaderMap>)> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len()).ok()?;
    }
    Some((bytes, body.trailers().await.ok()?))
}

async fn ok(mut request: Request<RecvStream>, mut respond: SendResponse<Bytes>, log: Arc<Log>) {
    let head = text(&request);
    let Some((body, _)) = whole(request.body_mut()).await else {
        return;
    };
    let seen = Seen {
        version: "h2",
        head,
        body,
    };
    log.requests.lock().expect("no test panics with it").push(seen);
    let response = Response::builder().header("x-version", "h2").body(()).expect("a head");
    // The proxy may have gone away.
    let to_head = request.method() == Method::HEAD;
    if let Ok(mut body) = respond.send_response(response, to_head)
        && !to_head
    {
        let _ = body.send_data(Bytes::from_static(b"ok"), true);
    }
}

/// Answers requests whose body has a length, is chunked, or is none; a switch to another protocol becomes an echo.
async fn http1(mut stream: impl AsyncRead + AsyncWrite + Unpin, log: &Log) {
    let mut received = Vec::new();
    loop {
        let (head, body) = loop {
            if let Some(request) = whole_http1(&mut received) {
                break request;
            }
            if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let to_head = head.starts_with("HEAD ");
        let upgrades = head.to_lowercase().contains("\r\nupgrade: ");
        let seen = Seen {
            version: "h1",
            head,
            body,
        };
        log.requests.lock().expect("no test panics with it").push(seen);
        let answer: &[u8] = if upgrades {
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        } else if to_head {
            b"HTTP/1.1 200 OK\r\nX-Version: h1\r\nContent-Length: 2\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nX-Version: h1\r\nContent-Length: 2\r\n\r\nok"
        };
        if stream.write_all(answer).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if upgrades {
            return echo(stream, received).await;
        }
    }
}

/// Sends back whatever comes, after what came already.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, mut data: Vec<u8>) {
    while !data.is_empty() || stream.read_buf(&mut data).await.unwrap_or(0) > 0 {
        if stream.write_all(&data).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        data.clear();
    }
}

/// Takes the first whole request out of `received`.
fn whole_http1(received: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let find = |from: usize, what: &[u8]| {
        let found = received[from..].windows(what.len()).position(|window| window == what);
        found.map(|at| from + at + what.len())
    };
    let end = find(0, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&received[..end]).into_owned();
    let lower = head.to_lowercase();
    let length = lower.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
    let body_end = if lower.contains("transfer-encoding: chunked") {
        // The bodies of the tests have no such text in them.
        find(end, b"0\r\n\r\n")?
    } else {
        end + length.unwrap_or(0)
    };
    if received.len() < body_end {
        return None;
    }
    let body = received[end..body_end].to_vec();
    received.drain(..body_end);
    Some((head, body))
}

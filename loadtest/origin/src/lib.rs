//! A small, fast origin server: the demo, the tests and the benchmarks all proxy to it.
//!
//! Every answer carries `X-Origin`, the address it came from. What it answers is in the path:
//!
//! | path | answer |
//! |---|---|
//! | `/status/204` | that status |
//! | `/bytes/1024` | so many bytes |
//! | `/text/1024` | so many bytes of text |
//! | `/chunked/3` | so many chunks, a line each |
//! | `/delay/500` | after so many milliseconds |
//! | `/echo` | the request's body, streamed back |
//! | `/upload` | how many bytes the request's body had, once it has all come |
//! | `/headers` | the request line and the fields it came with, a line each |
//! | `/upgrade` | 101, and every byte echoed |
//! | anything else | one line that names the origin |
//!
//! It speaks HTTP/1.1 and, to clients that begin with it, HTTP/2 without TLS. A call of gRPC to whatever method is answered with its own
//! messages.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::task::{JoinHandle, JoinSet};

type Body = BoxBody<Bytes, hyper::Error>;

/// A running origin. Dropping it closes its port and every connection.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Origin {
    /// Serves `socket`, which must be non-blocking.
    ///
    /// # Errors
    /// When the socket can't be used by the runtime.
    pub fn serve(socket: TcpListener) -> io::Result<Self> {
        Self::serve_after(Duration::ZERO, socket)
    }

    /// The same, and every answer waits for `delay`.
    ///
    /// # Errors
    /// When the socket can't be used by the runtime.
    pub fn serve_after(delay: Duration, socket: TcpListener) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(socket)?;
        let requests = Arc::new(AtomicU64::new(0));
        let name = HeaderValue::try_from(address.to_string()).map_err(io::Error::other)?;
        let accepting = tokio::spawn(accept(listener, name, delay, Arc::clone(&requests)));
        Ok(Self {
            address,
            requests,
            accepting,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests it has received.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Closes the port and every connection, and returns when they are closed.
    pub async fn stop(mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: tokio::net::TcpListener, name: HeaderValue, delay: Duration, requests: Arc<AtomicU64>) {
    // The connections end with this task, because the set that owns them does.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: some will come back.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (name, requests) = (name.clone(), Arc::clone(&requests));
        let serve = service_fn(move |request| {
            requests.fetch_add(1, Ordering::SeqCst);
            let name = name.clone();
            async move {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                answer(request, name).await
            }
        });
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new());
        connections.spawn(async move {
            let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), serve);
            // A client that leaves is no error.
            drop(connection.await);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(request: Request<Incoming>, name: HeaderValue) -> Result<Response<Body>, Infallible> {
    if is_grpc(&request) {
        return Ok(echo_messages(request).await);
    }
    let path = request.uri().path().to_owned();
    let (action, argument) = path[1.min(path.len())..]
        .split_once('/')
        .unwrap_or((&path[1.min(path.len())..], ""));
    let number = argument.parse::<u32>().unwrap_or(0);
    let mut response = match action {
        "status" => {
            let mut response = Response::new(full(Bytes::new()));
            let status = u16::try_from(number)
                .ok()
                .and_then(|code| StatusCode::from_u16(code).ok());
            *response.status_mut() = status.unwrap_or(StatusCode::BAD_REQUEST);
            response
        }
        "bytes" => bytes(number.into()),
        "text" => text(number.into()),
        "chunked" => {
            let chunks = (0..number).map(|chunk| Ok(Frame::data(Bytes::from(format!("chunk {chunk}\n")))));
            Response::new(StreamBody::new(futures::stream::iter(chunks)).boxed())
        }
        "delay" => {
            tokio::time::sleep(Duration::from_millis(number.into())).await;
            Response::new(full(greeting(&name)))
        }
        "echo" => Response::new(request.into_body().boxed()),
        "upload" => {
            let size = request
                .into_body()
                .collect()
                .await
                .map_or(0, |body| body.to_bytes().len());
            Response::new(full(Bytes::from(format!("{size}\n"))))
        }
        "headers" => Response::new(full(describe(&request))),
        "upgrade" => upgrade(request),
        _ => Response::new(full(greeting(&name))),
    };
    response.headers_mut().insert("x-origin", name);
    Ok(response)
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// The answer to a call of gRPC: its messages, and status 0 behind them.
async fn echo_messages(request: Request<Incoming>) -> Response<Body> {
    let messages = request.into_body().collect().await;
    let messages = messages.map_or_else(|_| Bytes::new(), |body| body.to_bytes());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(messages)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)).boxed());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn bytes(length: u64) -> Response<Body> {
    static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];
    repeated(&PIECE, length)
}

/// So many bytes of `piece`, again and again, of which only one is in memory, however many clients want however much.
fn repeated(piece: &'static [u8], length: u64) -> Response<Body> {
    let pieces = (0..length).step_by(piece.len()).map(move |start| {
        let end = piece.len().min(usize::try_from(length - start).unwrap_or(usize::MAX));
        Ok(Frame::data(Bytes::from_static(&piece[..end])))
    });
    let mut response = Response::new(StreamBody::new(futures::stream::iter(pieces)).boxed());
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response
}

/// The same of a text that compresses to about a third, as pages and answers in JSON do.
fn text(length: u64) -> Response<Body> {
    // No compressor looks so far back that it finds the piece again.
    static PIECE: LazyLock<Vec<u8>> = LazyLock::new(|| prose(256 << 10));
    let mut response = repeated(&PIECE, length);
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Words of a small vocabulary, the first ones most often, with numbers between them; the same in every run.
fn prose(length: usize) -> Vec<u8> {
    const SYLLABLES: [&str; 16] = [
        "an", "be", "con", "de", "er", "for", "in", "ly", "ment", "no", "or", "pro", "re", "sta", "ti", "un",
    ];
    // The generator that POSIX gives as an example.
    let mut state = 1_u32;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        (state >> 16) as usize % bound
    };
    let mut text = String::with_capacity(length + 64);
    while text.len() < length {
        // The product of two falls off like the frequencies of words.
        let word = below(64) * below(64);
        match below(24) {
            0 => text += ".\n",
            1 => text += &format!("{}", below(10_000)),
            _ => {}
        }
        for place in [word % 16, word / 16 % 16, word / 256] {
            text += SYLLABLES[place];
        }
        text.push(' ');
    }
    text.truncate(length);
    text.into_bytes()
}

fn greeting(name: &HeaderValue) -> Bytes {
    Bytes::from(format!("hello from {}\n", name.to_str().unwrap_or("an origin")))
}

fn describe(request: &Request<Incoming>) -> Bytes {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    Bytes::from(text)
}

/// Switches to whatever the client asked for, and echoes what it says then.
fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    let Some(protocol) = request.headers().get(UPGRADE).cloned() else {
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
            // The client ends it; an error is an end too.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, protocol);
    response
}

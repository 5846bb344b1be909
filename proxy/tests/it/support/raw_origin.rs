//! An origin that does on the wire exactly what a test says, however wrong.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::OriginListener;

/// One connection to the origin.
pub struct Peer {
    pub stream: TcpStream,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Peer {
    /// Reads a request with a body of known length, and notes it; `None` when the proxy closes.
    pub async fn request(&mut self) -> Option<String> {
        let mut text = Vec::new();
        loop {
            if let Some(end) = text.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
                let length = head.split("content-length: ").nth(1).map_or(0, |rest| {
                    rest.split("\r\n")
                        .next()
                        .and_then(|length| length.parse().ok())
                        .expect("a length")
                });
                if text.len() >= end + 4 + length {
                    let text = String::from_utf8_lossy(&text).into_owned();
                    self.requests.lock().expect("no test panics with it").push(text.clone());
                    return Some(text);
                }
            }
            if self.stream.read_buf(&mut text).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Reads the head of a request and nothing behind it, and notes it; `None` when the proxy closes.
    pub async fn head(&mut self) -> Option<String> {
        self.until("\r\n\r\n").await.inspect(|head| {
            self.requests.lock().expect("no test panics with it").push(head.clone());
        })
    }

    /// Reads up to `end` and nothing behind it; `None` when the proxy closes.
    pub async fn until(&mut self, end: &str) -> Option<String> {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            text.push(self.stream.read_u8().await.ok()?);
        }
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// Makes the end of the connection a reset.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO));
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The proxy may have gone away, which is its right.
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }
}

/// A running raw origin. Dropping it closes its port.
pub struct RawOrigin {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
    accepting: JoinHandle<()>,
}

impl RawOrigin {
    /// Runs `serve` for every connection that sends something; the health checks' connections send nothing.
    pub async fn start<F>(serve: impl Fn(Peer) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut listener = OriginListener::bind().await;
        let address = listener.address;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let (noted, counted, serve) = (Arc::clone(&requests), Arc::clone(&connections), Arc::new(serve));
        let accepting = tokio::spawn(async move {
            while let Some(stream) = listener.accept().await {
                let (requests, counted, serve) = (Arc::clone(&noted), Arc::clone(&counted), Arc::clone(&serve));
                tokio::spawn(async move {
                    if stream.peek(&mut [0]).await.is_ok_and(|read| read > 0) {
                        *counted.lock().expect("no test panics with it") += 1;
                        serve(Peer { stream, requests }).await;
                    }
                });
            }
        });
        Self {
            address,
            requests,
            connections,
            accepting,
        }
    }

    /// An origin that answers every request with `response`, on connections that it keeps.
    pub async fn answering(response: &'static str) -> Self {
        Self::start(move |mut peer| async move {
            while peer.request().await.is_some() {
                peer.send(response).await;
            }
        })
        .await
    }

    /// Every request it has received, head and body.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no test panics with it").clone()
    }

    /// How many connections have sent a request.
    pub fn connections(&self) -> usize {
        *self.connections.lock().expect("no test panics with it")
    }
}

impl Drop for RawOrigin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

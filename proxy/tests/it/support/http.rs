//! An HTTP/1.1 client that hides nothing: what it sends is what the test wrote, what it returns is what came.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::LIMIT;

/// A response as it came.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The value of the field `name`, if it is there; panics if it is there twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice: {:?}", self.headers);
        value
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The origin that answered.
    pub fn origin(&self) -> SocketAddr {
        self.header("x-origin")
            .expect("an origin answered")
            .parse()
            .expect("an address")
    }
}

/// A connection to a server.
pub struct Connection<S = TcpStream> {
    stream: S,
    received: Vec<u8>,
}

impl Connection {
    pub async fn open(to: SocketAddr) -> Self {
        Self::try_open(to, IpAddr::from([127, 0, 0, 1]))
            .await
            .expect("a connection")
    }

    pub async fn open_from(to: SocketAddr, from: IpAddr) -> Self {
        Self::try_open(to, from).await.expect("a connection")
    }

    pub async fn try_open(to: SocketAddr, from: IpAddr) -> std::io::Result<Self> {
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // Bound, it would need a port that no connection to anywhere has; else one that none to `to` has.
        if from != Ipv4Addr::LOCALHOST {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = timeout(LIMIT, socket.connect(to)).await??;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    /// A connection as over a long way: its client is connected, and its server sees the end of the handshake with the first
    /// bytes that are sent, or 200 ms later.
    pub async fn try_open_from_afar(to: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket2::SockRef::from(&socket).set_tcp_quickack(false)?;
        let stream = timeout(LIMIT, socket.connect(to)).await??;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    /// A connection whose client lets so many bytes lie unread, or what the system takes for that.
    pub async fn open_with_window(to: SocketAddr, bytes: u32) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("a buffer");
        let stream = timeout(LIMIT, socket.connect(to))
            .await
            .expect("in time")
            .expect("a connection");
        Self {
            stream,
            received: Vec::new(),
        }
    }

    /// The same connection for another task, which sends while this one reads.
    pub fn sender(&self) -> Self {
        let stream = socket2::SockRef::from(&self.stream).try_clone().expect("a descriptor");
        Self {
            stream: TcpStream::from_std(stream.into()).expect("a runtime"),
            received: Vec::new(),
        }
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO));
    }

    /// How many bytes of what was sent lie in the server's kernel and have not been read.
    pub fn unread_by_server(&self) -> u64 {
        let ends = [self.stream.peer_addr(), self.stream.local_addr()];
        let ends = ends.map(|end| format!(":{:04X}", end.expect("it is connected").port()));
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux has it");
        let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let mut queues = rows
            .filter(|row| row[1].ends_with(&ends[0]) && row[2].ends_with(&ends[1]))
            .filter_map(|row| u64::from_str_radix(row[4].split(':').nth(1)?, 16).ok());
        queues.next().expect("the server has its end")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection over `stream`.
    pub fn over(stream: S) -> Self {
        Self {
            stream,
            received: Vec::new(),
        }
    }

    /// What it is over.
    pub fn into_stream(self) -> S {
        assert!(self.received.is_empty());
        self.stream
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the server takes it");
    }

    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Sends zeros until nobody takes any more.
    pub async fn flood(&mut self) {
        while timeout(Duration::from_secs(2), self.try_send([0; 64 << 10]))
            .await
            .is_ok_and(|sent| sent.is_ok())
        {}
    }

    pub async fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, "", "").await
    }

    /// Sends a request with more header lines (each ended) and a body, and reads its response.
    pub async fn request(&mut self, method: &str, path: &str, lines: &str, body: &str) -> Response {
        self.try_request(method, path, lines, body).await.expect("a response")
    }

    pub async fn try_request(
        &mut self,
        method: &str,
        path: &str,
        lines: &str,
        body: &str,
    ) -> std::io::Result<Response> {
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        self.try_send(format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\n{length}{lines}\r\n{body}"
        ))
        .await?;
        self.try_response(method == "HEAD").await
    }

    /// Ends what is sent, and still reads.
    pub async fn finish(&mut self) {
        self.try_finish().await.expect("it is open");
    }

    pub async fn try_finish(&mut self) -> std::io::Result<()> {
        self.stream.shutdown().await
    }

    /// Reads a response, 1xx ones too.
    pub async fn response(&mut self) -> Response {
        self.try_response(false).await.expect("a response")
    }

    pub async fn try_response(&mut self, no_body: bool) -> std::io::Result<Response> {
        timeout(LIMIT, self.read_response(no_body)).await?
    }

    /// Everything until the server closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.received);
        // A reset is an end too.
        let _ = timeout(LIMIT, self.stream.read_to_end(&mut rest))
            .await
            .expect("the server closes");
        rest
    }

    /// Everything until the server closes, which it does without a reset.
    pub async fn try_rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.received);
        timeout(LIMIT, self.stream.read_to_end(&mut rest)).await??;
        Ok(rest)
    }

    /// Reads the head of a response and leaves the body.
    pub async fn head(&mut self) -> Response {
        self.try_response(true).await.expect("a head")
    }

    /// Reads everything up to `end`, and that.
    pub async fn until(&mut self, end: &str) -> String {
        let read = async {
            loop {
                let found = self
                    .received
                    .windows(end.len())
                    .position(|window| window == end.as_bytes());
                match found {
                    Some(at) => break self.received.drain(..at + end.len()).collect::<Vec<u8>>(),
                    None => self.more().await.expect("the connection is open"),
                }
            }
        };
        let bytes = timeout(LIMIT, read).await.expect("in time");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads the next chunk of a body; the last is empty, and the trailers behind it are left.
    pub async fn chunk(&mut self) -> Vec<u8> {
        let size = self.until("\r\n").await;
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk size");
        let chunk = self.bytes(size).await;
        if size > 0 {
            self.bytes(2).await;
        }
        chunk
    }

    /// Exactly `count` bytes.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        timeout(LIMIT, self.fill(count))
            .await
            .expect("in time")
            .expect("so many bytes");
        self.received.drain(..count).collect()
    }

    /// So many bytes, unless the connection ends before.
    pub async fn try_bytes(&mut self, count: usize) -> std::io::Result<Vec<u8>> {
        timeout(LIMIT, self.fill(count)).await??;
        Ok(self.received.drain(..count).collect())
    }

    async fn read_response(&mut self, no_body: bool) -> std::io::Result<Response> {
        let end = loop {
            match self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => self.more().await?,
            }
        };
        let head = String::from_utf8_lossy(&self.received[..end]).into_owned();
        self.received.drain(..end);
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .expect("a status line");
        let headers: Vec<(String, String)> = lines
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once(':').expect("a field"))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut response = Response {
            status,
            headers,
            body: Vec::new(),
        };
        if no_body || (100..200).contains(&status) || matches!(status, 204 | 304) {
            return Ok(response);
        }
        if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.line().await?;
                let size = usize::from_str_radix(size.trim(), 16).expect("a chunk size");
                self.fill(size + 2).await?;
                response.body.extend(self.received.drain(..size));
                self.received.drain(..2);
                if size == 0 {
                    return Ok(response);
                }
            }
        }
        match response
            .header("content-length")
            .map(|length| length.parse().expect("a length"))
        {
            Some(length) => {
                self.fill(length).await?;
                response.body = self.received.drain(..length).collect();
            }
            None => {
                while self.more().await.is_ok() {}
                response.body = std::mem::take(&mut self.received);
            }
        }
        Ok(response)
    }

    async fn line(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|window| window == b"\r\n") {
                let line = self.received.drain(..end + 2).collect::<Vec<u8>>();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more().await?;
        }
    }

    async fn fill(&mut self, count: usize) -> std::io::Result<()> {
        while self.received.len() < count {
            self.more().await?;
        }
        Ok(())
    }

    async fn more(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// One GET on a connection of its own.
pub async fn get(from: SocketAddr, path: &str) -> Response {
    Connection::open(from).await.get(path).await
}

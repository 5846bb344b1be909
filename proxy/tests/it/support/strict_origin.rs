//! An origin that reads requests by RFC 9112 and in no other way.
//!
//! Whatever the proxy sends that has a second reading (a bare line feed, a length with a sign, a chunk with an extension) is a
//! violation, which a test looks for after everything that it does.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::OriginListener;

/// A request as it came, whole.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Received {
    /// Every value of the field `name`, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let named = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        let values = self.headers.iter().filter(named);
        values.map(|(_, value)| value.as_str()).collect()
    }

    /// The method, the target and the body, which is what the origin answers with.
    pub fn summary(&self) -> String {
        format!("{} {} {}", self.method, self.target, self.body.escape_ascii())
    }
}

/// What has come so far.
#[derive(Debug, Default)]
struct Record {
    begun: usize,
    requests: Vec<Received>,
    cut: usize,
    violations: Vec<String>,
}

/// Why there is no request.
enum Fault {
    /// The connection ended, before a request or inside one.
    End { inside: bool },
    /// The bytes are not what RFC 9112 says.
    Violation(String),
}

fn violation<T>(what: &str, bytes: &[u8]) -> Result<T, Fault> {
    Err(Fault::Violation(format!("{what}: {}", bytes.escape_ascii())))
}

/// One connection, and what has been read of it but not used.
struct Reader {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Reader {
    /// Reads until `count` bytes are there, and takes them.
    async fn bytes(&mut self, count: usize) -> Result<Vec<u8>, Fault> {
        while self.received.len() < count {
            self.more().await?;
        }
        Ok(self.received.drain(..count).collect())
    }

    /// Takes a line without the CRLF that ends it, in which no other CR or LF may be.
    async fn line(&mut self) -> Result<Vec<u8>, Fault> {
        let end = loop {
            match self.received.iter().position(|byte| *byte == b'\n') {
                Some(end) => break end,
                None => self.more().await?,
            }
        };
        let line = self.bytes(end + 1).await?;
        match line.strip_suffix(b"\r\n") {
            Some(line) if !line.contains(&b'\r') => Ok(line.to_vec()),
            _ => violation("a line that CRLF alone does not end", &line),
        }
    }

    async fn more(&mut self) -> Result<(), Fault> {
        match self.stream.read_buf(&mut self.received).await {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(Fault::End { inside: true }),
        }
    }

    /// Reads a head.
    async fn head(&mut self) -> Result<Received, Fault> {
        if self.received.is_empty() {
            self.more().await.map_err(|_| Fault::End { inside: false })?;
        }
        let line = self.line().await?;
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let [method, target, b"HTTP/1.1"] = words[..] else {
            return violation("not a request line", &line);
        };
        // Bytes of other alphabets are no URI's either, but nobody reads them as an end of anything.
        if !is_token(method) || target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
            return violation("not a request line", &line);
        }
        let mut request = Received {
            method: text(method),
            target: String::from_utf8_lossy(target).into_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(request);
            }
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or(0);
            let (name, value) = (&line[..colon], &line[(colon + 1).min(line.len())..]);
            let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
            if !is_token(name) || !value.iter().all(is_text) {
                return violation("not a field", &line);
            }
            request.headers.push((text(name), text(value.trim_ascii())));
        }
    }

    /// Reads the body that the head announces.
    async fn body(&mut self, request: &Received) -> Result<Vec<u8>, Fault> {
        match (
            &request.values("content-length")[..],
            &request.values("transfer-encoding")[..],
        ) {
            ([], []) => Ok(Vec::new()),
            ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
                match length.parse() {
                    Ok(length) => self.bytes(length).await,
                    Err(_) => violation("too long a body", length.as_bytes()),
                }
            }
            ([], ["chunked"]) => self.chunks().await,
            framing => Err(Fault::Violation(format!("framed in two ways: {framing:?}"))),
        }
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            // Eight digits are more than any chunk of the tests has.
            if line.is_empty() || line.len() > 8 || !line.iter().all(u8::is_ascii_hexdigit) {
                return violation("not a chunk size", &line);
            }
            let size = usize::from_str_radix(&text(&line), 16).expect("hexadecimal digits");
            if size == 0 {
                self.trailers().await?;
                return Ok(body);
            }
            body.extend(self.bytes(size).await?);
            let end = self.line().await?;
            if !end.is_empty() {
                return violation("bytes behind a chunk", &end);
            }
        }
    }

    async fn trailers(&mut self) -> Result<(), Fault> {
        const FORBIDDEN: [&str; 3] = ["content-length", "transfer-encoding", "host"];
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(());
            }
            let text = text(&line).to_lowercase();
            match text.split_once(": ") {
                Some((name, _)) if !FORBIDDEN.contains(&name) => {}
                _ => return violation("not a trailer", &line),
            }
        }
    }
}

/// Each byte as the character of its number, so that nothing is lost.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn is_token(bytes: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_token)
}

/// A running strict origin, which answers every request with its summary. Dropping it closes its port.
pub struct StrictOrigin {
    pub address: SocketAddr,
    record: Arc<Mutex<Record>>,
    accepting: JoinHandle<()>,
}

impl StrictOrigin {
    pub async fn start() -> Self {
        let mut listener = OriginListener::bind().await;
        let address = listener.address;
        let record = Arc::new(Mutex::new(Record::default()));
        let shared = Arc::clone(&record);
        let accepting = tokio::spawn(async move {
            while let Some(stream) = listener.accept().await {
                let reader = Reader {
                    stream,
                    received: Vec::new(),
                };
                tokio::spawn(serve(reader, Arc::clone(&shared)));
            }
        });
        Self {
            address,
            record,
            accepting,
        }
    }

    /// Every whole request, in the order of their ends.
    pub fn requests(&self) -> Vec<Received> {
        self.record.lock().expect("no test panics with it").requests.clone()
    }

    /// The method, the target and the body of each.
    pub fn summaries(&self) -> Vec<String> {
        self.requests().iter().map(Received::summary).collect()
    }

    /// How many requests have sent their head.
    pub fn begun(&self) -> usize {
        self.record.lock().expect("no test panics with it").begun
    }

    /// How many requests broke off before their end.
    pub fn cut(&self) -> usize {
        self.record.lock().expect("no test panics with it").cut
    }

    /// What came that RFC 9112 does not know.
    pub fn violations(&self) -> Vec<String> {
        self.record.lock().expect("no test panics with it").violations.clone()
    }
}

impl Drop for StrictOrigin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut reader: Reader, record: Arc<Mutex<Record>>) {
    loop {
        match request(&mut reader, &record).await {
            Ok(request) => {
                let summary = request.summary();
                record.lock().expect("no test panics with it").requests.push(request);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{summary}", summary.len());
                // The proxy may have gone away, which is its right.
                let _ = reader.stream.write_all(answer.as_bytes()).await;
            }
            Err(fault) => {
                let mut record = record.lock().expect("no test panics with it");
                match fault {
                    Fault::End { inside } => record.cut += usize::from(inside),
                    Fault::Violation(what) => record.violations.push(what),
                }
                return;
            }
        }
    }
}

async fn request(reader: &mut Reader, record: &Mutex<Record>) -> Result<Received, Fault> {
    let mut request = reader.head().await?;
    record.lock().expect("no test panics with it").begun += 1;
    if request.values("host").len() != 1 {
        return Err(Fault::Violation(format!("not one Host: {request:?}")));
    }
    if !request.values("expect").is_empty() {
        let _ = reader.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
    }
    request.body = reader.body(&request).await?;
    Ok(request)
}

//! What is seen of messages at either end of the proxy.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::yield_now;

use super::exchange::DATE;

/// What was seen of a message, at either end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub line: String,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
    pub body: String,
    pub trailers: Vec<String>,
    /// It broke off.
    pub broken: bool,
}

impl Seen {
    pub fn values(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|field| field.0 == name);
        named.map(|field| field.1.as_str()).collect()
    }

    pub fn status(&self) -> u16 {
        self.line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .expect("a status")
    }

    /// Without what is different each time.
    pub fn comparable(mut self) -> Self {
        for (name, value) in &mut self.fields {
            if name == "x-request-id" || (name == "date" && value != DATE) {
                value.clear();
            }
        }
        // An answer of the proxy's own has the id in its line.
        if let Some((before, id)) = self.body.split_once(" (request ")
            && id.len() == 32 + ")\n".len()
        {
            self.body.truncate(before.len());
        }
        if self.broken {
            // How much of it still comes is a matter of luck.
            self.body.clear();
        }
        self
    }
}

/// One end of a connection.
pub struct Wire {
    pub stream: TcpStream,
    pub received: Vec<u8>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("it is a TCP connection");
        Self {
            stream,
            received: Vec::new(),
        }
    }

    pub async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more().await?;
        }
    }

    pub async fn head(&mut self) -> io::Result<Seen> {
        let line = self.line().await?;
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("a field");
            fields.push((name.to_lowercase(), value.trim().to_owned()));
        }
        Ok(Seen {
            line,
            fields,
            body: String::new(),
            trailers: Vec::new(),
            broken: false,
        })
    }

    async fn exactly(&mut self, count: usize, to: &mut String) -> io::Result<()> {
        while self.received.len() < count {
            self.more().await?;
        }
        to.extend(self.received.drain(..count).map(char::from));
        Ok(())
    }

    /// Reads the body of `seen`, as its fields frame it. A request without either ends with its head.
    pub async fn body(&mut self, seen: &mut Seen, is_request: bool) -> io::Result<()> {
        if seen.values("transfer-encoding") == ["chunked"] {
            loop {
                let size = usize::from_str_radix(&self.line().await?, 16).expect("a size");
                if size == 0 {
                    break;
                }
                self.exactly(size, &mut seen.body).await?;
                assert_eq!(self.line().await?, "");
            }
            loop {
                match self.line().await? {
                    line if line.is_empty() => return Ok(()),
                    line => seen.trailers.push(line),
                }
            }
        }
        match seen.values("content-length")[..] {
            [length] => {
                let length = length.parse().expect("a length");
                self.exactly(length, &mut seen.body).await
            }
            [] if is_request => Ok(()),
            _ => {
                while self.more().await.is_ok() {}
                seen.body.extend(self.received.drain(..).map(char::from));
                Ok(())
            }
        }
    }

    pub async fn send(&mut self, parts: &[Vec<u8>]) {
        for part in parts {
            // The other end may have closed, which is its right.
            let _ = self.stream.write_all(part).await;
            yield_now().await;
        }
    }
}

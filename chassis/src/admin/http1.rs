//! One HTTP/1 request and its response, reduced to what the admin port needs: no request body, no second request.

use std::io;
use std::sync::Arc;

use http::{Method, StatusCode, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Rejection;
use crate::clock::HttpDate;

/// The longest head, in bytes. Prometheus sends some 300.
const MAX_HEAD: usize = 8 << 10;
/// How many fields a head has at most.
const MAX_FIELDS: usize = 64;

/// What is asked.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// The path of the target.
    pub(super) path: String,
}

/// What is answered.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) body: Body,
}

/// A text.
pub(super) enum Body {
    /// Of this answer.
    Own(String),
    /// Of several.
    Shared(Arc<str>),
}

impl Body {
    fn as_str(&self) -> &str {
        match self {
            Self::Own(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl Response {
    pub(super) fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            body: Body::Own(body.into()),
        }
    }

    /// The answer to what is no request.
    pub(super) fn refusal(rejection: Rejection) -> Self {
        match rejection {
            Rejection::HeadTooLarge => {
                Self::text(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large\n")
            }
            Rejection::RequestTimeout => Self::text(StatusCode::REQUEST_TIMEOUT, "the request took too long\n"),
            Rejection::BadRequest | Rejection::TooManyConnections | Rejection::ClientGone => {
                Self::text(StatusCode::BAD_REQUEST, "not a request of HTTP/1.1\n")
            }
        }
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
            self.status,
            prometheus::TEXT_FORMAT,
            self.body.as_str().len(),
        )
        .into_bytes();
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            head.extend_from_slice(b"Allow: GET, HEAD\r\n");
        }
        head.extend_from_slice(b"Date: ");
        head.extend_from_slice(HttpDate::now().as_bytes());
        head.extend_from_slice(b"\r\nConnection: close\r\n\r\n");
        head
    }
}

/// Reads a request; `None` when the client leaves before there is one.
pub(super) async fn read(stream: &mut TcpStream) -> Option<Result<Request, Rejection>> {
    let mut received = Vec::with_capacity(1024);
    loop {
        let before = received.len();
        // No more than fits, so that the buffer does not grow past it.
        let read = (&mut *stream)
            .take((MAX_HEAD - before) as u64)
            .read_buf(&mut received)
            .await;
        if !matches!(read, Ok(1..)) {
            return None;
        }
        // Only the end of a line can end the head.
        if received[before..].contains(&b'\n')
            && let Some(request) = parse(&received).transpose()
        {
            return Some(request);
        }
        if received.len() >= MAX_HEAD {
            return Some(Err(Rejection::HeadTooLarge));
        }
    }
}

/// The request that `received` begins with; `None` when there is more to come.
fn parse(received: &[u8]) -> Result<Option<Request>, Rejection> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(received) {
        Ok(httparse::Status::Partial) => return Ok(None),
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Rejection::HeadTooLarge),
        Err(_) => return Err(Rejection::BadRequest),
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let target: Uri = target.parse().map_err(|_| Rejection::BadRequest)?;
    Ok(Some(Request {
        method: method.parse().map_err(|_| Rejection::BadRequest)?,
        path: target.path().to_owned(),
    }))
}

/// Sends `response`, without its body where `head_only`.
pub(super) async fn write(stream: &mut TcpStream, response: &Response, head_only: bool) -> io::Result<()> {
    let mut head = response.head();
    let body = if head_only { "" } else { response.body.as_str() };
    // In one segment where that is possible, and without a copy where it would be a large one.
    if body.len() <= 1024 {
        head.extend_from_slice(body.as_bytes());
        stream.write_all(&head).await?;
    } else {
        stream.write_all(&head).await?;
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// Reads what the client still sends, until it ends the connection: closing it with bytes unread would destroy the answer.
pub(super) async fn discard(stream: &mut TcpStream) {
    const MOST: usize = 64 << 10;
    let (mut discarded, mut left) = ([0; 1024], MOST);
    while let Ok(read @ 1..) = stream.read(&mut discarded).await {
        left = left.saturating_sub(read);
        if left == 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_in_whatever_form_its_target_comes() {
        for (target, path) in [
            ("/metrics", "/metrics"),
            ("/metrics?name=x", "/metrics"),
            ("//metrics", "//metrics"),
            ("http://proxy:2112/readyz?a", "/readyz"),
            ("*", "*"),
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\n\r\n");
            for end in 0..head.len() {
                assert_eq!(parse(&head.as_bytes()[..end]), Ok(None), "{target}");
            }
            let request = parse(head.as_bytes()).unwrap().unwrap();
            assert_eq!((request.method, request.path.as_str()), (Method::GET, path));
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        for (head, rejection) in [
            ("\u{1}\r\n", Rejection::BadRequest),
            ("GET / HTTP/2.0\r\n", Rejection::BadRequest),
            ("PRI * HTTP/2.0\r\n\r\n", Rejection::BadRequest),
            ("GET  / HTTP/1.1\r\n\r\n", Rejection::BadRequest),
            ("GET / HTTP/1.1\r\na b\r\n\r\n", Rejection::BadRequest),
            ("GET a:b:c HTTP/1.1\r\n\r\n", Rejection::BadRequest),
            (&many, Rejection::HeadTooLarge),
        ] {
            assert_eq!(parse(head.as_bytes()), Err(rejection), "{head:?}");
        }
    }
}

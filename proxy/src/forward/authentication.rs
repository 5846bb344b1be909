//! Asks an authentication service whether a request may pass (`forward_auth`), and gives its answer to a client that may not.
//!
//! The answer is read as strictly as that of a backend, and no redirect is followed. A question has no body and changes nothing, so it
//! is asked again on a new connection if the service closed the one that was kept.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use pingora::http::RequestHeader;
use registry::Resolver;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::config::ForwardAuth;
use crate::exchange::record::Record;
use crate::exchange::request::Request;
use crate::forward::client::ClientSide;
use crate::headers::authentication::add_copied;
use crate::headers::origin_response::{self, Delivery, Framing};
use crate::http1::chunked::Decoder;
use crate::http1::downstream::ClientFault;
use crate::http1::head;
use crate::pool::auth_service::AuthService;
use crate::pool::reach;
use crate::pool::stream::OriginStream;

/// The longest body of an answer, in bytes.
const MAX_BODY: usize = 64 << 10;

/// How much room there is to read into.
const READ: usize = 4 << 10;

/// Words for the log.
pub type Words = Cow<'static, str>;

/// Asks authentication services.
#[derive(Debug, Default)]
pub struct Authentication {
    resolver: Resolver,
}

/// What a service has answered.
#[derive(Debug)]
pub struct Answer {
    /// Its status, 200 to 599.
    status: u16,
    /// Its head, which can be read.
    head: Bytes,
    /// Its body, without its framing.
    body: BytesMut,
}

/// Why there is no answer.
enum Failed {
    /// The service closed the connection before it said anything.
    Silent(io::Error),
    /// Whatever else it did.
    Broken(Words),
}

impl Failed {
    fn into_words(self) -> Words {
        match self {
            Self::Silent(error) => format!("the connection broke: {error}").into(),
            Self::Broken(words) => words,
        }
    }
}

impl From<&'static str> for Failed {
    fn from(words: &'static str) -> Self {
        Self::Broken(words.into())
    }
}

/// The head of an answer.
struct AnswerHead {
    status: u16,
    framing: Framing,
    reusable: bool,
    length: usize,
}

impl Authentication {
    /// Asks `service`, which is that of `auth`.
    ///
    /// # Errors
    /// Why there is no answer that means anything, in words for the log.
    pub async fn ask(&self, service: &AuthService, auth: &ForwardAuth, question: &[u8]) -> Result<Answer, Words> {
        let named = |why: Words| format!("forward_auth: {}: {why}", auth.url).into();
        let asked = timeout(auth.timeout, self.ask_once(service, auth, question)).await;
        asked
            .unwrap_or_else(|_| Err(format!("no answer within {:?}", auth.timeout).into()))
            .map_err(named)
    }

    async fn ask_once(&self, service: &AuthService, auth: &ForwardAuth, question: &[u8]) -> Result<Answer, Words> {
        let _place = service.place().await;
        let addresses = self.addresses(service, auth).await?;
        if let Some((address, stream)) = service.take(&addresses, Instant::now()) {
            match exchange(service, address, stream, question).await {
                // It was about to close the connection.
                Err(Failed::Silent(_)) => {}
                done => return done.map_err(Failed::into_words),
            }
        }
        let connected = reach::any(&addresses, auth.timeout).await;
        let (address, stream) = connected.map_err(|error| format!("no connection: {error}"))?;
        // It only costs time when it can't be set.
        let _ = stream.set_nodelay(true);
        exchange(service, address, OriginStream::Plain(stream), question)
            .await
            .map_err(Failed::into_words)
    }

    async fn addresses(&self, service: &AuthService, auth: &ForwardAuth) -> Result<Arc<[SocketAddr]>, Words> {
        if let Some(addresses) = service.resolved(Instant::now()) {
            return Ok(addresses);
        }
        let resolved = self.resolver.resolve(&auth.url.service, auth.timeout).await;
        let addresses: Arc<[SocketAddr]> = resolved.map_err(|error| error.to_string())?.into();
        service.resolve(Arc::clone(&addresses), Instant::now());
        Ok(addresses)
    }
}

/// Asks on this connection, and keeps it if it can be used again.
async fn exchange(
    service: &AuthService,
    address: SocketAddr,
    mut stream: OriginStream,
    question: &[u8],
) -> Result<Answer, Failed> {
    let mut received = BytesMut::new();
    // Whoever refuses a long question may answer before it has read it, and close: that answer counts.
    let sent = stream.write_all(question).await;
    let head = loop {
        if let Some(head) = read_head(&received)? {
            if head.status >= 200 {
                break head;
            }
            received.advance(head.length);
            continue;
        }
        match (read(&mut stream, &mut received).await, &sent) {
            (Ok(1..), _) => {}
            (Err(error), _) if received.is_empty() => return Err(Failed::Silent(error)),
            (Ok(0), Ok(())) if received.is_empty() => return Err(Failed::Silent(io::ErrorKind::UnexpectedEof.into())),
            (Ok(0), Err(error)) if received.is_empty() => return Err(Failed::Silent(error.kind().into())),
            (_, _) => return Err("the connection ended in the head of the answer".into()),
        }
    };
    let answered = received.split_to(head.length).freeze();
    let body = read_body(&mut stream, &mut received, head.framing).await?;
    if head.reusable && sent.is_ok() && received.is_empty() {
        service.keep(address, stream, Instant::now());
    }
    Ok(Answer {
        status: head.status,
        head: answered,
        body,
    })
}

/// Reads more. Returns how much; 0 at the end.
async fn read(stream: &mut OriginStream, received: &mut BytesMut) -> io::Result<usize> {
    received.reserve(READ);
    stream.read_buf(received).await
}

/// The head at the start of `received`; `None` if it has not all arrived.
fn read_head(received: &[u8]) -> Result<Option<AnswerHead>, &'static str> {
    let mut room = head::room();
    let Some((head, length)) = origin_response::parse(received, &mut room, false)? else {
        return Ok(None);
    };
    if head.status == 101 || head.status >= 600 {
        return Err("the status of the answer means nothing here");
    }
    Ok(Some(AnswerHead {
        status: head.status,
        framing: head.framing,
        reusable: head.reusable,
        length,
    }))
}

/// Reads the body, of which some may have been `received`.
async fn read_body(stream: &mut OriginStream, received: &mut BytesMut, framing: Framing) -> Result<BytesMut, Failed> {
    const TOO_LONG: &str = "the body of the answer is longer than 64 KiB";
    const BROKEN: &str = "the connection ended in the body of the answer";
    match framing {
        Framing::None => Ok(BytesMut::new()),
        Framing::Length(length) => {
            let length = usize::try_from(length)
                .ok()
                .filter(|length| *length <= MAX_BODY)
                .ok_or(TOO_LONG)?;
            while received.len() < length {
                if !matches!(read(stream, received).await, Ok(1..)) {
                    return Err(BROKEN.into());
                }
            }
            Ok(received.split_to(length))
        }
        Framing::Chunked => {
            let (mut decoder, mut body) = (Decoder::default(), BytesMut::new());
            loop {
                let room = MAX_BODY - body.len();
                let taken = decoder.decode(received, &mut body, room).map_err(|error| error.0)?;
                received.advance(taken);
                if decoder.ended() {
                    return Ok(body);
                }
                if !received.is_empty() {
                    return Err(TOO_LONG.into());
                }
                if !matches!(read(stream, received).await, Ok(1..)) {
                    return Err(BROKEN.into());
                }
            }
        }
        Framing::Close => loop {
            if received.len() > MAX_BODY {
                return Err(TOO_LONG.into());
            }
            match read(stream, received).await {
                Ok(0) => return Ok(received.split()),
                Ok(_) => {}
                Err(_) => return Err(BROKEN.into()),
            }
        },
    }
}

impl Answer {
    /// Whether the request may pass.
    pub fn allows(&self) -> bool {
        self.status < 300
    }

    /// That it may not, in words for the log.
    pub fn why(&self, auth: &ForwardAuth) -> Words {
        format!("forward_auth: {} answered {}", auth.url, self.status).into()
    }

    /// Adds to `request` the fields that its backend gets of this answer.
    ///
    /// # Errors
    /// When a field is none to the library that holds the header.
    pub fn apply(&self, auth: &ForwardAuth, request: &mut Request, header: &mut RequestHeader) -> pingora::Result<()> {
        let mut room = head::room();
        if let Ok(Some((answer, _))) = origin_response::parse(&self.head, &mut room, false) {
            let before = request.head.len();
            add_copied(&answer, auth, &mut request.head, header)?;
            request.weight += request.head.len() - before;
        }
        Ok(())
    }

    /// Gives this answer to the client of `request`, and notes that in `record`. `keeps`: another request may follow.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn give(
        &self,
        client: &mut impl ClientSide,
        request: &Request,
        record: &mut Record,
        keeps: bool,
    ) -> Result<(), ClientFault> {
        let delivery = Delivery {
            keeps,
            old: request.old,
            trailers: false,
            hsts: request.hsts,
            cookie: None,
            edits: None,
        };
        let body = if request.to_head { &b""[..] } else { &self.body };
        let mut out = BytesMut::new();
        {
            let mut room = head::room();
            if let Ok(Some((answer, _))) = origin_response::parse(&self.head, &mut room, request.to_head) {
                let answer = answer.with_length(self.body.len() as u64);
                client.write_head(&answer, &delivery, &mut out);
            }
        }
        out.extend_from_slice(body);
        client
            .write_all(&out, true, self.head.len() + self.body.capacity())
            .await?;
        record.status = self.status;
        record.bytes = body.len() as u64;
        record.ended();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::config::Shape;
    use crate::pool::reach::tests::black_hole;

    #[tokio::test]
    async fn an_address_of_the_service_that_swallows_packets_does_not_take_the_time_of_the_others() {
        let shape = Shape::of("forward_auth: {url: 'http://auth.invalid/', timeout: 30s}").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (hole, _sockets) = black_hole();
        let service = AuthService::default();
        let addresses = [hole, listener.local_addr().unwrap()];
        service.resolve(addresses.to_vec().into(), Instant::now() + Duration::from_secs(60));
        let answers = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let read = stream.read(&mut [0; 100]).unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            read
        });
        let question = b"GET / HTTP/1.1\r\nHost: auth\r\n\r\n";
        let answer = Authentication::default()
            .ask(&service, shape.auth.as_ref().unwrap(), question)
            .await
            .unwrap();
        assert!(answer.allows());
        assert_eq!(answers.join().unwrap(), question.len());
    }
}

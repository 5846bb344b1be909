//! A connection to a backend, encrypted or not.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ClientConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::config::OriginTls;
use crate::http1::scratch::{SCRATCH, Scratch};

/// How much may be encrypted and not sent, in bytes: what a backend that takes nothing makes the proxy hold beside the kernel's
/// buffers.
const UNSENT: usize = 32 << 10;

/// A connection to a backend, which a request may be sent on.
#[derive(Debug)]
pub enum OriginStream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS. Boxed, because those without are moved more often.
    Tls(Box<Secure>),
}

/// A connection below TLS. It reads more at a time than rustls asks for, which is 4 KiB.
#[derive(Debug)]
pub struct ReadAhead {
    tcp: TcpStream,
    /// What was read and rustls has not taken, from `taken` on. Seldom there is any while the connection waits.
    ahead: Option<Scratch>,
    taken: usize,
}

impl ReadAhead {
    /// Nothing has been read of `tcp`.
    pub fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            ahead: None,
            taken: 0,
        }
    }

    /// What was read ahead. Some or all of it is taken by `advance`.
    fn ahead(&self) -> &[u8] {
        self.ahead.as_ref().map_or(b"", |ahead| &ahead[self.taken..])
    }

    fn advance(&mut self, count: usize) {
        self.taken += count;
        if self.ahead().is_empty() {
            self.ahead = None;
            self.taken = 0;
        }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_none() {
            let mut read = Scratch::take();
            ready!(read.poll_read(&mut this.tcp, context))?;
            this.ahead = Some(read);
        }
        let ahead = this.ahead();
        let count = ahead.len().min(buffer.remaining());
        buffer.put_slice(&ahead[..count]);
        this.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel has all of it.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// A connection with TLS, after its handshake.
#[derive(Debug)]
pub struct Secure {
    stream: TlsStream<ReadAhead>,
    /// What it was made with ([`OriginTls::group`]).
    group: u64,
}

impl Secure {
    /// The connection after a handshake with what `tls` has.
    pub fn new(mut stream: TlsStream<ReadAhead>, tls: &OriginTls) -> Self {
        stream.get_mut().1.set_buffer_limit(Some(UNSENT));
        Self {
            stream,
            group: tls.group(),
        }
    }

    /// Whether the backend has chosen HTTP/2.
    pub fn speaks_http2(&self) -> bool {
        self.session().alpn_protocol() == Some(b"h2")
    }

    fn session(&self) -> &ClientConnection {
        self.stream.get_ref().1
    }

    /// Whether everything that came has been read, and more may come.
    fn is_read(&mut self) -> bool {
        let (below, session) = self.stream.get_mut();
        while !below.ahead().is_empty() {
            match session.read_tls(&mut below.ahead()) {
                Ok(count @ 1..) if session.process_new_packets().is_ok() => below.advance(count),
                _ => return false,
            }
        }
        // Fails again if it has failed before.
        session.process_new_packets().is_ok() && waits(session.reader().into_first_chunk())
    }

    /// Sends what is encrypted already.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.session().wants_write() {
            Pin::new(&mut self.stream).poll_flush(context)
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

fn waits<T>(read: io::Result<T>) -> bool {
    matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// A connection that `receive` reads from.
struct Receiver<'s, R>(&'s TcpStream, R);

impl<R: Fn(&TcpStream, &mut [u8]) -> io::Result<usize>> io::Read for Receiver<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.1)(self.0, buffer)
    }
}

impl OriginStream {
    /// The connection below TLS.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(secure) => &secure.stream.get_ref().0.tcp,
        }
    }

    /// Whether it was made with what `tls` has, or without TLS.
    pub fn is_made_with(&self, tls: &OriginTls) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(secure) => secure.group == tls.group(),
        }
    }

    /// How much is encrypted and not sent, at most.
    pub fn unsent(&self) -> usize {
        match self {
            Self::Tls(secure) if secure.session().wants_write() => UNSENT,
            _ => 0,
        }
    }

    /// What it takes in memory beside what the kernel has, in bytes.
    pub fn held(&self) -> usize {
        match self {
            Self::Tls(secure) if !secure.stream.get_ref().0.ahead().is_empty() => SCRATCH + self.unsent(),
            _ => self.unsent(),
        }
    }

    /// Whether everything that came has been read. What came with the end of a response may wait here, in plain.
    pub fn is_read(&mut self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(secure) => secure.is_read(),
        }
    }

    /// Whether nothing has come that `receive` gets, without waiting; not even the end. With TLS, what comes may be a session ticket
    /// or a new key, which are no words of the backend's.
    pub fn is_silent(&mut self, receive: impl Fn(&TcpStream, &mut [u8]) -> io::Result<usize>) -> bool {
        let secure = match self {
            Self::Plain(stream) => return waits(receive(stream, &mut [0])),
            Self::Tls(secure) => secure,
        };
        while secure.is_read() {
            let (below, session) = secure.stream.get_mut();
            match session.read_tls(&mut Receiver(&below.tcp, &receive)) {
                Ok(1..) => {}
                Ok(0) => return false,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        false
    }
}

impl AsyncRead for OriginStream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(secure) => {
                let read = Pin::new(&mut secure.stream).poll_read(context, buffer);
                // What was just read may want an answer that nobody else sends, such as a new key.
                if read.is_pending() {
                    // If it can't be sent, reading says so too.
                    let _ = secure.poll_send(context);
                }
                read
            }
        }
    }
}

impl AsyncWrite for OriginStream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(secure) => Pin::new(&mut secure.stream).poll_write(context, bytes),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(secure) => Pin::new(&mut secure.stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // The kernel has all of it.
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(secure) => secure.poll_send(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(secure) => Pin::new(&mut secure.stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::{TlsAcceptor, TlsConnector, server};

    use super::*;

    /// Both ends of a connection: the proxy's, over which a byte has come, and the origin's.
    async fn connect(version: &'static SupportedProtocolVersion) -> (OriginStream, server::TlsStream<TcpStream>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["origin.example".into()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let provider = Arc::new(default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let name = "origin.example".try_into().unwrap();
        let (ours, theirs) = tokio::join!(connector.connect(name, ReadAhead::new(ours)), acceptor.accept(theirs));
        let secure = Secure::new(ours.unwrap(), &OriginTls::default());
        let (mut ours, mut theirs) = (OriginStream::Tls(Box::new(secure)), theirs.unwrap());
        say(&mut theirs, b"x").await;
        assert_eq!(ours.read_u8().await.unwrap(), b'x');
        (ours, theirs)
    }

    async fn say(stream: &mut server::TlsStream<TcpStream>, bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
    }

    async fn is_silent(stream: &mut OriginStream) -> bool {
        // Until what was said is there, if anything was.
        let readable = stream.tcp().readable();
        let _ = tokio::time::timeout(std::time::Duration::from_millis(100), readable).await;
        stream.is_silent(TcpStream::try_read)
    }

    #[tokio::test]
    async fn a_connection_is_silent_while_nothing_is_said_in_plain() {
        for version in [&version::TLS12, &version::TLS13] {
            let (mut ours, theirs) = connect(version).await;
            assert!(ours.is_read() && is_silent(&mut ours).await && is_silent(&mut ours).await);
            drop(theirs);
            assert!(!is_silent(&mut ours).await, "its end came");

            let (mut ours, mut theirs) = connect(version).await;
            say(&mut theirs, b"more").await;
            assert!(!is_silent(&mut ours).await, "something was said");
            assert!(!ours.is_read() && !is_silent(&mut ours).await, "and was not read");

            let (mut ours, mut theirs) = connect(version).await;
            theirs.get_mut().1.send_close_notify();
            theirs.flush().await.unwrap();
            assert!(!is_silent(&mut ours).await, "the end of TLS came");

            let (mut ours, mut theirs) = connect(version).await;
            theirs.get_mut().0.write_all(b"no record at all").await.unwrap();
            assert!(!is_silent(&mut ours).await, "what is not TLS came");
            assert!(!ours.is_read());
        }
    }

    #[tokio::test]
    async fn what_tls_says_for_itself_is_no_word_of_the_origins() {
        let (mut ours, mut theirs) = connect(&version::TLS13).await;
        for _ in 0..3 {
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
            theirs.flush().await.unwrap();
            assert!(is_silent(&mut ours).await, "a new key came");
        }
        say(&mut theirs, b"y").await;
        assert_eq!(ours.read_u8().await.unwrap(), b'y');
        ours.write_all(b"z").await.unwrap();
        ours.flush().await.unwrap();
        assert_eq!(theirs.read_u8().await.unwrap(), b'z');
    }

    #[tokio::test]
    async fn what_comes_with_the_end_of_a_response_is_seen() {
        let (mut ours, mut theirs) = connect(&version::TLS13).await;
        say(&mut theirs, b"response and more").await;
        let mut response = [0; 8];
        ours.read_exact(&mut response).await.unwrap();
        assert!(!ours.is_read());
    }
}

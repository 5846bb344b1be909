//! The TLS handshake of a client's connection.
//!
//! The first message says which host the client wants. It is read before anything is chosen, and so is the first byte before that: a
//! client that speaks plain HTTP on this port gets an answer that it can read.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use rustls::server::{Accepted, Acceptor};
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::StartHandshake;

use crate::http1::head;
use crate::listen::acme::challenge;
use crate::tls::server::Server;
use crate::tls::stream::{Secure, UNSENT};
use crate::tls::{Agreed, subject};

/// How much of the first message is read at a time, on the stack; most are shorter.
const READ: usize = 4096;

/// The first byte of a handshake record (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// A fatal alert for a host without a certificate: `unrecognized_name` (RFC 6066, section 3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A client's connection after the handshake.
pub struct Done {
    /// The connection.
    pub stream: Box<Secure>,
    /// What was agreed on.
    pub agreed: Agreed,
    /// The client has resumed an earlier session.
    pub resumed: bool,
}

/// Why there was no handshake.
pub enum Failure {
    /// The client closed the connection before it said anything, as a check of the port does.
    Silent,
    /// The client spoke HTTP: these bytes.
    Plain(TcpStream, Vec<u8>),
    /// The handshake was all that the client wanted: an authority has its proof.
    Proved,
    /// The handshake failed. The host is the one that the client asked for, if it got so far.
    Failed {
        /// In the library's words.
        error: io::Error,
        /// The host.
        sni: Option<String>,
    },
}

impl Failure {
    fn early(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed {
            error: io::Error::other(error),
            sni: None,
        }
    }
}

/// Shakes hands on `stream`. The caller sets the deadline. `challenges` is where the proofs are that an authority may ask for.
///
/// # Errors
/// Why there is no handshake.
pub async fn shake_hands(mut stream: TcpStream, server: &Server, challenges: Option<&Path>) -> Result<Done, Failure> {
    let accepted = match first_message(&mut stream).await? {
        First::Message(accepted) => *accepted,
        First::Plain(bytes) => return Err(Failure::Plain(stream, bytes)),
    };
    let sni = accepted.client_hello().server_name().map(str::to_owned);
    if let (Some(storage), Some(host)) = (challenges, &sni)
        && asks_for_proof(&accepted)
        && let Some(config) = challenge::handshake(storage, host).await
    {
        // Boxed, so that no other handshake has room for it.
        let shaken = Box::pin(prove(accepted, stream, config)).await;
        return Err(shaken.map_or_else(|error| Failure::Failed { error, sni }, |()| Failure::Proved));
    }
    if server.strict_sni && !server.certificates.has(sni.as_deref()) {
        // It matters to nobody but the client whether it gets this.
        let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
        let why = match sni {
            Some(_) => "there is no certificate for the host, and tls.strict_sni is true",
            None => "the client asks for no host, and tls.strict_sni is true",
        };
        return Err(Failure::Failed {
            error: io::Error::other(why),
            sni,
        });
    }
    let shake = StartHandshake::from_parts(accepted, stream);
    let shake = shake.into_stream_with(server.config.clone(), |session| session.set_buffer_limit(Some(UNSENT)));
    let stream = match shake.await {
        Ok(stream) => Box::new(Secure::new(stream)),
        Err(error) => return Err(Failure::Failed { error, sni }),
    };
    let session = stream.session();
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let agreed = Agreed {
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "1.3",
        },
        sni: sni.map(Into::into),
        subject: certificate
            .and_then(|certificate| subject::of(certificate))
            .map(Into::into),
    };
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    Ok(Done {
        stream,
        agreed,
        resumed,
    })
}

/// Gives an authority the proof that `config` has.
async fn prove(accepted: Accepted, stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
    let mut stream = StartHandshake::from_parts(accepted, stream).into_stream(config).await?;
    // It matters to nobody but the client whether it gets this.
    let _ = stream.shutdown().await;
    Ok(())
}

/// Whether the client is an authority that wants a proof, and speaks nothing else.
fn asks_for_proof(accepted: &Accepted) -> bool {
    let hello = accepted.client_hello();
    let mut protocols = hello.alpn().into_iter().flatten();
    protocols.next() == Some(challenge::PROTOCOL) && protocols.next().is_none()
}

enum First {
    Message(Box<Accepted>),
    Plain(Vec<u8>),
}

/// Reads the client's first message.
async fn first_message(stream: &mut TcpStream) -> Result<First, Failure> {
    let mut acceptor = Acceptor::default();
    let mut begun = false;
    let read = poll_fn(|context| {
        loop {
            let mut room = [MaybeUninit::uninit(); READ];
            let mut read = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut read)).map_err(Failure::early)?;
            let mut bytes = read.filled();
            if bytes.is_empty() {
                return Poll::Ready(Err(if begun {
                    Failure::early("the client closed the connection during the handshake")
                } else {
                    Failure::Silent
                }));
            }
            if !begun && bytes[0] != HANDSHAKE && head::can_begin(bytes) {
                return Poll::Ready(Ok(Ok(First::Plain(bytes.to_vec()))));
            }
            begun = true;
            while !bytes.is_empty() {
                acceptor.read_tls(&mut bytes).map_err(Failure::early)?;
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => return Poll::Ready(Ok(Ok(First::Message(Box::new(accepted))))),
                Ok(None) => {}
                Err(refused) => return Poll::Ready(Ok(Err(refused))),
            }
        }
    });
    match read.await? {
        Ok(first) => Ok(first),
        Err((error, mut alert)) => {
            let mut bytes = Vec::new();
            if alert.write_all(&mut bytes).is_ok() {
                let _ = stream.write_all(&bytes).await;
            }
            Err(Failure::early(error))
        }
    }
}

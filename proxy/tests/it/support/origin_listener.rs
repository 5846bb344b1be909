//! Where the origins of the tests listen: without TLS, or with it where `ORIGINS=tls` runs the tests over that.
//!
//! An origin has a plain connection in either case, with a relay before it that speaks TLS, and that ends one side as the other ends.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::authority::Authority;

/// What origins over TLS have in common.
struct Tls {
    authority: Authority,
    acceptor: TlsAcceptor,
    /// Those that speak it.
    addresses: Mutex<HashSet<SocketAddr>>,
}

static TLS: LazyLock<Option<Tls>> = LazyLock::new(|| {
    let tls = std::env::var_os("ORIGINS").is_some_and(|value| value == "tls");
    tls.then(|| {
        let authority = Authority::new();
        Tls {
            acceptor: authority.issue("127.0.0.1").acceptor(&["http/1.1"], None),
            authority,
            addresses: Mutex::default(),
        }
    })
});

/// The variable that has a proxy trust the origins, whose certificate is written to `directory`.
pub fn variable(directory: &Path) -> Option<(&'static str, OsString)> {
    let tls = TLS.as_ref()?;
    Some(("SSL_CERT_FILE", tls.authority.write(directory).into()))
}

/// Whether the origin at `address` speaks TLS.
pub fn is_secure(address: SocketAddr) -> bool {
    TLS.as_ref().is_some_and(|tls| {
        let addresses = tls.addresses.lock().expect("no test panics with it");
        addresses.contains(&address)
    })
}

/// The target for an origin at `address`.
pub fn target(address: SocketAddr) -> String {
    let scheme = if is_secure(address) { "https://" } else { "" };
    format!("{scheme}{address}")
}

/// The member of the set for an origin at `address`.
pub fn member(address: SocketAddr) -> String {
    let scheme = if is_secure(address) { "https" } else { "http" };
    format!("{scheme}://{address}")
}

/// Where an origin listens. Dropping it closes the port.
pub struct OriginListener {
    pub address: SocketAddr,
    accepted: mpsc::UnboundedReceiver<TcpStream>,
    accepting: JoinHandle<()>,
}

impl OriginListener {
    pub async fn bind() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let tls = TLS.as_ref().map(|tls| {
            tls.addresses.lock().expect("no test panics with it").insert(address);
            tls.acceptor.clone()
        });
        let (sender, accepted) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                match tls.clone() {
                    None => drop(sender.send(stream)),
                    Some(acceptor) => drop(tokio::spawn(serve(stream, acceptor, sender.clone()))),
                }
            }
        });
        Self {
            address,
            accepted,
            accepting,
        }
    }

    /// The next connection, without TLS.
    pub async fn accept(&mut self) -> Option<TcpStream> {
        self.accepted.recv().await
    }
}

impl Drop for OriginListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, sender: mpsc::UnboundedSender<TcpStream>) {
    stream.set_nodelay(true).expect("it is a TCP connection");
    // A health check says nothing.
    let Ok(far) = acceptor.accept(stream).await else {
        return;
    };
    let (near, origins) = pair().await.expect("two ends");
    if sender.send(origins).is_ok() {
        relay(far, near).await;
    }
}

/// Both ends of a connection.
async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (one, accepted) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
    let (one, (other, _)) = (one?, accepted?);
    one.set_nodelay(true)?;
    other.set_nodelay(true)?;
    Ok((one, other))
}

/// Moves what comes from either end to the other, until both have ended.
async fn relay(far: TlsStream<TcpStream>, near: TcpStream) {
    let sockets = Arc::new([far.get_ref().0.as_fd(), near.as_fd()].map(|socket| socket.try_clone_to_owned()));
    // What one end does with a reset, and closing on what it has not read is one, is a reset at the other.
    let reset = || {
        for socket in sockets.iter().flatten() {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
        io::Error::from(io::ErrorKind::ConnectionReset)
    };
    let (mut from_far, mut to_far) = split(far);
    let (mut from_near, mut to_near) = near.into_split();
    let up = async {
        let mut data = vec![0; 16 << 10];
        loop {
            match from_far.read(&mut data).await {
                Ok(count @ 1..) if to_near.write_all(&data[..count]).await.is_ok() => {}
                Ok(0) => break,
                // The proxy closes without the end of TLS.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                _ => return Err(reset()),
            }
        }
        let _ = to_near.shutdown().await;
        Ok(())
    };
    let down = async {
        let mut data = vec![0; 16 << 10];
        loop {
            match from_near.read(&mut data).await {
                Ok(0) => break,
                Ok(count) => {
                    if to_far.write_all(&data[..count]).await.is_err() || to_far.flush().await.is_err() {
                        return Err(reset());
                    }
                }
                Err(_) => return Err(reset()),
            }
        }
        let _ = to_far.shutdown().await;
        Ok(())
    };
    let _ = tokio::try_join!(up, down);
}

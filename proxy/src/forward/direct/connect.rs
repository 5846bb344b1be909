//! Connects to an origin, with TLS where it speaks that.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use chassis::listener::UNSENT;
use pingora::server::configuration::ServerConf;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Broken;
use crate::config::UpstreamLimits;
use crate::pool::endpoint::Endpoint;
use crate::pool::failure;
use crate::pool::stream::{OriginStream, ReadAhead, Secure};

/// Makes connections to origins.
pub(super) struct Connector {
    /// The addresses of this machine that connections may come from; any, if there are none.
    from: Vec<IpAddr>,
}

/// A new connection.
pub(super) enum Connected {
    /// For a request of HTTP/1.1.
    Http1(OriginStream),
    /// The origin has chosen HTTP/2, which is not spoken here.
    Http2,
}

impl Connector {
    /// With Pingora's settings about connections.
    pub(super) fn new(conf: &ServerConf) -> Self {
        let from = conf.client_bind_to_ipv4.iter().chain(&conf.client_bind_to_ipv6);
        Self {
            // Each was parsed as an address when the configuration was read.
            from: from.filter_map(|address| address.parse().ok()).collect(),
        }
    }

    /// A connection to `endpoint`. `http1_only`: it may not choose HTTP/2.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        limits: &UpstreamLimits,
        http1_only: bool,
    ) -> Result<Connected, Broken> {
        let connect = async {
            let stream = self.tcp(endpoint.address).await.map_err(Broken::NoConnection)?;
            match endpoint.server_name(limits) {
                None => Ok(Connected::Http1(OriginStream::Plain(stream))),
                // Boxed, because it is large and most requests do without.
                Some(name) => Box::pin(encrypted(stream, name, endpoint, limits, http1_only)).await,
            }
        };
        timeout(limits.connect_timeout, connect).await.unwrap_or_else(|_| {
            let late = io::Error::new(io::ErrorKind::TimedOut, "not within upstream.connect_timeout");
            Err(Broken::NoConnection(late))
        })
    }

    async fn tcp(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let of_family: Vec<_> = self
            .from
            .iter()
            .filter(|from| from.is_ipv4() == address.is_ipv4())
            .collect();
        let stream = if of_family.is_empty() {
            TcpStream::connect(address).await?
        } else {
            let from = of_family[fastrand::usize(..of_family.len())];
            let socket = if address.is_ipv4() {
                TcpSocket::new_v4()?
            } else {
                TcpSocket::new_v6()?
            };
            socket.bind(SocketAddr::new(*from, 0))?;
            socket.connect(address).await?
        };
        stream.set_nodelay(true)?;
        // As towards clients, so that an origin that takes nothing makes the kernel hold no more.
        SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT)?;
        Ok(stream)
    }
}

/// Makes a handshake on `stream`, with an origin whose certificate must have `name`.
async fn encrypted(
    stream: TcpStream,
    name: &str,
    endpoint: &Endpoint,
    limits: &UpstreamLimits,
    http1_only: bool,
) -> Result<Connected, Broken> {
    let Some(config) = limits.tls.credentials().handshake(http1_only) else {
        return Err(Broken::NoTls(failure::no_roots()));
    };
    let failed = |error| {
        if failure::speaks_http2_alone(&error) {
            Broken::NoHttp1(failure::early_in_words(&error))
        } else {
            Broken::NoTls(failure::early_in_words(&error))
        }
    };
    let name = ServerName::try_from(name.to_owned()).map_err(|error| failed(io::Error::other(error)))?;
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = connector.connect(name, ReadAhead::new(stream)).await.map_err(failed)?;
    let secure = Secure::new(stream, &limits.tls);
    let http2 = secure.speaks_http2();
    if !http1_only {
        endpoint.has_chosen(http2);
    }
    Ok(if http2 {
        Connected::Http2
    } else {
        Connected::Http1(OriginStream::Tls(Box::new(secure)))
    })
}

//! A port that clients connect to, with TLS or without.
//!
//! A connection gets its place before anything is read from it, so that those that never finish a handshake are limited as all others.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use chassis::pauses;
use futures::FutureExt;
use futures::future::FusedFuture;
use log::info;
use pingora::server::ShutdownWatch;
use tokio::net::TcpStream;

use crate::exchange::connection::Connection;
use crate::exchange::record::Record;
use crate::listen::connection::Edge;
use crate::listen::handshake::{Failure, shake_hands};
use crate::listen::proxy_protocol::{self, NoHeader};
use crate::observe::metrics::Handshake;
use crate::rejection::Rejection;
use crate::snapshot::Policy;
use crate::tls::server::Live;
use crate::tls::stream::{Secure, Stream};

/// A port that clients connect to.
pub struct Port {
    /// What serves them.
    pub edge: Arc<Edge>,
    /// What handshakes are made with, where clients speak TLS.
    pub tls: Option<Arc<Live>>,
}

/// What came of a handshake.
enum Shaken {
    /// The connection is encrypted.
    Secure(Box<Secure>),
    /// The client spoke HTTP: these bytes.
    Plain(TcpStream, Vec<u8>),
    /// There is nothing more to say.
    Over,
}

impl Port {
    /// The client that the balancer at `peer` names at the start of `stream`, or the balancer itself where it says so. `None` when it
    /// says nothing that can be understood.
    async fn named_client(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
        policy: &Policy,
        down: Pin<&mut impl FusedFuture<Output = ()>>,
    ) -> Option<SocketAddr> {
        let start = Instant::now();
        let header = pauses::timeout(policy.client.head_timeout, proxy_protocol::read(stream));
        let header = self.edge.until_last_call(true, pin!(header), down).await?;
        let late = NoHeader::Malformed("the PROXY protocol header takes longer than client.head_timeout");
        match header.unwrap_or(Err(late)) {
            Ok(client) => Some(client.unwrap_or(peer)),
            Err(NoHeader::Silent) => None,
            Err(NoHeader::Malformed(what)) => {
                let connection = Arc::new(self.connection(peer));
                Record::new(&connection, start).failed(Rejection::BadProxyHeader, Some(what.into()));
                None
            }
        }
    }

    /// A connection from `peer`.
    fn connection(&self, peer: SocketAddr) -> Connection {
        let Edge { metrics, refusals, .. } = &*self.edge;
        Connection::new(peer, Arc::clone(metrics), Arc::clone(refusals))
    }

    /// Shakes hands on `stream`, and notes what was agreed on in `connection`.
    async fn shake(
        &self,
        stream: TcpStream,
        tls: &Live,
        policy: &Policy,
        connection: &mut Connection,
        down: Pin<&mut impl FusedFuture<Output = ()>>,
    ) -> Shaken {
        let server = tls.server();
        let shake = pauses::timeout(
            server.handshake_timeout,
            shake_hands(stream, &server, policy.challenges.as_deref()),
        );
        let Some(shaken) = self.edge.until_last_call(true, pin!(shake), down).await else {
            return Shaken::Over;
        };
        let metrics = &self.edge.metrics;
        let (result, error, sni) = match shaken {
            Ok(Ok(done)) => {
                metrics.shaken(if done.resumed {
                    Handshake::Resumed
                } else {
                    Handshake::Full
                });
                connection.tls = Some(done.agreed);
                return Shaken::Secure(done.stream);
            }
            Ok(Err(Failure::Silent | Failure::Proved)) => return Shaken::Over,
            Ok(Err(Failure::Plain(stream, bytes))) => {
                metrics.shaken(Handshake::Failed);
                return Shaken::Plain(stream, bytes);
            }
            Ok(Err(Failure::Failed { error, sni })) => (Handshake::Failed, error.to_string(), sni),
            Err(_) => {
                let late = "the handshake takes longer than tls.handshake_timeout";
                (Handshake::Timeout, late.to_owned(), None)
            }
        };
        metrics.shaken(result);
        if connection.refusals.allows(connection.peer, Instant::now()) {
            info!(
                client = connection.peer_text.as_str(),
                sni = sni.as_deref(),
                error = error.as_str();
                "TLS handshake failed"
            );
        }
        Shaken::Over
    }

    /// Serves a connection from `remote` until its end.
    pub(super) async fn serve(
        &self,
        mut stream: TcpStream,
        mut remote: SocketAddr,
        shutdown: ShutdownWatch,
    ) -> Option<()> {
        let edge = &self.edge;
        let policy = edge.live.policy();
        let mut watch = shutdown.clone();
        let mut down = pin!(async move { drop(watch.wait_for(|down| *down).await) }.fuse());
        let place = edge.place(edge.lifecycle.connect(), &policy);
        // All but the last step is boxed, so that no connection has room for the others for longer than they take.
        if place.is_some() && policy.proxy_protocol.contain(remote.ip()) {
            remote = Box::pin(self.named_client(&mut stream, remote, &policy, down.as_mut())).await?;
        }
        let mut connection = self.connection(remote);
        let Some(_places) = place.and_then(|place| Some((place, edge.place_of_client(&connection, &policy)?))) else {
            if self.tls.is_none() {
                Box::pin(edge.turn_away(Stream::Plain(stream), connection, &policy)).await;
            } else {
                // There is no answer without a handshake, which costs more than a connection does.
                let mut record = Record::new(&Arc::new(connection), Instant::now());
                record.failed(Rejection::TooManyConnections, None);
            }
            return None;
        };
        let stream = if let Some(tls) = &self.tls {
            match Box::pin(self.shake(stream, tls, &policy, &mut connection, down.as_mut())).await {
                Shaken::Secure(stream) => Stream::Secure(stream),
                Shaken::Plain(stream, bytes) => {
                    let stream = Stream::Plain(stream);
                    Box::pin(edge.refuse_plain(stream, bytes.into(), connection, &policy)).await;
                    return None;
                }
                Shaken::Over => return None,
            }
        } else {
            Stream::Plain(stream)
        };
        edge.serve_connection(stream, connection, policy, &shutdown, down).await;
        None
    }
}

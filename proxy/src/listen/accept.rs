//! Accepts the connections of a port, as a service of Pingora's server.
//!
//! Pingora's own service for that has a task for each connection with room for a TLS handshake of Pingora's, 9 KB, which tokio moves when
//! the task ends. Nothing here makes such a handshake.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chassis::listener::Listening;
use chassis::shortage::is_shortage;
use log::error;
use pingora::apps::HttpServerApp;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use pingora_runtime::current_handle;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::port::Port;

/// How long nothing is accepted when the process or the machine is short of descriptors or memory: others may give some back meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// The service that accepts a port's connections until the server shuts down.
pub struct Accept {
    listening: Listening,
    port: Arc<Port>,
}

impl Accept {
    /// Accepts on `listening` for `port`.
    pub fn new(listening: Listening, port: Port) -> Self {
        Self {
            listening,
            port: Arc::new(port),
        }
    }
}

/// Accepts connections until `shutdown`.
async fn accept(socket: Arc<TcpListener>, port: Arc<Port>, shutdown: ShutdownWatch) {
    let mut watch = shutdown.clone();
    // Its sender lives as long as the server, so an error too means that the end has come.
    let mut down = pin!(watch.wait_for(|down| *down));
    loop {
        let accepted = tokio::select! {
            // A connection that comes now is the successor's.
            biased;
            _ = &mut down => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (port, shutdown) = (Arc::clone(&port), shutdown.clone());
                // Boxed, because tokio moves what it has of a task when that ends.
                // Without work stealing each thread is a runtime of its own, and one of them is chosen.
                current_handle().spawn(Box::pin(async move { port.serve(stream, peer, shutdown).await }));
            }
            Err(failure) => explain(&failure).await,
        }
    }
}

/// Has what is written on the connections of `socket` sent at once. They inherit this (Linux), so no connection costs a system call.
fn without_delay(socket: &TcpListener) -> io::Result<()> {
    SockRef::from(socket).set_tcp_nodelay(true)
}

/// Logs that a connection could not be accepted, and waits where the next could not either.
async fn explain(failure: &io::Error) {
    // A client that has left before it was accepted is no failure of anybody's.
    if is_shortage(failure) {
        error!(error = failure.to_string().as_str(); "Accept() failed: new connections wait");
        sleep(PAUSE).await;
    }
}

#[async_trait]
impl Service for Accept {
    async fn start_service(&mut self, _fds: Option<ListenFds>, shutdown: ShutdownWatch, listeners_per_fd: usize) {
        let Some(socket) = self.listening.open().await else {
            return;
        };
        if let Err(failure) = without_delay(&socket) {
            self.listening.give_up(&failure);
        }
        let socket = Arc::new(socket);
        let mut accepting = JoinSet::new();
        for _ in 0..listeners_per_fd {
            accepting.spawn(accept(Arc::clone(&socket), Arc::clone(&self.port), shutdown.clone()));
        }
        while let Some(ended) = accepting.join_next().await {
            if let Err(panicked) = ended {
                self.listening.give_up(&panicked);
            }
        }
        self.port.edge.proxy.http_cleanup().await;
    }

    fn name(&self) -> &str {
        self.listening.service()
    }

    /// None that Pingora would have to know of.
    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn connections_inherit_that_nothing_is_delayed() {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        without_delay(&socket).unwrap();
        let _client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        assert!(socket.accept().await.unwrap().0.nodelay().unwrap());
    }
}

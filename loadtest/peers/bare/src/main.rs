//! `bare LISTEN BACKEND…`: the least that a proxy made with Pingora can be. What GopherProxy costs beyond it is our own doing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use clap::Parser;
use pingora::prelude::{HttpPeer, Result};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// The allocator of GopherProxy, so that the comparison is about the code.
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

/// Forwards requests to the backends in turn and does nothing else.
#[derive(Parser)]
#[command(name = "bare")]
struct Arguments {
    /// Where clients connect.
    listen: SocketAddr,

    /// Where requests go.
    #[arg(required = true)]
    backends: Vec<SocketAddr>,
}

struct Bare {
    backends: Vec<SocketAddr>,
    turn: AtomicUsize,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let backend = self.backends[turn % self.backends.len()];
        Ok(Box::new(HttpPeer::new(backend, false, String::new())))
    }
}

fn main() {
    let Arguments { listen, backends } = Arguments::parse();
    let mut server = Server::new_with_opt_and_conf(None, ServerConf::default());
    let bare = Bare {
        backends,
        turn: AtomicUsize::new(0),
    };
    let mut service = http_proxy_service(&server.configuration, bare);
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run_forever();
}

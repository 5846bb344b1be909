//! One probe: a TCP connection that is opened and closed again.

use std::time::Duration;

use chassis::shortage::is_shortage;
use futures::future::select_ok;
use registry::{Member, Resolver};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a probe found.
#[derive(Debug)]
pub(crate) enum Finding {
    Up,
    /// Why, in words for the log.
    Down(String),
    /// Nothing about the target: this machine could not even try.
    Nothing,
}

/// Connects to `target` within `limit`, its name resolved anew; any of its addresses will do.
pub(crate) async fn probe(resolver: &Resolver, target: &Member, limit: Duration) -> Finding {
    let connected = timeout(limit, async {
        let addresses = match resolver.resolve(target, limit).await {
            Ok(addresses) => addresses,
            Err(error) => return Finding::Down(error.to_string()),
        };
        // All at once, so that an address that swallows packets can't use up the time of one that answers.
        let attempts = addresses
            .into_iter()
            .map(|address| Box::pin(TcpStream::connect(address)));
        match select_ok(attempts).await {
            Ok(_) => Finding::Up,
            Err(error) if is_shortage(&error) => Finding::Nothing,
            Err(error) => Finding::Down(error.to_string()),
        }
    });
    connected
        .await
        .unwrap_or_else(|_| Finding::Down(format!("no connection within {limit:?}")))
}

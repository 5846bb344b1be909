//! One probe: a TCP connection that is opened and closed again.

use std::time::Duration;

use futures::future::select_ok;
use registry::{Member, Resolver};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connects to `target` within `limit`, its name resolved anew; any of its addresses will do.
///
/// # Errors
/// Why no connection came about, in words for the log.
pub(crate) async fn probe(resolver: &Resolver, target: &Member, limit: Duration) -> Result<(), String> {
    let connected = timeout(limit, async {
        let addresses = resolver
            .resolve(target, limit)
            .await
            .map_err(|error| error.to_string())?;
        // All at once, so that an address that swallows packets can't use up the time of one that answers.
        let attempts = addresses
            .into_iter()
            .map(|address| Box::pin(TcpStream::connect(address)));
        select_ok(attempts).await.map_err(|error| error.to_string())
    });
    match connected.await {
        Ok(result) => result.map(drop),
        Err(_) => Err(format!("no connection within {limit:?}")),
    }
}

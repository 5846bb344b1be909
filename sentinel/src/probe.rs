//! One probe: opens a TCP connection and closes it again.

use std::net::SocketAddr;
use std::time::Duration;

use chassis::shortage::is_shortage;
use futures::future::select_ok;
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

/// Connects to one of `addresses`, at least one, within `limit`; any of them will do. `None` if none answers in time.
pub(crate) async fn connect(addresses: Vec<SocketAddr>, limit: Duration) -> Option<Finding> {
    // All at once, so that an address that swallows packets can't use up the time of one that answers.
    let attempts = addresses
        .into_iter()
        .map(|address| Box::pin(TcpStream::connect(address)));
    let finding = match timeout(limit, select_ok(attempts)).await.ok()? {
        Ok(_) => Finding::Up,
        Err(error) if is_shortage(&error) => Finding::Nothing,
        Err(error) => Finding::Down(error.to_string()),
    };
    Some(finding)
}

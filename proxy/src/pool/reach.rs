//! Connects to a host of which any address will do.
//!
//! An address that swallows packets must not use up the time of one that answers. So the next one is tried a moment later, or at once
//! when the one before refuses, and the first that answers is taken (RFC 8305, section 5).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How long an address is waited for before the next one is tried too.
const HEAD_START: Duration = Duration::from_millis(250);

/// A connection to one of `addresses`, within `limit`.
///
/// # Errors
/// Why there is none to the address that failed last.
pub async fn any(addresses: &[SocketAddr], limit: Duration) -> io::Result<(SocketAddr, TcpStream)> {
    let connected = timeout(limit, first(addresses, HEAD_START.min(limit / 4))).await;
    connected.unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("none within {limit:?}"),
        ))
    })
}

async fn first(addresses: &[SocketAddr], head_start: Duration) -> io::Result<(SocketAddr, TcpStream)> {
    let mut last = io::Error::other("there is no address");
    let mut left = addresses.iter().copied();
    let mut tried = FuturesUnordered::new();
    loop {
        let next = left.next();
        if let Some(address) = next {
            tried.push(async move { (address, TcpStream::connect(address).await) });
        }
        tokio::select! {
            biased;
            connected = tried.next() => match connected {
                Some((address, Ok(stream))) => return Ok((address, stream)),
                Some((_, Err(error))) => last = error,
                None => return Err(last),
            },
            () = sleep(head_start), if next.is_some() => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use socket2::{Domain, Socket, Type};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn socket() -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
    }

    /// An address that takes no connection and refuses none, like a host behind a firewall, because its backlog is full; for as long as the
    /// sockets are there.
    pub(crate) fn black_hole() -> (SocketAddr, Vec<Socket>) {
        let listener = socket();
        listener
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut sockets = vec![listener];
        // Linux takes one more than the backlog. A third is for kernels that count otherwise.
        for _ in 0..3 {
            let client = socket();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&address);
            sockets.push(client);
        }
        (address.as_socket().unwrap(), sockets)
    }

    fn refusing() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    }

    #[tokio::test]
    async fn an_address_that_answers_is_found_behind_those_that_do_not() {
        let live = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = live.local_addr().unwrap();
        let (hole, _sockets) = black_hole();
        for addresses in [
            vec![address],
            vec![refusing(), address],
            vec![hole, address],
            vec![hole, refusing(), hole, address],
            vec![address, hole],
        ] {
            let (found, _stream) = any(&addresses, LIMIT).await.unwrap();
            assert_eq!(found, address, "{addresses:?}");
        }
    }

    #[tokio::test]
    async fn without_one_the_error_says_why() {
        let (hole, _sockets) = black_hole();
        let why = async |addresses: &[SocketAddr], limit| any(addresses, limit).await.unwrap_err();
        let short = Duration::from_millis(50);
        assert_eq!(why(&[hole, refusing()], short).await.to_string(), "none within 50ms");
        let refused = why(&[refusing(), refusing()], LIMIT).await;
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(why(&[], LIMIT).await.to_string(), "there is no address");
    }
}

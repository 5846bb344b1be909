//! Closing a listening port without resetting a connection.
//!
//! The kernel finishes handshakes by itself and queues the connections until the process accepts them. Closing the socket
//! resets those in the queue and those whose handshake is under way: their clients believe they are connected, or soon
//! will. So the socket first refuses new connections, and closes once the queue is empty.
//!
//! To refuse them, the socket is bound to a network interface that does not exist. A new SYN then finds no listener and is
//! refused, as by a closed port; a handshake under way keeps the interfaces of the moment in which it began, and ends as
//! usual. Since Linux 5.7 this takes no privilege, where a packet filter (`SO_ATTACH_FILTER`) takes a capability on new
//! kernels. A backlog of 0 would not do: it drops the last packet of a handshake that the client takes for finished.
//! Only handshakes that the kernel does not keep, by SYN cookies in a flood of SYNs, are lost.
//!
//! The socket stays that way in every process that has it, and can't be made to listen again. A socket that a successor
//! serves must not be closed like this.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::time::Duration;

use procfs::net::{TcpNetEntry, TcpState};
use socket2::SockRef;
use tokio::time::{Instant, sleep};

/// The index of an interface that does not exist: the greatest there can be, and the kernel counts from 1.
const NO_INTERFACE: Option<NonZeroU32> = NonZeroU32::new(i32::MAX.cast_unsigned());
/// How often the queue is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How long a handshake may take: a round trip, or the second after which a lost packet is sent again.
const HANDSHAKE: Duration = Duration::from_millis(1500);
/// The fewest looks before connections are given up: time in which this process does not run is no time to accept any.
const FEWEST_LOOKS: u32 = 20;

/// Refuses new connections at `socket` and waits until those that were there are accepted, for about 1.5 s at most. Returns how
/// many are left, which closing the socket resets.
///
/// # Errors
/// When the kernel can't refuse them, or does not show its queue: closing the socket may reset connections.
pub async fn refuse_and_drain(socket: &TcpListener) -> io::Result<usize> {
    let address = socket.local_addr()?;
    let refused = SockRef::from(socket)
        .bind_device_by_index_v4(NO_INTERFACE)
        .map_err(|error| io::Error::new(error.kind(), format!("can't refuse new connections: {error}")));
    let start = Instant::now();
    let (mut looks, mut looks_empty) = (0, 0);
    let left = loop {
        sleep(POLL).await;
        let left = tokio::task::spawn_blocking(move || unaccepted(address)).await?;
        looks += 1;
        looks_empty = if matches!(left, Ok(0)) { looks_empty + 1 } else { 0 };
        // A connection that moves from one of the kernel's lists to the other may be seen in neither, so one look is not enough.
        if looks_empty == 2 || looks >= FEWEST_LOOKS && start.elapsed() >= HANDSHAKE {
            break left;
        }
    };
    refused?;
    left.map_err(|error| io::Error::other(format!("can't read the accept queue from /proc/net: {error}")))
}

/// How many connections to `address` wait to be accepted, and how many handshakes are under way.
fn unaccepted(address: SocketAddr) -> procfs::ProcResult<usize> {
    let mut entries = procfs::net::tcp()?;
    if address.is_ipv6() {
        entries.extend(procfs::net::tcp6()?);
    }
    let here = |entry: &&TcpNetEntry| entry.local_address.port() == address.port();
    let count = |entry: &TcpNetEntry| match entry.state {
        // Of a listener the receive queue is the queue of connections.
        TcpState::Listen if entry.local_address == address => entry.rx_queue as usize,
        TcpState::SynRecv | TcpState::NewSynRecv if reaches(address, entry.local_address) => 1,
        _ => 0,
    };
    Ok(entries.iter().filter(here).map(count).sum())
}

/// Whether a connection whose own end is `local` is one of the listener at `address`.
fn reaches(address: SocketAddr, local: SocketAddr) -> bool {
    address.ip().is_unspecified() || address.ip().to_canonical() == local.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use socket2::{Domain, Socket, Type};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::listener::{bind, is_here};

    /// A client whose kernel does not acknowledge the handshake (for up to 200 ms) until there is something to send: on
    /// the server's side the handshake goes on.
    fn connect_by_halves(to: SocketAddr) -> TcpStream {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_tcp_quickack(false).unwrap();
        socket.connect(&to.into()).unwrap();
        socket.into()
    }

    /// Answers each connection with what it sends, and closes the port when that resets nobody.
    async fn accept_until_drained(listener: TcpListener) -> io::Result<usize> {
        // As after a handover: the same socket in another process.
        let other = listener.try_clone()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let drained = refuse_and_drain(&other);
        tokio::pin!(drained);
        loop {
            let (mut connection, _) = tokio::select! {
                drained = &mut drained => return drained,
                accepted = listener.accept() => accepted?,
            };
            tokio::spawn(async move {
                let mut question = [0; 8];
                if connection.read_exact(&mut question).await.is_ok() {
                    connection.write_all(&question).await.unwrap();
                }
            });
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_connected_or_connecting_is_accepted_and_who_comes_later_is_refused() {
        for (address, clients) in [
            ("127.0.0.1:0", &["127.0.0.1"][..]),
            ("0.0.0.0:0", &["127.0.0.1", "127.0.0.2"]),
            ("[::1]:0", &["::1"]),
            ("[::]:0", &["127.0.0.1", "::ffff:127.0.0.1"]),
            ("[::]:0", &["::1"]),
        ] {
            if !clients.iter().all(|client| is_here(client)) {
                continue;
            }
            let listener = bind(address.parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let at = |client: &&str| SocketAddr::new(client.parse().unwrap(), address.port());
            let mut connected: Vec<_> = clients.iter().map(|to| TcpStream::connect(at(to)).unwrap()).collect();
            connected.extend(clients.iter().map(|to| connect_by_halves(at(to))));
            // A connection that is just finished can be in both lists.
            while unaccepted(address).unwrap() != connected.len() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }

            let closed = tokio::spawn(accept_until_drained(listener));
            while TcpStream::connect(at(&clients[0])).is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for client in clients {
                let error = TcpStream::connect(at(client)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{client} at {address}");
            }
            // Looks at the queue go by, in which the handshakes are still under way.
            tokio::time::sleep(POLL * 6).await;
            for client in &mut connected {
                client.write_all(b"question").unwrap();
            }
            for client in &mut connected {
                let mut answer = [0; 8];
                client.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"question", "{address}");
            }
            assert_eq!(closed.await.unwrap().unwrap(), 0, "{address}");
        }
    }
}

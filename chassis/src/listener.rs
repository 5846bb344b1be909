//! Binds ports before anything starts.
//!
//! Pingora binds inside a service's task, where a taken port panics that task and leaves a process that looks alive and
//! serves nothing. So [`bind`] takes the port first, in `main`, where an error can still be reported and end the process, and
//! [`Listening`] hands the socket to the Pingora service through the table in which Pingora looks for inherited sockets. Between
//! the two there may be a time in which the port is this process's and not yet served: [`Doors`] says when that ends.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use async_trait::async_trait;
use log::{error, info};
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

/// Pingora raises the backlog to its own when it takes the socket over; until then this many may wait.
const BACKLOG: i32 = 1024;

/// The lowest port that an ordinary user may bind, unless the system says otherwise.
const UNPRIVILEGED: u16 = 1024;

/// How much of what is written the kernel takes before it can be sent, for each connection: what a client that reads slowly
/// makes it hold. Without a limit that is megabytes, and a thousand such clients take all the memory that the kernel has for
/// every connection of the machine.
pub const UNSENT: u32 = 128 << 10;

/// A port that could not be bound.
#[derive(Debug)]
pub struct BindError {
    address: SocketAddr,
    error: io::Error,
    owner: Option<String>,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ip, port) = (self.address.ip(), self.address.port());
        write!(f, "can't listen on {}: {}", self.address, self.error)?;
        match (self.error.kind(), &self.owner) {
            (io::ErrorKind::AddrInUse, Some(owner)) => {
                write!(f, "; port {port} is in use by {owner}: stop it, or choose another port")
            }
            (io::ErrorKind::AddrInUse, None) => write!(
                f,
                "; port {port} is in use by another user's process, which `sudo ss -ltnp` names: stop it, or choose another port"
            ),
            (io::ErrorKind::PermissionDenied, _) if port < UNPRIVILEGED => write!(
                f,
                "; ports below {UNPRIVILEGED} are privileged: `sudo setcap cap_net_bind_service=+ep {binary}`, or \
                 AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit, or \
                 `sudo sysctl net.ipv4.ip_unprivileged_port_start={port}` allows this one; or choose another port",
                binary = std::env::current_exe().unwrap_or_else(|_| "BINARY".into()).display(),
            ),
            (io::ErrorKind::AddrNotAvailable, _) => {
                write!(f, "; no interface of this machine has the address {ip}: choose another")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Binds and listens on `address`; port 0 takes a free one. `[::]` is every address of both families, whatever the system's
/// default is.
///
/// # Errors
/// When the port is taken (the error names the process that has it, where this process may see that) or not allowed.
pub fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        // Connections inherit it.
        socket.set_tcp_notsent_lowat(UNSENT)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|error: io::Error| BindError {
        owner: (error.kind() == io::ErrorKind::AddrInUse)
            .then(|| owner_of(address.port()))
            .flatten(),
        address,
        error,
    })
}

/// Every address of this machine, with `port`: of both families, or of IPv4 alone where the kernel has no IPv6.
pub fn every_address(port: u16) -> SocketAddr {
    let ip = match Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)) {
        Ok(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        Err(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, port)
}

/// The process that listens on `port`, as `name (pid 123)`. `None` when it is another user's or /proc can't be read.
fn owner_of(port: u16) -> Option<String> {
    use procfs::process::FDTarget;

    let listening = |entries: procfs::ProcResult<Vec<procfs::net::TcpNetEntry>>| {
        entries
            .unwrap_or_default()
            .into_iter()
            .filter(|entry| entry.state == procfs::net::TcpState::Listen && entry.local_address.port() == port)
    };
    let inodes: Vec<u64> = listening(procfs::net::tcp())
        .chain(listening(procfs::net::tcp6()))
        .map(|entry| entry.inode)
        .collect();
    procfs::process::all_processes().ok()?.flatten().find_map(|process| {
        let holds = process
            .fd()
            .ok()?
            .flatten()
            .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)));
        let name = process.stat().ok()?.comm;
        holds.then(|| format!("{name} (pid {})", process.pid()))
    })
}

/// When the services of a process begin to serve, and how many of them do. Clones are the same doors.
#[derive(Debug, Clone)]
pub struct Doors(Arc<State>);

#[derive(Debug)]
struct State {
    open: watch::Sender<bool>,
    serving: watch::Sender<usize>,
}

impl Default for Doors {
    fn default() -> Self {
        Self(Arc::new(State {
            open: watch::Sender::new(false),
            serving: watch::Sender::new(0),
        }))
    }
}

impl Doors {
    /// Lets the services begin.
    pub fn open(&self) {
        self.0.open.send_replace(true);
    }

    /// Waits until so many services accept connections.
    pub async fn serving(&self, services: usize) {
        // The sender lives as long as these doors.
        let _ = self
            .0
            .serving
            .subscribe()
            .wait_for(|serving| *serving >= services)
            .await;
    }

    /// Waits until the services may begin.
    pub(crate) async fn opened(&self) {
        let _ = self.0.open.subscribe().wait_for(|open| *open).await;
    }

    /// Counts one more service that accepts connections.
    pub(crate) fn serves(&self) {
        self.0.serving.send_modify(|serving| *serving += 1);
    }
}

/// A Pingora listening service on a socket that is already bound.
pub struct Listening<S> {
    inner: S,
    key: String,
    socket: Option<TcpListener>,
    doors: Doors,
}

impl<S> Listening<S> {
    /// Serves `socket` from when `doors` open until the server shuts down, with the service that `make` makes: it is given
    /// the address that the service must have as its one TCP address.
    ///
    /// # Errors
    /// When the socket's address can't be read.
    pub fn new(socket: TcpListener, doors: Doors, make: impl FnOnce(&str) -> S) -> io::Result<Self> {
        let key = socket.local_addr()?.to_string();
        Ok(Self {
            inner: make(&key),
            key,
            socket: Some(socket),
            doors,
        })
    }
}

#[async_trait]
impl<S: Service> Service for Listening<S> {
    async fn start_service(&mut self, fds: Option<ListenFds>, shutdown: ShutdownWatch, listeners_per_fd: usize) {
        self.doors.opened().await;
        if let (Some(fds), Some(socket)) = (&fds, self.socket.take()) {
            fds.lock().add(self.key.clone(), socket.into_raw_fd());
        }
        let name = self.inner.name().to_owned();
        let served = self.inner.start_service(fds, shutdown, listeners_per_fd);
        let served = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(served));
        tokio::pin!(served);
        // In its first poll Pingora builds its listeners and starts the tasks that accept; it is over only at the end.
        let mut over = futures::poll!(&mut served);
        if over.is_pending() {
            info!(service = name.as_str(), address = self.key.as_str(); "listening");
            self.doors.serves();
            over = std::task::Poll::Ready(served.await);
        }
        if matches!(over, std::task::Poll::Ready(Err(_))) {
            error!(service = name.as_str(), address = self.key.as_str(); "can't serve; exiting");
            crate::json_log::flush(std::time::Duration::from_secs(1));
            std::process::exit(1);
        }
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn threads(&self) -> Option<usize> {
        self.inner.threads()
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(vec![self.key.clone()])
    }
}

/// Whether this machine has the address `host`. In many containers IPv6 is turned off.
#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that tests less says so")]
pub(crate) fn is_here(host: &str) -> bool {
    let is_here = TcpListener::bind((host, 0)).is_ok();
    if !is_here {
        eprintln!("not tested with {host}, which this machine does not have");
    }
    is_here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_its_owner() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = bind(any).expect("a free port");
        let taken = first.local_addr().expect("bound");
        let error = bind(taken).expect_err("the port is taken").to_string();
        let pid = std::process::id();
        assert!(error.starts_with(&format!("can't listen on {taken}: ")), "{error}");
        assert!(error.contains(&format!("(pid {pid})")), "{error}");
        assert!(error.contains(&format!("port {}", taken.port())), "{error}");
    }

    #[test]
    fn what_can_not_be_bound_says_how_it_could_be() {
        let said = |address: &str, errno: rustix::io::Errno| {
            let error = BindError {
                address: address.parse().unwrap(),
                error: errno.into(),
                owner: None,
            };
            error.to_string()
        };
        for (address, errno, way_out) in [
            ("0.0.0.0:0", rustix::io::Errno::ADDRINUSE, "`sudo ss -ltnp` names"),
            (
                "[::]:0",
                rustix::io::Errno::ACCESS,
                "`sudo setcap cap_net_bind_service=+ep /",
            ),
            (
                "[::]:0",
                rustix::io::Errno::ACCESS,
                "AmbientCapabilities=CAP_NET_BIND_SERVICE",
            ),
            (
                "[::]:0",
                rustix::io::Errno::ACCESS,
                "net.ipv4.ip_unprivileged_port_start=0",
            ),
            (
                "192.0.2.1:0",
                rustix::io::Errno::ADDRNOTAVAIL,
                "no interface of this machine has the address 192.0.2.1",
            ),
        ] {
            let said = said(address, errno);
            assert!(said.starts_with(&format!("can't listen on {address}: ")), "{said}");
            assert!(said.contains(way_out), "{said}");
        }
        let high = said("0.0.0.0:65000", rustix::io::Errno::ACCESS);
        assert!(!high.contains("setcap"), "{high}");
    }

    #[test]
    fn every_address_is_one_of_both_families() {
        let listener = bind(every_address(0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "::1"].into_iter().filter(|host| is_here(host)) {
            let reached = std::net::TcpStream::connect((host.parse::<IpAddr>().unwrap(), port));
            assert!(reached.is_ok(), "{host}: {reached:?}");
        }
    }
}

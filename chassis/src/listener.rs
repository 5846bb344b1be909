//! Binds ports before anything starts.
//!
//! [`bind`] takes a port in `main`, where an error can still be reported and end the process, and [`Listening`] gives the socket to the
//! service that accepts its connections. Between the two there may be a time in which the port is this process's and not yet served:
//! [`Doors`] says when that ends.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use log::{error, info};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

/// How many connections may wait to be accepted. The kernel has a limit of its own, `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

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
                "; port {port} is in use by a process that this user may not look at, or that is just ending; `sudo ss -ltnp` names it: stop it, or \
                 choose another port"
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
    async fn opened(&self) {
        let _ = self.0.open.subscribe().wait_for(|open| *open).await;
    }

    /// Counts one more service that accepts connections.
    fn serves(&self) {
        self.0.serving.send_modify(|serving| *serving += 1);
    }
}

/// A port that is bound, for the service that will accept its connections.
pub struct Listening {
    service: String,
    address: SocketAddr,
    socket: Option<TcpListener>,
    doors: Doors,
}

impl Listening {
    /// `socket`, on which `service` accepts from when `doors` open.
    ///
    /// # Errors
    /// When the socket's address can't be read.
    pub fn new(service: &str, socket: TcpListener, doors: Doors) -> io::Result<Self> {
        Ok(Self {
            service: service.to_owned(),
            address: socket.local_addr()?,
            socket: Some(socket),
            doors,
        })
    }

    /// The name of the service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The socket, once the doors are open; then the service is one that serves. It is there once.
    pub async fn open(&mut self) -> Option<tokio::net::TcpListener> {
        self.doors.opened().await;
        let socket = tokio::net::TcpListener::from_std(self.socket.take()?);
        let socket = socket.unwrap_or_else(|problem| self.give_up(&problem));
        info!(service = self.service.as_str(), address = self.address.to_string().as_str(); "listening");
        self.doors.serves();
        Some(socket)
    }

    /// Ends the process, which would look alive and serve nothing.
    pub fn give_up(&self, problem: &dyn std::error::Error) -> ! {
        let (service, address) = (self.service.as_str(), self.address.to_string());
        error!(service, address = address.as_str(), error = problem.to_string().as_str(); "can't serve; exiting");
        crate::json_log::flush(Duration::from_secs(1));
        std::process::exit(1);
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

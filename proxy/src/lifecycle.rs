//! Signals, drain, exit.
//!
//! Pingora sleeps its whole grace period after SIGTERM, whatever is left to do, and then cancels what is. So the end is
//! decided here: SIGTERM and SIGINT stop the listeners, and the process leaves as soon as the last request in flight is answered,
//! after [`drain_timeout`](crate::config::Config::drain_timeout) at the latest. A second signal ends it at once.

use std::net::TcpListener;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use log::{error, info, warn};
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use socket2::{SockFilter, SockRef};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

/// How long after the signal the drain begins to count: connections that were accepted a moment ago may not have been
/// read yet.
const SETTLE: Duration = Duration::from_millis(250);
/// A socket filter (classic BPF, on the TCP header) that drops the packet that opens a connection, SYN without ACK, and
/// lets all others pass. The client sends it again a second later, and is then refused by a port that is closed. (A backlog
/// of none would also drop the last packet of a handshake, after which the client believes it is connected.)
const NO_NEW_CONNECTIONS: [SockFilter; 5] = [
    // The flags, of which SYN is 2 and ACK is 16.
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x54, 0, 0, 2 | 16),
    SockFilter::new(0x15, 0, 1, 2),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];
/// How long the connections that wait in the kernel have to be accepted.
const ACCEPT_THE_LAST: Duration = Duration::from_millis(50);
/// How often the requests in flight are counted.
const TICK: Duration = Duration::from_millis(10);
/// How long the log may take at the end.
const FLUSH: Duration = Duration::from_millis(500);

/// Whether the process is on its way out, and what it still waits for.
#[derive(Debug, Default)]
pub struct Lifecycle {
    draining: AtomicBool,
    in_flight: AtomicUsize,
}

impl Lifecycle {
    /// Whether the shutdown has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// How many requests have arrived and are not answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(Arc::clone(self))
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct InFlight(Arc<Lifecycle>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The signals of a process that drains before it leaves.
pub struct DrainOnSignal {
    lifecycle: Arc<Lifecycle>,
    drain_timeout: Duration,
    client_socket: TcpListener,
}

impl DrainOnSignal {
    /// Drains what `lifecycle` counts, `drain_timeout` at most, and before that the connections that wait at
    /// `client_socket`, the socket that clients connect to or a clone of it.
    pub fn new(lifecycle: Arc<Lifecycle>, drain_timeout: Duration, client_socket: TcpListener) -> Self {
        Self {
            lifecycle,
            drain_timeout,
            client_socket,
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for DrainOnSignal {
    async fn recv(&self) -> ShutdownSignal {
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(problem) => {
                error!(error = problem.to_string().as_str(); "can't listen for signals; SIGKILL will end this process");
                return std::future::pending().await;
            }
        };
        let (name, _) = signals.next_to_end().await;
        self.lifecycle.draining.store(true, Ordering::SeqCst);
        info!(signal = name, in_flight = self.lifecycle.in_flight(); "shutting down; requests in flight may finish");

        // Closing the socket would reset the connections that the kernel has taken and nobody has accepted yet. So it first
        // takes no more, and those that wait are accepted before the listeners are told to stop.
        if let Err(problem) = SockRef::from(&self.client_socket).attach_filter(&NO_NEW_CONNECTIONS) {
            warn!(error = problem.to_string().as_str(); "can't stop new connections before closing the port");
        }
        sleep(ACCEPT_THE_LAST).await;

        let (lifecycle, drain_timeout) = (Arc::clone(&self.lifecycle), self.drain_timeout);
        // The runtime of this task lives through the sleep in which Pingora spends its grace period.
        tokio::spawn(async move {
            tokio::select! {
                () = drained(&lifecycle, drain_timeout) => {}
                (name, code) = signals.next_to_end() => {
                    warn!(signal = name, in_flight = lifecycle.in_flight(); "second signal; leaving now");
                    leave(code);
                }
            }
            match lifecycle.in_flight() {
                0 => info!("drained; leaving"),
                left => warn!(in_flight = left; "drain timeout; leaving with requests unanswered"),
            }
            leave(0);
        });
        ShutdownSignal::GracefulTerminate
    }
}

/// Returns when nothing is in flight any more, or the time is up.
async fn drained(lifecycle: &Lifecycle, limit: Duration) {
    let end = Instant::now() + limit;
    sleep(SETTLE).await;
    while lifecycle.in_flight() > 0 && Instant::now() < end {
        sleep(TICK).await;
    }
}

fn leave(code: i32) -> ! {
    chassis::json_log::flush(FLUSH);
    exit(code)
}

/// The signals that mean something to this process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Waits for SIGTERM or SIGINT; returns its name and the exit code that shells give a process it killed. SIGQUIT, which to
    /// Pingora means "hand the sockets over", is refused: nobody is there to take them.
    async fn next_to_end(&mut self) -> (&'static str, i32) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return ("SIGTERM", 128 + 15),
                _ = self.interrupt.recv() => return ("SIGINT", 128 + 2),
                _ = self.quit.recv() => warn!("SIGQUIT refused: there is no successor to hand over to; serving on"),
            }
        }
    }
}

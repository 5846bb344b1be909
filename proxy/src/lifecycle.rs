//! The state of the process between its start and its end, and the work it still has to finish.
//!
//! After SIGTERM Pingora sleeps through its whole grace period, whatever is left to do, and then cancels the rest. So the end is
//! decided here: connections and requests are counted, and [`Lifecycle::drained`] returns as soon as the last one ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use pingora::server::ShutdownWatch;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How long after the listeners were closed the drain begins to count: connections that were accepted a moment ago may
/// not have been read yet.
const SETTLE: Duration = Duration::from_millis(250);
/// How often the remaining work is counted.
const TICK: Duration = Duration::from_millis(10);
/// How long an idle connection is still read from once the listeners are closed: a request that was on its way is
/// answered.
const LAST_CALL: Duration = Duration::from_millis(100);
/// The same for a connection that has brought no request yet. A client gives up a connection that it kept and opens another,
/// but takes the end of a new one for an error. A lost packet is sent again after a second.
const FIRST_CALL: Duration = Duration::from_millis(1500);
/// The same for both when there is a successor. Nobody waits for this process to end, so its clients' next requests can be
/// awaited, and answered with "Connection: close", which leaves no race at all.
const LAST_CALL_HANDED_OVER: Duration = Duration::from_secs(5);

/// How far the start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The ports are the running process's.
    Standby,
    /// It has been asked to end before the ports were its own.
    Leaving,
    /// The ports are its own, and it does not accept connections yet.
    Starting,
    /// It accepts connections.
    Serving,
}

impl Stage {
    /// Goes `from` one stage `to` another; returns whether it was there. Of two that try at once, one succeeds.
    pub fn advance(stage: &watch::Sender<Self>, from: Self, to: Self) -> bool {
        stage.send_if_modified(|stage| {
            let there = *stage == from;
            if there {
                *stage = to;
            }
            there
        })
    }
}

/// Where the process is, in the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Phase {
    Serving,
    /// It accepts requests, and `/readyz` says no.
    LameDuck,
    /// It takes no connections.
    Draining,
    /// The same, and its successor takes them.
    HandedOver,
}

/// Where the process is, and what it still waits for.
#[derive(Debug)]
pub struct Lifecycle {
    phase: AtomicU8,
    in_flight: AtomicUsize,
    connections: AtomicUsize,
    streams: AtomicUsize,
    admin_end: watch::Sender<bool>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Serving as u8),
            in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            admin_end: watch::Sender::new(false),
        }
    }
}

impl Lifecycle {
    /// Whether the shutdown has begun, so that balancers should send no more.
    pub fn is_leaving(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= Phase::LameDuck as u8
    }

    /// Whether no more connections are taken, so that those that are there are asked to end.
    pub fn is_draining(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= Phase::Draining as u8
    }

    /// How many requests have arrived and are not answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// How many client connections are open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The same with the streams of HTTP/2, each of which counts as one more.
    pub fn connections_and_streams(&self) -> usize {
        self.connections() + self.streams.load(Ordering::SeqCst)
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(Arc::clone(self))
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connect(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Ordering::SeqCst);
        Connected(Arc::clone(self), Kind::Connection)
    }

    /// Counts a stream of HTTP/2 as open until the guard is dropped.
    pub fn open_stream(self: &Arc<Self>) -> Connected {
        self.streams.fetch_add(1, Ordering::SeqCst);
        Connected(Arc::clone(self), Kind::Stream)
    }

    /// How long an idle connection is still read from during the drain, when it waits for its first request or a later one.
    pub fn last_call(&self, first: bool) -> Duration {
        if self.phase.load(Ordering::Relaxed) == Phase::HandedOver as u8 {
            LAST_CALL_HANDED_OVER
        } else if first {
            FIRST_CALL
        } else {
            LAST_CALL
        }
    }

    /// Turns true when the admin port ends: at the process's end, or when a successor has it.
    pub fn admin_end(&self) -> ShutdownWatch {
        self.admin_end.subscribe()
    }

    /// From now on the process asks for no more requests.
    pub fn lame_duck(&self) {
        self.phase.store(Phase::LameDuck as u8, Ordering::SeqCst);
    }

    /// From now on the process takes no connections.
    pub fn drain(&self) {
        self.phase.store(Phase::Draining as u8, Ordering::SeqCst);
    }

    /// From now on a successor takes the connections, the admin port's too.
    pub fn hand_over(&self) {
        self.phase.store(Phase::HandedOver as u8, Ordering::SeqCst);
        self.admin_end.send_replace(true);
    }

    /// Returns when there is nothing more to do, after `limit` at the latest.
    pub async fn drained(&self, limit: Duration) {
        let start = Instant::now();
        sleep(SETTLE).await;
        // An idle connection is worth waiting for only while its client's next request is.
        let last_call = self.last_call(false);
        let idle = |waited| self.connections() > 0 && last_call > LAST_CALL && waited < last_call;
        while start.elapsed() < limit && (self.in_flight() > 0 || idle(start.elapsed())) {
            sleep(TICK).await;
        }
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

#[derive(Debug, Clone, Copy)]
enum Kind {
    Connection,
    Stream,
}

/// An open connection, or stream.
#[derive(Debug)]
pub struct Connected(Arc<Lifecycle>, Kind);

impl Drop for Connected {
    fn drop(&mut self) {
        let counter = match self.1 {
            Kind::Connection => &self.0.connections,
            Kind::Stream => &self.0.streams,
        };
        counter.fetch_sub(1, Ordering::SeqCst);
    }
}

//! What each signal does.
//!
//! | signal | |
//! |---|---|
//! | SIGTERM | a handover when a successor (`gopherproxy -u`) waits, or else a shutdown |
//! | SIGINT | a shutdown |
//! | SIGQUIT | a handover; refused when no successor waits |
//! | SIGHUP | the configuration is read again |
//!
//! A shutdown: `/readyz` says no, and requests are still accepted for `lame_duck`. Then the port refuses new
//! connections and closes once those in its queue are accepted, and the requests in flight may finish. A second SIGTERM or SIGINT
//! ends the process at once. After a handover that fails, this process goes on serving, whatever signal asked for it: one of the
//! two has to.
//!
//! No signal waits for the work of another. SIGTERM or SIGINT during a handover calls it off, and this process shuts down;
//! once the successor has the order to serve, this process hands over without waiting for it. SIGQUIT during a handover changes
//! nothing. A reload runs beside this, one at a time, and any number of SIGHUPs during one ask for one more. A
//! successor that does not serve yet leaves on SIGTERM or SIGINT without touching the sockets, which are the running process's.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::exit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chassis::handover::Successor;
use chassis::process::listen;
use chassis::{graceful_close, service_manager};
use futures::future::join_all;
use log::{error, info, warn};
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::lifecycle::{Lifecycle, Stage};
use crate::process::reload::{Reload, one_at_a_time};

/// How long a successor may take to find its backends.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(30);
/// How long a process that has the ports may take until it accepts connections.
const START: Duration = Duration::from_secs(1);
/// How long writing the rest of the log may take at the end.
const FLUSH: Duration = Duration::from_millis(500);

/// The sockets that clients and Prometheus connect to, or clones of them.
pub struct Sockets {
    /// For clients.
    pub client: TcpListener,
    /// For Prometheus.
    pub admin: TcpListener,
    /// For clients that speak TLS.
    pub tls: Option<TcpListener>,
}

impl Sockets {
    /// In the order in which they are handed over. One that is not there comes last.
    pub fn all(&self) -> Vec<&TcpListener> {
        [&self.client, &self.admin].into_iter().chain(&self.tls).collect()
    }

    /// Those for clients.
    fn of_clients(&self) -> impl Iterator<Item = &TcpListener> {
        [&self.client].into_iter().chain(&self.tls)
    }
}

/// Waits for signals and does what they ask for.
pub struct OnSignal {
    /// Is notified of the shutdown, and knows what is left to finish.
    pub lifecycle: Arc<Lifecycle>,
    /// From the signal to the closing of the port.
    pub lame_duck: Duration,
    /// From then on, at most.
    pub drain_timeout: Duration,
    /// What is handed over.
    pub sockets: Sockets,
    /// Where a successor waits.
    pub upgrade_socket: PathBuf,
    /// What SIGHUP does.
    pub reload: Arc<Reload>,
    /// How far the start is.
    pub stage: watch::Sender<Stage>,
    /// Those that have been listened for since before the runtime began.
    pub signals: Mutex<Option<Signals>>,
}

#[async_trait]
impl ShutdownSignalWatch for OnSignal {
    async fn recv(&self) -> ShutdownSignal {
        let listened_for = self.signals.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Pingora asks once.
        let Some(mut signals) = listened_for else {
            return std::future::pending().await;
        };
        let reload = Arc::clone(&self.reload);
        let reloads = one_at_a_time(move || reload.run());
        while !self.ends(&mut signals, &reloads).await {}
        let (lifecycle, drain_timeout) = (Arc::clone(&self.lifecycle), self.drain_timeout);
        let metrics = self.reload.metrics.clone();
        // The runtime of this task lives through the sleep in which Pingora spends its grace period.
        tokio::spawn(async move {
            or_now(&mut signals, &lifecycle, lifecycle.drained(drain_timeout)).await;
            // What was counted since the last scrape would reach nobody.
            let (processed, dropped) = (metrics.processed.get(), metrics.dropped.get());
            match lifecycle.in_flight() {
                0 => info!(processed = processed, dropped = dropped; "drained; leaving"),
                left => warn!(
                    in_flight = left, processed = processed, dropped = dropped;
                    "drain timeout; leaving with requests unanswered"
                ),
            }
            leave(0);
        });
        ShutdownSignal::GracefulTerminate
    }
}

impl OnSignal {
    /// Does what the next signal asks for; returns whether this process takes no more connections.
    async fn ends(&self, signals: &mut Signals, reloads: &Notify) -> bool {
        let asked = signals.next().await;
        if asked == Asked::Reload {
            reloads.notify_one();
            return false;
        }
        if !self.serves(asked).await {
            return false;
        }
        let may_hand_over = matches!(asked, Asked::HandOver | Asked::Terminate);
        if may_hand_over && let Some(successor) = self.successor().await {
            return self.hand_over(successor, asked, signals, reloads).await;
        }
        if asked == Asked::HandOver {
            warn!("SIGQUIT refused: there is no successor to hand over to; serving on");
            return false;
        }
        self.stop_listening(signals, asked.name()).await;
        true
    }

    /// Whether this process serves, perhaps after waiting for the moment until it does. One whose predecessor serves leaves when
    /// it is asked to end.
    async fn serves(&self, asked: Asked) -> bool {
        if *self.stage.borrow() == Stage::Standby {
            if asked == Asked::HandOver {
                warn!("SIGQUIT refused: this process does not serve yet");
                return false;
            }
            if Stage::advance(&self.stage, Stage::Standby, Stage::Leaving) {
                info!(signal = asked.name(); "leaving without having taken over; the running proxy serves on");
                leave(0);
            }
        }
        let mut stage = self.stage.subscribe();
        // One that can't get there ends by itself.
        let _ = timeout(START, stage.wait_for(|stage| *stage == Stage::Serving)).await;
        true
    }

    async fn successor(&self) -> Option<Successor> {
        Successor::waiting_at(&self.upgrade_socket)
            .await
            .unwrap_or_else(|problem| {
                error!(error = problem.to_string().as_str(); "no handover to what waits at upgrade_sock");
                None
            })
    }

    /// Whether this process takes no more connections: the successor serves, or this process has been asked to end.
    async fn hand_over(&self, successor: Successor, asked: Asked, signals: &mut Signals, reloads: &Notify) -> bool {
        info!(
            signal = asked.name(), pid = successor.pid().unwrap_or_default();
            "a successor waits; handing the sockets over"
        );
        let mut end = None;
        let sockets = self.sockets.all();
        // In the order of `startup`'s numbers.
        let notes = || {
            let (policy, now) = (self.reload.live.policy(), Instant::now());
            let secret = self.reload.certificates.as_ref().map(|live| live.secret());
            vec![
                policy.limiter.export(now),
                secret.unwrap_or_default(),
                policy.routes.export_buckets(now),
            ]
        };
        let called_off = async { end = Some(signals.end(reloads).await) };
        let handed_over = successor
            .hand_over(&sockets, SUCCESSOR_PATIENCE, notes, called_off)
            .await;
        match (handed_over, end) {
            (Ok(()), end) => {
                // Whoever asked for a handover has not asked this process to end.
                signals.excused = asked == Asked::HandOver && end.is_none();
                self.lifecycle.hand_over();
                info!(in_flight = self.lifecycle.in_flight(); "the successor serves; requests in flight may finish here");
                true
            }
            (Err(_), Some(end)) => {
                info!(signal = end.name(); "the handover is called off");
                self.stop_listening(signals, end.name()).await;
                true
            }
            (Err(problem), None) => {
                error!(error = problem.as_str(); "the successor did not get to serve; serving on");
                false
            }
        }
    }

    async fn stop_listening(&self, signals: &mut Signals, signal: &str) {
        service_manager::stopping();
        self.lifecycle.lame_duck();
        info!(signal = signal, in_flight = self.lifecycle.in_flight(); "shutting down; requests in flight may finish");
        or_now(signals, &self.lifecycle, sleep(self.lame_duck)).await;
        self.lifecycle.drain();
        // The listeners stop, and the socket closes, when its queue is empty.
        or_now(signals, &self.lifecycle, async {
            let closing = self.sockets.of_clients().map(graceful_close::refuse_and_drain);
            for closed in join_all(closing).await {
                match closed {
                    Ok(0) => {}
                    Ok(left) => {
                        warn!(connections = left; "closing the port resets connections that wait to be accepted")
                    }
                    Err(problem) => warn!(
                        error = problem.to_string().as_str();
                        "closing the port may reset connections that come at this moment"
                    ),
                }
            }
        })
        .await;
    }
}

/// Waits for `end`, or ends the process at once when a signal asks for that.
async fn or_now(signals: &mut Signals, lifecycle: &Lifecycle, end: impl Future<Output = ()>) {
    tokio::pin!(end);
    loop {
        let asked = tokio::select! {
            () = &mut end => return,
            asked = signals.next() => asked,
        };
        let code = match asked {
            // Whoever asks again for what is being done gets it.
            Asked::Terminate | Asked::Interrupt if std::mem::take(&mut signals.excused) => continue,
            Asked::Terminate => 128 + 15,
            Asked::Interrupt => 128 + 2,
            Asked::HandOver | Asked::Reload => continue,
        };
        warn!(signal = asked.name(), in_flight = lifecycle.in_flight(); "second signal; leaving now");
        leave(code);
    }
}

fn leave(code: i32) -> ! {
    chassis::json_log::flush(FLUSH);
    exit(code)
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Terminate,
    Interrupt,
    HandOver,
    Reload,
}

impl Asked {
    const fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::HandOver => "SIGQUIT",
            Self::Reload => "SIGHUP",
        }
    }
}

/// The signals that are listened for from the beginning: they ask for something while a process serves, and must not end one that
/// starts. The others do end it.
pub struct Early {
    quit: Signal,
    hangup: Signal,
}

impl Early {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            quit: listen(SignalKind::quit())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }
}

/// The signals that mean something to this process. What arrives is kept until it is asked for.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    /// The process leaves though nobody has asked it to end, so that the first who does asks for nothing new.
    excused: bool,
}

impl Signals {
    /// Listens for all from now on. There is no runtime yet.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub fn new(Early { quit, hangup }: Early) -> std::io::Result<Self> {
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit,
            hangup,
            excused: false,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Terminate,
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.quit.recv() => Asked::HandOver,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// Waits until the process is asked to end, and returns by which signal. Can be dropped at any time.
    pub async fn asked_to_end(&mut self) -> &'static str {
        self.end(&Notify::new()).await.name()
    }

    /// The same, and asks `reloads` for what else arrives.
    async fn end(&mut self, reloads: &Notify) -> Asked {
        loop {
            match self.next().await {
                asked @ (Asked::Terminate | Asked::Interrupt) => return asked,
                Asked::Reload => reloads.notify_one(),
                Asked::HandOver => {}
            }
        }
    }
}

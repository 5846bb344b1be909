//! Binds the ports, or takes them over from a running proxy (`gopherproxy -u`), and begins to serve.
//!
//! A successor that served before a backend had passed a check would answer 503 in place of a process that works. So it
//! waits for a backend first, and then takes over. If it finds no backends at all, it does not take over. If it has
//! found some and none passes a check in time, it takes over all the same: the running process has no backend to send requests to
//! either, and an outage must not prevent an upgrade, which may be what ends it. A running process that is dead is replaced
//! in any case: a 503 is better than no answer.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::exit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chassis::handover::{Predecessor, Waiting};
use chassis::listener::{self, Doors};
use chassis::{json_log, service_manager};
use log::{error, info, warn};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::lifecycle::Stage;
use crate::pool::pools::Pools;
use crate::process::signals::{Early, Signals, Sockets};
use crate::snapshot::Live;
use crate::tls;

/// How long a successor waits for the running process to get a signal.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(60);
/// How long a successor looks for backends. The running process waits a little longer.
const BACKENDS_PATIENCE: Duration = Duration::from_secs(20);
/// How often it looks.
const POLL: Duration = Duration::from_millis(10);
/// The notes that come with a handover, by their numbers.
const BUCKETS: usize = 0;
const TICKET_SECRET: usize = 1;
const BUCKETS_OF_ROUTES: usize = 2;
/// How long writing the rest of the log may take at the end.
const FLUSH: Duration = Duration::from_millis(500);

/// Binds the ports, for a process that takes over from no other.
///
/// # Errors
/// When one is taken.
pub fn bind(config: &Config) -> Result<Sockets, listener::BindError> {
    Ok(Sockets {
        client: listener::bind(config.listen)?,
        admin: listener::bind(config.admin_listen)?,
        tls: config.tls.listen.map(listener::bind).transpose()?,
    })
}

/// What a successor starts with.
pub struct Inherited {
    /// The ports of the running process.
    pub sockets: Sockets,
    /// The running process.
    pub predecessor: Predecessor,
    /// Signals that came since.
    pub signals: Signals,
}

/// Waits for the running process to hand its ports over. `None` when this process is asked to end before that.
///
/// # Errors
/// When it does not, or has other ports than this configuration says.
pub fn inherit(config: &Config, signals: Early) -> Result<Option<Inherited>, Box<dyn std::error::Error>> {
    let mut signals = Signals::new(signals)?;
    // The services' runtimes begin when there is something to serve.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let path = config.server.upgrade_sock.as_str();
        let waiting = Waiting::at(Path::new(path))?;
        info!(upgrade_sock = path; "waiting for the running proxy to hand over: send it SIGQUIT or SIGTERM");
        let (sockets, predecessor) = tokio::select! {
            received = waiting.receive(SIGNAL_PATIENCE) => received?,
            signal = signals.asked_to_end() => {
                info!(signal = signal; "leaving without having taken over; no running proxy has been asked to hand over");
                return Ok(None);
            }
        };
        let sockets = expected(config, sockets)?;
        Ok(Some(Inherited {
            sockets,
            predecessor,
            signals,
        }))
    })
}

/// The sockets by their names, if they have the addresses of this configuration. Only TLS may come or go with an upgrade: its port is
/// bound here if the running process has none.
fn expected(config: &Config, sockets: Vec<TcpListener>) -> Result<Sockets, Box<dyn std::error::Error>> {
    let count = sockets.len();
    let mut sockets = sockets.into_iter();
    let (Some(client), Some(admin), tls, None) = (sockets.next(), sockets.next(), sockets.next(), sockets.next())
    else {
        return Err(format!("the running process handed {count} sockets over, not 2 or 3").into());
    };
    let same = |key: &str, socket: &TcpListener, wanted: SocketAddr| -> Result<(), Box<dyn std::error::Error>> {
        let has = socket.local_addr()?;
        let any_port = SocketAddr::new(wanted.ip(), has.port());
        if has != wanted && !(wanted.port() == 0 && has == any_port) {
            return Err(format!(
                "{key}: the running process has {has}, the configuration says {wanted}; an upgrade can't change it, a restart can"
            )
            .into());
        }
        Ok(())
    };
    same("listen", &client, config.listen)?;
    same("admin_listen", &admin, config.admin_listen)?;
    let tls = match (tls, config.tls.listen) {
        (Some(socket), Some(wanted)) => {
            same("tls.listen", &socket, wanted)?;
            Some(socket)
        }
        (None, Some(wanted)) => Some(listener::bind(wanted)?),
        (_, None) => None,
    };
    Ok(Sockets { client, admin, tls })
}

/// Opens the doors when it is time, and says so.
pub struct Startup {
    predecessor: Mutex<Option<Predecessor>>,
    pools: Arc<Pools>,
    live: Arc<Live>,
    certificates: Option<Arc<tls::server::Live>>,
    doors: Doors,
    /// How many ports there are.
    ports: usize,
    stage: watch::Sender<Stage>,
}

impl Startup {
    /// Opens `doors`, behind which are so many `ports`: at once, or when `predecessor` hands over to a process that has backends.
    pub fn new(
        predecessor: Option<Predecessor>,
        pools: Arc<Pools>,
        live: Arc<Live>,
        certificates: Option<Arc<tls::server::Live>>,
        doors: Doors,
        ports: usize,
    ) -> Self {
        let stage = predecessor.as_ref().map_or(Stage::Starting, |_| Stage::Standby);
        Self {
            predecessor: Mutex::new(predecessor),
            pools,
            live,
            certificates,
            doors,
            ports,
            stage: watch::Sender::new(stage),
        }
    }

    /// How far it has come.
    pub fn stage(&self) -> watch::Sender<Stage> {
        self.stage.clone()
    }

    async fn backends(&self) -> Result<(), String> {
        let found = timeout(BACKENDS_PATIENCE, async {
            while !(self.pools.any_alive() && self.pools.are_known()) {
                sleep(POLL).await;
            }
        });
        if found.await.is_err() {
            self.pools.have_set()?;
            let problem = self.pools.without_backends().unwrap_or_default();
            warn!(problem = problem.as_str(); "no backend passes its health check; taking over all the same");
        }
        Ok(())
    }

    /// Makes the running process's clients resume their sessions here. A process without TLS leaves no secret.
    fn inherit_tickets(&self, secret: &[u8]) {
        let inherited = match &self.certificates {
            Some(certificates) if !secret.is_empty() => certificates.inherit(secret),
            _ => return,
        };
        if let Err(problem) = inherited {
            let problem = problem.to_string();
            warn!(error = problem.as_str(); "clients can't resume the TLS sessions of the running proxy");
        }
    }

    async fn serve(&self) {
        self.doors.open();
        self.doors.serving(self.ports).await;
        service_manager::serving();
    }
}

#[async_trait]
impl BackgroundService for Startup {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let predecessor = self.predecessor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(predecessor) = predecessor {
            let taken = match predecessor.take_over(self.backends()).await {
                Ok(taken) => taken,
                Err(why) => {
                    error!(error = why.as_str(); "can't take over; this process leaves");
                    json_log::flush(FLUSH);
                    exit(1);
                }
            };
            if !Stage::advance(&self.stage, Stage::Standby, Stage::Starting) {
                // The process is about to end, which the running one will see. It has not heard that this one serves.
                return std::future::pending().await;
            }
            let (policy, now) = (self.live.policy(), Instant::now());
            let throttled = policy.limiter.import(taken.note(BUCKETS), now);
            policy.routes.import_buckets(taken.note(BUCKETS_OF_ROUTES), now);
            self.inherit_tickets(taken.note(TICKET_SECRET));
            self.serve().await;
            if taken.alone {
                warn!("the running proxy died during the handover; serving in its place");
            }
            taken.serving();
            info!(throttled_clients = throttled; "took over from the running proxy");
        } else {
            self.serve().await;
        }
        Stage::advance(&self.stage, Stage::Starting, Stage::Serving);
    }
}

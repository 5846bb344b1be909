//! From bound ports to serving: at once, or, for a successor (`gopherproxy -u`), by a handover.
//!
//! A successor that serves before a backend has passed a check would answer 503 in place of a process that answers well. So it
//! waits for one first, and then takes over. If it finds no backends at all, it leaves the running process alone. If it has
//! found some and none has passed a check in that time, it takes over all the same: the running process has nobody to send requests to
//! either, and an outage must not make an upgrade, which may be what ends it, impossible.

use std::net::SocketAddr;
use std::path::Path;
use std::process::exit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chassis::handover::{Predecessor, Waiting};
use chassis::listener::{self, Doors};
use chassis::{json_log, service_manager};
use log::{error, info, warn};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::discovery::RegistryDiscovery;
use crate::pool::Pool;
use crate::signals::Sockets;

/// How long a successor waits for the running process to be told.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(60);
/// How long a successor looks for backends. The running process waits a little longer.
const BACKENDS_PATIENCE: Duration = Duration::from_secs(20);
/// How often it looks.
const POLL: Duration = Duration::from_millis(10);
/// The client port and the admin port.
const SERVICES: usize = 2;
/// How long the log may take at the end.
const FLUSH: Duration = Duration::from_millis(500);

/// Takes the ports from nobody.
///
/// # Errors
/// When one is taken.
pub fn bind(config: &Config) -> Result<Sockets, listener::BindError> {
    Ok(Sockets {
        client: listener::bind(config.listen)?,
        admin: listener::bind(config.admin_listen)?,
    })
}

/// Waits for the running process to hand its ports over.
///
/// # Errors
/// When it does not, or has other ports than this configuration says.
pub fn inherit(config: &Config) -> Result<(Sockets, Predecessor), Box<dyn std::error::Error>> {
    let path = config.server.upgrade_sock.as_str();
    let waiting = Waiting::at(Path::new(path))?;
    info!(upgrade_sock = path; "waiting for the running proxy to hand over: send it SIGQUIT or SIGTERM");
    let (sockets, predecessor) = waiting.receive(SIGNAL_PATIENCE)?;
    let [client, admin] = <[_; SERVICES]>::try_from(sockets).map_err(|sockets| {
        format!(
            "the running process handed {} sockets over, not {SERVICES}",
            sockets.len()
        )
    })?;
    for (key, socket, wanted) in [
        ("listen", &client, config.listen),
        ("admin_listen", &admin, config.admin_listen),
    ] {
        let has = socket.local_addr()?;
        let any_port = SocketAddr::new(wanted.ip(), has.port());
        if has != wanted && !(wanted.port() == 0 && has == any_port) {
            return Err(format!(
                "{key}: the running process has {has}, the configuration says {wanted}; an upgrade can't change it, a restart can"
            )
            .into());
        }
    }
    Ok((Sockets { client, admin }, predecessor))
}

/// Opens the doors when it is time, and says so.
pub struct Startup {
    predecessor: Mutex<Option<Predecessor>>,
    discovery: RegistryDiscovery,
    pool: Arc<Pool>,
    doors: Doors,
}

impl Startup {
    /// Opens `doors`: at once, or when `predecessor` hands over to a process that has backends.
    pub fn new(predecessor: Option<Predecessor>, discovery: RegistryDiscovery, pool: Arc<Pool>, doors: Doors) -> Self {
        Self {
            predecessor: Mutex::new(predecessor),
            discovery,
            pool,
            doors,
        }
    }

    async fn take_over(&self, mut predecessor: Predecessor) -> Result<Predecessor, String> {
        let found = timeout(BACKENDS_PATIENCE, async {
            while !self.pool.is_alive() {
                sleep(POLL).await;
            }
        });
        if found.await.is_err() {
            self.discovery.has_set()?;
            warn!("no backend passes its health check; taking over all the same");
        }
        // The running process answers within seconds.
        tokio::task::spawn_blocking(move || predecessor.ready().map(|()| predecessor))
            .await
            .map_err(|ended| ended.to_string())?
            .map_err(|problem| problem.to_string())
    }
}

#[async_trait]
impl BackgroundService for Startup {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let predecessor = self.predecessor.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(predecessor) = predecessor else {
            self.doors.open();
            self.doors.serving(SERVICES).await;
            service_manager::serving();
            return;
        };
        match self.take_over(predecessor).await {
            Ok(predecessor) => {
                self.doors.open();
                self.doors.serving(SERVICES).await;
                service_manager::serving();
                predecessor.serving();
                info!("took over from the running proxy");
            }
            Err(why) => {
                error!(error = why.as_str(); "can't take over; the running proxy serves on");
                json_log::flush(FLUSH);
                exit(1);
            }
        }
    }
}

//! The proxy's own health check of each address.
//!
//! Pingora checks all addresses in rounds, by [`SharedCheck`]: its own check would load the platform's root certificates, and panic on one
//! that it can't use. What the checks found is kept here, because Pingora takes an address that was never
//! checked for healthy, and the pool must know the difference; and because a new address is checked at once, whatever delays
//! the current round.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use chassis::shortage::is_shortage;
use log::{info, warn};
use pingora::prelude::{Error, ErrorType};
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::time;

use crate::config::{Health, HealthKind, PoolSettings, UpstreamLimits};
use crate::discovery::PoolDiscovery;
use crate::observe::pools::PoolMetrics;
use crate::pool::endpoint::Upstream;
use crate::pool::http_check;
use crate::pool::kept::Room;

/// How many addresses are checked at the same time, by a round and because they are new.
const CHECKS_AT_ONCE: usize = 256;
const NEW_AT_ONCE: usize = 256;

/// Whether each address is healthy. One that is missing was not checked yet.
pub type Findings = HashMap<SocketAddr, bool>;

/// Why a check says nothing good.
pub(super) enum Failed {
    /// This machine has too little of something. That says nothing about the backend.
    Shortage,
    /// The backend is at fault, in words for the log.
    Backend(String),
}

/// The check, whose rules can change.
pub struct Check {
    rules: ArcSwap<Rules>,
    connector: http_check::Connector,
    /// Limits the descriptors that checks take.
    at_once: Semaphore,
    new_at_once: Semaphore,
    found: Mutex<Findings>,
    /// For how many checks in a row an address has been other than what was found. It takes several to change that.
    other: Mutex<HashMap<SocketAddr, u32>>,
    discovery: PoolDiscovery,
    /// Notified when a finding has changed.
    changed: Arc<Notify>,
    metrics: Arc<PoolMetrics>,
}

struct Rules {
    health: Health,
    upstream: UpstreamLimits,
}

impl Rules {
    fn new(settings: &PoolSettings) -> Self {
        Self {
            health: settings.health.clone(),
            upstream: settings.upstream.clone(),
        }
    }
}

impl Check {
    /// A check of the addresses of a pool, which notifies `changed` when one has changed.
    pub fn new(
        settings: &PoolSettings,
        discovery: PoolDiscovery,
        changed: Arc<Notify>,
        metrics: Arc<PoolMetrics>,
    ) -> Self {
        Self {
            rules: ArcSwap::from_pointee(Rules::new(settings)),
            connector: http_check::Connector::new(),
            at_once: Semaphore::new(CHECKS_AT_ONCE),
            new_at_once: Semaphore::new(NEW_AT_ONCE),
            found: Mutex::default(),
            other: Mutex::default(),
            discovery,
            changed,
            metrics,
        }
    }

    /// Changes how addresses are checked.
    pub fn change(&self, settings: &PoolSettings) {
        self.rules.store(Arc::new(Rules::new(settings)));
    }

    /// What the checks found.
    pub fn found(&self) -> MutexGuard<'_, Findings> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses that were never checked.
    pub fn unchecked(&self) -> Vec<SocketAddr> {
        let members = self.discovery.members();
        let found = self.found();
        let addresses = members.iter().flat_map(|(_, addresses)| addresses);
        addresses
            .filter(|address| !found.contains_key(address))
            .copied()
            .collect()
    }

    /// Checks a new address, beside the round under way, and returns it.
    pub async fn run_first(&self, address: SocketAddr) -> SocketAddr {
        self.run(address, &self.new_at_once).await;
        address
    }

    /// Checks an address. Returns whether it is healthy, if that is known.
    async fn run(&self, address: SocketAddr, at_once: &Semaphore) -> Option<bool> {
        // The semaphore is never closed.
        let _permit = at_once.acquire().await;
        let rules = self.rules.load_full();
        let limit = rules.health.timeout;
        let checked = time::timeout(limit, self.ask(address, &rules)).await;
        let checked = checked.unwrap_or_else(|_| Err(Failed::Backend(format!("no answer within {limit:?}"))));
        match checked {
            Ok(()) => self.note(address, Ok(()), &rules.health),
            Err(Failed::Backend(why)) => self.note(address, Err(&why), &rules.health),
            Err(Failed::Shortage) => {}
        }
        self.found().get(&address).copied()
    }

    async fn ask(&self, address: SocketAddr, rules: &Rules) -> Result<(), Failed> {
        match rules.health.kind {
            HealthKind::Tcp => match TcpStream::connect(address).await {
                Ok(_) => Ok(()),
                Err(error) if is_shortage(&error) => Err(Failed::Shortage),
                Err(error) => Err(Failed::Backend(error.to_string())),
            },
            HealthKind::Http => {
                let members = self.discovery.members();
                let name = members.owner(&address).cloned();
                let name = name.unwrap_or_else(|| address.to_string().into());
                // Of a kind with those that requests go to, and without anything kept.
                let (room, metrics) = (Arc::new(Room::new(0)), Arc::clone(&self.metrics));
                let upstream = Arc::new(Upstream::new(name, vec![address], room, metrics));
                http_check::run(&self.connector, &upstream.endpoint(), &rules.health, &rules.upstream).await
            }
        }
    }

    /// Takes what a check of `address` has shown. The first one counts at once, and otherwise as many in a row as it takes.
    fn note(&self, address: SocketAddr, shown: Result<(), &str>, health: &Health) {
        let mut found = self.found();
        let mut other = self.other.lock().unwrap_or_else(PoisonError::into_inner);
        let (good, before) = (shown.is_ok(), found.get(&address).copied());
        if before == Some(good) {
            other.remove(&address);
            return;
        }
        let needed = match before {
            None => 1,
            Some(true) => health.fall,
            Some(false) => health.rise,
        };
        let times = other.entry(address).or_insert(0);
        *times += 1;
        if *times < needed {
            return;
        }
        other.remove(&address);
        found.insert(address, good);
        // Those that have left since.
        other.retain(|address, _| found.contains_key(address));
        self.changed.notify_one();
        // The first check that passes is not worth a line.
        if before.unwrap_or(true) != good {
            self.log(address, shown, &found);
        }
    }

    fn log(&self, address: SocketAddr, shown: Result<(), &str>, found: &Findings) {
        let members = self.discovery.members();
        let address_text = address.to_string();
        let name = members.owner(&address).map_or(address_text.as_str(), |name| name);
        let mut others = members.addresses_of(name).iter().filter(|other| **other != address);
        let others = others.any(|other| found.get(other) == Some(&true));
        let (pool, address) = (self.discovery.pool(), address_text.as_str());
        match (shown, others) {
            (Ok(()), false) => info!(pool = pool, backend = name, address = address; "backend recovered"),
            (Ok(()), true) => info!(pool = pool, backend = name, address = address; "address of a backend recovered"),
            (Err(why), false) => {
                warn!(pool = pool, backend = name, address = address, reason = why; "backend went down");
            }
            (Err(why), true) => {
                warn!(pool = pool, backend = name, address = address, reason = why; "address of a backend went down; its others serve on");
            }
        }
    }
}

/// Pingora wants a health check of its own.
pub struct SharedCheck(pub Arc<Check>);

#[async_trait]
impl HealthCheck for SharedCheck {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        let PingoraAddr::Inet(address) = target.addr else {
            return Error::e_explain(ErrorType::ConnectError, "a backend has an IP address");
        };
        match self.0.run(address, &self.0.at_once).await {
            Some(false) => Error::e_explain(ErrorType::ConnectError, "it is down"),
            Some(true) | None => Ok(()),
        }
    }

    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}

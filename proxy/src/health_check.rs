//! The proxy's own check of every address: does it take a TCP connection?
//!
//! Pingora runs the checks and calls back when an address has become healthy or unhealthy. What each check found is kept here,
//! because Pingora takes an address that was never checked for healthy, and the pool must know the difference.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use chassis::shortage::is_shortage;
use log::{info, warn};
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::{HealthCheck, TcpHealthCheck};
use tokio::sync::{Notify, Semaphore};

use crate::discovery::RegistryDiscovery;

/// How many addresses are checked at the same time.
const CHECKS_AT_ONCE: usize = 256;

/// Whether the last check of each address passed. One that is missing was not checked yet.
pub type Findings = HashMap<SocketAddr, bool>;

/// The check, whose timeout can change.
pub struct Check {
    current: ArcSwap<TcpHealthCheck>,
    /// Limits the descriptors that checks take.
    at_once: Semaphore,
    found: Mutex<Findings>,
    discovery: RegistryDiscovery,
    /// Notified when a finding has changed.
    changed: Arc<Notify>,
}

impl Check {
    /// A check that may take `timeout`, and notifies `changed` when an address has changed.
    pub fn new(timeout: Duration, discovery: RegistryDiscovery, changed: Arc<Notify>) -> Self {
        Self {
            current: ArcSwap::from_pointee(tcp_check(timeout)),
            at_once: Semaphore::new(CHECKS_AT_ONCE),
            found: Mutex::default(),
            discovery,
            changed,
        }
    }

    /// Changes how long a check may take.
    pub fn change(&self, timeout: Duration) {
        self.current.store(Arc::new(tcp_check(timeout)));
    }

    /// What the checks found.
    pub fn found(&self) -> MutexGuard<'_, Findings> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, backend: &Backend) -> pingora::Result<()> {
        // The semaphore is never closed.
        let _permit = self.at_once.acquire().await;
        let result = self.current.load_full().check(backend).await;
        let Some(address) = address_of(backend) else {
            return result;
        };
        let mut found = self.found();
        match result {
            // It says nothing about the backend, which stays what it was.
            Err(error) if is_shortage(error.root_cause()) => match found.get(&address) {
                Some(false) => Err(error),
                Some(true) | None => Ok(()),
            },
            result => {
                if found.insert(address, result.is_ok()) != Some(result.is_ok()) {
                    self.changed.notify_one();
                }
                result
            }
        }
    }

    /// The member that has `address`, and whether another address of it is healthy.
    fn member_of(&self, address: SocketAddr) -> (Arc<str>, bool) {
        let members = self.discovery.members();
        let Some(name) = members.owner(&address) else {
            return (address.to_string().into(), false);
        };
        let found = self.found();
        let mut others = members.addresses_of(name).iter().filter(|other| **other != address);
        (Arc::clone(name), others.any(|other| found.get(other) == Some(&true)))
    }
}

fn tcp_check(timeout: Duration) -> TcpHealthCheck {
    let mut check = TcpHealthCheck::default();
    check.peer_template.options.connection_timeout = Some(timeout);
    check
}

/// Pingora wants a health check of its own.
pub struct SharedCheck(pub Arc<Check>);

#[async_trait]
impl HealthCheck for SharedCheck {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        self.0.run(target).await
    }

    async fn health_status_change(&self, backend: &Backend, healthy: bool) {
        let Some(address) = address_of(backend) else { return };
        let (name, others) = self.0.member_of(address);
        let (name, address) = (&*name, address.to_string());
        match (healthy, others) {
            (true, false) => info!(backend = name, address = address.as_str(); "backend recovered"),
            (true, true) => info!(backend = name, address = address.as_str(); "address of a backend recovered"),
            (false, false) => warn!(backend = name, address = address.as_str(); "backend went down"),
            (false, true) => {
                warn!(backend = name, address = address.as_str(); "address of a backend went down; its others serve on");
            }
        }
    }

    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}

fn address_of(backend: &Backend) -> Option<SocketAddr> {
    match &backend.addr {
        PingoraAddr::Inet(address) => Some(*address),
        PingoraAddr::Unix(_) => None,
    }
}

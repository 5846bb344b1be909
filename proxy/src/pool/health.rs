//! The proxy's own health check: whether each address accepts a TCP connection.
//!
//! Pingora checks all addresses in rounds, by [`SharedCheck`]: its own check would load the platform's root certificates, and panic on one
//! that it can't use. What each check found is kept here, because Pingora takes an address that was never
//! checked for healthy, and the pool must know the difference; and because a new address is checked at once, whatever delays
//! the current round.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

use crate::discovery::RegistryDiscovery;
use crate::discovery::members::backend_at;

/// How many addresses are checked at the same time, by a round and because they are new.
const CHECKS_AT_ONCE: usize = 256;
const NEW_AT_ONCE: usize = 256;

/// Whether the last check of each address passed. One that is missing was not checked yet.
pub type Findings = HashMap<SocketAddr, bool>;

/// The check, whose timeout can change.
pub struct Check {
    timeout: Mutex<Duration>,
    /// Limits the descriptors that checks take.
    at_once: Semaphore,
    new_at_once: Semaphore,
    found: Mutex<Findings>,
    discovery: RegistryDiscovery,
    /// Notified when a finding has changed.
    changed: Arc<Notify>,
}

impl Check {
    /// A check that may take `timeout`, and notifies `changed` when an address has changed.
    pub fn new(timeout: Duration, discovery: RegistryDiscovery, changed: Arc<Notify>) -> Self {
        Self {
            timeout: Mutex::new(timeout),
            at_once: Semaphore::new(CHECKS_AT_ONCE),
            new_at_once: Semaphore::new(NEW_AT_ONCE),
            found: Mutex::default(),
            discovery,
            changed,
        }
    }

    /// Changes how long a check may take.
    pub fn change(&self, timeout: Duration) {
        *self.timeout.lock().unwrap_or_else(PoisonError::into_inner) = timeout;
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
        // What it found is kept; the error is for Pingora's rounds.
        let _ = self.run(&backend_at(address), &self.new_at_once).await;
        address
    }

    async fn run(&self, backend: &Backend, at_once: &Semaphore) -> pingora::Result<()> {
        let PingoraAddr::Inet(address) = backend.addr else {
            return Error::e_explain(ErrorType::ConnectError, "a backend has an IP address");
        };
        // The semaphore is never closed.
        let _permit = at_once.acquire().await;
        let timeout = *self.timeout.lock().unwrap_or_else(PoisonError::into_inner);
        let result = connect(address, timeout).await;
        let mut found = self.found();
        match result {
            // It says nothing about the backend, which stays what it was.
            Err(error) if is_shortage(error.root_cause()) => match found.get(&address) {
                Some(false) => Err(error),
                Some(true) | None => Ok(()),
            },
            result => {
                let good = result.is_ok();
                let before = found.insert(address, good);
                if before != Some(good) {
                    self.changed.notify_one();
                }
                // The first check that passes is not worth a line.
                if before.unwrap_or(true) != good {
                    self.log(address, good, &found);
                }
                result
            }
        }
    }

    fn log(&self, address: SocketAddr, good: bool, found: &Findings) {
        let members = self.discovery.members();
        let address_text = address.to_string();
        let name = members.owner(&address).map_or(address_text.as_str(), |name| name);
        let mut others = members.addresses_of(name).iter().filter(|other| **other != address);
        let others = others.any(|other| found.get(other) == Some(&true));
        let address = address_text.as_str();
        match (good, others) {
            (true, false) => info!(backend = name, address = address; "backend recovered"),
            (true, true) => info!(backend = name, address = address; "address of a backend recovered"),
            (false, false) => warn!(backend = name, address = address; "backend went down"),
            (false, true) => {
                warn!(backend = name, address = address; "address of a backend went down; its others serve on");
            }
        }
    }
}

async fn connect(address: SocketAddr, timeout: Duration) -> pingora::Result<()> {
    match time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Error::because(ErrorType::ConnectError, "", error)),
        Err(_) => Error::e_explain(ErrorType::ConnectTimedout, ""),
    }
}

/// Pingora wants a health check of its own.
pub struct SharedCheck(pub Arc<Check>);

#[async_trait]
impl HealthCheck for SharedCheck {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        self.0.run(target, &self.0.at_once).await
    }

    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}

//! Authentication services: the connections to each that wait for the next question, and how many may be asked at a time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use registry::Member;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::sleep;

use crate::pool::kept::{Kept, Room};
use crate::pool::stream::OriginStream;

/// How many questions are under way at a time. Each may make the proxy hold an answer of 128 KiB.
const MOST_ASKED: usize = 128;

/// How many connections wait for the next question.
const MOST_KEPT: usize = 32;

/// For how long they wait.
const LONGEST_IDLE: Duration = Duration::from_secs(30);

/// For so long the addresses of a name are not looked up again.
const RESOLVED: Duration = Duration::from_secs(5);

/// An authentication service.
#[derive(Debug)]
pub struct AuthService {
    kept: Kept,
    places: Semaphore,
    /// The addresses of its name, and when they were looked up.
    resolved: Mutex<Option<(Arc<[SocketAddr]>, Instant)>>,
}

impl Default for AuthService {
    fn default() -> Self {
        Self {
            kept: Kept::new(Arc::new(Room::new(MOST_KEPT))),
            places: Semaphore::new(MOST_ASKED),
            resolved: Mutex::default(),
        }
    }
}

impl AuthService {
    /// A place among the questions that are under way, once there is one.
    pub async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
    }

    /// The addresses that its name had a moment ago.
    pub fn resolved(&self, now: Instant) -> Option<Arc<[SocketAddr]>> {
        let resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let (addresses, when) = resolved.as_ref()?;
        (now.saturating_duration_since(*when) < RESOLVED).then(|| Arc::clone(addresses))
    }

    /// Notes the addresses that its name has.
    pub fn resolve(&self, addresses: Arc<[SocketAddr]>, now: Instant) {
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = Some((addresses, now));
    }

    /// A connection to one of `addresses` that waits.
    pub fn take(&self, addresses: &[SocketAddr], now: Instant) -> Option<(SocketAddr, OriginStream)> {
        addresses.iter().find_map(|address| {
            let stream = self.kept.take(*address, |_| true, Some(LONGEST_IDLE), now)?;
            Some((*address, stream))
        })
    }

    /// Keeps a connection for the next question.
    pub fn keep(&self, address: SocketAddr, stream: OriginStream, now: Instant) {
        self.kept.keep(address, stream, now);
    }
}

/// The authentication services of all routes. Each lives for as long as a route has it, so a reload changes nothing about one that it keeps.
#[derive(Debug, Default)]
pub struct AuthServices(Mutex<HashMap<Member, Weak<AuthService>>>);

impl AuthServices {
    /// The service at this address.
    pub fn at(&self, address: &Member) -> Arc<AuthService> {
        let mut all = self.all();
        let service = all.get(address).and_then(Weak::upgrade).unwrap_or_default();
        all.insert(address.clone(), Arc::downgrade(&service));
        service
    }

    /// Closes kept connections that have ended or were not used for too long, every `pause`.
    pub async fn run_sweeps(self: Arc<Self>, pause: Duration) {
        loop {
            sleep(pause).await;
            for service in self.living() {
                service.kept.sweep(LONGEST_IDLE, Instant::now());
            }
        }
    }

    /// Those that a route has. The others are forgotten.
    fn living(&self) -> Vec<Arc<AuthService>> {
        let mut all = self.all();
        all.retain(|_, service| service.strong_count() > 0);
        all.values().filter_map(Weak::upgrade).collect()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Member, Weak<AuthService>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_lives_for_as_long_as_a_route_has_it() {
        let services = AuthServices::default();
        let (one, other) = ("a:1".parse::<Member>().unwrap(), "a:2".parse().unwrap());
        let first = services.at(&one);
        assert!(Arc::ptr_eq(&first, &services.at(&one)));
        assert!(!Arc::ptr_eq(&first, &services.at(&other)));
        assert_eq!(services.living().len(), 1, "nobody has the other one");
        assert_eq!(services.all().len(), 1);
        drop(first);
        assert!(services.living().is_empty());
    }
}

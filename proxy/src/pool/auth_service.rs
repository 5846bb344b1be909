//! An authentication service: the connections to it that wait for the next question, and how many may be asked at a time.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::pool::kept::{Kept, Room};
use crate::pool::stream::OriginStream;

/// How many questions are under way at a time. Each may make the proxy hold an answer of 128 KiB.
const MOST_ASKED: usize = 128;

/// How many connections wait for the next question.
const MOST_KEPT: usize = 32;

/// For how long they wait.
const LONGEST_IDLE: Duration = Duration::from_secs(30);

/// From one look at them to the next.
const SWEEPS: Duration = Duration::from_secs(1);

/// For so long the addresses of a name are not looked up again.
const RESOLVED: Duration = Duration::from_secs(5);

/// An authentication service.
#[derive(Debug)]
pub struct AuthService {
    kept: Kept,
    places: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    swept: Instant,
    resolved: Option<(Arc<[SocketAddr]>, Instant)>,
}

impl Default for AuthService {
    fn default() -> Self {
        Self {
            kept: Kept::new(Arc::new(Room::new(MOST_KEPT))),
            places: Semaphore::new(MOST_ASKED),
            state: Mutex::new(State {
                swept: Instant::now(),
                resolved: None,
            }),
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
        let state = self.state();
        let (addresses, when) = state.resolved.as_ref()?;
        (now.saturating_duration_since(*when) < RESOLVED).then(|| Arc::clone(addresses))
    }

    /// Notes the addresses that its name has.
    pub fn resolve(&self, addresses: Arc<[SocketAddr]>, now: Instant) {
        self.state().resolved = Some((addresses, now));
    }

    /// A connection to one of `addresses` that waits.
    pub fn take(&self, addresses: &[SocketAddr], now: Instant) -> Option<(SocketAddr, OriginStream)> {
        addresses.iter().find_map(|address| {
            let stream = self.kept.take(*address, |_| true, Some(LONGEST_IDLE), now)?;
            Some((*address, stream))
        })
    }

    /// Keeps a connection for the next question, and closes those that are of no more use.
    pub fn keep(&self, address: SocketAddr, stream: OriginStream, now: Instant) {
        self.kept.keep(address, stream, now);
        let mut state = self.state();
        if now.saturating_duration_since(state.swept) >= SWEEPS {
            state.swept = now;
            drop(state);
            self.kept.sweep(LONGEST_IDLE, now);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

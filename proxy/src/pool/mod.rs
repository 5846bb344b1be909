//! The pool of backends, and which one is next.
//!
//! Pingora keeps the membership and runs the health checks ([`Backends`]); the choice is made here, from a list that
//! holds the alive backends and nothing else. Pingora's own round robin walks over dead ones with a counter that all requests
//! share, so with dead backends its turns are uneven and it can miss a live one. With a list of the alive each turn is exact, "none
//! alive" is known at once, and a pick costs the same with three backends and with a thousand.
//!
//! One loop makes that list (`publish`), at most every few milliseconds, however much has changed. So a request
//! that fails never looks at more than its own backend.
//!
//! - [`balance`]: which backend gets a request.
//! - [`endpoint`]: one backend and its addresses.
//! - [`health`]: whether an address accepts connections.
//! - [`ejection`]: when a failing backend is ejected.
//! - [`kept`]: connections that wait for their next request.
//! - [`stream`]: such a connection, encrypted or not.
//! - [`retry_budget`]: how many retries are allowed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::warn;
use pingora_load_balancing::Backends;
use tokio::sync::{Notify, watch};

use crate::config::{Balance, Ejection};
use crate::discovery::RegistryDiscovery;
use crate::observe::metrics::Metrics;
use crate::pool::balance::{Affinity, Asked, List, Picked, Rules, Unavailable};
use crate::pool::endpoint::{Endpoint, Upstream};
use crate::pool::health::{Check, SharedCheck};
use crate::pool::kept::Room;
use crate::pool::publication::Known;

pub mod balance;
pub mod ejection;
pub mod endpoint;
pub mod health;
pub mod kept;
mod loops;
mod publication;
pub mod retry_budget;
pub mod stream;
#[cfg(test)]
mod tests;

pub use loops::{Intervals, PoolService};

/// All backends that are known, and those of them that are alive.
pub struct Pool {
    backends: Backends,
    discovery: RegistryDiscovery,
    intervals: watch::Sender<Intervals>,
    check: Arc<Check>,
    metrics: Metrics,
    rules: ArcSwap<Rules>,
    alive: ArcSwap<List>,
    turn: AtomicUsize,
    /// The same for requests that are sent again.
    turn_again: AtomicUsize,
    /// For the idle connections to backends.
    room: Arc<Room>,
    /// Every backend that is known, by its name. A backend keeps its `Upstream` for as long as it stays. No request takes the
    /// lock.
    known: Mutex<HashMap<Arc<str>, Known>>,
    ejected: Mutex<Vec<Arc<Upstream>>>,
    /// How many those are, and how many there are with the alive, for a failure to decide without a lock.
    count: Count,
    /// An alive backend has passed a check: now, and at any time so far.
    is_alive: AtomicBool,
    was_alive: AtomicBool,
    /// Something has changed that `publish` looks at.
    changed: Arc<Notify>,
    /// There are backends that were never checked.
    unchecked: Notify,
}

#[derive(Default)]
struct Count {
    ejected: AtomicUsize,
    alive_or_ejected: AtomicUsize,
}

impl Pool {
    /// An empty pool, to be filled by running it as a service. Its backends keep at most `kept` connections together.
    pub fn new(
        discovery: RegistryDiscovery,
        intervals: Intervals,
        check_timeout: Duration,
        kept: usize,
        metrics: Metrics,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let check = Arc::new(Check::new(check_timeout, discovery.clone(), Arc::clone(&changed)));
        let rules = Arc::new(Rules::new(&Balance::default(), ""));
        let mut backends = Backends::new(Box::new(discovery.clone()));
        backends.set_health_check(Box::new(SharedCheck(Arc::clone(&check))));
        Self {
            backends,
            discovery,
            intervals: watch::Sender::new(intervals),
            check,
            metrics,
            alive: ArcSwap::from_pointee(List::new(Arc::clone(&rules), Vec::new())),
            rules: ArcSwap::new(rules),
            turn: AtomicUsize::new(0),
            turn_again: AtomicUsize::new(0),
            room: Arc::new(Room::new(kept)),
            known: Mutex::default(),
            ejected: Mutex::default(),
            count: Count::default(),
            is_alive: AtomicBool::new(false),
            was_alive: AtomicBool::new(false),
            changed,
            unchecked: Notify::new(),
        }
    }

    /// Changes the intervals of the background loops and the timeout of checks. A wait under way takes the new interval.
    pub fn change(&self, intervals: Intervals, check_timeout: Duration) {
        self.check.change(check_timeout);
        self.intervals
            .send_if_modified(|now| std::mem::replace(now, intervals) != intervals);
    }

    /// Chooses backends by these rules from now on.
    pub fn balance(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
        self.changed.notify_one();
    }

    /// The backend for a request, at its next address.
    ///
    /// # Errors
    /// When none takes it.
    pub fn pick(&self, asked: Asked<'_>) -> Result<(Picked, Affinity), Unavailable> {
        self.alive.load().pick(asked, &self.turn)
    }

    /// Where to send a request again that none of `tried` answered. A backend that could not be `connected` to may have another
    /// address; otherwise another backend is the better choice. Such requests have turns of their own: with two backends, every
    /// second ordinary turn would be the broken one's again. Only a backend that `fits` is chosen.
    pub fn pick_again(
        &self,
        tried: &[Endpoint],
        connected: bool,
        affinity: &Affinity,
        fits: impl Fn(&Upstream) -> bool,
    ) -> Option<Picked> {
        let alive = self.alive.load();
        let same = || {
            let endpoint = tried.last()?.upstream.endpoint_other_than(tried)?;
            let place = alive.enter(&endpoint.upstream)?;
            Some(Picked { endpoint, place })
        };
        let other = || {
            alive.choose(affinity, &self.turn_again, |upstream| {
                is_untried(upstream, tried) && fits(upstream)
            })
        };
        if connected {
            other().or_else(same)
        } else {
            same().or_else(other)
        }
    }

    /// Whether a backend that has passed a check is alive.
    pub fn is_alive(&self) -> bool {
        self.is_alive.load(Ordering::Relaxed)
    }

    /// Whether one was alive at any time so far.
    pub fn was_alive(&self) -> bool {
        self.was_alive.load(Ordering::Relaxed)
    }

    /// Records that there was no connection to `endpoint`. Its address gets no more requests until it passes a check; without
    /// another address the backend has failed.
    pub fn unreachable(&self, endpoint: &Endpoint, limits: &Ejection) {
        let Endpoint { upstream, address } = endpoint;
        if !upstream.set_aside(*address) {
            return self.failed(upstream, limits);
        }
        if self.check.found().remove(address).is_some() {
            let address = address.to_string();
            warn!(backend = &*upstream.name, address = address.as_str(); "no connection to an address of a backend; its others serve on");
        }
    }

    /// Records that `upstream` has failed a request, and ejects it for a while if it keeps failing and there are others.
    pub fn failed(&self, upstream: &Arc<Upstream>, limits: &Ejection) {
        let Some(failures) = upstream.ejection.failed(limits) else {
            return;
        };
        // While all backends fail, this is as far as their failures get.
        if !self.has_room(limits) {
            return;
        }
        let mut ejected = self.ejected();
        if upstream.ejection.is_ejected() || !self.has_room(limits) {
            return;
        }
        let time = upstream.ejection.eject(limits, Instant::now());
        ejected.push(Arc::clone(upstream));
        self.count.ejected.store(ejected.len(), Ordering::Relaxed);
        drop(ejected);
        self.metrics.ejections.inc();
        let seconds = time.as_secs_f64();
        warn!(backend = &*upstream.name, failures = failures, seconds = seconds; "backend keeps failing; leaving it alone");
        self.changed.notify_one();
    }

    /// Whether one more backend may be ejected.
    fn has_room(&self, limits: &Ejection) -> bool {
        let all = self.count.alive_or_ejected.load(Ordering::Relaxed);
        let ejected = self.count.ejected.load(Ordering::Relaxed);
        (ejected + 1) as f64 <= all as f64 * limits.max_share
    }

    fn ejected(&self) -> MutexGuard<'_, Vec<Arc<Upstream>>> {
        self.ejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is done every second: closes the connections that no backend needs any more, and lets old response times count less.
    fn sweep(&self, now: Instant) {
        let longest = self.intervals.borrow().idle;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let backends: Vec<_> = known.values().map(|one| Arc::clone(&one.upstream)).collect();
        drop(known);
        for upstream in backends {
            upstream.kept.sweep(longest, now);
            upstream.pace.rest();
        }
    }
}

fn is_untried(upstream: &Arc<Upstream>, tried: &[Endpoint]) -> bool {
    !tried.iter().any(|endpoint| endpoint.is_of(upstream))
}

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
//! - [`pools`]: all pools, by name.
//! - [`auth_service`]: a service that is asked before a backend is.
//! - [`balance`]: which backend gets a request.
//! - [`endpoint`]: one backend and its addresses.
//! - [`health`]: whether an address is healthy, and `http_check`: whether it answers a request well.
//! - [`failure`]: why an exchange with a backend failed.
//! - [`ejection`]: when a failing backend is ejected.
//! - [`kept`]: connections that wait for their next request.
//! - [`stream`]: such a connection, encrypted or not.
//! - [`reach`]: a connection to a host of which any address will do.
//! - [`retry_budget`]: how many retries are allowed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::warn;
use pingora_load_balancing::Backends;
use tokio::sync::{Notify, watch};

use crate::config::{Ejection, PoolSettings};
use crate::discovery::{PoolDiscovery, Source};
use crate::observe::pools::PoolMetrics;
use crate::pool::balance::{Affinity, Asked, List, Picked, Rules, Unavailable};
use crate::pool::endpoint::{Endpoint, Upstream};
use crate::pool::health::{Check, SharedCheck};
use crate::pool::kept::Room;
use crate::pool::publication::Known;
use crate::pool::retry_budget::RetryBudget;

pub mod auth_service;
pub mod balance;
pub mod ejection;
pub mod endpoint;
pub mod failure;
pub mod health;
mod http_check;
pub mod kept;
mod loops;
pub mod pools;
mod publication;
pub mod reach;
pub mod retry_budget;
pub mod stream;
#[cfg(test)]
mod tests;

use loops::Intervals;

/// All backends that are known, and those of them that are alive.
pub struct Pool {
    backends: Backends,
    /// Where they come from.
    pub discovery: PoolDiscovery,
    intervals: watch::Sender<Intervals>,
    check: Arc<Check>,
    /// What Prometheus sees of them.
    pub metrics: Arc<PoolMetrics>,
    /// How many of their requests may be tried again.
    pub retries: RetryBudget,
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
    /// The backends come from elsewhere than at the last read.
    moved: Notify,
    /// The pool is no longer in the configuration; requests in flight may still use it.
    closed: AtomicBool,
}

#[derive(Default)]
struct Count {
    ejected: AtomicUsize,
    alive_or_ejected: AtomicUsize,
}

impl Pool {
    /// An empty pool, to be filled by running it. Its backends are read every `interval`. All pools keep idle connections in the same
    /// `room`.
    pub fn new(
        discovery: PoolDiscovery,
        settings: &PoolSettings,
        interval: Duration,
        room: Arc<Room>,
        metrics: Arc<PoolMetrics>,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let check = Check::new(settings, discovery.clone(), Arc::clone(&changed), Arc::clone(&metrics));
        let check = Arc::new(check);
        let rules = Arc::new(Rules::new(&settings.balance, discovery.name().as_str()));
        let mut backends = Backends::new(Box::new(discovery.clone()));
        backends.set_health_check(Box::new(SharedCheck(Arc::clone(&check))));
        Self {
            backends,
            discovery,
            intervals: watch::Sender::new(Intervals::new(settings, interval)),
            check,
            metrics,
            retries: RetryBudget::new(Instant::now()),
            alive: ArcSwap::from_pointee(List::new(Arc::clone(&rules), Vec::new())),
            rules: ArcSwap::new(rules),
            turn: AtomicUsize::new(0),
            turn_again: AtomicUsize::new(0),
            room,
            known: Mutex::default(),
            ejected: Mutex::default(),
            count: Count::default(),
            is_alive: AtomicBool::new(false),
            was_alive: AtomicBool::new(false),
            changed,
            unchecked: Notify::new(),
            moved: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Changes what the pool is made from. A wait under way takes the new interval. The backends come from `source`, if there is another,
    /// and those of them that were there before stay as they are.
    pub fn change(&self, settings: &PoolSettings, interval: Duration, source: Option<Source>) {
        self.check.change(settings);
        let intervals = Intervals::new(settings, interval);
        self.intervals
            .send_if_modified(|now| std::mem::replace(now, intervals) != intervals);
        self.balance(Rules::new(&settings.balance, self.discovery.name().as_str()));
        if let Some(source) = source {
            self.discovery.change(source);
            self.moved.notify_one();
        }
    }

    /// Closes the idle connections, and from now on each that becomes idle. Requests in flight go on.
    fn close(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Relaxed);
        for one in known.values() {
            one.upstream.kept.close();
        }
    }

    /// Chooses backends by these rules from now on.
    fn balance(&self, rules: Rules) {
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

    /// Where to send a request that has given up its place at `endpoint` for a while: to it, or else to a backend that `fits`. `timed`: how
    /// long that takes to answer is noted.
    pub fn pick_later(
        &self,
        endpoint: &Endpoint,
        timed: bool,
        affinity: &Affinity,
        fits: impl Fn(&Upstream) -> bool,
    ) -> Option<Picked> {
        let alive = self.alive.load();
        let same = alive.enter(&endpoint.upstream).map(|place| Picked {
            endpoint: endpoint.clone(),
            place,
        });
        let other = || alive.choose(affinity, &self.turn_again, |upstream| fits(upstream));
        let mut picked = same.or_else(other)?;
        if timed {
            picked.place.time();
        }
        Some(picked)
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

    /// Whether it is known what there is: a backend was alive at some time, or each address of the set was checked, or there is no set
    /// that holds any.
    pub fn is_known(&self) -> bool {
        let all_dead = || !self.check.found().values().any(|good| *good);
        self.was_alive() || self.discovery.is_answered() && self.check.unchecked().is_empty() && all_dead()
    }

    /// Why no backend is alive, as one line of text; `None` when one is.
    pub fn problem(&self) -> Option<String> {
        if self.is_alive() {
            return None;
        }
        let yet = if self.was_alive() { "" } else { " yet" };
        let problem = self.discovery.has_set().err();
        Some(problem.unwrap_or_else(|| format!("no backend passes its health check{yet}")))
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
            warn!(pool = self.discovery.pool(), backend = &*upstream.name, address = address.as_str(); "no connection to an address of a backend; its others serve on");
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
        warn!(pool = self.discovery.pool(), backend = &*upstream.name, failures = failures, seconds = seconds; "backend keeps failing; it is ejected");
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

    /// What is done every second: closes the connections that no backend needs any more, lets old response times count less, and finds the
    /// backend with the shortest.
    fn sweep(&self, now: Instant) {
        let longest = self.intervals.borrow().idle;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let backends: Vec<_> = known.values().map(|one| Arc::clone(&one.upstream)).collect();
        drop(known);
        for upstream in backends {
            upstream.kept.sweep(longest, now);
            upstream.pace.rest();
        }
        self.alive.load().compare_paces();
    }
}

fn is_untried(upstream: &Arc<Upstream>, tried: &[Endpoint]) -> bool {
    !tried.iter().any(|endpoint| endpoint.is_of(upstream))
}

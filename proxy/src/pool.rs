//! The pool of backends, and which one is next.
//!
//! Pingora keeps the membership and runs the health checks ([`Backends`]); the choice is made here, from a list that
//! holds the alive backends and nothing else. Pingora's own round robin walks over dead ones with a counter that all requests
//! share, so with dead backends its turns are uneven and it can miss a live one; a list of the alive makes each turn exact, "none
//! alive" known at once, and the cost of a pick the same for three backends and for a thousand.
//!
//! One loop makes that list (`publish`), at most every few milliseconds, however many reasons there are. So a request
//! that fails never looks at more than its own backend.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use log::warn;
use pingora_load_balancing::Backends;
use tokio::sync::{Notify, watch};

use crate::config::{Ejection, Health};
use crate::discovery::RegistryDiscovery;
use crate::health_check::{Check, SharedCheck};
use crate::metrics::Metrics;
use crate::upstream::{Endpoint, Upstream};

mod loops;

use loops::Intervals;
pub use loops::PoolService;

/// All backends that are known, and those of them that are alive.
pub struct Pool {
    backends: Backends,
    discovery: RegistryDiscovery,
    intervals: watch::Sender<Intervals>,
    check: Arc<Check>,
    metrics: Metrics,
    alive: ArcSwap<Vec<Arc<Upstream>>>,
    turn: AtomicUsize,
    /// Every backend that is known, by its name. A backend keeps its `Upstream` for as long as it stays. Only `publish` takes
    /// the lock.
    known: Mutex<HashMap<Arc<str>, Arc<Upstream>>>,
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
    /// An empty pool, to be filled by running it as a service.
    pub fn new(discovery: RegistryDiscovery, interval: Duration, health: &Health, metrics: Metrics) -> Self {
        let changed = Arc::new(Notify::new());
        let check = Arc::new(Check::new(health.timeout, discovery.clone(), Arc::clone(&changed)));
        let mut backends = Backends::new(Box::new(discovery.clone()));
        backends.set_health_check(Box::new(SharedCheck(Arc::clone(&check))));
        Self {
            backends,
            discovery,
            intervals: watch::Sender::new(Intervals {
                discovery: interval,
                health: health.interval,
            }),
            check,
            metrics,
            alive: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            known: Mutex::default(),
            ejected: Mutex::default(),
            count: Count::default(),
            is_alive: AtomicBool::new(false),
            was_alive: AtomicBool::new(false),
            changed,
            unchecked: Notify::new(),
        }
    }

    /// Changes how often the registry is read and how the backends are checked. A wait under way takes the new interval.
    pub fn change(&self, interval: Duration, health: &Health) {
        self.check.change(health.timeout);
        let intervals = Intervals {
            discovery: interval,
            health: health.interval,
        };
        self.intervals
            .send_if_modified(|now| std::mem::replace(now, intervals) != intervals);
    }

    /// The next address of the alive backend whose turn it is; `None` when none is alive.
    pub fn pick(&self) -> Option<Endpoint> {
        let alive = self.alive.load();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if alive.is_empty() {
            return None;
        }
        let upstream = &alive[turn % alive.len()];
        // One that was ejected a moment ago is in the list until it is made anew.
        let upstream = if upstream.conduct.is_ejected() {
            in_order(&alive, turn).next().unwrap_or(upstream)
        } else {
            upstream
        };
        Some(upstream.endpoint())
    }

    /// Where to send a request again that those of `tried` did not answer. What could not be `connected` to may have another
    /// address; otherwise another backend is the better choice. It takes no turn: otherwise such a request would take the turn of
    /// the next one, and with two backends every second turn would be the broken one's again.
    pub fn pick_again(&self, tried: &[Endpoint], connected: bool) -> Option<Endpoint> {
        let same = || tried.last()?.upstream.endpoint_other_than(tried);
        let other = || {
            let alive = self.alive.load();
            let turn = self.turn.load(Ordering::Relaxed);
            let untried = in_order(&alive, turn).find(|upstream| is_untried(upstream, tried));
            untried.map(Upstream::endpoint)
        };
        if connected {
            other().or_else(same)
        } else {
            same().or_else(other)
        }
    }

    /// Whether [`Pool::pick_again`] would find something.
    pub fn has_other_than(&self, tried: &[Endpoint]) -> bool {
        let same = tried.last().and_then(|last| last.upstream.endpoint_other_than(tried));
        same.is_some() || in_order(&self.alive.load(), 0).any(|upstream| is_untried(upstream, tried))
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
        let Some(failures) = upstream.conduct.failed(limits) else {
            return;
        };
        // While all backends fail, this is as far as their failures get.
        if !self.has_room(limits) {
            return;
        }
        let mut ejected = self.ejected();
        if upstream.conduct.is_ejected() || !self.has_room(limits) {
            return;
        }
        let time = upstream.conduct.eject(limits, Instant::now());
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

    /// Makes the list of the alive from what is known at `now`. Returns when the next ejection ends.
    fn publish(&self, now: Instant) -> Option<Instant> {
        let members = self.discovery.members();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::with_capacity(members.len());
        let (mut proven, mut unproven) = (Vec::with_capacity(members.len()), Vec::new());
        let mut found = self.check.found();
        found.retain(|address, _| members.owner(address).is_some());
        for (name, addresses) in members.iter() {
            let which = |finding: Option<bool>| -> Vec<SocketAddr> {
                let these = addresses
                    .iter()
                    .filter(|address| found.get(address).copied() == finding);
                these.copied().collect()
            };
            let upstream = known.get(name).map_or_else(
                || Arc::new(Upstream::new(Arc::clone(name), addresses.to_vec())),
                Arc::clone,
            );
            let (good, unchecked) = (which(Some(true)), which(None));
            if !good.is_empty() {
                upstream.serve_at(good);
                proven.push(Arc::clone(&upstream));
            } else if !unchecked.is_empty() {
                upstream.serve_at(unchecked);
                unproven.push(Arc::clone(&upstream));
            }
            next.insert(Arc::clone(name), upstream);
        }
        drop(found);
        for gone in known.keys().filter(|name| !next.contains_key(*name)) {
            self.metrics.forget_backend(gone);
        }
        *known = next;

        let mut ejected = self.ejected();
        ejected.retain(|upstream| {
            let stays = known.get(&upstream.name).is_some_and(|one| Arc::ptr_eq(one, upstream));
            let over = upstream.conduct.until().is_none_or(|until| until <= now);
            if over {
                upstream.conduct.readmit(now);
            }
            stays && !over
        });
        let is_alive = !proven.is_empty();
        // Backends that failed a while ago are better than none, and then those that were never checked.
        if proven.iter().all(|upstream| upstream.conduct.is_ejected()) {
            proven.iter().for_each(|upstream| upstream.conduct.readmit(now));
            ejected.retain(|upstream| upstream.conduct.is_ejected());
        }
        proven.retain(|upstream| !upstream.conduct.is_ejected());
        let alive = if is_alive { proven } else { unproven };
        let next_return = ejected.iter().filter_map(|upstream| upstream.conduct.until()).min();
        self.count.ejected.store(ejected.len(), Ordering::Relaxed);
        let all = alive.len() + ejected.len();
        self.count.alive_or_ejected.store(all, Ordering::Relaxed);
        drop(ejected);

        self.metrics
            .active_backends
            .set(i64::try_from(alive.len()).unwrap_or(i64::MAX));
        self.alive.store(Arc::new(alive));
        self.is_alive.store(is_alive, Ordering::Relaxed);
        self.was_alive.fetch_or(is_alive, Ordering::Relaxed);
        next_return
    }
}

/// The backends that are not ejected, from the one whose turn it is on.
fn in_order(alive: &[Arc<Upstream>], turn: usize) -> impl Iterator<Item = &Arc<Upstream>> {
    (0..alive.len())
        .map(move |step| &alive[turn.wrapping_add(step) % alive.len()])
        .filter(|upstream| !upstream.conduct.is_ejected())
}

fn is_untried(upstream: &Arc<Upstream>, tried: &[Endpoint]) -> bool {
    !tried.iter().any(|endpoint| endpoint.is_of(upstream))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMITS: Ejection = Ejection {
        failures: 1,
        time: Duration::from_secs(5),
        max_time: Duration::from_secs(5),
        max_share: 0.5,
    };

    fn address(host: u8) -> SocketAddr {
        ([192, 0, 2, host], 80).into()
    }

    /// A pool over members with these addresses, all of which have passed a check.
    fn pool(members: &[&[u8]]) -> Pool {
        let pool = unchecked(members);
        for host in members.concat() {
            pool.check.found().insert(address(host), true);
        }
        pool.publish(Instant::now());
        pool
    }

    fn unchecked(members: &[&[u8]]) -> Pool {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let mut set = crate::members::Members::default();
        for hosts in members {
            set.insert(
                &format!("origin{}:80", hosts[0]).into(),
                hosts.iter().copied().map(address),
            );
        }
        let second = Duration::from_secs(1);
        let health = Health {
            interval: second,
            timeout: second,
        };
        let pool = Pool::new(RegistryDiscovery::with(set, metrics.clone()), second, &health, metrics);
        pool.publish(Instant::now());
        pool
    }

    /// How many of `count` picks each address has.
    fn shares<const N: usize>(pool: &Pool, hosts: [u8; N], count: usize) -> [usize; N] {
        let picks: Vec<_> = (0..count).map(|_| pool.pick().unwrap().address).collect();
        hosts.map(|host| picks.iter().filter(|pick| **pick == address(host)).count())
    }

    #[test]
    fn turns_are_exact_and_stay_exact_with_threads() {
        let pool = pool(&[&[1], &[2], &[3]]);
        assert_eq!(shares(&pool, [1, 2, 3], 300), [100; 3]);
        let picks: Vec<_> = std::thread::scope(|scope| {
            let pick = |_| pool.pick().unwrap().address;
            let threads: Vec<_> = (0..3)
                .map(|_| scope.spawn(move || (0..100).map(pick).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let count = |host| picks.iter().filter(|pick| **pick == address(host)).count();
        assert_eq!([1, 2, 3].map(count), [100; 3]);
    }

    #[test]
    fn a_member_has_one_share_whatever_the_number_of_its_addresses() {
        let pool = pool(&[&[1], &[2, 3, 4]]);
        assert_eq!(pool.metrics.active_backends.get(), 2);
        assert_eq!(shares(&pool, [1, 2, 3, 4], 60), [30, 10, 10, 10]);

        pool.check.found().insert(address(3), false);
        pool.publish(Instant::now());
        assert_eq!(
            pool.metrics.active_backends.get(),
            2,
            "it is alive while one of them is"
        );
        assert_eq!(shares(&pool, [1, 2, 3, 4], 60), [30, 15, 0, 15]);

        for host in [2, 4] {
            pool.check.found().insert(address(host), false);
        }
        pool.publish(Instant::now());
        assert_eq!(pool.metrics.active_backends.get(), 1);
        assert_eq!(shares(&pool, [1], 10), [10]);
    }

    #[test]
    fn without_a_connection_the_other_address_is_next_and_then_another_backend() {
        let pool = pool(&[&[1], &[2, 3]]);
        let first = pool.pick().unwrap();
        let two = pool.pick().unwrap();
        assert_eq!([&first, &two].map(|one| one.address), [address(1), address(2)]);
        let only_two = std::slice::from_ref(&two);
        let again = pool.pick_again(only_two, false).unwrap();
        assert_eq!(again.address, address(3));
        assert_eq!(
            pool.pick_again(&[two.clone(), again.clone()], false).unwrap().address,
            address(1)
        );
        // One that broke is likely to break again, whatever its address.
        assert_eq!(pool.pick_again(only_two, true).unwrap().address, address(1));
        // But its other address is better than nothing.
        let tried = [first.clone(), two.clone()];
        assert_eq!(pool.pick_again(&tried, true).unwrap().address, address(3));
        assert!(pool.has_other_than(&tried));
        let tried = [first, two, again];
        assert!(!pool.has_other_than(&tried));
        assert!(pool.pick_again(&tried, false).is_none() && pool.pick_again(&tried, true).is_none());
    }

    #[test]
    fn an_address_without_connection_is_set_aside_and_the_last_one_is_the_backends_failure() {
        let pool = pool(&[&[1], &[2, 3]]);
        let at = |host| {
            let picks = (0..6).map(|_| pool.pick().unwrap());
            picks.into_iter().find(|one| one.address == address(host)).unwrap()
        };
        pool.unreachable(&at(2), &LIMITS);
        assert_eq!(shares(&pool, [1, 2, 3], 60), [30, 0, 30]);
        pool.publish(Instant::now());
        assert_eq!(shares(&pool, [1, 2, 3], 60), [30, 0, 30], "until it passes a check");
        pool.unreachable(&at(3), &LIMITS);
        assert_eq!(shares(&pool, [1, 2, 3], 60), [60, 0, 0], "now the backend is ejected");
        assert_eq!(pool.metrics.ejections.get(), 1);

        pool.check.found().insert(address(2), true);
        pool.publish(Instant::now() + LIMITS.time);
        assert_eq!(shares(&pool, [1, 2, 3], 60), [30, 15, 15]);
    }

    #[test]
    fn an_ejected_backend_gets_nothing_at_once_and_comes_back_when_its_time_is_over() {
        let pool = pool(&[&[1], &[2], &[3], &[4]]);
        let now = Instant::now();
        let upstreams = [(); 4].map(|()| pool.pick().unwrap().upstream);
        for upstream in &upstreams {
            pool.failed(upstream, &LIMITS);
        }
        assert_eq!(
            pool.metrics.ejections.get(),
            2,
            "there is no room for more than half of them"
        );
        assert_eq!(shares(&pool, [1, 2], 60), [0, 0]);
        let next_return = pool.publish(now).unwrap();
        assert!(next_return > now && pool.metrics.active_backends.get() == 2);
        pool.failed(&upstreams[2], &LIMITS);
        assert_eq!(pool.metrics.ejections.get(), 2, "a publication keeps the count");
        assert_eq!(pool.publish(now + 2 * LIMITS.time), None);
        assert_eq!(shares(&pool, [1, 2, 3, 4], 40), [10; 4]);
    }

    #[test]
    fn ejected_backends_come_back_before_their_time_when_nobody_else_is_alive() {
        let pool = pool(&[&[1], &[2]]);
        let first = pool.pick().unwrap();
        pool.failed(&first.upstream, &LIMITS);
        pool.publish(Instant::now());
        assert_eq!(shares(&pool, [1, 2], 10), [0, 10]);
        pool.check.found().insert(address(2), false);
        pool.publish(Instant::now());
        assert_eq!(shares(&pool, [1, 2], 10), [10, 0]);
    }

    #[test]
    fn a_failure_that_ejects_nobody_waits_for_nobody() {
        let pool = Arc::new(pool(&[&[1], &[2]]));
        let [one, two] = [(); 2].map(|()| pool.pick().unwrap().upstream);
        pool.failed(&one, &LIMITS);
        // What looks at all backends would have to wait for these.
        let _held = (pool.known.lock(), pool.ejected(), pool.check.found());
        let (done, is_done) = mpsc::channel();
        let failing = Arc::clone(&pool);
        std::thread::spawn(move || {
            failing.failed(&one, &LIMITS);
            failing.failed(&two, &LIMITS);
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(pool.metrics.ejections.get(), 1);
    }

    #[test]
    fn backends_that_were_never_checked_get_traffic_when_there_are_no_others_and_are_not_alive() {
        let pool = unchecked(&[&[1], &[2]]);
        assert_eq!(shares(&pool, [1, 2], 10), [5, 5]);
        assert!(!pool.is_alive() && !pool.was_alive());
        pool.check.found().insert(address(1), false);
        pool.publish(Instant::now());
        assert_eq!(shares(&pool, [1, 2], 10), [0, 10]);
        assert!(!pool.is_alive() && !pool.was_alive());
        pool.check.found().insert(address(2), true);
        pool.publish(Instant::now());
        assert!(pool.is_alive() && pool.was_alive());
        pool.check.found().insert(address(2), false);
        pool.publish(Instant::now());
        assert!(pool.pick().is_none());
        assert!(!pool.is_alive() && pool.was_alive());
    }
}

//! The pool of backends, and which one is next.
//!
//! Membership and health are Pingora's ([`Backends`], [`TcpHealthCheck`]); the choice is made here, from a list that
//! holds the alive backends and nothing else. Pingora's own round robin walks over dead ones with a counter that all requests
//! share, so with dead backends its turns are uneven and it can miss a live one; a list of the alive makes each turn exact, "none
//! alive" known at once, and the cost of a pick the same for three backends and for a thousand.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use chassis::shortage::is_shortage;
use chassis::supervisor::supervise;
use log::{info, warn};
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora_load_balancing::health_check::{HealthCheck, TcpHealthCheck};
use pingora_load_balancing::{Backend, Backends};
use prometheus::Histogram;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, sleep_until};

use crate::config::{Ejection, Health, UpstreamLimits};
use crate::discovery::RegistryDiscovery;
use crate::ejection::Conduct;
use crate::metrics::Metrics;

/// How soon the registry is read again when it gave no usable set: this long, then twice as long, up to the limit. (How
/// often a Redis that is down is connected to is the registry's own business.)
const DISCOVERY_RETRY: Duration = Duration::from_millis(20);
const DISCOVERY_RETRY_LIMIT: Duration = Duration::from_millis(500);

/// How long after a backend's change others are waited for.
const FLIPS: Duration = Duration::from_millis(5);
/// How many backends are checked at the same time.
const CHECKS_AT_ONCE: usize = 256;

/// A backend that requests can be sent to.
#[derive(Debug)]
pub struct Upstream {
    /// Where to connect.
    pub address: SocketAddr,
    /// Its name in the registry, as `host:port`.
    pub name: Arc<str>,
    /// How long its requests take. Made for its first request, so that a registry of thousands that get none does not make
    /// thousands of series.
    duration: OnceLock<Histogram>,
    /// What its last requests came to.
    conduct: Conduct,
}

impl Upstream {
    fn new(address: SocketAddr, name: Arc<str>) -> Self {
        Self {
            address,
            name,
            duration: OnceLock::new(),
            conduct: Conduct::default(),
        }
    }

    /// What Pingora needs to connect. Made anew for each request, because with a thousand backends one that was kept would be in no
    /// cache.
    pub fn peer(&self, limits: &UpstreamLimits) -> Box<HttpPeer> {
        let mut peer = Box::new(HttpPeer::new(self.address, false, String::new()));
        // `headers` has written the head as the backend is to get it.
        peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
        peer.options.connection_timeout = Some(limits.connect_timeout);
        peer.options.total_connection_timeout = Some(limits.connect_timeout);
        peer.options.write_timeout = Some(limits.write_timeout);
        peer.options.idle_timeout = Some(limits.idle_timeout);
        peer
    }

    /// Notes that it has answered, whatever the status.
    pub fn answered(&self) {
        self.conduct.answered();
    }

    /// How long its requests take.
    pub fn duration(&self, metrics: &Metrics) -> &Histogram {
        self.duration.get_or_init(|| metrics.request_duration(&self.name))
    }
}

/// All backends that are known, and those of them that are alive.
pub struct Pool {
    backends: Backends,
    discovery: RegistryDiscovery,
    pace: ArcSwap<Pace>,
    check: Arc<Check>,
    metrics: Metrics,
    alive: ArcSwap<Vec<Arc<Upstream>>>,
    turn: AtomicUsize,
    /// Every backend that is known. A backend keeps its `Upstream` for as long as it stays.
    known: Mutex<HashMap<SocketAddr, Arc<Upstream>>>,
    /// A backend has become alive or dead.
    flipped: Arc<Notify>,
    /// There are backends that were never checked.
    unchecked: Notify,
    /// A backend was taken out because it failed.
    ejected: Notify,
}

/// How often what is done.
struct Pace {
    discovery: Duration,
    health: Duration,
}

impl Pool {
    /// An empty pool, to be filled by running it as a service.
    pub fn new(discovery: RegistryDiscovery, interval: Duration, health: &Health, metrics: Metrics) -> Self {
        let flipped = Arc::new(Notify::new());
        let check = Arc::new(Check {
            current: ArcSwap::from_pointee(tcp_check(health.timeout)),
            at_once: Semaphore::new(CHECKS_AT_ONCE),
            found: Mutex::default(),
            discovery: discovery.clone(),
            flipped: Arc::clone(&flipped),
        });
        let mut backends = Backends::new(Box::new(discovery.clone()));
        backends.set_health_check(Box::new(SharedCheck(Arc::clone(&check))));
        Self {
            backends,
            discovery,
            pace: ArcSwap::from_pointee(Pace {
                discovery: interval,
                health: health.interval,
            }),
            check,
            metrics,
            alive: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            known: Mutex::default(),
            flipped,
            unchecked: Notify::new(),
            ejected: Notify::new(),
        }
    }

    /// Changes how often the registry is read and how the backends are checked, from the next time on.
    pub fn change(&self, interval: Duration, health: &Health) {
        self.pace.store(Arc::new(Pace {
            discovery: interval,
            health: health.interval,
        }));
        self.check.current.store(Arc::new(tcp_check(health.timeout)));
    }

    /// The alive backend whose turn it is; `None` when none is alive.
    pub fn pick(&self) -> Option<Arc<Upstream>> {
        let alive = self.alive.load();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (!alive.is_empty()).then(|| Arc::clone(&alive[turn % alive.len()]))
    }

    /// Whether no backend is alive.
    pub fn is_empty(&self) -> bool {
        self.alive.load().is_empty()
    }

    /// Another alive backend than those of `tried`, for a request that one of them did not answer. It takes no turn: otherwise
    /// such a request would take the turn of the next one, and with two backends every second turn would be the broken one's
    /// again.
    pub fn pick_again(&self, tried: &[SocketAddr]) -> Option<Arc<Upstream>> {
        let alive = self.alive.load();
        let turn = self.turn.load(Ordering::Relaxed);
        (0..alive.len())
            .map(|step| &alive[turn.wrapping_add(step) % alive.len()])
            .find(|upstream| !tried.contains(&upstream.address))
            .map(Arc::clone)
    }

    /// Whether [`Pool::pick_again`] would find a backend.
    pub fn has_other_than(&self, tried: &[SocketAddr]) -> bool {
        let alive = self.alive.load();
        alive.iter().any(|upstream| !tried.contains(&upstream.address))
    }

    /// Notes that `upstream` has failed a request, and takes it out for a while if it keeps failing and there are others.
    pub fn failed(&self, upstream: &Upstream, limits: &Ejection) {
        let Some(failures) = upstream.conduct.failed(limits) else {
            return;
        };
        let now = Instant::now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if upstream.conduct.out_until(now).is_some() {
            return;
        }
        let out = known
            .values()
            .filter(|one| one.conduct.out_until(now).is_some())
            .count();
        let alive = self.alive.load().len();
        // Those that are out are not among the alive.
        let room = (alive + out) as f64 * limits.max_share;
        if (out + 1) as f64 > room {
            return;
        }
        let time = upstream.conduct.eject(limits, now);
        drop(known);
        self.metrics.ejections.inc();
        let seconds = time.as_secs_f64();
        warn!(backend = &*upstream.name, failures = failures, seconds = seconds; "backend keeps failing; leaving it alone");
        self.publish();
        self.ejected.notify_one();
    }

    /// Brings back each backend that was taken out when its time is over.
    async fn run_returns(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            let next = {
                let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.values().filter_map(|one| one.conduct.out_until(now)).min()
            };
            let back = async {
                match next {
                    Some(until) => sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = back => self.publish(),
                () = self.ejected.notified() => {}
            }
        }
    }

    /// Reads the registry every interval; sooner while it gives nothing.
    async fn run_discovery(self: Arc<Self>) {
        if self.discovery.has_saved() {
            // An error is not possible: what was saved is a set, and not an empty one.
            let _ = self.backends.update(|_| self.unchecked.notify_one()).await;
            self.publish();
        }
        let mut retry = DISCOVERY_RETRY;
        loop {
            let interval = self.pace.load().discovery;
            let updated = self.backends.update(|_| self.unchecked.notify_one()).await;
            self.publish();
            if updated.is_ok() {
                retry = DISCOVERY_RETRY;
                sleep(interval).await;
            } else {
                sleep(retry.min(interval)).await;
                retry = (retry * 2).min(DISCOVERY_RETRY_LIMIT);
            }
        }
    }

    /// Checks every backend each interval, and at once when there are new ones. A backend's change counts as soon as it is
    /// seen, not when the slowest check has ended.
    async fn run_health_checks(self: Arc<Self>) {
        loop {
            let all = self.backends.run_health_check(true);
            tokio::pin!(all);
            loop {
                tokio::select! {
                    () = &mut all => break,
                    () = self.flipped.notified() => {
                        // Many change at once when they do, and each publication looks at all of them.
                        sleep(FLIPS).await;
                        self.publish();
                    }
                }
            }
            self.publish();
            let interval = self.pace.load().health;
            tokio::select! {
                () = sleep(interval) => {}
                () = self.unchecked.notified() => {}
            }
        }
    }

    /// Makes the list of the alive from what Pingora knows now.
    fn publish(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses = self.discovery.addresses();
        let mut now = HashMap::with_capacity(known.len());
        let mut alive = Vec::with_capacity(known.len());
        let (mut out, mut unproven) = (Vec::new(), Vec::new());
        let time = Instant::now();
        for backend in self.backends.get_backend().iter() {
            let Some((address, name)) = address_of(backend).and_then(|address| addresses.get_key_value(&address))
            else {
                continue;
            };
            let upstream = match known.get(address) {
                Some(upstream) if upstream.name == *name => Arc::clone(upstream),
                _ => Arc::new(Upstream::new(*address, Arc::clone(name))),
            };
            if self.backends.ready(backend) {
                let list = if !self.check.has_passed(address) {
                    &mut unproven
                } else if upstream.conduct.out_until(time).is_some() {
                    &mut out
                } else {
                    &mut alive
                };
                list.push(Arc::clone(&upstream));
            }
            now.insert(*address, upstream);
        }
        // Backends that failed a while ago, or were never checked, are better than none.
        if alive.is_empty() {
            out.iter().for_each(|upstream| upstream.conduct.pardon(time));
            alive = out;
        }
        if alive.is_empty() {
            alive = unproven;
        }
        let names: HashSet<&str> = now.values().map(|upstream| &*upstream.name).collect();
        for gone in known.values().filter(|upstream| !names.contains(&*upstream.name)) {
            self.metrics.forget_backend(&gone.name);
        }
        drop(names);
        self.check.retain(&now);
        *known = now;
        self.metrics
            .active_backends
            .set(i64::try_from(alive.len()).unwrap_or(i64::MAX));
        self.alive.store(Arc::new(alive));
    }
}

/// The loops of a pool, as a Pingora service.
pub struct PoolService(pub Arc<Pool>);

#[async_trait]
impl BackgroundService for PoolService {
    async fn start(&self, shutdown: ShutdownWatch) {
        // Requests in flight may still be retried during the drain, so the pool is kept true until the process exits.
        let (_never, until_exit) = tokio::sync::watch::channel(false);
        drop(shutdown);
        tokio::join!(
            supervise("discovery", until_exit.clone(), || Arc::clone(&self.0).run_discovery()),
            supervise("health checks", until_exit.clone(), || Arc::clone(&self.0)
                .run_health_checks()),
            supervise("ejection", until_exit, || Arc::clone(&self.0).run_returns()),
        );
    }
}

/// The health check, whose timeout can change. It also hears from Pingora that a backend has become alive or dead.
struct Check {
    current: ArcSwap<TcpHealthCheck>,
    /// So many checks at once take descriptors enough.
    at_once: Semaphore,
    /// What the last check of each backend found, whether it is good.
    found: Mutex<HashMap<SocketAddr, bool>>,
    discovery: RegistryDiscovery,
    flipped: Arc<Notify>,
}

impl Check {
    async fn run(&self, backend: &Backend) -> pingora::Result<()> {
        // The semaphore is never closed.
        let _permit = self.at_once.acquire().await;
        let result = self.current.load_full().check(backend).await;
        let Some(address) = address_of(backend) else {
            return result;
        };
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            // It says nothing about the backend, which stays what it was.
            Err(error) if is_shortage(error.root_cause()) => match found.get(&address) {
                Some(false) => Err(error),
                Some(true) | None => Ok(()),
            },
            result => {
                // The first that is good is news to the pool, though to Pingora it is none.
                if found.insert(address, result.is_ok()).is_none() {
                    self.flipped.notify_one();
                }
                result
            }
        }
    }

    /// Whether a check of `address` has been good.
    fn has_passed(&self, address: &SocketAddr) -> bool {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(address) == Some(&true)
    }

    /// Forgets all backends but those of `known`.
    fn retain(&self, known: &HashMap<SocketAddr, Arc<Upstream>>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.retain(|address, _| known.contains_key(address));
    }
}

fn tcp_check(timeout: Duration) -> TcpHealthCheck {
    let mut check = TcpHealthCheck::default();
    check.peer_template.options.connection_timeout = Some(timeout);
    check
}

/// Pingora wants a health check of its own.
struct SharedCheck(Arc<Check>);

#[async_trait]
impl HealthCheck for SharedCheck {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        self.0.run(target).await
    }

    async fn health_status_change(&self, backend: &Backend, healthy: bool) {
        let addresses = self.0.discovery.addresses();
        let address = backend.addr.to_string();
        let name = address_of(backend)
            .and_then(|address| addresses.get(&address))
            .map_or(address.as_str(), |name| name);
        if healthy {
            info!(backend = name, address = address.as_str(); "backend recovered");
        } else {
            warn!(backend = name, address = address.as_str(); "backend went down");
        }
        self.0.flipped.notify_one();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(ports: &[u16]) -> Pool {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let discovery = RegistryDiscovery::new(Arc::new(registry::InProcess::default()), metrics.clone(), None);
        let second = Duration::from_secs(1);
        let health = Health {
            interval: second,
            timeout: second,
        };
        let pool = Pool::new(discovery, second, &health, metrics);
        let upstreams = ports.iter().map(|port| {
            let address = SocketAddr::from(([127, 0, 0, 1], *port));
            Arc::new(Upstream::new(address, address.to_string().into()))
        });
        pool.alive.store(Arc::new(upstreams.collect()));
        pool
    }

    #[test]
    fn turns_are_exact_and_stay_exact_with_threads() {
        let pool = pool(&[1, 2, 3]);
        let count = |picks: Vec<u16>| [1, 2, 3].map(|port| picks.iter().filter(|one| **one == port).count());
        let pick = |_| pool.pick().unwrap().address.port();
        assert_eq!(count((0..300).map(pick).collect()), [100; 3]);
        let picks: Vec<u16> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| (0..100).map(pick).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(count(picks), [100; 3]);
    }

    #[test]
    fn what_was_tried_is_not_picked_again() {
        let pool = pool(&[1, 2, 3]);
        let mut tried = Vec::new();
        for _ in 0..3 {
            assert!(pool.has_other_than(&tried));
            let address = pool.pick_again(&tried).unwrap().address;
            assert!(!tried.contains(&address));
            tried.push(address);
        }
        assert!(!pool.has_other_than(&tried));
        assert!(pool.pick_again(&tried).is_none());
    }

    #[test]
    fn an_empty_pool_has_nobody_to_pick() {
        assert!(pool(&[]).pick().is_none());
    }
}

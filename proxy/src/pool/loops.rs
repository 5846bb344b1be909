//! The background loops that keep a pool up to date, and their intervals.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::supervisor::supervise;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pingora::server::ShutdownWatch;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use super::Pool;
use crate::config::PoolSettings;

/// How soon the registry is read again when it gave no usable set: this long, then twice as long, up to the limit. (How
/// often a Redis that is down is connected to is the registry's own business.)
const DISCOVERY_RETRY: Duration = Duration::from_millis(20);
const DISCOVERY_RETRY_LIMIT: Duration = Duration::from_millis(500);

/// From one publication to the next at least: many backends change at once when they do, and each publication looks at all
/// of them.
const BETWEEN_PUBLICATIONS: Duration = Duration::from_millis(5);

/// From one sweep of the kept connections to the next.
pub(super) const BETWEEN_SWEEPS: Duration = Duration::from_secs(1);

/// Intervals of the background loops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Intervals {
    /// From one read of the registry to the next.
    pub discovery: Duration,
    /// From one check of an address to the next.
    pub health: Duration,
    /// How long a connection to a backend is kept without a request.
    pub idle: Duration,
}

impl Intervals {
    /// Those of a pool whose set is read every `interval`.
    pub fn new(settings: &PoolSettings, interval: Duration) -> Self {
        Self {
            discovery: interval,
            health: settings.health.interval,
            idle: settings.upstream.idle_timeout,
        }
    }
}

impl Pool {
    /// Reads the registry every interval; sooner while it gives nothing.
    async fn run_discovery(self: Arc<Self>) {
        let mut intervals = self.intervals.subscribe();
        let mut retry = DISCOVERY_RETRY;
        loop {
            let updated = self.backends.update(|_| self.unchecked.notify_one()).await;
            self.changed.notify_one();
            let good = updated.is_ok() && !self.discovery.is_from_file();
            let pause = async {
                if good {
                    wait(&mut intervals, |intervals| intervals.discovery).await;
                } else {
                    wait(&mut intervals, |intervals| retry.min(intervals.discovery)).await;
                }
            };
            tokio::select! {
                () = pause => {}
                () = self.moved.notified() => {}
            }
            retry = if good {
                DISCOVERY_RETRY
            } else {
                (retry * 2).min(DISCOVERY_RETRY_LIMIT)
            };
        }
    }

    /// Checks every address each interval, and new ones at once.
    async fn run_health_checks(self: Arc<Self>) {
        let mut intervals = self.intervals.subscribe();
        loop {
            let round = async {
                self.backends.run_health_check(true).await;
                wait(&mut intervals, |intervals| intervals.health).await;
            };
            tokio::select! {
                () = round => {}
                () = self.check_new() => {}
            }
        }
    }

    /// Checks addresses that were never checked as soon as there are any. It never ends; what has not ended when it is dropped
    /// is part of the next round.
    async fn check_new(&self) {
        let mut under_way = HashSet::new();
        let mut checks = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.unchecked.notified() => {
                    let new = self.check.unchecked().into_iter().filter(|address| under_way.insert(*address));
                    checks.extend(new.map(|address| self.check.run_first(address)));
                }
                Some(address) = checks.next() => {
                    under_way.remove(&address);
                }
            }
        }
    }

    /// Makes the list of the alive when something has changed, and when a backend's ejection ends.
    async fn run_publication(self: Arc<Self>) {
        loop {
            let next_return = self.publish(Instant::now());
            sleep(BETWEEN_PUBLICATIONS).await;
            let readmission = async {
                match next_return {
                    Some(until) => sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = readmission => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Closes kept connections that have ended or were not used for too long.
    async fn run_sweeps(self: Arc<Self>) {
        loop {
            sleep(BETWEEN_SWEEPS).await;
            self.sweep(Instant::now());
        }
    }
}

/// Waits for as long as `which` says from now on, also when it says something else meanwhile.
async fn wait(intervals: &mut watch::Receiver<Intervals>, which: impl Fn(&Intervals) -> Duration) {
    let start = tokio::time::Instant::now();
    loop {
        let end = start + which(&intervals.borrow_and_update());
        tokio::select! {
            () = sleep_until(end) => return,
            // The sender is the pool's own, so this never fails.
            _ = intervals.changed() => {}
        }
    }
}

/// Runs the loops of `pool` until `end`.
pub(super) async fn run(pool: Arc<Pool>, end: ShutdownWatch) {
    let this = || Arc::clone(&pool);
    tokio::join!(
        supervise("discovery", end.clone(), || this().run_discovery()),
        supervise("health checks", end.clone(), || this().run_health_checks()),
        supervise("publication", end.clone(), || this().run_publication()),
        supervise("kept connections", end, || this().run_sweeps()),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_takes_a_new_interval_at_once() {
        let hour = Duration::from_secs(3600);
        let at = |health| Intervals {
            discovery: hour,
            health,
            idle: hour,
        };
        let intervals = watch::Sender::new(at(hour));
        let mut seen = intervals.subscribe();
        let start = tokio::time::Instant::now();
        let waiting = tokio::spawn(async move { wait(&mut seen, |intervals| intervals.health).await });
        sleep(Duration::from_secs(2)).await;
        intervals.send(at(Duration::from_secs(3))).unwrap();
        waiting.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 3, "of the wait under way two are over");
    }
}

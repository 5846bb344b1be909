//! The sentinel: probes the listed origins over TCP and keeps the registry up to date, with a set for each pool.
//!
//! The same [`Sentinel`] runs in a process of its own (`main.rs`) and as a background service inside the proxy. In
//! reading order: [`Config`] says what to probe and how, `target` decides from a row of probes whether a target is up,
//! `probe` is one TCP connection, `prober` has a loop for each target, `board` holds what they found, `publisher` writes it
//! to the registry, `dispute` keeps two writers from fighting over a target, and [`Metrics`] are for Prometheus.

mod board;
mod config;
mod dispute;
mod metrics;
mod probe;
mod prober;
mod publisher;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use log::info;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use registry::{PoolName, Registry};
use tokio::sync::{Notify, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use board::Board;
pub use config::Config;
pub use metrics::Metrics;
use prober::Prober;
use publisher::Publisher;

/// How long after a target's change others are waited for: many change at once when they do.
const TOGETHER: Duration = Duration::from_millis(10);

/// Probes targets and publishes what it finds.
///
/// It owns the targets of its list and what it has registered before, and no other member: others may add theirs. When it
/// stops, its targets stay registered, because a control plane that goes away must not take the data plane with it.
#[derive(Clone)]
pub struct Sentinel {
    config: watch::Receiver<Arc<Config>>,
    registry: Arc<dyn Registry>,
    metrics: Metrics,
    id: String,
    first_cycle: watch::Sender<bool>,
}

impl Sentinel {
    /// A sentinel that publishes to `registry` in the name of `id`. What it probes, and how, is what was last sent to
    /// `config`.
    pub fn new(
        config: watch::Receiver<Arc<Config>>,
        registry: Arc<dyn Registry>,
        metrics: Metrics,
        id: String,
    ) -> Self {
        // So that they are there from the start.
        metrics.set_pools(config.borrow().pools.keys());
        Self {
            config,
            registry,
            metrics,
            id,
            first_cycle: watch::Sender::new(false),
        }
    }

    /// Turns true when every target has been probed and the registry written, or found unavailable.
    pub fn first_cycle(&self) -> watch::Receiver<bool> {
        self.first_cycle.subscribe()
    }

    /// Probes and publishes until a loop fails.
    async fn run(mut self) {
        let mut config = Arc::clone(&self.config.borrow_and_update());
        let news = Arc::new(Notify::new());
        let mut prober = Prober::new(&config, self.metrics.clone());
        let mut pools = BTreeMap::new();
        self.change(&config, &mut pools, &mut prober, &news);
        let mut ticks = every(config.interval);
        let (mut complete, mut recalled) = (false, false);
        loop {
            let changed = async {
                // A sender that is gone sends nothing new.
                if self.config.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                _ = ticks.tick() => {
                    if !recalled && let Ok(names) = self.registry.pools_of(&self.id).await {
                        recalled = true;
                        names.into_iter().for_each(|name| self.add(name, &mut pools, &news));
                    }
                    reconcile(&mut pools, config.interval).await;
                }
                () = news.notified() => {
                    sleep(TOGETHER).await;
                    for pool in pools.values_mut() {
                        pool.publisher.publish_changes().await;
                    }
                    // The first cycle ends with the first probe of the last target.
                    if !complete && all_probed(&pools) {
                        reconcile(&mut pools, config.interval).await;
                    }
                }
                () = changed => {
                    config = Arc::clone(&self.config.borrow_and_update());
                    self.change(&config, &mut pools, &mut prober, &news);
                    ticks = every(config.interval);
                    info!(targets = config.targets().count(); "targets changed");
                }
                () = prober.failed() => return,
            }
            if !complete && all_probed(&pools) {
                complete = true;
                self.first_cycle.send_replace(true);
            }
        }
    }

    /// Makes `pools` those of `config`. One that is no longer there stays, without targets, until its set has nothing of this sentinel. The
    /// default one is always among them at first: an earlier process may have had targets there.
    fn change(&self, config: &Config, pools: &mut BTreeMap<PoolName, Pool>, prober: &mut Prober, news: &Arc<Notify>) {
        self.metrics.set_pools(config.pools.keys());
        for name in config.pools.keys().cloned().chain([PoolName::default()]) {
            self.add(name, pools, news);
        }
        for (name, pool) in pools.iter() {
            pool.board
                .set_targets(config.pools.get(name).map_or(&[], Vec::as_slice));
        }
        prober.change(config, pools);
    }

    /// Adds the pool `name` to `pools`, unless it is there, without targets.
    fn add(&self, name: PoolName, pools: &mut BTreeMap<PoolName, Pool>, news: &Arc<Notify>) {
        pools.entry(name).or_insert_with_key(|name| {
            let board = Arc::new(Board::new(Arc::clone(news)));
            let (registry, metrics) = (Arc::clone(&self.registry), self.metrics.clone());
            let publisher = Publisher::new(registry, name.clone(), self.id.clone(), Arc::clone(&board), metrics);
            Pool { board, publisher }
        });
    }
}

/// A pool while the sentinel runs.
struct Pool {
    board: Arc<Board>,
    publisher: Publisher,
}

fn all_probed(pools: &BTreeMap<PoolName, Pool>) -> bool {
    pools.values().all(|pool| pool.board.all_probed())
}

/// One cycle of each pool, and the end of those that have left.
async fn reconcile(pools: &mut BTreeMap<PoolName, Pool>, interval: Duration) {
    for pool in pools.values_mut() {
        pool.publisher.reconcile(interval).await;
    }
    pools.retain(|_, pool| !pool.publisher.has_left());
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[async_trait]
impl BackgroundService for Sentinel {
    async fn start(&self, shutdown: ShutdownWatch) {
        info!(targets = self.config.borrow().targets().count(), id = self.id.as_str(); "sentinel started");
        chassis::supervisor::supervise("sentinel", shutdown, || self.clone().run()).await;
    }
}

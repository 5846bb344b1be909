//! The sentinel: probes the listed origins over TCP and keeps the registry up to date.
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

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use log::info;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use registry::Registry;
use tokio::sync::watch;
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
        let board = Arc::new(Board::default());
        let mut prober = Prober::new(&config, Arc::clone(&board), self.metrics.clone());
        let mut publisher = Publisher::new(self.registry, self.id, Arc::clone(&board), self.metrics);
        let mut ticks = every(config.interval);
        let mut complete = false;
        loop {
            let changed = async {
                // A sender that is gone sends nothing new.
                if self.config.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                _ = ticks.tick() => publisher.reconcile(config.interval).await,
                () = board.news() => {
                    sleep(TOGETHER).await;
                    publisher.publish_changes().await;
                    // The first cycle ends with the first probe of the last target.
                    if !complete && board.all_probed() {
                        publisher.reconcile(config.interval).await;
                    }
                }
                () = changed => {
                    config = Arc::clone(&self.config.borrow_and_update());
                    prober.change(&config);
                    ticks = every(config.interval);
                    info!(targets = config.targets.len(); "targets changed");
                }
                () = prober.failed() => return,
            }
            if !complete && board.all_probed() {
                complete = true;
                self.first_cycle.send_replace(true);
            }
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[async_trait]
impl BackgroundService for Sentinel {
    async fn start(&self, shutdown: ShutdownWatch) {
        info!(targets = self.config.borrow().targets.len(), id = self.id.as_str(); "sentinel started");
        chassis::supervisor::supervise("sentinel", shutdown, || self.clone().run()).await;
    }
}

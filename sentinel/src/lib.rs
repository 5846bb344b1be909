//! The sentinel: it probes the origins it was told about over TCP and keeps the registry true.
//!
//! The same [`Sentinel`] runs in a process of its own (`main.rs`) and as a background service inside the proxy. In
//! reading order: [`Config`] says what to probe and how, `target` decides from a row of probes whether a target is up,
//! `probe` is one TCP connection, [`Sentinel`] is the cycle, and [`Metrics`] what it tells Prometheus.

mod config;
mod metrics;
mod probe;
mod target;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use futures::StreamExt;
use log::{info, warn};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use registry::{Member, Registry, Resolver};
use tokio::time::{MissedTickBehavior, interval};

pub use config::Config;
pub use metrics::Metrics;
use target::{State, Target, Thresholds};

/// Probes targets in cycles and publishes the result of each.
///
/// It owns the targets of its list and no other member: others may add theirs. When it stops, its targets
/// stay registered, because a control plane that goes away must not take the data plane with it.
#[derive(Clone)]
pub struct Sentinel {
    config: Arc<Config>,
    registry: Arc<dyn Registry>,
    metrics: Metrics,
}

impl Sentinel {
    /// A sentinel that publishes to `registry`.
    pub fn new(config: Config, registry: Arc<dyn Registry>, metrics: Metrics) -> Self {
        Self {
            config: Arc::new(config),
            registry,
            metrics,
        }
    }

    /// Probes and publishes every interval, for ever.
    async fn run(self) {
        let thresholds = Thresholds {
            rise: self.config.rise,
            fall: self.config.fall,
        };
        let mut targets: Vec<Target> = self.config.targets.iter().cloned().map(Target::new).collect();
        let resolver = Resolver::default();
        let mut registry_down = false;
        let mut ticks = interval(self.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.probe_all(&mut targets, &resolver, thresholds).await;
            let published = self.publish(&targets).await;
            match &published {
                Ok(()) => {
                    if std::mem::take(&mut registry_down) {
                        info!("registry is back; the targets are published again");
                    }
                    self.metrics.cycle_succeeded();
                }
                Err(error) => {
                    self.metrics.registry_errors.inc();
                    if !std::mem::replace(&mut registry_down, true) {
                        warn!(error = error.to_string().as_str(); "registry unavailable; probing goes on");
                    }
                }
            }
        }
    }

    async fn probe_all(&self, targets: &mut [Target], resolver: &Resolver, thresholds: Thresholds) {
        let probes = targets.iter_mut().map(|target| async {
            let start = Instant::now();
            let result = probe::probe(resolver, &target.member, self.config.timeout).await;
            self.metrics.probed(start.elapsed(), result.is_ok());
            let Some(state) = target.observe(result.is_ok(), thresholds) else {
                return;
            };
            let member = target.member.to_string();
            match (state, result) {
                (State::Up, _) => info!(target = member.as_str(); "target is up"),
                (_, Err(error)) => {
                    warn!(target = member.as_str(), error = error.as_str(); "target is down");
                }
                (_, Ok(())) => {}
            }
        });
        futures::stream::iter(probes)
            .for_each_concurrent(self.config.concurrency, |probe| probe)
            .await;
        self.metrics.count(targets.iter().map(|target| target.state));
    }

    async fn publish(&self, targets: &[Target]) -> Result<(), registry::Error> {
        let in_state = |state: State| -> Vec<Member> {
            let members = targets.iter().filter(|target| target.state == state);
            members.map(|target| target.member.clone()).collect()
        };
        self.registry
            .publish(&in_state(State::Up), &in_state(State::Down))
            .await
    }
}

#[async_trait]
impl BackgroundService for Sentinel {
    async fn start(&self, shutdown: ShutdownWatch) {
        info!(targets = self.config.targets.len(); "sentinel started");
        chassis::supervisor::supervise("sentinel", shutdown, || self.clone().run()).await;
    }
}

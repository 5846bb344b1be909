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
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use log::{error, info, warn};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use registry::{Member, Registry, Resolver};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

pub use config::Config;
pub use metrics::Metrics;
use probe::Finding;
use target::{State, Target, Thresholds};

/// Probes targets in cycles and publishes the result of each.
///
/// It owns the targets of its list and no other member: others may add theirs. When it stops, its targets
/// stay registered, because a control plane that goes away must not take the data plane with it.
#[derive(Clone)]
pub struct Sentinel {
    config: watch::Receiver<Arc<Config>>,
    registry: Arc<dyn Registry>,
    metrics: Metrics,
}

impl Sentinel {
    /// A sentinel that publishes to `registry`. What it probes, and how, is what was last sent to `config`.
    pub fn new(config: watch::Receiver<Arc<Config>>, registry: Arc<dyn Registry>, metrics: Metrics) -> Self {
        Self {
            config,
            registry,
            metrics,
        }
    }

    /// Probes and publishes every interval, for ever.
    async fn run(mut self) {
        let resolver = Resolver::default();
        let mut config = Arc::clone(&self.config.borrow_and_update());
        let mut targets: Vec<Target> = config.targets.iter().cloned().map(Target::new).collect();
        // Targets that left the list and are still in the registry.
        let mut left: Vec<Member> = Vec::new();
        let mut failing: Option<registry::Error> = None;
        let mut ticks = every(config.interval);
        loop {
            ticks.tick().await;
            // A sender that is gone sends nothing new.
            if self.config.has_changed().unwrap_or(false) {
                config = Arc::clone(&self.config.borrow_and_update());
                left.extend(exchange(&mut targets, &config.targets));
                left.retain(|member| !config.targets.contains(member));
                ticks = every(config.interval);
                ticks.reset();
                info!(targets = targets.len(); "targets changed");
            }
            self.probe_all(&mut targets, &resolver, &config).await;
            match self.publish(&targets, &left).await {
                Ok(()) => {
                    left.clear();
                    if failing.take().is_some() {
                        info!("registry is back; the targets are published again");
                    }
                    self.metrics.cycle_succeeded();
                }
                Err(error) => {
                    self.metrics.registry_errors.inc();
                    let refused_before = failing.as_ref().is_some_and(registry::Error::is_refusal);
                    let text = error.to_string();
                    if error.is_refusal() && !refused_before {
                        error!(error = text.as_str(); "registry refuses what the sentinel publishes; probing goes on");
                    } else if failing.is_none() {
                        warn!(error = text.as_str(); "registry unavailable; probing goes on");
                    }
                    failing = Some(error);
                }
            }
        }
    }

    async fn probe_all(&self, targets: &mut [Target], resolver: &Resolver, config: &Config) {
        let thresholds = Thresholds {
            rise: config.rise,
            fall: config.fall,
        };
        let probes = targets.iter_mut().map(|target| async {
            let start = Instant::now();
            let finding = probe::probe(resolver, &target.member, config.timeout).await;
            let up = matches!(finding, Finding::Up);
            self.metrics.probed(start.elapsed(), up);
            if matches!(finding, Finding::Nothing) {
                return;
            }
            let Some(state) = target.observe(up, thresholds) else {
                return;
            };
            let member = target.member.to_string();
            match (state, finding) {
                (State::Up, _) => info!(target = member.as_str(); "target is up"),
                (_, Finding::Down(why)) => {
                    warn!(target = member.as_str(), error = why.as_str(); "target is down");
                }
                (_, _) => {}
            }
        });
        futures::stream::iter(probes)
            .for_each_concurrent(config.concurrency, |probe| probe)
            .await;
        self.metrics.count(targets.iter().map(|target| target.state));
    }

    async fn publish(&self, targets: &[Target], left: &[Member]) -> Result<(), registry::Error> {
        let in_state = |state: State| -> Vec<Member> {
            let members = targets.iter().filter(|target| target.state == state);
            members.map(|target| target.member.clone()).collect()
        };
        let absent = [in_state(State::Down), left.to_vec()].concat();
        self.registry.publish(&in_state(State::Up), &absent).await
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Makes `targets` those of `list`, and returns those that are in it no more. A target that stays keeps its state.
fn exchange(targets: &mut Vec<Target>, list: &[Member]) -> Vec<Member> {
    let (mut stay, leave): (Vec<Target>, Vec<Target>) =
        targets.drain(..).partition(|target| list.contains(&target.member));
    let new = list
        .iter()
        .filter(|member| !stay.iter().any(|target| target.member == **member))
        .cloned()
        .map(Target::new)
        .collect::<Vec<_>>();
    stay.extend(new);
    *targets = stay;
    leave.into_iter().map(|target| target.member).collect()
}

#[async_trait]
impl BackgroundService for Sentinel {
    async fn start(&self, shutdown: ShutdownWatch) {
        info!(targets = self.config.borrow().targets.len(); "sentinel started");
        chassis::supervisor::supervise("sentinel", shutdown, || self.clone().run()).await;
    }
}

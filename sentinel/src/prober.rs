//! The probing loops, one for each target of each pool, so that a slow target delays no other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use registry::{Member, PoolName, Resolver};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::board::Board;
use crate::metrics::Metrics;
use crate::probe::{self, Finding};
use crate::target::{State, Target, Thresholds};
use crate::{Config, Pool};

/// Probes the targets of all pools, and reports to their boards.
pub(crate) struct Prober {
    metrics: Metrics,
    resolver: Resolver,
    plan: watch::Sender<Arc<Plan>>,
    tasks: JoinSet<()>,
    by_target: HashMap<(PoolName, Member), AbortHandle>,
}

/// What a target's loop needs.
struct Context {
    pool: PoolName,
    board: Arc<Board>,
    metrics: Metrics,
    resolver: Resolver,
}

/// How to probe.
struct Plan {
    interval: Duration,
    timeout: Duration,
    thresholds: Thresholds,
    /// Connections under way.
    at_once: Semaphore,
    /// Those among them to targets whose last probe was slow, so that such targets never take all places.
    slow_at_once: Semaphore,
}

impl Plan {
    fn new(config: &Config) -> Self {
        Self {
            interval: config.interval,
            timeout: config.timeout,
            thresholds: Thresholds {
                rise: config.rise,
                fall: config.fall,
            },
            at_once: Semaphore::new(config.concurrency),
            slow_at_once: Semaphore::new(config.concurrency.div_ceil(2)),
        }
    }
}

impl Prober {
    /// One that probes nothing yet.
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Self {
        Self {
            metrics,
            resolver: Resolver::default(),
            plan: watch::Sender::new(Arc::new(Plan::new(config))),
            tasks: JoinSet::new(),
            by_target: HashMap::new(),
        }
    }

    /// Probes the targets of `config` from now on, in its way, and reports to the boards of `pools`, one for each. A target that stays
    /// keeps its state.
    pub(crate) fn change(&mut self, config: &Config, pools: &BTreeMap<PoolName, Pool>) {
        self.plan.send_replace(Arc::new(Plan::new(config)));
        let mut old = std::mem::take(&mut self.by_target);
        for (name, pool) in pools {
            for target in config.pools.get(name).into_iter().flatten() {
                let key = (name.clone(), target.clone());
                let task = old.remove(&key).unwrap_or_else(|| {
                    let context = Context {
                        pool: name.clone(),
                        board: Arc::clone(&pool.board),
                        metrics: self.metrics.clone(),
                        resolver: self.resolver.clone(),
                    };
                    self.tasks.spawn(context.run(target.clone(), self.plan.subscribe()))
                });
                self.by_target.insert(key, task);
            }
        }
        old.into_values().for_each(|left| left.abort());
    }

    /// Waits for the loop of a target that is still in the list to end, which only a panic makes it do.
    pub(crate) async fn failed(&mut self) {
        loop {
            match self.tasks.join_next().await {
                Some(Err(ended)) if ended.is_cancelled() => {}
                Some(_) => return,
                None => std::future::pending().await,
            }
        }
    }
}

impl Context {
    async fn run(self, member: Member, mut plans: watch::Receiver<Arc<Plan>>) {
        let mut target = Target::default();
        let (mut first, mut slow) = (true, false);
        loop {
            let plan = Arc::clone(&plans.borrow_and_update());
            let begun = Instant::now();
            slow = self.probe(&member, &mut target, &plan, slow, first).await;
            // The first interval is any part of one, so that the probes of all targets spread over it.
            let share = if std::mem::take(&mut first) {
                fastrand::f64()
            } else {
                1.0
            };
            let due = begun + plan.interval.mul_f64(share);
            let changed = async {
                // The sender lives as long as the prober.
                if plans.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = sleep_until(due) => {}
                () = changed => {
                    let interval = plans.borrow().interval;
                    sleep_until(due.min(begun + interval)).await;
                }
            }
        }
    }

    /// Probes once; returns whether that was slow.
    async fn probe(&self, member: &Member, target: &mut Target, plan: &Plan, was_slow: bool, first: bool) -> bool {
        let begun = Instant::now();
        let addresses = self.resolver.resolve(member, plan.timeout).await;
        let resolved_in = begun.elapsed();
        let (finding, took) = match addresses {
            Err(error) => (Finding::Down(error.to_string()), resolved_in),
            Ok(addresses) => {
                // Neither semaphore is ever closed. The wait for a place is not the target's fault.
                let _slow = if was_slow {
                    plan.slow_at_once.acquire().await.ok()
                } else {
                    None
                };
                let _place = plan.at_once.acquire().await;
                let begun = Instant::now();
                let left = plan.timeout.saturating_sub(resolved_in);
                let finding = probe::connect(addresses, left)
                    .await
                    .unwrap_or_else(|| Finding::Down(format!("no connection within {:?}", plan.timeout)));
                (finding, resolved_in + begun.elapsed())
            }
        };
        let up = matches!(finding, Finding::Up);
        self.metrics.of(&self.pool).probed(took, up);
        let change = match finding {
            Finding::Nothing => None,
            _ => target.observe(up, plan.thresholds),
        };
        if change.is_some() {
            let (name, pool) = (member.to_string(), self.metrics.in_log(&self.pool));
            match (change, finding) {
                (Some(State::Up), _) => info!(target = name.as_str(), pool = pool; "target is up"),
                (Some(State::Down), Finding::Down(why)) => {
                    warn!(target = name.as_str(), pool = pool, error = why.as_str(); "target is down");
                }
                _ => {}
            }
        }
        if first || change.is_some() {
            self.board.report(member, change);
        }
        took >= plan.timeout / 2
    }
}

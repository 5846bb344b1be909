//! Publishes a pool's board to its set in the registry.
//!
//! A target's change is written at once. Each interval the registry is read and what differs is written, so that a flushed
//! set is complete again after one interval, and nothing is written while nothing changes. The registry records what this
//! sentinel has registered: after a restart with fewer targets it removes the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use registry::{Holdings, Member, PoolName, Registry};

use crate::board::Board;
use crate::dispute::Disputes;
use crate::metrics::Metrics;
use crate::target::State;

/// How often the record in the registry is written even if nothing changes, because it expires.
const RECORD: Duration = Duration::from_secs(24 * 3600);

/// Writes a pool's set in the name of one sentinel.
pub(crate) struct Publisher {
    registry: Arc<dyn Registry>,
    pool: PoolName,
    id: String,
    board: Arc<Board>,
    metrics: Metrics,
    /// The state of each target as this sentinel last wrote it, or found it written.
    published: HashMap<Member, State>,
    disputes: Disputes,
    recorded: Option<Instant>,
    failing: Option<registry::Error>,
    /// The registry may hold something that this sentinel has registered.
    registered: bool,
}

/// What to write.
#[derive(Default)]
struct Change {
    present: Vec<Member>,
    absent: Vec<Member>,
}

impl Change {
    fn add(&mut self, member: &Member, state: State) {
        match state {
            State::Up => self.present.push(member.clone()),
            State::Down => self.absent.push(member.clone()),
            State::Unknown => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.present.is_empty() && self.absent.is_empty()
    }
}

impl Publisher {
    pub(crate) fn new(
        registry: Arc<dyn Registry>,
        pool: PoolName,
        id: String,
        board: Arc<Board>,
        metrics: Metrics,
    ) -> Self {
        Self {
            registry,
            pool,
            id,
            board,
            metrics,
            published: HashMap::new(),
            disputes: Disputes::default(),
            recorded: None,
            failing: None,
            registered: true,
        }
    }

    /// Whether the pool has no targets any more, and nothing in its set is this sentinel's.
    pub(crate) fn has_left(&self) -> bool {
        self.board.is_empty() && !self.registered
    }

    /// Writes the states that have changed. What can't be written is left to [`Publisher::reconcile`].
    pub(crate) async fn publish_changes(&mut self) {
        self.metrics.of(&self.pool).count(self.board.states().into_values());
        let now = Instant::now();
        let mut change = Change::default();
        for (member, state) in self.board.take_changes() {
            if !self.disputes.holds(&member, now) {
                change.add(&member, state);
            }
        }
        if !change.is_empty() {
            let written = self.write(&change).await;
            self.note(&written);
        }
    }

    /// Reads the registry and writes what differs: one cycle.
    pub(crate) async fn reconcile(&mut self, interval: Duration) {
        let reconciled = match self.registry.holdings(&self.pool, &self.id).await {
            Ok(holdings) => {
                let change = self.differences(&holdings, interval, Instant::now());
                let recorded_lately = self.recorded.is_some_and(|when| when.elapsed() < RECORD);
                if change.is_empty() && (recorded_lately || self.board.is_empty()) {
                    Ok(())
                } else {
                    self.write(&change).await
                }
            }
            Err(error) => Err(error),
        };
        self.note(&reconciled);
        let metrics = self.metrics.of(&self.pool);
        match reconciled {
            Ok(()) => {
                self.registered = !self.board.is_empty();
                if self.board.all_probed() {
                    metrics.cycle_succeeded();
                }
            }
            Err(_) => metrics.registry_errors.inc(),
        }
    }

    /// What to write so that the registry is as the board says, but for what another writer insists on.
    fn differences(&mut self, holdings: &Holdings, interval: Duration, now: Instant) -> Change {
        let states = self.board.states();
        self.metrics.of(&self.pool).count(states.values().copied());
        self.published.retain(|member, _| states.contains_key(member));
        for member in self.disputes.take_over(now) {
            info!(target = member.to_string().as_str(), pool = self.in_log(); "the writers of the registry agree about this target again");
        }
        // When the record is gone too, the registry has lost what it held, and nobody has undone anything.
        let lost = holdings.registered.is_empty() && self.published.values().any(|state| *state == State::Up);
        let mut change = Change::default();
        for (member, state) in &states {
            let is_up = match state {
                State::Up => true,
                State::Down => false,
                State::Unknown => continue,
            };
            if holdings.contains(member) == is_up {
                self.published.insert(member.clone(), *state);
                if holdings.registered.contains(member) != is_up {
                    change.add(member, *state);
                }
                continue;
            }
            let undone = self.published.get(member) == Some(state) && !lost;
            if undone {
                self.published.remove(member);
                if self.disputes.undone(member, interval, now) {
                    let (name, state) = (member.to_string(), if is_up { "up" } else { "down" });
                    warn!(target = name.as_str(), pool = self.in_log(), state = state; "another writer of the registry disagrees about this target; publishing it less often");
                }
            }
            if !self.disputes.holds(member, now) {
                change.add(member, *state);
            }
        }
        let left = holdings
            .registered
            .iter()
            .filter(|member| !states.contains_key(*member));
        change.absent.extend(left.cloned());
        change
    }

    async fn write(&mut self, change: &Change) -> Result<(), registry::Error> {
        self.registry
            .publish(&self.pool, &self.id, &change.present, &change.absent)
            .await?;
        self.recorded = Some(Instant::now());
        for (members, state) in [(&change.present, State::Up), (&change.absent, State::Down)] {
            let published = members.iter().map(|member| (member.clone(), state));
            self.published.extend(published);
        }
        Ok(())
    }

    /// Logs when the registry begins to fail, and when it is back. What becomes of a set without targets is worth no line.
    fn note(&mut self, result: &Result<(), registry::Error>) {
        if self.board.is_empty() {
            return;
        }
        let failing = std::mem::replace(&mut self.failing, result.as_ref().err().cloned());
        let pool = self.in_log();
        match result {
            Ok(()) if failing.is_some() => {
                info!(pool = pool; "registry is back; the targets are published again");
            }
            Ok(()) => {}
            Err(error) => {
                let text = error.to_string();
                // Another refusal has another remedy.
                if error.is_refusal() && failing.as_ref() != Some(error) {
                    error!(pool = pool, error = text.as_str(); "registry refuses what the sentinel publishes; probing goes on");
                } else if failing.is_none() {
                    warn!(pool = pool, error = text.as_str(); "registry unavailable; probing goes on");
                }
            }
        }
    }

    fn in_log(&self) -> Option<&str> {
        self.metrics.in_log(&self.pool)
    }
}

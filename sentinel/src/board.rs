//! The state of every target of a pool: written by the probing loops, read by the publisher.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use registry::Member;
use tokio::sync::Notify;

use crate::target::State;

/// The targets and their states.
#[derive(Debug)]
pub(crate) struct Board {
    /// A lock of the standard library, because it is never held across an `await`.
    entries: Mutex<BTreeMap<Member, Entry>>,
    news: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Entry {
    state: State,
    /// At least one probe has ended.
    probed: bool,
    /// The state has changed since [`Board::take_changes`].
    changed: bool,
}

impl Board {
    /// A board without targets, which notifies `news` of each report.
    pub(crate) fn new(news: Arc<Notify>) -> Self {
        Self {
            entries: Mutex::default(),
            news,
        }
    }

    /// Makes `targets` those of the board. One that stays keeps its state.
    pub(crate) fn set_targets(&self, targets: &[Member]) {
        let mut entries = self.entries();
        let mut old = std::mem::take(&mut *entries);
        *entries = targets
            .iter()
            .map(|target| (target.clone(), old.remove(target).unwrap_or_default()))
            .collect();
    }

    /// Notes that a probe of `target` has ended, and the state if that has changed.
    pub(crate) fn report(&self, target: &Member, change: Option<State>) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(target) else { return };
        entry.probed = true;
        if let Some(state) = change {
            entry.state = state;
            entry.changed = true;
        }
        drop(entries);
        self.news.notify_one();
    }

    /// The targets whose state has changed since the last call.
    pub(crate) fn take_changes(&self) -> Vec<(Member, State)> {
        let mut entries = self.entries();
        let changes = entries.iter_mut().filter_map(|(target, entry)| {
            let changed = std::mem::take(&mut entry.changed);
            changed.then(|| (target.clone(), entry.state))
        });
        changes.collect()
    }

    /// All targets with their states.
    pub(crate) fn states(&self) -> BTreeMap<Member, State> {
        let entries = self.entries();
        let states = entries.iter().map(|(target, entry)| (target.clone(), entry.state));
        states.collect()
    }

    /// Whether there are no targets.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// Whether every target has been probed at least once.
    pub(crate) fn all_probed(&self) -> bool {
        self.entries().values().all(|entry| entry.probed)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Member, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Makes the list of the backends that take requests from all that is known of them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::Pool;
use crate::discovery::members::Members;
use crate::pool::balance::ramp::Rise;
use crate::pool::balance::{Candidate, List};
use crate::pool::endpoint::Upstream;

/// A backend that is known.
pub(super) struct Known {
    pub(super) upstream: Arc<Upstream>,
    health: Health,
    rise: Rise,
}

/// What the checks of a backend's addresses found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// One of them has passed.
    Proven,
    /// One of them was never checked, and none has passed.
    Unproven,
    /// None has passed.
    Down,
}

impl Pool {
    /// Makes the list of those that take requests from what is known at `now`. Returns when that changes by itself: an ejection ends, or
    /// a backend that starts slowly gets more.
    pub(super) fn publish(&self, now: Instant) -> Option<Instant> {
        let members = self.discovery.members();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        self.update(&mut known, &members);
        let is_alive = known.values().any(|one| one.health == Health::Proven);
        let mut ejected = self.ejected();
        self.review(&mut ejected, &known, &members, now);
        let next_return = ejected.iter().filter_map(|upstream| upstream.ejection.until()).min();

        let rules = self.rules.load_full();
        // Those that were never checked are better than none.
        let serves = if is_alive { Health::Proven } else { Health::Unproven };
        let from_start = !known.values().any(|one| one.rise.is_alive());
        let mut next_change = next_return;
        let mut alive = Vec::with_capacity(members.len());
        for (name, _) in members.iter() {
            let Some(one) = known.get_mut(name) else { continue };
            // Among those that were never checked nobody else may be left.
            let is_out = is_alive && one.upstream.ejection.is_ejected();
            if is_out || one.health == Health::Down {
                one.rise.down();
            } else if one.health == serves {
                one.rise.alive(now, from_start);
                let meta = members.meta(name);
                let (parts, next_part) = one.rise.parts(rules.slow_start, now);
                next_change = next_change.into_iter().chain(next_part).min();
                alive.push(Candidate {
                    upstream: Arc::clone(&one.upstream),
                    weight: u32::from(meta.weight) * parts,
                    backup: meta.backup,
                    drain: meta.drain,
                });
            } else if from_start {
                // It is as old as those that have passed their first check a moment before it.
                one.rise.alive(now, true);
            }
        }
        let all = alive.len() + ejected.len();
        self.count.ejected.store(ejected.len(), Ordering::Relaxed);
        self.count.alive_or_ejected.store(all, Ordering::Relaxed);
        drop(ejected);
        drop(known);
        let count = i64::try_from(alive.len()).unwrap_or(i64::MAX);
        self.alive.store(Arc::new(List::new(rules, alive)));
        // Who waits for the metric may send a request at once.
        self.metrics.active_backends.set(count);
        self.is_alive.store(is_alive, Ordering::Relaxed);
        self.was_alive.fetch_or(is_alive, Ordering::Relaxed);
        next_change
    }

    /// Brings `known` up to date: who is a member, and what the checks found.
    fn update(&self, known: &mut HashMap<Arc<str>, Known>, members: &Members) {
        let mut found = self.check.found();
        found.retain(|address, _| members.owner(address).is_some());
        known.retain(|name, gone| {
            let stays = !members.addresses_of(name).is_empty();
            if !stays {
                self.metrics.forget_backend(name);
                gone.upstream.kept.close();
            }
            stays
        });
        for (name, addresses) in members.iter() {
            let which = |finding: Option<bool>| -> Vec<SocketAddr> {
                let these = addresses
                    .iter()
                    .filter(|address| found.get(address).copied() == finding);
                these.copied().collect()
            };
            let one = known.entry(Arc::clone(name)).or_insert_with(|| {
                let (room, metrics) = (Arc::clone(&self.room), Arc::clone(&self.metrics));
                Known {
                    upstream: Arc::new(Upstream::new(Arc::clone(name), addresses.to_vec(), room, metrics)),
                    health: Health::Unproven,
                    rise: Rise::default(),
                }
            });
            let (good, unchecked) = (which(Some(true)), which(None));
            one.health = if !good.is_empty() {
                one.upstream.serve_at(good);
                Health::Proven
            } else if !unchecked.is_empty() {
                one.upstream.serve_at(unchecked);
                Health::Unproven
            } else {
                Health::Down
            };
        }
    }

    /// Readmits those whose ejection is over at `now`, and all where nobody else takes new requests.
    fn review(
        &self,
        ejected: &mut Vec<Arc<Upstream>>,
        known: &HashMap<Arc<str>, Known>,
        members: &Members,
        now: Instant,
    ) {
        let proven = || known.values().filter(|one| one.health == Health::Proven);
        let over = |upstream: &&Arc<Upstream>| upstream.ejection.until().is_none_or(|until| until <= now);
        ejected
            .iter()
            .filter(over)
            .for_each(|upstream| upstream.ejection.readmit(now));
        let takes_new = |one: &Known| {
            let meta = members.meta(&one.upstream.name);
            !one.upstream.ejection.is_ejected() && meta.weight > 0 && !meta.drain
        };
        if !proven().any(takes_new) {
            proven().for_each(|one| one.upstream.ejection.readmit(now));
        }
        ejected.retain(|upstream| {
            let same = |one: &Known| Arc::ptr_eq(&one.upstream, upstream);
            upstream.ejection.is_ejected() && known.get(&upstream.name).is_some_and(same)
        });
    }
}

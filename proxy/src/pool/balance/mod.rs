//! Which backend gets a request.
//!
//! The pool publishes an immutable [`List`] of the backends that take requests, made for the rules of the pool. A choice reads it without a
//! lock: all that changes are the turns and the numbers of requests in flight, which are atomics. So every algorithm stays exact
//! while the list changes, and a pool without weights, limits and cookies pays for none of them.
//!
//! - [`hash`]: the same backend for the same key.
//! - [`pace`]: how long they take to answer.
//! - [`place`]: counts the requests in flight.
//! - [`ramp`]: slow start.
//! - [`sticky`]: the cookie that keeps a client at its backend.
//! - [`turns`]: the order of turns where weights differ.

pub mod hash;
pub mod pace;
pub mod place;
pub mod ramp;
pub mod sticky;
#[cfg(test)]
mod tests;
pub mod turns;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::{self, Algorithm};
use crate::pool::balance::pace::{faster, slowness};
use crate::pool::balance::place::Place;
use crate::pool::balance::sticky::{Named, Sticking, Sticky, cookie};
use crate::pool::endpoint::{Endpoint, Upstream};

/// As many backends are all looked at to find the one with the fewest requests in flight. Of more, two are compared: that is nearly as good, and
/// with so many it matters little that both can be slow.
const COMPARED: usize = 16;

/// How a pool chooses.
pub struct Rules {
    algorithm: Algorithm,
    sticky: Option<Arc<Sticky>>,
    /// In this time a backend that has become alive gets its whole weight.
    pub slow_start: Option<Duration>,
    max_inflight: Option<u32>,
    /// Requests in flight are counted.
    counts: bool,
}

impl Rules {
    /// Those of `config`, for the pool of this name.
    pub fn new(config: &config::Balance, pool: &str) -> Self {
        Self {
            counts: config.algorithm != Algorithm::RoundRobin || config.max_inflight.is_some(),
            algorithm: config.algorithm.clone(),
            sticky: config.sticky.as_ref().map(|sticky| Arc::new(Sticky::new(sticky, pool))),
            slow_start: config.slow_start,
            max_inflight: config.max_inflight,
        }
    }
}

/// What of a request decides over its backend.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'h> {
    /// The client's address.
    pub client: IpAddr,
    /// The path and the query.
    pub path: &'h [u8],
    /// The request has no body.
    pub bodiless: bool,
    /// The fields.
    pub fields: &'h [httparse::Header<'h>],
}

impl<'h> Asked<'h> {
    fn values(self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        let named = move |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
        self.fields.iter().filter(named).map(|field| field.value)
    }

    fn cookie(self, name: &str) -> Option<&'h [u8]> {
        cookie(name, self.values("cookie"))
    }
}

/// An alive backend, for a [`List`].
pub struct Candidate {
    /// The backend.
    pub upstream: Arc<Upstream>,
    /// Its share of the requests, beside that of others. With 0 it gets none.
    pub weight: u32,
    /// It gets requests only when no other backend takes new ones.
    pub backup: bool,
    /// It gets only the requests of clients that have its cookie.
    pub drain: bool,
}

impl Candidate {
    /// Whether it takes requests of clients that have no cookie.
    pub fn takes_new(&self) -> bool {
        self.weight > 0 && !self.drain
    }
}

/// A backend was chosen for a request.
pub struct Picked {
    /// The backend, at one of its addresses.
    pub endpoint: Endpoint,
    /// The request's place there.
    pub place: Place,
}

/// What ties a request to backends.
#[derive(Clone, Default)]
pub struct Affinity {
    /// What is hashed for it.
    key: Option<u64>,
    /// Its cookie, in a pool that has one.
    pub sticking: Option<Sticking>,
}

impl Affinity {
    /// The value of the `Set-Cookie` that the client gets with the answer of `upstream`, if it needs one.
    pub fn set_cookie(&self, upstream: &Upstream) -> Option<String> {
        self.sticking.as_ref()?.set_cookie(upstream)
    }
}

/// Why no backend was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// None takes requests.
    NoneAlive,
    /// All have as many requests in flight as they may.
    AllBusy,
}

/// The backends that take requests. It never changes: a pool makes a new one.
pub struct List {
    rules: Arc<Rules>,
    /// Those that take new requests.
    backends: Vec<Weighted>,
    /// Whose turns follow each other, as indices; empty where all weights are the same.
    turns: Vec<u32>,
    /// Who gets the requests of clients with this cookie.
    named: HashMap<Box<str>, Arc<Upstream>>,
}

struct Weighted {
    upstream: Arc<Upstream>,
    weight: u32,
}

impl List {
    /// A list of those `alive` that take requests by `rules`.
    pub fn new(rules: Arc<Rules>, alive: Vec<Candidate>) -> Self {
        let backup = !alive.iter().any(|one| one.takes_new() && !one.backup);
        let mut named = HashMap::new();
        if let Some(sticky) = &rules.sticky {
            let stays = |one: &&Candidate| one.weight > 0 && (backup || !one.backup);
            let value = |one: &Candidate| (sticky.value(&one.upstream.name), Arc::clone(&one.upstream));
            named = alive.iter().filter(stays).map(value).collect();
        }
        let takes = alive.into_iter().filter(|one| one.takes_new() && one.backup == backup);
        let backends: Vec<_> = takes
            .map(|Candidate { upstream, weight, .. }| Weighted { upstream, weight })
            .collect();
        let weights: Vec<_> = backends.iter().map(|backend| backend.weight).collect();
        Self {
            turns: turns::order(&weights),
            rules,
            backends,
            named,
        }
    }

    /// How many backends take new requests.
    pub fn len(&self) -> usize {
        self.backends.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// The backend for a request that was sent to none yet.
    ///
    /// # Errors
    /// When there is none.
    pub fn pick(&self, asked: Asked<'_>, turn: &AtomicUsize) -> Result<(Picked, Affinity), Unavailable> {
        let mut affinity = Affinity {
            key: hash::key(&self.rules.algorithm, asked),
            sticking: None,
        };
        if let Some(sticky) = &self.rules.sticky {
            let value = asked.cookie(sticky.name());
            let named = value.and_then(|value| self.named.get(str::from_utf8(value).ok()?));
            let named = named.filter(|upstream| !upstream.ejection.is_ejected());
            let place = named.map(|upstream| self.enter(upstream).ok_or(upstream));
            let says = match (named, &place) {
                (Some(upstream), Some(Ok(_))) => Named::Backend(Arc::clone(upstream)),
                (Some(_), _) => Named::Full,
                (None, _) => Named::Nobody,
            };
            affinity.sticking = Some(Sticking {
                sticky: Arc::clone(sticky),
                named: says,
                secure: false,
            });
            if let (Some(upstream), Some(Ok(place))) = (named, place) {
                let endpoint = upstream.endpoint();
                return Ok((Picked { endpoint, place }, affinity));
            }
        }
        let mut chosen = self.choose(&affinity, turn, |_| true);
        if let Some(picked) = &mut chosen
            && asked.bodiless
            && self.rules.algorithm == Algorithm::LeastRequests
        {
            picked.place.time();
        }
        // All may have been ejected a moment ago: then any is better than none.
        match chosen.or_else(|| self.any(|_| true)) {
            Some(picked) => Ok((picked, affinity)),
            None if self.backends.is_empty() => Err(Unavailable::NoneAlive),
            None => Err(Unavailable::AllBusy),
        }
    }

    /// A backend that `fits`, is not ejected and has a place.
    pub fn choose(
        &self,
        affinity: &Affinity,
        turn: &AtomicUsize,
        fits: impl Fn(&Arc<Upstream>) -> bool,
    ) -> Option<Picked> {
        let fits = |upstream: &Arc<Upstream>| !upstream.ejection.is_ejected() && fits(upstream);
        match (&self.rules.algorithm, affinity.key) {
            (Algorithm::LeastRequests, _) => self.least(fits),
            (Algorithm::Hash(_), Some(key)) => self.of_key(key, fits),
            (Algorithm::RoundRobin | Algorithm::Hash(_), _) => self.in_turn(turn, fits),
        }
    }

    /// The request's place at `upstream`, if it may have one.
    pub fn enter(&self, upstream: &Arc<Upstream>) -> Option<Place> {
        if !self.rules.counts {
            return Some(Place::default());
        }
        Place::take(upstream, self.rules.max_inflight)
    }

    fn picked(&self, upstream: &Arc<Upstream>) -> Option<Picked> {
        let place = self.enter(upstream)?;
        let endpoint = upstream.endpoint();
        Some(Picked { endpoint, place })
    }

    /// Whoever's turn it is. A turn that can't be used is lost, so that the backend behind a broken one gets no more of them than the
    /// rest.
    fn in_turn(&self, turn: &AtomicUsize, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<Picked> {
        let backends = &self.backends;
        for _ in backends {
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            let index = match self.turns.len() {
                0 => turn % backends.len(),
                turns => self.turns[turn % turns] as usize,
            };
            let upstream = &backends[index].upstream;
            if fits(upstream)
                && let Some(picked) = self.picked(upstream)
            {
                return Some(picked);
            }
        }
        // Other threads may have had the turns of those that fit, or heavier backends.
        self.any(fits)
    }

    fn any(&self, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<Picked> {
        let mut fitting = self.backends.iter().map(|backend| &backend.upstream);
        fitting.find_map(|upstream| fits(upstream).then(|| self.picked(upstream))?)
    }

    /// Whoever has the fewest requests in flight for its weight and its pace.
    fn least(&self, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<Picked> {
        let backends = &self.backends;
        let count = backends.len();
        let fits = |upstream: &Arc<Upstream>| fits(upstream) && !self.is_full(upstream);
        let mut least = None;
        if count > COMPARED {
            let one = fastrand::usize(..count);
            let other = (one + fastrand::usize(1..count)) % count;
            let two = [one, other]
                .into_iter()
                .filter(|index| fits(&backends[*index].upstream));
            let fastest = faster(backends[one].mean(), backends[other].mean());
            least = two.min_by(|one, other| compare(&backends[*one], &backends[*other], fastest));
        }
        let index = least.or_else(|| self.least_of_all(fits))?;
        // Other threads may have taken its last place.
        self.picked(&backends[index].upstream).or_else(|| self.any(fits))
    }

    /// Of those with the same number any, each as likely as the others.
    fn least_of_all(&self, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<usize> {
        let means = self.backends.iter().map(Weighted::mean);
        let fastest = means.reduce(faster).unwrap_or_default();
        let (mut first, mut least_load, mut its_weight) = (None, u64::MAX, 1);
        // A bit for each of the first 64.
        let mut ties = 0u64;
        for (index, backend) in self.backends.iter().enumerate() {
            if !fits(&backend.upstream) {
                continue;
            }
            let (load, weight) = (backend.load(fastest), u64::from(backend.weight));
            let (this, least) = (load * its_weight, least_load.saturating_mul(weight));
            if this < least {
                (first, least_load, its_weight, ties) = (Some(index), load, weight, 0);
            }
            ties |= u64::from(this <= least) << (index % 64) & u64::from(index >= 64).wrapping_sub(1);
        }
        match ties.count_ones() {
            0 | 1 => first,
            count => {
                (0..fastrand::u32(..count)).for_each(|_| ties &= ties - 1);
                usize::try_from(ties.trailing_zeros()).ok()
            }
        }
    }

    fn is_full(&self, upstream: &Upstream) -> bool {
        self.rules
            .max_inflight
            .is_some_and(|most| upstream.in_flight.load(Ordering::Relaxed) >= most)
    }

    /// Whoever the key belongs to, or whoever it would belong to without those that are too busy.
    fn of_key(&self, key: u64, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<Picked> {
        let fits = |upstream: &Arc<Upstream>| fits(upstream) && !self.is_full(upstream);
        let weighted = !self.turns.is_empty();
        let (mut requests, mut weights) = (0, 0);
        let mut best = None;
        for backend in &self.backends {
            requests += u64::from(backend.upstream.in_flight.load(Ordering::Relaxed));
            weights += u64::from(backend.weight);
            if fits(&backend.upstream) {
                hash::prefer(
                    &mut best,
                    backend,
                    hash::score(key, backend.upstream.seed, backend.weight, weighted),
                );
            }
        }
        let has_room = |backend: &Weighted| {
            let in_flight = u64::from(backend.upstream.in_flight.load(Ordering::Relaxed));
            hash::is_within(in_flight, requests, u64::from(backend.weight), weights)
        };
        let (first, _) = best?;
        if !has_room(first) {
            let others = self
                .backends
                .iter()
                .filter(|backend| fits(&backend.upstream) && has_room(backend));
            let mut second = None;
            for backend in others {
                hash::prefer(
                    &mut second,
                    backend,
                    hash::score(key, backend.upstream.seed, backend.weight, weighted),
                );
            }
            // Those that are not too busy may not fit.
            best = second.or(best);
        }
        let (backend, _) = best?;
        self.picked(&backend.upstream).or_else(|| self.any(fits))
    }
}

impl Weighted {
    #[inline]
    fn mean(&self) -> u32 {
        self.upstream.pace.mean()
    }

    /// How many requests would be in flight to it with one more, or as many as that means where the fastest takes so long to answer.
    #[inline]
    fn load(&self, fastest: u32) -> u64 {
        let in_flight = u64::from(self.upstream.in_flight.load(Ordering::Relaxed));
        (in_flight + 1) * slowness(self.mean(), fastest)
    }
}

fn compare(one: &Weighted, other: &Weighted, fastest: u32) -> std::cmp::Ordering {
    (one.load(fastest) * u64::from(other.weight)).cmp(&(other.load(fastest) * u64::from(one.weight)))
}

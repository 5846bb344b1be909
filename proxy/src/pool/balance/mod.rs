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
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::{self, Algorithm};
use crate::pool::balance::pace::{of_fastest, slowness};
use crate::pool::balance::place::Place;
use crate::pool::balance::sticky::{Named, Sticking, Sticky, cookie};
use crate::pool::endpoint::{Endpoint, Upstream};

/// As many backends are all looked at to find the one with the fewest requests in flight. Of more, two are compared: that is nearly as good, and
/// with so many it matters little that both can be slow.
const COMPARED: usize = 16;

/// Of Knuth's generator of random numbers (MMIX).
const MULTIPLIER: u64 = 0x5851_f42d_4c95_7f2d;

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
    /// Its cookie, in a pool that has one. Boxed, because few have.
    pub sticking: Option<Box<Sticking>>,
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

/// The backends that take requests. Which those are never changes: a pool makes a new one.
pub struct List {
    rules: Arc<Rules>,
    /// Those that take new requests.
    backends: Vec<Weighted>,
    /// Whose turns follow each other, as indices; empty where all weights are the same.
    turns: Vec<u32>,
    /// Who gets the requests of clients with this cookie.
    named: HashMap<Box<str>, Arc<Upstream>>,
    /// How long the fastest of the backends takes to answer, as [`List::compare_paces`] has found it. A choice would look at each backend
    /// once more to find it.
    fastest: AtomicU32,
}

struct Weighted {
    upstream: Arc<Upstream>,
    weight: u32,
    /// Its address, if it has one alone: a pool makes a new list when that changes.
    only_address: Option<SocketAddr>,
}

/// A backend, and a request's place there.
type Chosen<'l> = (&'l Weighted, Place);

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
            .map(|Candidate { upstream, weight, .. }| Weighted {
                only_address: upstream.only_address(),
                upstream,
                weight,
            })
            .collect();
        let weights: Vec<_> = backends.iter().map(|backend| backend.weight).collect();
        let list = Self {
            turns: turns::order(&weights),
            rules,
            backends,
            named,
            fastest: AtomicU32::new(0),
        };
        list.compare_paces();
        list
    }

    /// Finds out which backend is the fastest. To be called every second: how long they take changes slowly.
    pub fn compare_paces(&self) {
        let fastest = of_fastest(self.backends.iter().map(Weighted::mean));
        self.fastest.store(fastest, Ordering::Relaxed);
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
            let (sticking, picked) = self.stick(sticky, asked);
            affinity.sticking = Some(sticking);
            if let Some(picked) = picked {
                return Ok((picked, affinity));
            }
        }
        // All may have been ejected a moment ago: then any is better than none.
        let chosen = self.find(&affinity, turn, |_| true).or_else(|| self.any(|_| true));
        let Some((backend, mut place)) = chosen else {
            let none = self.backends.is_empty();
            return Err(if none {
                Unavailable::NoneAlive
            } else {
                Unavailable::AllBusy
            });
        };
        if asked.bodiless && self.rules.algorithm == Algorithm::LeastRequests {
            place.time();
        }
        let endpoint = backend.endpoint();
        Ok((Picked { endpoint, place }, affinity))
    }

    /// What the cookie of a request says, and the backend that it names, if that takes the request.
    fn stick(&self, sticky: &Arc<Sticky>, asked: Asked<'_>) -> (Box<Sticking>, Option<Picked>) {
        let value = asked.cookie(sticky.name());
        let named = value.and_then(|value| self.named.get(str::from_utf8(value).ok()?));
        let named = named.filter(|upstream| !upstream.ejection.is_ejected());
        let picked = named.and_then(|upstream| {
            let place = self.enter(upstream)?;
            let endpoint = upstream.endpoint();
            Some(Picked { endpoint, place })
        });
        let says = match (named, &picked) {
            (Some(upstream), Some(_)) => Named::Backend(Arc::clone(upstream)),
            (Some(_), None) => Named::Full,
            (None, _) => Named::Nobody,
        };
        let sticking = Sticking {
            sticky: Arc::clone(sticky),
            named: says,
            secure: false,
        };
        (Box::new(sticking), picked)
    }

    /// A backend that `fits`, is not ejected and has a place.
    pub fn choose(
        &self,
        affinity: &Affinity,
        turn: &AtomicUsize,
        fits: impl Fn(&Arc<Upstream>) -> bool,
    ) -> Option<Picked> {
        let (backend, place) = self.find(affinity, turn, fits)?;
        let endpoint = backend.endpoint();
        Some(Picked { endpoint, place })
    }

    fn find(
        &self,
        affinity: &Affinity,
        turn: &AtomicUsize,
        fits: impl Fn(&Arc<Upstream>) -> bool,
    ) -> Option<Chosen<'_>> {
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

    fn chosen<'l>(&self, backend: &'l Weighted) -> Option<Chosen<'l>> {
        Some((backend, self.enter(&backend.upstream)?))
    }

    /// Whoever's turn it is. A turn that can't be used is lost, so that the backend behind a broken one gets no more of them than the
    /// rest.
    fn in_turn(&self, turn: &AtomicUsize, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<Chosen<'_>> {
        let backends = &self.backends;
        for _ in backends {
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            let index = match self.turns.len() {
                0 => turn % backends.len(),
                turns => self.turns[turn % turns] as usize,
            };
            let backend = &backends[index];
            if fits(&backend.upstream)
                && let Some(chosen) = self.chosen(backend)
            {
                return Some(chosen);
            }
        }
        // Other threads may have had the turns of those that fit, or heavier backends.
        self.any(fits)
    }

    fn any(&self, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<Chosen<'_>> {
        let mut fitting = self.backends.iter().filter(|backend| fits(&backend.upstream));
        fitting.find_map(|backend| self.chosen(backend))
    }

    /// Whoever has the fewest requests in flight for its weight and its pace.
    fn least(&self, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<Chosen<'_>> {
        let backends = &self.backends;
        let fits = |upstream: &Arc<Upstream>| fits(upstream) && !self.is_full(upstream);
        let fastest = self.fastest.load(Ordering::Relaxed);
        let least = if backends.len() > COMPARED {
            least_of_two(backends, fastest, fits)
        } else {
            None
        };
        let least = least.or_else(|| least_of_all(backends, fastest, fits));
        // Other threads may have taken its last place.
        self.chosen(least?).or_else(|| self.any(fits))
    }

    fn is_full(&self, upstream: &Upstream) -> bool {
        self.rules
            .max_inflight
            .is_some_and(|most| upstream.in_flight.load(Ordering::Relaxed) >= most)
    }

    /// Whoever the key belongs to, or whoever it would belong to without those that are too busy.
    fn of_key(&self, key: u64, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<Chosen<'_>> {
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
        self.chosen(backend).or_else(|| self.any(fits))
    }
}

/// Whoever has the fewest requests of those that `fit`; of several with the same number any, each as likely as the others.
fn least_of_all(backends: &[Weighted], fastest: u32, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<&Weighted> {
    // Each has a random number, which decides between equal loads: numbers in which a comparison has no branch to mispredict.
    let mut random = fastrand::u64(..) | 1;
    let fitting = backends.iter().filter(|backend| fits(&backend.upstream));
    fitting.min_by_key(|backend| {
        random = random.wrapping_mul(MULTIPLIER);
        // The bits of positive numbers are ordered as the numbers are.
        u64::from(backend.share(fastest).to_bits()) << 32 | random >> 32
    })
}

/// Whoever has fewer requests of two that are drawn, if one of them `fits`.
fn least_of_two(backends: &[Weighted], fastest: u32, fits: impl Fn(&Arc<Upstream>) -> bool) -> Option<&Weighted> {
    let count = backends.len();
    let one = fastrand::usize(..count);
    let other = (one + fastrand::usize(1..count)) % count;
    let drawn = [&backends[one], &backends[other]];
    let fitting = drawn.into_iter().filter(|backend| fits(&backend.upstream));
    fitting.min_by_key(|backend| backend.share(fastest).to_bits())
}

impl Weighted {
    /// It, at its next address.
    fn endpoint(&self) -> Endpoint {
        match self.only_address {
            Some(address) => Endpoint {
                upstream: Arc::clone(&self.upstream),
                address,
            },
            None => self.upstream.endpoint(),
        }
    }

    #[inline]
    fn mean(&self) -> u32 {
        self.upstream.pace.mean()
    }

    /// How many requests would be in flight to it with one more, or as many as that means where the fastest takes so long to answer.
    #[inline]
    fn load(&self, fastest: u32) -> u32 {
        let one_more = self.upstream.in_flight.load(Ordering::Relaxed).saturating_add(1);
        one_more.saturating_mul(slowness(self.mean(), fastest))
    }

    /// That for its weight. Equal fractions are equal as floating-point numbers too, so that ties are exact.
    #[inline]
    fn share(&self, fastest: u32) -> f32 {
        self.load(fastest) as f32 / self.weight as f32
    }
}

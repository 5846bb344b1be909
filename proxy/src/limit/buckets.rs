//! The exact buckets: a table with a fixed number of places.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use ahash::RandomState;

use super::lock;

/// The table is split so that threads seldom wait for one another.
const SHARDS: usize = 64;
/// The pause between searches for places in a full shard, in nanoseconds, so that a flood does not cause a search with each request.
const SWEEP_PAUSE: u64 = 50_000_000;

/// The buckets that are not full, and some that are. Times are in nanoseconds since `start`.
pub(super) struct Buckets {
    start: Instant,
    hasher: RandomState,
    pub(super) shards: Box<[Mutex<Shard>]>,
    places_in_shard: usize,
}

/// A part of the table: for each client, the time at which its bucket is full again.
pub(super) struct Shard {
    pub(super) full_at: HashMap<u128, u64, RandomState>,
    /// The latest time at which a request was decided.
    pub(super) latest: u64,
    next_sweep: u64,
}

impl Buckets {
    /// A table with places for this many clients, whose time begins at `start`.
    pub(super) fn new(clients: usize, start: Instant) -> Self {
        let hasher = RandomState::new();
        let shard = || {
            Mutex::new(Shard {
                full_at: HashMap::with_hasher(hasher.clone()),
                latest: 0,
                next_sweep: 0,
            })
        };
        Self {
            start,
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            places_in_shard: clients.div_ceil(SHARDS),
            hasher,
        }
    }

    /// The part of the table for this client.
    pub(super) fn shard(&self, client: u128) -> MutexGuard<'_, Shard> {
        // The map takes the low bits of the same hash, so the shard takes others.
        let index = self.hasher.hash_one(client) >> 32;
        lock(&self.shards[usize::try_from(index).unwrap_or(0) % SHARDS])
    }

    /// Whether there is a place for a new bucket in `shard`, if need be by giving up full ones.
    pub(super) fn has_place(&self, shard: &mut Shard, now: u64) -> bool {
        if shard.full_at.len() >= self.places_in_shard && now >= shard.next_sweep {
            shard.sweep(now);
            shard.next_sweep = now + SWEEP_PAUSE;
        }
        shard.full_at.len() < self.places_in_shard
    }

    /// Gives up the places of all buckets that are full at `now`; returns how many are left.
    pub(super) fn sweep(&self, now: Instant) -> usize {
        let now = self.nanos(now);
        let left = |shard: &Mutex<Shard>| {
            let mut shard = lock(shard);
            shard.sweep(now);
            shard.full_at.len()
        };
        self.shards.iter().map(left).sum()
    }

    pub(super) fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX / 4)
    }
}

impl Shard {
    fn sweep(&mut self, now: u64) {
        self.full_at.retain(|_, full_at| *full_at > now);
    }
}

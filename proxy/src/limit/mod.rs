//! The rate limiter: a token bucket for each client.
//!
//! Two layers, each for a reason:
//!
//! - **Exact buckets** in a table with a fixed number of places. A bucket is one number, the time at which it will be full
//!   again (GCRA: the generic cell rate algorithm): a request is allowed when taking a token would not push that
//!   time further than a whole bucket ahead. A bucket that is full again equals a new one, so only full ones give up
//!   their place, and nothing is lost.
//! - **An estimator** (`pingora_limits`, a count-min sketch) that counts in fixed memory the requests of clients that find no
//!   place when a flood of addresses has filled the table, and decides about them. A client that is over its limit has a
//!   bucket and keeps it, however many new addresses pass by. The estimator never counts too little, so nobody gets more
//!   than a bucket would give; it may count too much, so in such a flood a client within its limit may be refused.
//!
//! Limiters can share both layers ([`shared`]): then their memory does not grow with their number.
//!
//! [`ClientLimiter::check`] takes the time as an argument, so that its tests need no clock.

mod buckets;
mod note;
pub mod refusals;
pub mod shared;
#[cfg(test)]
mod tests;
mod windows;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Limit;
use buckets::Buckets;
use windows::Windows;

/// A window of the estimator is at least this long, in nanoseconds, because each turn of it empties all its counts, which
/// takes a tenth of a millisecond or so; and not longer, because a client without a bucket gets no more than a burst in it.
const SHORTEST_WINDOW: u64 = 100_000_000;

/// What the limiter decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The request may pass.
    Allow {
        /// How many more may pass at once.
        remaining: u32,
    },
    /// The client is over its limit.
    Limited {
        /// After waiting this long the client is served.
        retry_after: Duration,
    },
}

/// A token bucket for each client.
pub struct ClientLimiter {
    rate: Rate,
    ipv6_mask: u128,
    /// Tells the clients of this limiter from those of others with the same table: a part of each key. 0 where there are no others.
    salt: u128,
    buckets: Arc<Buckets>,
    seen: Arc<Windows>,
}

/// How fast tokens come back, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// How long a token takes.
    token: u64,
    /// How long a bucket takes to fill: as many tokens as the burst.
    bucket: u64,
}

impl Rate {
    fn of(limit: &Limit) -> Self {
        // Below a nanosecond a token there is nothing to limit.
        let token = u64::try_from(Duration::from_secs_f64(1.0 / limit.per_second).as_nanos())
            .unwrap_or(u64::MAX / 2)
            .max(1);
        Self {
            token,
            bucket: token.saturating_mul(limit.burst.into()),
        }
    }
}

impl ClientLimiter {
    /// A limiter whose time begins at `start`.
    pub fn new(limit: &Limit, start: Instant) -> Self {
        Self::with_columns(limit, start, windows::COLUMNS)
    }

    /// The same with an estimator of this many columns: with fewer it takes less memory and counts too much more often.
    fn with_columns(limit: &Limit, start: Instant, columns: usize) -> Self {
        let rate = Rate::of(limit);
        let buckets = Arc::new(Buckets::new(limit.clients, start));
        let seen = Arc::new(Windows::new(rate.bucket.max(SHORTEST_WINDOW), columns));
        Self::over(limit, 0, buckets, seen)
    }

    /// The same over this table and this estimator, with this salt.
    fn over(limit: &Limit, salt: u128, buckets: Arc<Buckets>, seen: Arc<Windows>) -> Self {
        Self {
            rate: Rate::of(limit),
            ipv6_mask: u128::MAX << (128 - u32::from(limit.ipv6_prefix)),
            salt,
            buckets,
            seen,
        }
    }

    /// How long an empty bucket takes to fill.
    pub fn refill(&self) -> Duration {
        Duration::from_nanos(self.rate.bucket)
    }

    /// Decides one request of `client` at `now`, and takes its token if it may pass.
    pub fn check(&self, client: IpAddr, now: Instant) -> Verdict {
        let now = self.buckets.nanos(now);
        let client = self.salted(client);
        let mut shard = self.buckets.shard(client);
        // A thread that was held up comes with a time that is past, by which a bucket filled since then would look overdrawn.
        let now = now.max(shard.latest);
        shard.latest = now;
        if let Some(full_at) = shard.full_at.get_mut(&client) {
            return self.rate.take(full_at, now);
        }
        if self.buckets.has_place(&mut shard, now) {
            let full_at = shard.full_at.entry(client).or_insert(now + self.owed(client, now));
            return self.rate.take(full_at, now);
        }
        drop(shard);
        self.rate
            .estimate(self.seen.observe(client, now), || self.seen.forgotten_in(now))
    }

    /// Gives the token back that a request of `client` took, because something else keeps it from passing. What the estimator has
    /// counted stays counted.
    pub fn give_back(&self, client: IpAddr) {
        let client = self.salted(client);
        if let Some(full_at) = self.buckets.shard(client).full_at.get_mut(&client) {
            *full_at = full_at.saturating_sub(self.rate.token);
        }
    }

    /// How many clients have a bucket that is not full, at `now`. Gives up the places of all others.
    pub fn clients(&self, now: Instant) -> usize {
        self.buckets.sweep(now)
    }

    /// How much is missing in a new bucket: nothing, except while the table was found full a moment ago: then the client may have
    /// been let through by the estimator, and must not get a whole burst on top of that.
    fn owed(&self, client: u128, now: u64) -> u64 {
        let seen = self.seen.count(client, now);
        seen.saturating_mul(self.rate.token).min(self.rate.bucket)
    }

    /// What identifies a client: an IPv4 address, or the network of an IPv6 address.
    pub fn key(&self, address: IpAddr) -> u128 {
        match address.to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits() & self.ipv6_mask,
        }
    }

    /// What identifies it in the table and for the estimator.
    fn salted(&self, address: IpAddr) -> u128 {
        self.key(address) ^ self.salt
    }
}

impl Rate {
    /// Takes a token out of the bucket that is full again at `full_at`, if there is one in it.
    fn take(self, full_at: &mut u64, now: u64) -> Verdict {
        let after = (*full_at).max(now) + self.token;
        let ahead = after - now;
        if ahead > self.bucket {
            return Verdict::Limited {
                retry_after: Duration::from_nanos(ahead - self.bucket),
            };
        }
        *full_at = after;
        self.allow(self.bucket - ahead)
    }

    /// The verdict on a client without a bucket: no more than a burst in this window and the one before. A window is as long
    /// as a burst takes to come back, or longer, so that no bucket would have allowed less.
    fn estimate(self, seen: u64, forgotten_in: impl FnOnce() -> u64) -> Verdict {
        match self.bucket.checked_sub(seen.saturating_mul(self.token)) {
            Some(left) => self.allow(left),
            None => Verdict::Limited {
                retry_after: Duration::from_nanos(forgotten_in()),
            },
        }
    }

    fn allow(self, left: u64) -> Verdict {
        Verdict::Allow {
            remaining: u32::try_from(left / self.token).unwrap_or(u32::MAX),
        }
    }
}

/// A panic while holding the lock leaves a table that is as good as before it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

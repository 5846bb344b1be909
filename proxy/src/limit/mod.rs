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
//! [`ClientLimiter::check`] takes the time as an argument, so that its tests need no clock.

mod note;
pub mod refusals;
mod windows;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::RandomState;

use crate::config::Limit;
use windows::Windows;

/// The table is split so that threads seldom wait for one another.
const SHARDS: usize = 64;
/// The pause between searches for places in a full shard, in nanoseconds, so that a flood does not cause a search with each request.
const SWEEP_PAUSE: u64 = 50_000_000;
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

/// Token buckets for all clients. Times are in nanoseconds since `start`.
pub struct ClientLimiter {
    start: Instant,
    /// How long a token takes to come back.
    token: u64,
    /// How long a bucket takes to fill: as many tokens as the burst.
    bucket: u64,
    ipv6_mask: u128,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    places_in_shard: usize,
    seen: Windows,
    /// Until when the estimator remembers a client that found no place.
    crowded_until: AtomicU64,
}

/// A part of the table: for each client, the time at which its bucket is full again.
struct Shard {
    full_at: HashMap<u128, u64, RandomState>,
    /// The latest time at which a request was decided.
    latest: u64,
    next_sweep: u64,
}

impl ClientLimiter {
    /// A limiter whose time begins at `start`.
    pub fn new(limit: &Limit, start: Instant) -> Self {
        Self::with_columns(limit, start, windows::COLUMNS)
    }

    /// The same with an estimator of this many columns: with fewer it takes less memory and counts too much more often.
    fn with_columns(limit: &Limit, start: Instant, columns: usize) -> Self {
        // Below a nanosecond a token there is nothing to limit.
        let token = u64::try_from(Duration::from_secs_f64(1.0 / limit.per_second).as_nanos())
            .unwrap_or(u64::MAX / 2)
            .max(1);
        let bucket = token.saturating_mul(limit.burst.into());
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
            token,
            bucket,
            ipv6_mask: u128::MAX << (128 - u32::from(limit.ipv6_prefix)),
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            places_in_shard: limit.clients.div_ceil(SHARDS),
            seen: Windows::new(bucket.max(SHORTEST_WINDOW), columns),
            crowded_until: AtomicU64::new(0),
            hasher,
        }
    }

    /// How long an empty bucket takes to fill.
    pub fn refill(&self) -> Duration {
        Duration::from_nanos(self.bucket)
    }

    /// Decides one request of `client` at `now`, and takes its token if it may pass.
    pub fn check(&self, client: IpAddr, now: Instant) -> Verdict {
        let now = self.nanos(now);
        let client = self.key(client);
        let mut shard = self.shard(client);
        // A thread that was held up comes with a time that is past, by which a bucket filled since then would look overdrawn.
        let now = now.max(shard.latest);
        shard.latest = now;
        if let Some(full_at) = shard.full_at.get_mut(&client) {
            return self.take(full_at, now);
        }
        if shard.has_place(self.places_in_shard, now) {
            let full_at = shard.full_at.entry(client).or_insert(now + self.owed(client, now));
            return self.take(full_at, now);
        }
        drop(shard);
        self.crowded_until
            .fetch_max(now + 2 * self.seen.length, Ordering::Relaxed);
        self.estimate(self.seen.observe(client, now), now)
    }

    /// Gives the token back that a request of `client` took, because something else keeps it from passing. What the estimator has
    /// counted stays counted.
    pub fn give_back(&self, client: IpAddr) {
        let client = self.key(client);
        if let Some(full_at) = self.shard(client).full_at.get_mut(&client) {
            *full_at = full_at.saturating_sub(self.token);
        }
    }

    /// Takes a token out of the bucket that is full again at `full_at`, if there is one in it.
    fn take(&self, full_at: &mut u64, now: u64) -> Verdict {
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

    /// How many clients have a bucket that is not full, at `now`. Gives up the places of all others.
    pub fn clients(&self, now: Instant) -> usize {
        let now = self.nanos(now);
        let count = |shard: &Mutex<Shard>| {
            let mut shard = lock(shard);
            shard.sweep(now);
            shard.full_at.len()
        };
        self.shards.iter().map(count).sum()
    }

    /// How much is missing in a new bucket: nothing, except while the table was found full a moment ago: then the client may have
    /// been let through by the estimator, and must not get a whole burst on top of that.
    fn owed(&self, client: u128, now: u64) -> u64 {
        if now >= self.crowded_until.load(Ordering::Relaxed) {
            return 0;
        }
        self.seen.count(client, now).saturating_mul(self.token).min(self.bucket)
    }

    /// The verdict on a client without a bucket: no more than a burst in this window and the one before. A window is as long
    /// as a burst takes to come back, or longer, so that no bucket would have allowed less.
    fn estimate(&self, seen: u64, now: u64) -> Verdict {
        match self.bucket.checked_sub(seen.saturating_mul(self.token)) {
            Some(left) => self.allow(left),
            None => Verdict::Limited {
                retry_after: Duration::from_nanos(self.seen.forgotten_in(now)),
            },
        }
    }

    fn allow(&self, left: u64) -> Verdict {
        Verdict::Allow {
            remaining: u32::try_from(left / self.token).unwrap_or(u32::MAX),
        }
    }

    fn shard(&self, client: u128) -> MutexGuard<'_, Shard> {
        // The map takes the low bits of the same hash, so the shard takes others.
        let index = self.hasher.hash_one(client) >> 32;
        lock(&self.shards[usize::try_from(index).unwrap_or(0) % SHARDS])
    }

    /// What identifies a client: an IPv4 address, or the network of an IPv6 address.
    pub fn key(&self, address: IpAddr) -> u128 {
        match address.to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits() & self.ipv6_mask,
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX / 4)
    }
}

impl Shard {
    /// Whether there is a place for a new bucket, if need be by giving up full ones.
    fn has_place(&mut self, places: usize, now: u64) -> bool {
        if self.full_at.len() >= places && now >= self.next_sweep {
            self.sweep(now);
            self.next_sweep = now + SWEEP_PAUSE;
        }
        self.full_at.len() < places
    }

    fn sweep(&mut self, now: u64) {
        self.full_at.retain(|_, full_at| *full_at > now);
    }
}

/// A panic while holding the lock leaves a table that is as good as before it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit {
        burst: 5,
        per_second: 2.0,
        clients: 131_072,
        ipv6_prefix: 64,
        exempt: Vec::new(),
    };

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn allowed(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Allow { .. })
    }

    /// A token bucket as a textbook has it: so many tokens, one more each period, in whole nanoseconds.
    struct Reference {
        tokens: u64,
        period: u64,
        burst: u64,
        last: u64,
    }

    impl Reference {
        fn new(burst: u32, period: Duration) -> Self {
            let period = period.as_nanos() as u64;
            let burst = u64::from(burst);
            // Tokens are kept in parts of a nanosecond's refill, so that nothing is rounded.
            Self {
                tokens: burst * period,
                period,
                burst,
                last: 0,
            }
        }

        fn check(&mut self, now: u64) -> Verdict {
            self.tokens = (self.tokens + now - self.last).min(self.burst * self.period);
            self.last = now;
            if self.tokens >= self.period {
                self.tokens -= self.period;
                Verdict::Allow {
                    remaining: (self.tokens / self.period) as u32,
                }
            } else {
                Verdict::Limited {
                    retry_after: Duration::from_nanos(self.period - self.tokens),
                }
            }
        }
    }

    #[test]
    fn buckets_equal_the_reference_model_on_random_schedules() {
        let mut random = fastrand::Rng::with_seed(20_261_122);
        for _ in 0..200 {
            let limit = Limit {
                burst: random.u32(1..20),
                per_second: 1.0 / f64::from(random.u32(1..5)) * f64::from(random.u32(1..100)),
                ..LIMIT
            };
            let start = Instant::now();
            let limiter = ClientLimiter::new(&limit, start);
            let period = Duration::from_nanos(limiter.token);
            let mut models: Vec<_> = (0..4).map(|_| Reference::new(limit.burst, period)).collect();
            let mut now = Duration::ZERO;
            for _ in 0..500 {
                now += match random.u8(0..4) {
                    0 => Duration::ZERO,
                    1 => period.mul_f64(random.f64()),
                    2 => period,
                    _ => period.mul_f64(random.f64() * 20.0 * random.f64()),
                };
                let client = random.usize(0..models.len());
                let verdict = limiter.check(address(client as u32), start + now);
                assert_eq!(
                    verdict,
                    models[client].check(now.as_nanos() as u64),
                    "{limit:?} at {now:?}"
                );
            }
        }
    }

    #[test]
    fn a_client_that_waits_as_long_as_it_was_told_is_served() {
        let start = Instant::now();
        let limiter = ClientLimiter::new(&LIMIT, start);
        let mut now = start;
        for _ in 0..100 {
            match limiter.check(address(1), now) {
                Verdict::Allow { .. } => {}
                Verdict::Limited { retry_after } => {
                    let early = now + retry_after - Duration::from_nanos(1);
                    assert!(!allowed(limiter.check(address(1), early)), "not a moment sooner");
                    now += retry_after;
                    assert!(allowed(limiter.check(address(1), now)));
                }
            }
        }
    }

    #[test]
    fn ipv6_is_limited_by_network_and_mapped_ipv4_is_ipv4() {
        let start = Instant::now();
        let limiter = ClientLimiter::new(&Limit { burst: 1, ..LIMIT }, start);
        let check = |text: &str| allowed(limiter.check(text.parse().unwrap(), start));
        assert!(check("2001:db8::1"));
        assert!(!check("2001:db8::ffff"));
        assert!(check("2001:db8:0:1::1"));
        assert!(check("192.0.2.1"));
        assert!(!check("::ffff:192.0.2.1"));
    }

    #[test]
    fn a_flood_of_addresses_frees_no_client_that_was_limited() {
        let start = Instant::now();
        let limiter = ClientLimiter::new(&Limit { clients: 1024, ..LIMIT }, start);
        let hostile = address(1);
        while allowed(limiter.check(hostile, start)) {}
        let latecomer = address(2);
        let (mut late, mut allowed_hostile) = (0, 0);
        for number in 0..200_000u32 {
            // Two seconds in all: a hundred times more new clients in the time of a token than there are places.
            let now = start + Duration::from_micros(10) * number;
            limiter.check(address(1 << 24 | number), now);
            if number % 100 == 0 {
                allowed_hostile += usize::from(allowed(limiter.check(hostile, now)));
            }
            if number > 100_000 && number % 100 == 0 {
                late += usize::from(allowed(limiter.check(latecomer, now)));
            }
        }
        assert!(
            allowed_hostile <= 4,
            "two tokens a second for two seconds: {allowed_hostile}"
        );
        assert!(late <= 7, "a burst and two tokens a second for one second: {late}");
    }

    #[test]
    fn without_a_place_a_client_gets_its_rate_and_no_more() {
        let start = Instant::now();
        let limiter = ClientLimiter::new(&Limit { clients: 1024, ..LIMIT }, start);
        let fill = |now| {
            (0..4096u32).for_each(|number| {
                (0..3).for_each(|_| {
                    limiter.check(address(1 << 24 | number), now);
                });
            })
        };
        let mut passed = 0;
        for tenth in 0..600u32 {
            let now = start + Duration::from_millis(100) * tenth;
            fill(now);
            match limiter.check(address(7), now) {
                Verdict::Allow { .. } => passed += 1,
                Verdict::Limited { retry_after } => assert!(retry_after <= 2 * limiter.refill()),
            }
        }
        assert!(passed <= 125, "two a second for a minute and a burst: {passed}");
    }

    #[test]
    fn without_a_place_a_client_gets_no_more_at_once_than_a_burst() {
        let limit = Limit {
            burst: 3,
            per_second: 100.0,
            clients: 1024,
            ..LIMIT
        };
        let start = Instant::now();
        let limiter = ClientLimiter::new(&limit, start);
        for number in 0..4096 {
            limiter.check(address(1 << 24 | number), start);
        }
        for client in 1..=100 {
            let passed = (0..200).filter(|_| allowed(limiter.check(address(client), start)));
            assert!(passed.count() <= 3);
        }
    }

    #[test]
    fn a_million_addresses_leave_the_table_bounded_and_full_buckets_leave_it_empty() {
        let start = Instant::now();
        let limiter = ClientLimiter::new(&LIMIT, start);
        for number in 0..1_000_000 {
            limiter.check(address(number), start + Duration::from_nanos(number.into()));
        }
        let places: usize = limiter.shards.iter().map(|shard| lock(shard).full_at.capacity()).sum();
        assert!(limiter.clients(start) <= LIMIT.clients);
        assert!(places <= 2 * LIMIT.clients, "{places} places");
        assert_eq!(limiter.clients(start + limiter.refill() * 2), 0);
        assert!(allowed(limiter.check(address(5), start + limiter.refill() * 2)));
    }

    #[test]
    fn a_request_that_was_held_up_is_not_refused_for_one_that_overtook_it() {
        let start = Instant::now();
        let limiter = ClientLimiter::new(&LIMIT, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(allowed(limiter.check(address(1), at(10))));
        for _ in 0..4 {
            assert!(
                allowed(limiter.check(address(1), at(1))),
                "there are tokens, whatever the time is"
            );
        }
        assert!(!allowed(limiter.check(address(1), at(1))), "and no more than there are");
    }

    #[test]
    fn threads_share_a_bucket_without_giving_a_token_twice() {
        let start = Instant::now();
        let limiter = ClientLimiter::new(&Limit { burst: 1000, ..LIMIT }, start);
        let take = || (0..1000).filter(|_| allowed(limiter.check(address(1), start))).count();
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }
}

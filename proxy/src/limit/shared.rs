//! What the limits of routes share.
//!
//! A limiter of its own for each route would hold a table and an estimator for each: a thousand routes with limits would take 4 GB before the
//! first request. So all of them share one table, with the places that `limit.clients` says, and those whose buckets take about as long
//! to fill share an estimator. A client's bucket is found by its address and a salt: 128 bits of a digest of the route's name and its limit, so
//! that there are hardly two addresses that two routes take for one client, and a successor finds the buckets that it is handed.

use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use ring::digest::{Context, SHA256};

use super::buckets::Buckets;
use super::windows::{self, Windows};
use super::{ClientLimiter, Rate, SHORTEST_WINDOW, lock};
use crate::config::Limit;

/// The table and the estimators of several limiters.
pub struct Shared {
    clients: usize,
    pub(super) buckets: Arc<Buckets>,
    /// Those in use, by the power of two by which their windows are longer than the shortest: at most 21, because no bucket takes more than a
    /// day to fill.
    estimators: Mutex<Vec<Weak<Windows>>>,
}

impl Shared {
    /// Places for this many clients, whose time begins at `start`.
    pub fn new(clients: usize, start: Instant) -> Self {
        Self {
            clients,
            buckets: Arc::new(Buckets::new(clients, start)),
            estimators: Mutex::default(),
        }
    }

    /// For how many clients there are places.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// The limiter of `route`. Its clients have the buckets that they had if it had the same limit before.
    pub fn limiter(&self, route: &str, limit: &Limit) -> ClientLimiter {
        let (salt, buckets) = (salt(route, limit), Arc::clone(&self.buckets));
        ClientLimiter::over(limit, salt, buckets, self.estimator(Rate::of(limit).bucket))
    }

    /// The estimator for buckets that take this long to fill. Its window is at least as long, and not twice as long unless it is the
    /// shortest: a client without a place gets no more than its limit, and a quarter of it at least.
    fn estimator(&self, bucket: u64) -> Arc<Windows> {
        let times = bucket.div_ceil(SHORTEST_WINDOW).max(1).next_power_of_two();
        let class = usize::try_from(times.ilog2()).unwrap_or(usize::MAX);
        let mut estimators = lock(&self.estimators);
        if estimators.len() <= class {
            estimators.resize_with(class + 1, Weak::new);
        }
        estimators[class].upgrade().unwrap_or_else(|| {
            let made = Arc::new(Windows::new(times * SHORTEST_WINDOW, windows::COLUMNS));
            estimators[class] = Arc::downgrade(&made);
            made
        })
    }
}

fn salt(route: &str, limit: &Limit) -> u128 {
    let rate = Rate::of(limit);
    let mut digest = Context::new(&SHA256);
    digest.update(&rate.token.to_le_bytes());
    digest.update(&rate.bucket.to_le_bytes());
    digest.update(&[limit.ipv6_prefix]);
    digest.update(route.as_bytes());
    let digest = digest.finish();
    digest
        .as_ref()
        .iter()
        .take(16)
        .fold(0, |salt, byte| salt << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::IpAddr;
    use std::time::Duration;

    use super::super::Verdict;
    use super::super::tests::{LIMIT, Reference, address};
    use super::*;

    fn passed(limiter: &ClientLimiter, client: IpAddr, requests: usize, now: Instant) -> usize {
        let allows = || matches!(limiter.check(client, now), Verdict::Allow { .. });
        (0..requests).filter(|_| allows()).count()
    }

    #[test]
    fn a_thousand_limits_take_as_much_memory_as_a_few() {
        let shared = Shared::new(4096, Instant::now());
        let limit = |number: u32| Limit {
            burst: 1 + number,
            per_second: f64::from(1 + number % 50),
            ..LIMIT
        };
        let limiters: Vec<_> = (0..1000).map(|number| shared.limiter("a", &limit(number))).collect();
        let estimators: HashSet<_> = limiters.iter().map(|limiter| Arc::as_ptr(&limiter.seen)).collect();
        assert!(estimators.len() <= 15, "{}", estimators.len());
        // A bucket may take from no time to a day to fill.
        let all = (0..=100u32).map(|step| {
            let seconds = 1e-6 * (86_400.0 / 1e-6_f64).powf(f64::from(step) / 100.0);
            shared.limiter(
                "a",
                &Limit {
                    burst: 1,
                    per_second: 1.0 / seconds,
                    ..LIMIT
                },
            )
        });
        let all: Vec<_> = all.collect();
        let estimators: HashSet<_> = all.iter().map(|limiter| Arc::as_ptr(&limiter.seen)).collect();
        assert!(estimators.len() <= 21, "{}", estimators.len());
        let now = Instant::now();
        for (limiter, client) in limiters.iter().zip(0..).cycle().take(1_000_000) {
            limiter.check(address(client), now);
        }
        for number in 0..100_000 {
            limiters[number as usize % 1000].check(address(number), now);
        }
        let places: usize = shared
            .buckets
            .shards
            .iter()
            .map(|shard| lock(shard).full_at.capacity())
            .sum();
        assert!(places <= 2 * 4096, "{places} places");
        drop((limiters, all));
        let left = lock(&shared.estimators)
            .iter()
            .filter(|estimator| estimator.strong_count() > 0)
            .count();
        assert_eq!(left, 0, "estimators without a limit");
    }

    #[test]
    fn an_estimators_window_is_as_long_as_a_bucket_takes_to_fill_and_not_twice_that() {
        let shared = Shared::new(1024, Instant::now());
        for bucket in [
            1,
            SHORTEST_WINDOW - 1,
            SHORTEST_WINDOW,
            SHORTEST_WINDOW + 1,
            2_500_000_000,
            86_400_000_000_000,
        ] {
            let length = shared.estimator(bucket).length;
            assert!(
                length >= bucket && (length < 2 * bucket || length == SHORTEST_WINDOW),
                "{bucket}: {length}"
            );
        }
    }

    #[test]
    fn each_limit_counts_for_itself() {
        let start = Instant::now();
        let shared = Shared::new(131_072, start);
        let limiters: Vec<_> = (1..=20)
            .map(|burst| shared.limiter("a", &Limit { burst, ..LIMIT }))
            .collect();
        for client in 0..50 {
            for (limiter, burst) in limiters.iter().zip(1..) {
                assert_eq!(passed(limiter, address(client), 30, start), burst);
            }
        }
        let limit = Limit { burst: 3, ..LIMIT };
        let again = shared.limiter("a", &limit);
        assert_eq!(
            passed(&again, address(1), 30, start),
            0,
            "the same limit of the same route"
        );
        let other = shared.limiter("b", &limit);
        assert_eq!(passed(&other, address(1), 30, start), 3);
    }

    #[test]
    fn a_successor_has_the_buckets_of_each_limit() {
        let start = Instant::now();
        let old = Shared::new(1024, start);
        for (route, requests) in [("a", 5), ("b", 2), ("gone", 1)] {
            passed(&old.limiter(route, &LIMIT), address(1), requests, start);
        }
        let new = Shared::new(1024, start);
        assert_eq!(new.import(&old.export(start), start), 3);
        for (route, left) in [("a", 0), ("b", 3), ("c", 5)] {
            assert_eq!(
                passed(&new.limiter(route, &LIMIT), address(1), 9, start),
                left,
                "{route}"
            );
        }
        let another = Limit {
            ipv6_prefix: 56,
            ..LIMIT
        };
        assert_eq!(passed(&new.limiter("a", &another), address(1), 9, start), 5);
        let note = ClientLimiter::new(&LIMIT, start).export(start);
        for nonsense in [&note[..], b"", b"routebk", b"routebk1 and half an entry"] {
            assert_eq!(new.import(nonsense, start), 0);
        }
    }

    #[test]
    fn a_note_with_an_absurd_time_bars_nobody_for_longer_than_a_day() {
        let start = Instant::now();
        let old = Shared::new(1024, start);
        passed(&old.limiter("a", &LIMIT), address(1), 5, start);
        let mut note = old.export(start);
        let time = note.len() - 8;
        note[time..].fill(0xff);
        let new = Shared::new(1024, start);
        assert_eq!(new.import(&note, start), 1);
        let limiter = new.limiter("a", &LIMIT);
        assert_eq!(passed(&limiter, address(1), 1, start), 0);
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(passed(&limiter, address(1), 9, start + day), 5);
        // And what is cut off is no entry.
        assert_eq!(Shared::new(1024, start).import(&note[..time + 7], start), 0);
    }

    #[test]
    fn each_limit_equals_the_reference_model_on_random_schedules() {
        let mut random = fastrand::Rng::with_seed(20_261_126);
        for _ in 0..100 {
            let start = Instant::now();
            let shared = Shared::new(131_072, start);
            let mut limits = ["a", "b", "c", "d"].map(|route| {
                let limiter = shared.limiter(
                    route,
                    &Limit {
                        burst: random.u32(1..20),
                        per_second: f64::from(random.u32(1..100)) / 3.0,
                        ..LIMIT
                    },
                );
                let burst = u32::try_from(limiter.rate.bucket / limiter.rate.token).unwrap();
                let model = || Reference::new(burst, Duration::from_nanos(limiter.rate.token));
                let models = [model(), model(), model()];
                (limiter, models)
            });
            let mut now = Duration::ZERO;
            for _ in 0..500 {
                now += Duration::from_secs_f64(random.f64() * random.f64());
                let (limiter, models) = random.choice(&mut limits).unwrap();
                let client = random.usize(0..models.len());
                let verdict = limiter.check(address(u32::try_from(client).unwrap()), start + now);
                let expected = models[client].check(u64::try_from(now.as_nanos()).unwrap());
                assert_eq!(verdict, expected, "at {now:?}");
            }
        }
    }

    #[test]
    fn a_flood_on_one_limit_lets_no_client_of_another_have_more() {
        let start = Instant::now();
        let shared = Shared::new(1024, start);
        let flooded = shared.limiter("flooded", &LIMIT);
        let other = shared.limiter(
            "other",
            &Limit {
                burst: 3,
                per_second: 1.0,
                ..LIMIT
            },
        );
        assert_eq!(passed(&other, address(1), 9, start), 3);
        for number in 0..100_000 {
            flooded.check(address(1 << 24 | number), start);
        }
        assert_eq!(passed(&other, address(1), 9, start), 0, "it has its place");
        assert!(passed(&other, address(2), 9, start) <= 3, "without a place");
        let later = start + Duration::from_secs(3);
        assert_eq!(passed(&other, address(1), 9, later), 3);
    }
}

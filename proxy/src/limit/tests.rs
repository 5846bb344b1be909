#![allow(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]

use super::*;

pub(super) const LIMIT: Limit = Limit {
    burst: 5,
    per_second: 2.0,
    clients: 131_072,
    ipv6_prefix: 64,
    exempt: Vec::new(),
};

pub(super) fn address(number: u32) -> IpAddr {
    IpAddr::from(number.to_be_bytes())
}

fn allowed(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Allow { .. })
}

/// A token bucket as a textbook has it: so many tokens, one more each period, in whole nanoseconds.
pub(super) struct Reference {
    tokens: u64,
    period: u64,
    burst: u64,
    last: u64,
}

impl Reference {
    pub(super) fn new(burst: u32, period: Duration) -> Self {
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

    pub(super) fn check(&mut self, now: u64) -> Verdict {
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
        let period = Duration::from_nanos(limiter.rate.token);
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
    let places: usize = limiter
        .buckets
        .shards
        .iter()
        .map(|shard| lock(shard).full_at.capacity())
        .sum();
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

//! The budget for retries.
//!
//! A retry saves one request from one bad backend. When all backends are bad, it doubles the load that may be the cause. So
//! retries have a budget: a share of the requests of the last ten seconds, and a small number always, so that a quiet proxy
//! can still save its few requests.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// How many seconds are remembered.
const WINDOW: u64 = 10;
/// So many tries after the first are allowed in a window whatever the traffic.
const ALWAYS: u32 = 30;
/// One more than the window, so that the second that begins does not take the place of one that still counts.
const PLACES: usize = 11;

/// Counts requests and tries after the first.
#[derive(Debug)]
pub struct RetryBudget {
    start: Instant,
    seconds: [Second; PLACES],
}

/// What was counted in one second. Two threads at its very beginning may lose a count, which is of no consequence.
#[derive(Debug, Default)]
struct Second {
    number: AtomicU64,
    requests: AtomicU32,
    retries: AtomicU32,
}

impl RetryBudget {
    /// A budget whose time begins at `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            seconds: Default::default(),
        }
    }

    /// Counts a request.
    pub fn request(&self, now: Instant) {
        self.second(self.number(now)).requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one more try may be made, when tries may be this `share` of the requests. It counts if so.
    pub fn take(&self, share: f64, now: Instant) -> bool {
        let number = self.number(now);
        let (mut requests, mut retries) = (0_u32, 0_u32);
        for second in &self.seconds {
            if second.number.load(Ordering::Relaxed) + WINDOW > number {
                requests = requests.saturating_add(second.requests.load(Ordering::Relaxed));
                retries = retries.saturating_add(second.retries.load(Ordering::Relaxed));
            }
        }
        let allowed = retries < ALWAYS || f64::from(retries) < share * f64::from(requests);
        if allowed {
            self.second(number).retries.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }

    /// The place of a second, emptied when it held an older one.
    fn second(&self, number: u64) -> &Second {
        let index = usize::try_from(number % PLACES as u64).unwrap_or(0);
        let second = &self.seconds[index];
        let held = second.number.load(Ordering::Relaxed);
        if held < number
            && second
                .number
                .compare_exchange(held, number, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            second.requests.store(0, Ordering::Relaxed);
            second.retries.store(0, Ordering::Relaxed);
        }
        second
    }

    /// Seconds since a window before the start, so that places never used are too old to count.
    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() + WINDOW
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(budget: &RetryBudget, now: Instant) -> u32 {
        let mut taken = 0;
        while budget.take(0.2, now) {
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_quiet_proxy_may_try_some_again_and_a_busy_one_a_share() {
        let start = Instant::now();
        let budget = RetryBudget::new(start);
        assert_eq!(taken(&budget, start), ALWAYS);
        for _ in 0..1000 {
            budget.request(start);
        }
        assert_eq!(taken(&budget, start), 200 - ALWAYS);
    }

    #[test]
    fn what_is_ten_seconds_old_counts_no_more() {
        let start = Instant::now();
        let budget = RetryBudget::new(start);
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..10 {
            for _ in 0..100 {
                budget.request(at(second));
            }
        }
        assert_eq!(taken(&budget, at(9)), 200);
        // Each second that passes takes 100 requests out of sight, and the 200 tries with the last of them.
        assert_eq!(taken(&budget, at(18)), 0);
        assert_eq!(taken(&budget, at(19)), ALWAYS);
        assert_eq!(taken(&budget, at(1000)), ALWAYS, "however long nothing was asked");
    }
}

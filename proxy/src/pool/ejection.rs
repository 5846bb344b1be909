//! Decides when a failing backend is ejected, and for how long.
//!
//! The proxy's own health check runs every few seconds, and sees only whether a port is open. Between two checks, or behind an
//! open port that gives no good response, the failed requests are the evidence: some in a row eject the backend for
//! a while, each time for twice as long. It comes back on trial: one more failure ejects it again.
//!
//! [`Conduct`] is the record of one backend. Whether another one may be ejected is the pool's decision, because that depends on
//! all backends.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Ejection;

/// What a backend's last requests came to.
#[derive(Debug, Default)]
pub struct Conduct {
    /// In a row.
    failures: AtomicU32,
    /// Whether it is ejected. The lock below has this too; a pick reads it without a lock.
    ejected: AtomicBool,
    sentence: Mutex<Sentence>,
}

#[derive(Debug, Default)]
struct Sentence {
    until: Option<Instant>,
    /// How many times in a row it was ejected.
    times: u32,
}

impl Conduct {
    /// Records an answer, whatever its status.
    pub fn answered(&self) {
        // Nearly always there is nothing to forget, and reading costs less than writing.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Records a failure. Returns how many there were in a row when they are enough to eject the backend.
    pub fn failed(&self, limits: &Ejection) -> Option<u32> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        (failures >= limits.failures && !self.is_ejected()).then_some(failures)
    }

    /// Ejects the backend at `now`; returns for how long.
    pub fn eject(&self, limits: &Ejection, now: Instant) -> Duration {
        let mut sentence = self.sentence();
        // A backend that was good for that long starts afresh.
        let forgotten = |until: Instant| now.saturating_duration_since(until) > limits.max_time;
        if sentence.until.is_some_and(forgotten) {
            sentence.times = 0;
        }
        let time = limits
            .time
            .saturating_mul(1 << sentence.times.min(20))
            .min(limits.max_time);
        sentence.times = sentence.times.saturating_add(1);
        sentence.until = Some(now + time);
        // On trial when it comes back.
        self.failures.store(limits.failures - 1, Ordering::Relaxed);
        self.ejected.store(true, Ordering::Relaxed);
        time
    }

    /// Whether the backend is ejected: from [`Conduct::eject`] to [`Conduct::readmit`].
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// When the time of the last ejection ends or ended.
    pub fn until(&self) -> Option<Instant> {
        self.sentence().until
    }

    /// Brings the backend back, be it before its time.
    pub fn readmit(&self, now: Instant) {
        let mut sentence = self.sentence();
        if let Some(until) = &mut sentence.until {
            *until = now.min(*until);
        }
        self.ejected.store(false, Ordering::Relaxed);
    }

    fn sentence(&self) -> MutexGuard<'_, Sentence> {
        self.sentence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Ejection = Ejection {
        failures: 3,
        time: Duration::from_secs(5),
        max_time: Duration::from_secs(60),
        max_share: 0.5,
    };

    #[test]
    fn failures_count_in_a_row_only() {
        let conduct = Conduct::default();
        for _ in 0..5 {
            assert_eq!(conduct.failed(&LIMITS), None);
            assert_eq!(conduct.failed(&LIMITS), None);
            conduct.answered();
        }
        assert_eq!(conduct.failed(&LIMITS), None);
        assert_eq!(conduct.failed(&LIMITS), None);
        assert_eq!(conduct.failed(&LIMITS), Some(3));
        assert_eq!(
            conduct.failed(&LIMITS),
            Some(4),
            "there may have been no room at the third"
        );
    }

    #[test]
    fn each_time_is_twice_as_long_until_the_longest_and_then_forgotten() {
        let conduct = Conduct::default();
        let mut now = Instant::now();
        for seconds in [5, 10, 20, 40, 60, 60] {
            assert_eq!(conduct.eject(&LIMITS, now), Duration::from_secs(seconds));
            assert_eq!(conduct.failed(&LIMITS), None, "it is ejected already");
            now += Duration::from_secs(seconds);
            assert_eq!(conduct.until(), Some(now));
            assert!(conduct.is_ejected());
            conduct.readmit(now);
            assert!(!conduct.is_ejected());
            now += Duration::from_secs(1);
            assert!(conduct.failed(&LIMITS).is_some(), "it is on trial");
        }
        now += LIMITS.max_time * 2;
        assert_eq!(conduct.eject(&LIMITS, now), LIMITS.time);
        conduct.readmit(now);
        assert_eq!(conduct.until(), Some(now), "it came back before its time");
    }
}

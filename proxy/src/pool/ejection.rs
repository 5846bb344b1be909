//! Decides when a failing backend is ejected, and for how long.
//!
//! The proxy's own health check runs every few seconds, and sees only whether a port is open. Between two checks, or behind an
//! open port that gives no good response, failed requests are the evidence: several in a row eject the backend for
//! a while, each time for twice as long. It comes back on trial: one more failure ejects it again.
//!
//! [`EjectionState`] belongs to one backend. The pool decides whether one more may be ejected, because that depends on all of
//! them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Ejection;

/// How many requests a backend has failed in a row, and whether it is ejected for that.
#[derive(Debug, Default)]
pub struct EjectionState {
    /// In a row.
    failures: AtomicU32,
    /// Whether it is ejected. The lock below has this too; a pick reads it without a lock.
    ejected: AtomicBool,
    period: Mutex<Period>,
}

#[derive(Debug, Default)]
struct Period {
    until: Option<Instant>,
    /// How many times in a row it was ejected.
    times: u32,
}

impl EjectionState {
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
        let mut period = self.period();
        // A backend that was good for that long starts afresh.
        let forgotten = |until: Instant| now.saturating_duration_since(until) > limits.max_time;
        if period.until.is_some_and(forgotten) {
            period.times = 0;
        }
        let time = limits
            .time
            .saturating_mul(1 << period.times.min(20))
            .min(limits.max_time);
        period.times = period.times.saturating_add(1);
        period.until = Some(now + time);
        // On trial when it comes back.
        self.failures.store(limits.failures - 1, Ordering::Relaxed);
        self.ejected.store(true, Ordering::Relaxed);
        time
    }

    /// Whether the backend is ejected: from [`EjectionState::eject`] to [`EjectionState::readmit`].
    #[inline]
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// When the time of the last ejection ends or ended.
    pub fn until(&self) -> Option<Instant> {
        self.period().until
    }

    /// Brings the backend back, be it before its time.
    pub fn readmit(&self, now: Instant) {
        let mut period = self.period();
        if let Some(until) = &mut period.until {
            *until = now.min(*until);
        }
        self.ejected.store(false, Ordering::Relaxed);
    }

    fn period(&self) -> MutexGuard<'_, Period> {
        self.period.lock().unwrap_or_else(PoisonError::into_inner)
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
        let state = EjectionState::default();
        for _ in 0..5 {
            assert_eq!(state.failed(&LIMITS), None);
            assert_eq!(state.failed(&LIMITS), None);
            state.answered();
        }
        assert_eq!(state.failed(&LIMITS), None);
        assert_eq!(state.failed(&LIMITS), None);
        assert_eq!(state.failed(&LIMITS), Some(3));
        assert_eq!(
            state.failed(&LIMITS),
            Some(4),
            "there may have been no room at the third"
        );
    }

    #[test]
    fn each_time_is_twice_as_long_until_the_longest_and_then_forgotten() {
        let state = EjectionState::default();
        let mut now = Instant::now();
        for seconds in [5, 10, 20, 40, 60, 60] {
            assert_eq!(state.eject(&LIMITS, now), Duration::from_secs(seconds));
            assert_eq!(state.failed(&LIMITS), None, "it is ejected already");
            now += Duration::from_secs(seconds);
            assert_eq!(state.until(), Some(now));
            assert!(state.is_ejected());
            state.readmit(now);
            assert!(!state.is_ejected());
            now += Duration::from_secs(1);
            assert!(state.failed(&LIMITS).is_some(), "it is on trial");
        }
        now += LIMITS.max_time * 2;
        assert_eq!(state.eject(&LIMITS, now), LIMITS.time);
        state.readmit(now);
        assert_eq!(state.until(), Some(now), "it came back before its time");
    }
}

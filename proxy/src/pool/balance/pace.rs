//! How long backends take to answer, for `least_requests`.
//!
//! The number of requests in flight alone keeps nobody from a slow backend: one that takes ten times as long has as many in flight as the
//! others when it gets a tenth of their share, which is still more than one request in a hundred of four backends. So a backend that is clearly
//! slower than the fastest counts as busier, by as much as it is slower.
//!
//! Only requests without a body are timed, because what a client takes to send one is no backend's doing. A mean that many
//! requests make is not moved far by one, as paths that take longer than others are asked for everywhere.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How much a request moves the mean: one part of so many.
const PARTS: u32 = 64;
/// How much of its mean a backend loses in a second without an answer, in the same parts, so that it gets requests again some time.
const LOST: u32 = PARTS / 8;
/// One that is faster than this is not slow, whatever the others are. In microseconds.
const FAST: u32 = 1_000;
/// It is slow if it takes more than so many times as long as the fastest.
const CLEARLY: u32 = 2;
/// However slow it is, it counts as so many times as busy at most.
const MOST: u32 = 100;

/// How long a backend takes to answer.
#[derive(Debug, Default)]
pub struct Pace {
    /// The mean in microseconds; 0 while there is none.
    mean: AtomicU32,
    /// It has answered since the last [`Pace::rest`].
    answered: AtomicBool,
}

impl Pace {
    /// Notes that it took so long to answer. Of two threads that do that at once, one may not be heard.
    pub fn answered(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let mean = match self.mean() {
            0 => took,
            mean => (mean - mean / PARTS).saturating_add(took / PARTS).max(1),
        };
        self.mean.store(mean, Ordering::Relaxed);
        self.answered.store(true, Ordering::Relaxed);
    }

    /// To be called every second.
    pub fn rest(&self) {
        let mean = self.mean();
        if !self.answered.swap(false, Ordering::Relaxed) && mean > FAST {
            self.mean.store(mean - mean / PARTS * LOST, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn mean(&self) -> u32 {
        self.mean.load(Ordering::Relaxed)
    }
}

/// As how many times as busy a backend counts that takes `mean` where the fastest takes `fastest`, both in microseconds and 0 while
/// nobody knows.
#[inline]
pub(super) fn slowness(mean: u32, fastest: u32) -> u32 {
    let fastest = fastest.max(FAST);
    // Nearly all are not slow, and a division takes longer than all else that is asked of a backend.
    if mean < fastest.saturating_mul(CLEARLY) {
        return 1;
    }
    (mean / fastest).clamp(1, MOST)
}

/// The lowest of those `means` that are known; 0 if none is.
pub(super) fn of_fastest(means: impl Iterator<Item = u32>) -> u32 {
    // 0 comes last.
    let lowest = means.map(|mean| mean.wrapping_sub(1)).min();
    lowest.map_or(0, |lowest| lowest.wrapping_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_mean_follows_many_answers_and_not_one() {
        let pace = Pace::default();
        assert_eq!(pace.mean(), 0);
        pace.answered(10 * MS);
        assert_eq!(pace.mean(), 10_000);
        pace.answered(100 * MS);
        assert!((11_000..12_000).contains(&pace.mean()), "{}", pace.mean());
        for _ in 0..400 {
            pace.answered(100 * MS);
        }
        assert!((95_000..=100_000).contains(&pace.mean()), "{}", pace.mean());
        pace.answered(Duration::MAX);
        pace.answered(Duration::ZERO);
        assert!(pace.mean() > 60_000_000);
    }

    #[test]
    fn who_is_asked_nothing_is_tried_again_some_time() {
        let pace = Pace::default();
        pace.answered(100 * MS);
        pace.rest();
        assert_eq!(pace.mean(), 100_000, "it has answered");
        let seconds = (1..).find(|_| {
            pace.rest();
            pace.mean() < 10_000
        });
        assert!((15..25).contains(&seconds.unwrap()), "{seconds:?}");
        (0..1000).for_each(|_| pace.rest());
        assert!((1..=FAST).contains(&pace.mean()));
    }

    #[test]
    fn slow_is_who_takes_clearly_longer_than_the_fastest() {
        for (mean, fastest, times) in [
            (0, 0, 1),
            (0, 5_000, 1),
            (900, 50, 1),
            (1_900, 50, 1),
            (2_500, 50, 2),
            (9_000, 5_000, 1),
            (10_000, 5_000, 2),
            (50_000, 5_000, 10),
            (u32::MAX, 5_000, 100),
        ] {
            assert_eq!(slowness(mean, fastest), times, "{mean} {fastest}");
        }
        for (means, lowest) in [(&[][..], 0), (&[0, 0], 0), (&[0, 3], 3), (&[3, 0], 3), (&[3, 2, 4], 2)] {
            assert_eq!(of_fastest(means.iter().copied()), lowest, "{means:?}");
        }
    }
}

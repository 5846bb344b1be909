//! The estimator for clients without a bucket: it counts requests in windows of time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pingora_limits::estimator::Estimator;

use super::lock;

/// The estimator's rows and usual columns: 4 MiB for both windows. With 100,000 clients in a window a count is too high by one
/// or so.
const ROWS: usize = 4;
pub(super) const COLUMNS: usize = 1 << 16;

/// How many requests each client without a bucket sent in this window of time and the one before, estimated.
///
/// `pingora_limits::rate::Rate` does the same with a clock of its own, which its callers can't set; and two threads at the end of
/// a window can wipe both of its counts.
pub(super) struct Windows {
    /// How long a window is.
    pub(super) length: u64,
    /// The number of the current window; its counts are in `counts[number % 2]`.
    current: AtomicU64,
    counts: [Estimator; 2],
    turning: Mutex<()>,
    /// Until when anything that was counted is remembered.
    remembers_until: AtomicU64,
}

impl Windows {
    pub(super) fn new(length: u64, columns: usize) -> Self {
        Self {
            length,
            current: AtomicU64::new(0),
            counts: [Estimator::new(ROWS, columns), Estimator::new(ROWS, columns)],
            turning: Mutex::new(()),
            remembers_until: AtomicU64::new(0),
        }
    }

    /// Counts one request of `client` and returns how many there were in this window and the one before.
    pub(super) fn observe(&self, client: u128, now: u64) -> u64 {
        self.remembers_until.fetch_max(now + 2 * self.length, Ordering::Relaxed);
        let [this, before] = self.at(now);
        let seen = this.incr(client, 1).saturating_add(before.get(client));
        u64::try_from(seen).unwrap_or(u64::MAX).max(1)
    }

    /// How many requests of `client` were counted in this window and the one before.
    pub(super) fn count(&self, client: u128, now: u64) -> u64 {
        if now >= self.remembers_until.load(Ordering::Relaxed) {
            return 0;
        }
        let [this, before] = self.at(now);
        let seen = this.get(client).saturating_add(before.get(client));
        u64::try_from(seen).unwrap_or(u64::MAX)
    }

    /// The counts of this window and of the one before.
    fn at(&self, now: u64) -> [&Estimator; 2] {
        let window = now / self.length;
        if self.current.load(Ordering::Acquire) < window {
            self.turn(window);
        }
        let [even, odd] = &self.counts;
        if window.is_multiple_of(2) {
            [even, odd]
        } else {
            [odd, even]
        }
    }

    /// Empties the counts that `window` will use, before the window begins for anybody.
    fn turn(&self, window: u64) {
        let _turning = lock(&self.turning);
        let current = self.current.load(Ordering::Acquire);
        if current >= window {
            return;
        }
        if window - current > 1 {
            self.counts.iter().for_each(Estimator::reset);
        } else {
            self.counts[usize::from(!window.is_multiple_of(2))].reset();
        }
        self.current.store(window, Ordering::Release);
    }

    /// How long until what is counted at `now` is counted no more: the rest of this window and the next.
    pub(super) fn forgotten_in(&self, now: u64) -> u64 {
        2 * self.length - now % self.length
    }
}

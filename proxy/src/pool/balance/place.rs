//! A request's place among those in flight to a backend.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::pool::endpoint::Upstream;

/// A place among the requests in flight to a backend, given back when it is dropped; or none, where nobody counts them.
#[derive(Debug, Default)]
pub struct Place {
    at: Option<Arc<Upstream>>,
    timing: Timing,
}

/// Whether it is noted how long the backend takes to answer.
#[derive(Debug, Default, Clone, Copy)]
enum Timing {
    #[default]
    No,
    /// From when the request is sent.
    Wanted,
    /// It was sent then.
    Since(Instant),
}

impl Place {
    /// A place at `upstream`; `None` if `most` are in flight to it.
    pub(super) fn take(upstream: &Arc<Upstream>, most: Option<u32>) -> Option<Self> {
        let count = &upstream.in_flight;
        match most {
            None => {
                count.fetch_add(1, Ordering::Relaxed);
            }
            // Not added first and taken back: another request would take that for one in flight.
            Some(most) => {
                let one_more = |count| (count < most).then(|| count + 1);
                count
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
                    .ok()?;
            }
        }
        Some(Self {
            at: Some(Arc::clone(upstream)),
            timing: Timing::No,
        })
    }

    /// How long the backend takes to answer is to be noted.
    pub(in crate::pool) fn time(&mut self) {
        self.timing = Timing::Wanted;
    }

    /// The request is sent at `now`. Only the first time counts.
    pub fn sent(&mut self, now: Instant) {
        if matches!(self.timing, Timing::Wanted) {
            self.timing = Timing::Since(now);
        }
    }

    /// Gives the place up. Returns whether an answer was to be timed.
    pub fn leave(&mut self) -> bool {
        !matches!(std::mem::take(self).timing, Timing::No)
    }

    /// The backend has answered.
    pub fn answered(&mut self) {
        if let (Some(upstream), Timing::Since(since)) = (&self.at, self.timing) {
            self.timing = Timing::No;
            upstream.pace.answered(since.elapsed());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(upstream) = &self.at {
            upstream.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

//! A request's place among those in flight to a backend.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::pool::endpoint::Upstream;

/// A place among the requests in flight to a backend, given back when it is dropped; or none, where nobody counts them.
#[derive(Debug, Default)]
pub struct Place {
    at: Option<Arc<Upstream>>,
    /// Since when an answer is waited for, if that is timed.
    since: Option<Instant>,
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
            since: None,
        })
    }

    /// How long the backend takes from now to its answer is noted.
    pub(in crate::pool) fn time(&mut self) {
        self.since = Some(Instant::now());
    }

    /// Gives the place up. Returns whether an answer was timed.
    pub fn leave(&mut self) -> bool {
        std::mem::take(self).since.is_some()
    }

    /// The backend has answered.
    pub fn answered(&mut self) {
        if let (Some(upstream), Some(since)) = (&self.at, self.since.take()) {
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

//! A request's place among those in flight to a backend.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::pool::endpoint::Upstream;

/// A place among the requests in flight to a backend, given back when it is dropped; or none, where nobody counts them.
#[derive(Debug, Default)]
pub struct Place(Option<Arc<Upstream>>);

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
        Some(Self(Some(Arc::clone(upstream))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(upstream) = &self.0 {
            upstream.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

//! Whether a client keeps up a minimum rate.
//!
//! The rate is the average over the time that the proxy waited for the client. What the client sends or reads without making the
//! proxy wait (all of a small body, what fits into the kernel's buffers) does not count in its favour, nor the time that the
//! backend takes against it.

use std::time::{Duration, Instant};

/// How long a client may be waited for, in all, before the rate counts.
const GRACE: Duration = Duration::from_secs(5);

/// How fast a client is in one direction, in one request.
#[derive(Debug, Default)]
pub struct Pace {
    since: Option<Instant>,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Notes that the client is waited for.
    pub fn wait(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Notes so many bytes. Returns false when the client is slower than so many a second.
    pub fn keeps(&mut self, bytes: usize, min_rate: Option<u64>) -> bool {
        // Nothing has changed since this was last asked.
        let Some(since) = self.since.take() else {
            return true;
        };
        self.waited += since.elapsed();
        self.bytes += bytes as u64;
        let owed = |rate: u64| rate as f64 * (self.waited - GRACE).as_secs_f64();
        self.waited <= GRACE || min_rate.is_none_or(|rate| self.bytes as f64 >= owed(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(seconds: u64, bytes: u64) -> Pace {
        Pace {
            since: Some(Instant::now()),
            waited: Duration::from_secs(seconds),
            bytes,
        }
    }

    #[test]
    fn the_average_counts_after_a_grace_and_only_while_the_client_is_waited_for() {
        assert!(waited(4, 0).keeps(0, Some(100)), "it has a moment to begin");
        assert!(waited(7, 210).keeps(0, Some(100)));
        assert!(!waited(7, 199).keeps(0, Some(100)));
        assert!(waited(7, 199).keeps(100, Some(100)));
        assert!(waited(1000, 0).keeps(0, None));
        let mut pace = waited(7, 100);
        pace.since = None;
        assert!(pace.keeps(1000, Some(100)));
        pace.wait();
        assert!(!pace.keeps(0, Some(100)), "what was there anyway proves nothing");
    }
}

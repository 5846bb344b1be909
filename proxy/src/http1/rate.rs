//! The minimum rate of a client, in one direction of one request.
//!
//! The rate is the average over the time that the proxy waits for the client. What the client sends or takes before the proxy has
//! to wait (a small body, what fits into the kernel's buffers) does not count in its favour, and the time that the origin takes
//! does not count against it.

use std::time::{Duration, Instant};

use chassis::pauses;

/// How long a client may be waited for, in all, before the rate counts.
const GRACE: Duration = Duration::from_secs(5);

/// What a client has sent or taken, and how long that took.
#[derive(Debug, Default)]
pub struct Rate {
    since: Option<Instant>,
    waited: Duration,
    bytes: u64,
}

impl Rate {
    /// Starts to wait for the client, unless it is waited for already.
    pub fn wait(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Since when the client is waited for.
    pub fn waits_since(&self) -> Option<Instant> {
        self.since
    }

    /// Ends a wait without judging the client by it.
    pub fn excuse(&mut self) {
        self.since = None;
    }

    /// Notes `bytes` that the client sent or took. Returns false when it is slower than `min_rate`, in bytes a second.
    pub fn keeps(&mut self, bytes: usize, min_rate: Option<u64>) -> bool {
        let Some(since) = self.since.take() else {
            // Behind a wait there is room only because the client took as much, in however many pieces it is used.
            if !self.waited.is_zero() {
                self.bytes += bytes as u64;
            }
            return true;
        };
        self.waited += since.elapsed().saturating_sub(pauses::lost_since(since));
        self.bytes += bytes as u64;
        let owed = |rate: u64| rate as f64 * (self.waited - GRACE).as_secs_f64();
        self.waited <= GRACE || min_rate.is_none_or(|rate| self.bytes as f64 >= owed(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(seconds: u64, bytes: u64) -> Rate {
        Rate {
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
        let mut rate = Rate::default();
        assert!(rate.keeps(1000, Some(100)));
        assert_eq!(rate.bytes, 0, "what fits anywhere proves nothing");
        let mut rate = waited(7, 100);
        rate.excuse();
        assert!(rate.keeps(110, Some(100)));
        rate.wait();
        assert!(rate.keeps(0, Some(100)), "what follows a wait counts");
        rate.wait();
        assert!(!rate.keeps(0, Some(110)));
    }
}

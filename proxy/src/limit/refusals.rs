//! Bounds the log lines of refused requests.
//!
//! Most refusals cost their client no token, so nothing else bounds how many it gets. Without a bound here, one client
//! could fill the log, or push the lines of others out of its queue. Metrics count every refusal.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::warn;
use prometheus::IntCounter;

use super::{ClientLimiter, Verdict, lock};
use crate::config::Limit;

/// The lines of one client: more than anybody reads one by one, and then as many as a client within the default limit gets.
const OF_A_CLIENT: Limit = Limit {
    burst: 1000,
    per_second: 5.0,
    clients: 4096,
    ipv6_prefix: 64,
    exempt: Vec::new(),
};
/// The lines of all clients together, against a client with many addresses: at most a third of the log's queue.
const OF_ALL: Limit = Limit {
    burst: 10_000,
    per_second: 500.0,
    clients: 1,
    ipv6_prefix: 64,
    exempt: Vec::new(),
};
/// The columns of the estimators: 64 KiB for each. If that costs clients some lines, it does no harm.
const COLUMNS: usize = 1 << 10;
/// From one line about lines that were left out to the next.
const BETWEEN_REPORTS: Duration = Duration::from_secs(10);

/// The budget of log lines for refused requests.
pub struct Refusals {
    of_a_client: ClientLimiter,
    of_all: ClientLimiter,
    suppressed: IntCounter,
    /// How many of those the log has not reported.
    unreported: AtomicU64,
    reported: Mutex<Option<Instant>>,
}

impl Refusals {
    /// A budget whose time begins at `start`. What it suppresses is counted in `suppressed`.
    pub fn new(suppressed: IntCounter, start: Instant) -> Self {
        Self {
            of_a_client: ClientLimiter::with_columns(&OF_A_CLIENT, start, COLUMNS),
            of_all: ClientLimiter::with_columns(&OF_ALL, start, 1),
            suppressed,
            unreported: AtomicU64::new(0),
            reported: Mutex::default(),
        }
    }

    /// Whether a refusal of `client` at `now` gets its line. If not, it is counted, and the log reports the count now and then.
    pub fn allows(&self, client: IpAddr, now: Instant) -> bool {
        let everybody = Ipv4Addr::UNSPECIFIED.into();
        let within = |limiter: &ClientLimiter, client| matches!(limiter.check(client, now), Verdict::Allow { .. });
        if within(&self.of_a_client, client) && within(&self.of_all, everybody) {
            return true;
        }
        self.suppressed.inc();
        self.unreported.fetch_add(1, Ordering::Relaxed);
        let mut reported = lock(&self.reported);
        if reported.is_none_or(|last| now.saturating_duration_since(last) >= BETWEEN_REPORTS) {
            *reported = Some(now);
            drop(reported);
            let count = self.unreported.swap(0, Ordering::Relaxed);
            let client = client.to_canonical().to_string();
            warn!(
                target: "access",
                count = count, last_client = client.as_str();
                "too many refused requests; their lines are left out"
            );
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(start: Instant) -> Refusals {
        Refusals::new(IntCounter::new("suppressed", "Lines.").unwrap(), start)
    }

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    #[test]
    fn a_client_has_a_burst_of_lines_and_then_a_few_a_second() {
        let start = Instant::now();
        let refusals = refusals(start);
        let lines = |client: u32, count: u32, now| (0..count).filter(|_| refusals.allows(address(client), now)).count();
        assert_eq!(lines(1, 5000, start), 1000);
        assert_eq!(refusals.suppressed.get(), 4000);
        assert_eq!(lines(2, 10, start), 10, "others have their own");
        assert_eq!(lines(1, 100, start + Duration::from_secs(2)), 10);
        assert_eq!(refusals.suppressed.get(), 4090);
    }

    #[test]
    fn many_addresses_share_a_budget_too() {
        let start = Instant::now();
        let refusals = refusals(start);
        let lines = |now| {
            (0..100_000)
                .filter(|client| refusals.allows(address(*client), now))
                .count()
        };
        let first = lines(start);
        assert!(first <= 10_000, "{first}");
        // Those that found no bucket are judged by an estimate.
        assert!(first >= 4000, "{first}");
        let later = lines(start + Duration::from_secs(1));
        assert!(later <= 500 + 10_000 - first, "{later}");
    }

    #[test]
    fn what_is_left_out_is_reported_at_once_and_then_seldom() {
        let start = Instant::now();
        let refusals = refusals(start);
        let flood = |now| assert!((0..2000).any(|_| !refusals.allows(address(1), now)));
        let unreported = || refusals.unreported.load(Ordering::Relaxed);
        flood(start);
        assert_eq!((*lock(&refusals.reported), unreported()), (Some(start), 0));
        flood(start + Duration::from_secs(9));
        assert_eq!((*lock(&refusals.reported), unreported()), (Some(start), 1));
        let later = start + BETWEEN_REPORTS;
        flood(later);
        assert_eq!((*lock(&refusals.reported), unreported()), (Some(later), 0));
    }
}

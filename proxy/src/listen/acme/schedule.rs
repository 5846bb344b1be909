//! When a certificate is renewed, and when an order that failed is tried again. All times are in seconds since 1970.
//!
//! Hosts that got their certificates in the same minute would all be renewed in the same minute too, so each has a fraction of its own by
//! which it is later. It stays the same when the process starts again.

use std::hash::{DefaultHasher, Hash, Hasher};

/// The first wait after an order has failed. Let's Encrypt lets a host fail five times an hour.
const FIRST: u64 = 5 * 60;
/// The first wait after the directory could not be reached, which counts against no limit.
const FIRST_UNREACHED: u64 = 30;
/// The longest wait that is not asked for.
const LONGEST: u64 = 12 * 3600;
/// No wait that an authority asks for is longer.
pub const LONGEST_ASKED: u64 = 7 * 24 * 3600;
/// By how much clocks differ.
const SKEW: u64 = 3600;

/// When that is, which was noted when it was at most so far away: at once, if it is further. The clock was ahead then.
pub fn noted(time: u64, now: u64, most: u64) -> u64 {
    // The clocks of processes that share a storage differ.
    if time > now.saturating_add(most + SKEW) {
        0
    } else {
        time
    }
}

/// When the certificate of `host` with this life is renewed: after two thirds of it, or when the authority `suggested` if that is earlier. An
/// authority whose suggestions are always in the past gets no more orders for that than ten in the life of a certificate.
pub fn renewal(host: &str, not_before: u64, not_after: u64, suggested: Option<u64>) -> u64 {
    let life = not_after.saturating_sub(not_before);
    let late = share(life / 50, &(host, not_after));
    let two_thirds = not_before + life / 3 * 2 + late;
    let earliest = not_before + life / 10;
    suggested.map_or(two_thirds, |suggested| suggested.max(earliest).min(two_thirds))
}

/// A time in the window from `start` to `end`, the same whenever it is asked for.
pub fn within(host: &str, start: u64, end: u64) -> u64 {
    start + share(end.saturating_sub(start), &(host, start, end))
}

/// When the next order is made after so many `failures`, the last of them `now`, perhaps because the directory was not `reached`. The
/// authority may have asked for a time.
pub fn next_attempt(host: &str, failures: u32, reached: bool, now: u64, asked: Option<u64>) -> u64 {
    let doubled = 1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
    let first = if reached { FIRST } else { FIRST_UNREACHED };
    let wait = first.saturating_mul(doubled).min(LONGEST);
    let own = now + wait + share(wait / 4, &(host, now));
    let asked = asked.unwrap_or_default().min(now + LONGEST_ASKED);
    own.max(asked)
}

/// A part of `whole` that depends on `seed`.
fn share(whole: u64, seed: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    hasher.finish() % (whole + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life_or_when_the_authority_says() {
        let (from, until) = (1_000_000, 1_000_000 + 90 * DAY);
        let mut times: Vec<_> = (0..50)
            .map(|host| renewal(&format!("{host}.example"), from, until, None))
            .collect();
        for time in &times {
            assert!((from + 60 * DAY..=from + 62 * DAY).contains(time));
        }
        times.dedup();
        assert!(times.len() > 45, "each at a time of its own");
        let early = from + 10 * DAY;
        assert_eq!(renewal("a", from, until, Some(early)), early);
        assert_eq!(renewal("a", from, until, Some(0)), from + 9 * DAY);
        assert!(renewal("a", from, until, Some(until)) < until - 28 * DAY);
        assert!((30..=40).contains(&renewal("a", 10, 40, None)));
        // What makes no sense is renewed at once.
        assert_eq!(renewal("a", 50, 40, None), 50);
    }

    #[test]
    fn a_time_that_was_noted_while_the_clock_was_ahead_does_not_count() {
        for (time, expected) in [
            (0, 0),
            (1500, 1500),
            (1100 + SKEW, 1100 + SKEW),
            (1101 + SKEW, 0),
            (u64::MAX, 0),
        ] {
            assert_eq!(noted(time, 1000, 100), expected);
        }
    }

    #[test]
    fn a_window_gives_the_same_time_whenever_it_is_asked_for() {
        let time = within("a", 100, 200);
        assert!((100..=200).contains(&time));
        assert_eq!(within("a", 100, 200), time);
        assert_eq!(within("a", 200, 100), 200);
    }

    #[test]
    fn failures_wait_longer_each_time_and_as_long_as_the_authority_asks() {
        let wait = |failures, asked| next_attempt("a", failures, true, 1000, asked) - 1000;
        assert!((300..=375).contains(&wait(1, None)));
        assert!((600..=750).contains(&wait(2, None)));
        for failures in [9, 65, u32::MAX] {
            assert!((12 * 3600..=15 * 3600).contains(&wait(failures, None)));
        }
        assert_eq!(wait(1, Some(1000 + 5000)), 5000);
        assert!(wait(1, Some(1)) >= 300, "never earlier than its own");
        assert_eq!(wait(1, Some(u64::MAX)), 7 * DAY);
        assert!((1030..=1037).contains(&next_attempt("a", 1, false, 1000, None)));
    }
}

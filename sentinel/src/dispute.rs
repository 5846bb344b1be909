//! Damps a dispute: two writers that disagree about a target must not move it in and out of the set all the time.
//!
//! Two sentinels with the same targets can see one of them differently: one resolves its name wrongly, or can't reach it.
//! If both insist, the target flaps. So a sentinel that finds its publication undone waits before it
//! publishes again, each time twice as long. The first time it does not wait: most likely the other one is about to
//! see the same, or somebody has removed the key.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use registry::Member;

/// The longest wait before a member is published again.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A dispute is over when nothing has been undone for so long: the other writer may wait as long as this one.
const OVER: Duration = Duration::from_secs(300);

/// The members that another writer sees differently.
#[derive(Debug, Default)]
pub(crate) struct Disputes(HashMap<Member, Dispute>);

#[derive(Debug)]
struct Dispute {
    /// How often the other one has undone it.
    undone: u32,
    last: Instant,
    /// When it may be published again.
    until: Instant,
}

impl Disputes {
    /// Notes that another writer has undone what was published of `member`. Returns whether that is the beginning of a
    /// disagreement, which is worth a line.
    pub(crate) fn undone(&mut self, member: &Member, interval: Duration, now: Instant) -> bool {
        let dispute = self.0.entry(member.clone()).or_insert(Dispute {
            undone: 0,
            last: now,
            until: now,
        });
        dispute.undone = dispute.undone.saturating_add(1);
        dispute.last = now;
        if let Some(doublings) = dispute.undone.checked_sub(1).filter(|doublings| *doublings > 0) {
            let wait = interval
                .saturating_mul(2u32.saturating_pow(doublings))
                .min(LONGEST_WAIT);
            dispute.until = now + wait;
        }
        dispute.undone == 2
    }

    /// Whether `member` has to stay as the other writer wants it, for now.
    pub(crate) fn holds(&self, member: &Member, now: Instant) -> bool {
        self.0.get(member).is_some_and(|dispute| now < dispute.until)
    }

    /// Forgets the disputes that are over; returns the members of those that were worth a line.
    pub(crate) fn take_over(&mut self, now: Instant) -> Vec<Member> {
        let over = self.0.extract_if(|_, dispute| now.duration_since(dispute.last) > OVER);
        over.filter(|(_, dispute)| dispute.undone > 1)
            .map(|(member, _)| member)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_time_costs_no_wait_and_each_next_one_twice_as_much_up_to_a_minute() {
        let (mut disputes, member) = (Disputes::default(), "a:1".parse().unwrap());
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for round in 0..9 {
            assert_eq!(disputes.undone(&member, SECOND, now), round == 1, "said once");
            let undone = now;
            while disputes.holds(&member, now) {
                now += SECOND;
            }
            waits.push((now - undone).as_secs());
            now += 2 * SECOND;
        }
        assert_eq!(waits, [0, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(!disputes.holds(&"b:1".parse().unwrap(), now));
    }

    #[test]
    fn a_dispute_is_over_after_five_quiet_minutes() {
        let (mut disputes, member, once) = (
            Disputes::default(),
            "a:1".parse::<Member>().unwrap(),
            "b:1".parse().unwrap(),
        );
        let now = Instant::now();
        disputes.undone(&once, SECOND, now);
        assert!(!disputes.undone(&member, SECOND, now));
        assert!(disputes.undone(&member, SECOND, now));
        assert!(disputes.take_over(now + OVER).is_empty());
        assert_eq!(disputes.take_over(now + OVER + SECOND), std::slice::from_ref(&member));
        assert!(!disputes.undone(&member, SECOND, now + OVER + SECOND), "it begins anew");
    }
}

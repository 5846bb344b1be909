//! Hands the buckets of throttled clients from a running process to its successor: those of the limit for all requests in one note, and those
//! of all routes in another.
//!
//! A bucket is handed over as the time until it is full, because the two processes count time from different beginnings. That
//! adds the time that the note takes on its way, so a client may be limited a little longer, never less. The note does not have what the
//! running process still lets through after writing it: while it drains, a client gets at most what
//! both buckets hold, and one that is over its limit has nothing in either.
//!
//! The format, little endian: [`FORMAT`], the time of a token, the time of a whole bucket, the mask of IPv6 networks; then for
//! each client 16 bytes of address and 8 of time, the emptiest buckets first. Times are in nanoseconds. A reader that finds
//! another format or another limit takes nothing, and all its clients start with full buckets. In the note of routes, [`FORMAT_OF_ROUTES`]
//! stands in place of all that, because a route and its limit are in the salt of its clients' keys: buckets of a limit that the reader does
//! not have are nobody's.

use std::cmp::Reverse;
use std::time::Instant;

use super::buckets::Buckets;
use super::shared::Shared;
use super::{ClientLimiter, lock};

const FORMAT: &[u8; 8] = b"buckets1";
const FORMAT_OF_ROUTES: &[u8; 8] = b"routebk1";
const HEADER: usize = 8 + 8 + 8 + 16;
const ENTRY: usize = 16 + 8;
/// The most clients in a note: 3 MiB. Of more, the emptiest buckets.
const MOST: usize = 131_072;
/// No bucket takes longer to fill, in nanoseconds: a day.
const LONGEST_FILL: u64 = 24 * 60 * 60 * 1_000_000_000;

impl ClientLimiter {
    /// The buckets that are not full at `now`.
    pub fn export(&self, now: Instant) -> Vec<u8> {
        let mut note = self.header();
        self.buckets.export(&mut note, now);
        note
    }

    /// Takes the buckets of a note at `now`, as many as there are places for; returns how many.
    pub fn import(&self, note: &[u8], now: Instant) -> usize {
        let entries = note.strip_prefix(self.header().as_slice());
        entries.map_or(0, |entries| self.buckets.import(entries, self.rate.bucket, now))
    }

    /// The format and the limit, without which the times mean nothing.
    fn header(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(FORMAT);
        header.extend_from_slice(&self.rate.token.to_le_bytes());
        header.extend_from_slice(&self.rate.bucket.to_le_bytes());
        header.extend_from_slice(&self.ipv6_mask.to_le_bytes());
        header
    }
}

impl Shared {
    /// The buckets of all limiters that are not full at `now`.
    pub fn export(&self, now: Instant) -> Vec<u8> {
        let mut note = FORMAT_OF_ROUTES.to_vec();
        self.buckets.export(&mut note, now);
        note
    }

    /// Takes the buckets of a note at `now`, as many as there are places for; returns how many.
    pub fn import(&self, note: &[u8], now: Instant) -> usize {
        let entries = note.strip_prefix(FORMAT_OF_ROUTES);
        entries.map_or(0, |entries| self.buckets.import(entries, LONGEST_FILL, now))
    }
}

impl Buckets {
    /// Appends an entry for each bucket that is not full at `now`.
    fn export(&self, note: &mut Vec<u8>, now: Instant) {
        let now = self.nanos(now);
        let mut owing: Vec<(u128, u64)> = Vec::new();
        for shard in &self.shards {
            for (client, full_at) in &lock(shard).full_at {
                if *full_at > now {
                    owing.push((*client, full_at - now));
                }
            }
            keep_most_owing(&mut owing);
        }
        owing.sort_unstable_by_key(|(_, ahead)| Reverse(*ahead));
        note.reserve_exact(owing.len() * ENTRY);
        for (client, ahead) in owing {
            note.extend_from_slice(&client.to_le_bytes());
            note.extend_from_slice(&ahead.to_le_bytes());
        }
    }

    /// Takes the buckets of `entries` at `now`, none of which takes longer than `longest` to fill; returns how many.
    fn import(&self, entries: &[u8], longest: u64, now: Instant) -> usize {
        let now = self.nanos(now);
        let mut taken = 0;
        let (entries, _) = entries.as_chunks::<ENTRY>();
        for entry in entries.iter().take(MOST) {
            let (client, ahead) = entry.split_at(16);
            let client = client.try_into().map_or(0, u128::from_le_bytes);
            let ahead = ahead.try_into().map_or(0, u64::from_le_bytes);
            let mut shard = self.shard(client);
            if self.has_place(&mut shard, now) {
                shard.full_at.insert(client, now + ahead.min(longest));
                taken += 1;
            }
        }
        taken
    }
}

fn keep_most_owing(owing: &mut Vec<(u128, u64)>) {
    if owing.len() > MOST {
        owing.select_nth_unstable_by_key(MOST, |(_, ahead)| Reverse(*ahead));
        owing.truncate(MOST);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Verdict;
    use super::super::tests::{LIMIT, address};
    use super::*;
    use crate::config::Limit;

    #[test]
    fn a_successor_decides_as_the_running_process_would_have() {
        let mut random = fastrand::Rng::with_seed(20_261_126);
        for _ in 0..100 {
            let limit = Limit {
                burst: random.u32(1..20),
                per_second: f64::from(random.u32(1..100)),
                ..LIMIT
            };
            let start = Instant::now();
            let old = ClientLimiter::new(&limit, start);
            let mut now = start + Duration::from_secs(100);
            for _ in 0..200 {
                old.check(address(random.u32(0..10)), now);
                now += Duration::from_millis(random.u64(0..50));
            }
            // The successor's time begins elsewhere.
            let new = ClientLimiter::new(&limit, now - Duration::from_millis(random.u64(0..5000)));
            let throttled = new.import(&old.export(now), now);
            assert_eq!(throttled, old.clients(now));
            for _ in 0..200 {
                let client = address(random.u32(0..10));
                assert_eq!(new.check(client, now), old.check(client, now), "{limit:?}");
                now += Duration::from_millis(random.u64(0..50));
            }
        }
    }

    #[test]
    fn a_note_on_its_way_makes_nobody_freer() {
        let start = Instant::now();
        let (old, new) = (ClientLimiter::new(&LIMIT, start), ClientLimiter::new(&LIMIT, start));
        while matches!(old.check(address(1), start), Verdict::Allow { .. }) {}
        let note = old.export(start);
        let later = start + Duration::from_secs(60);
        assert_eq!(new.import(&note, later), 1);
        assert!(matches!(new.check(address(1), later), Verdict::Limited { .. }));
        let refilled = later + LIMIT_REFILL;
        assert_eq!(
            new.check(address(1), refilled),
            Verdict::Allow { remaining: 4 },
            "and it recovers"
        );
    }

    const LIMIT_REFILL: Duration = Duration::from_millis(2500);

    #[test]
    fn another_limit_another_format_and_nonsense_are_not_taken() {
        let start = Instant::now();
        let old = ClientLimiter::new(&LIMIT, start);
        old.check(address(1), start);
        let note = old.export(start);
        let others = [
            Limit { burst: 6, ..LIMIT },
            Limit {
                per_second: 3.0,
                ..LIMIT
            },
            Limit {
                ipv6_prefix: 56,
                ..LIMIT
            },
        ];
        for limit in others {
            assert_eq!(ClientLimiter::new(&limit, start).import(&note, start), 0, "{limit:?}");
        }
        let more_places = Limit { clients: 1024, ..LIMIT };
        assert_eq!(ClientLimiter::new(&more_places, start).import(&note, start), 1);
        let mut newer = note.clone();
        newer[7] = b'2';
        for nonsense in [&newer, &note[..HEADER], &note[..note.len() - 1], &note[1..], b""] {
            assert_eq!(ClientLimiter::new(&LIMIT, start).import(nonsense, start), 0);
        }
        // A time that no bucket has is a whole bucket's.
        let mut absurd = note.clone();
        absurd[HEADER + 16..].fill(0xff);
        let new = ClientLimiter::new(&LIMIT, start);
        assert_eq!(new.import(&absurd, start), 1);
        assert_eq!(
            new.check(address(1), start + LIMIT_REFILL),
            Verdict::Allow { remaining: 4 }
        );
    }

    #[test]
    fn of_too_many_the_emptiest_buckets_are_handed_over() {
        let start = Instant::now();
        let crowd = Limit {
            clients: 16 * MOST,
            ..LIMIT
        };
        let old = ClientLimiter::new(&crowd, start);
        for number in 0..u32::try_from(2 * MOST).unwrap() {
            old.check(address(1 << 24 | number), start);
        }
        for _ in 0..9 {
            old.check(address(7), start);
        }
        let note = old.export(start);
        assert_eq!(note.len(), HEADER + MOST * ENTRY);
        assert!(note.len() < chassis::handover::MOST_NOTE);
        let small = ClientLimiter::new(&Limit { clients: 1024, ..LIMIT }, start);
        assert!(small.import(&note, start) <= 1024);
        assert!(matches!(small.check(address(7), start), Verdict::Limited { .. }));
    }
}

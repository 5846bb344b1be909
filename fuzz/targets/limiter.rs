//! The token bucket of each client, on schedules that the fuzzer thinks up.
//!
//! The first line of the input is the limit: the burst, the requests a second, and how many places a part of the table
//! has. The rest is the schedule, a step a byte ([`Step`]). While there are never more clients than a part of the table
//! has places, each verdict is that of a textbook's bucket, to the nanosecond; with more of them no client gets a request
//! that such a bucket would not give it.
#![no_main]

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use gopherproxy::config::Limit;
use gopherproxy::limit::{ClientLimiter, Verdict};
use libfuzzer_sys::{Corpus, fuzz_target};

/// The parts of the limiter's table, by which the places are multiplied.
const PARTS: usize = 64;
/// How many new addresses come at once in a flood.
const FLOOD: u32 = 256;
/// A longer schedule finds nothing that a shorter one does not, and takes its time.
const MOST_STEPS: usize = 500;

/// What happens next.
#[derive(Clone, Copy)]
enum Step {
    /// `a` to `z`: a request of an IPv4 client. `A` to `Z`: one of an IPv6 network, from another address each time.
    Request(Client),
    /// `!`: one new client. `#`: [`FLOOD`] of them.
    Flood(u32),
    /// `0` to `9`: so many tenths of the time that a token takes. `+`: all of it. `*`: the time of a whole bucket.
    /// `.`: a nanosecond. `~`: as long as a full table is left alone. `>`: until the estimator's next window.
    Wait(Wait),
    /// `?`: the clients with a bucket are counted.
    Count,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Client {
    V4(u8),
    V6(u8),
    New(u32),
}

#[derive(Clone, Copy)]
enum Wait {
    Tenths(u32),
    Bucket,
    Nanosecond,
    Sweep,
    Window,
}

impl Step {
    fn read(byte: u8) -> Option<Self> {
        Some(match byte {
            b'a'..=b'z' => Self::Request(Client::V4(byte)),
            b'A'..=b'Z' => Self::Request(Client::V6(byte)),
            b'!' => Self::Flood(1),
            b'#' => Self::Flood(FLOOD),
            b'0'..=b'9' => Self::Wait(Wait::Tenths(u32::from(byte - b'0'))),
            b'+' => Self::Wait(Wait::Tenths(10)),
            b'*' => Self::Wait(Wait::Bucket),
            b'.' => Self::Wait(Wait::Nanosecond),
            b'~' => Self::Wait(Wait::Sweep),
            b'>' => Self::Wait(Wait::Window),
            b'?' => Self::Count,
            _ => return None,
        })
    }
}

impl Client {
    /// One of the addresses that are this client.
    fn address(self, request: usize) -> IpAddr {
        let mapped = |address: Ipv4Addr| match request % 2 {
            0 => IpAddr::V4(address),
            _ => IpAddr::V6(address.to_ipv6_mapped()),
        };
        match self {
            Self::V4(name) => mapped(Ipv4Addr::new(192, 0, 2, name)),
            Self::V6(name) => {
                let network = 0x2001_0db8_u128 << 96 | u128::from(name) << 64;
                Ipv6Addr::from_bits(network | request as u128).into()
            }
            Self::New(number) => mapped(Ipv4Addr::from_bits(10 << 24 | number)),
        }
    }
}

/// A token bucket as a textbook has it. Tokens are counted in the nanoseconds that they take to come back.
struct Bucket {
    left: u128,
    last: u128,
}

/// The limit, as the model knows it.
struct Model {
    token: u128,
    burst: u128,
    buckets: HashMap<Client, Bucket>,
}

impl Model {
    /// The bucket of `client`, filled up.
    fn bucket(&mut self, client: Client, now: u128) -> &mut Bucket {
        let full = self.token * self.burst;
        let bucket = self.buckets.entry(client).or_insert(Bucket { left: full, last: now });
        bucket.left = full.min(bucket.left + now - bucket.last);
        bucket.last = now;
        bucket
    }

    fn check(&mut self, client: Client, now: u128) -> Verdict {
        let token = self.token;
        let bucket = self.bucket(client, now);
        match bucket.left.checked_sub(token) {
            Some(left) => {
                bucket.left = left;
                let remaining = u32::try_from(left / token).expect("a burst is below 2^32");
                Verdict::Allow { remaining }
            }
            None => Verdict::Limited {
                retry_after: nanoseconds(token - bucket.left),
            },
        }
    }

    /// How many buckets are not full.
    fn clients(&self, now: u128) -> usize {
        let full = self.token * self.burst;
        let filled = |bucket: &&Bucket| bucket.left + now - bucket.last < full;
        self.buckets.values().filter(filled).count()
    }
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((limit, schedule)) = read(input) else {
        return Corpus::Reject;
    };
    run(&limit, &schedule);
    Corpus::Keep
});

fn read(input: &[u8]) -> Option<(Limit, Vec<Step>)> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let mut words = str::from_utf8(&input[..end]).ok()?.split(' ');
    let limit = Limit {
        burst: words.next()?.parse().ok()?,
        per_second: words.next()?.parse().ok()?,
        clients: PARTS * words.next()?.parse::<usize>().ok()?.clamp(1, 16),
        ipv6_prefix: 64,
        exempt: Vec::new(),
    };
    // What the configuration takes.
    let rate = limit.per_second > 0.0 && limit.per_second <= 1e6;
    let sound = (1..=1_000_000).contains(&limit.burst) && rate && f64::from(limit.burst) / limit.per_second <= 86_400.0;
    let schedule = input[end + 1..].iter().filter_map(|byte| Step::read(*byte));
    sound.then(|| (limit, schedule.take(MOST_STEPS).collect()))
}

fn run(limit: &Limit, schedule: &[Step]) {
    let known = schedule.iter().filter_map(|step| match step {
        Step::Request(client) => Some(*client),
        _ => None,
    });
    let new = schedule.iter().map(|step| match step {
        Step::Flood(number) => *number as usize,
        _ => 0,
    });
    let clients = known.collect::<BTreeSet<_>>().len() + new.sum::<usize>();
    let exact = clients <= limit.clients / PARTS;

    let start = Instant::now();
    let limiter = ClientLimiter::new(limit, start);
    let full = limiter.refill().as_nanos();
    let burst = u128::from(limit.burst);
    assert_eq!(full % burst, 0, "a bucket is whole tokens");
    let mut model = Model {
        token: full / burst,
        burst,
        buckets: HashMap::new(),
    };
    let promised = 1e9 / limit.per_second;
    assert!(
        (model.token as f64 - promised).abs() <= 1.0,
        "{} ns is not {promised} ns",
        model.token
    );

    let (mut now, mut requests, mut new) = (0_u128, 0, 0);
    for step in schedule {
        match *step {
            Step::Request(client) => {
                requests += 1;
                request(&limiter, &mut model, exact, (client, requests), (start, now));
            }
            Step::Flood(number) => {
                for client in new..new + number {
                    requests += 1;
                    request(
                        &limiter,
                        &mut model,
                        exact,
                        (Client::New(client), requests),
                        (start, now),
                    );
                }
                new += number;
            }
            Step::Wait(wait) => now += time(wait, &model, now),
            Step::Count => {
                let counted = limiter.clients(start + nanoseconds(now));
                assert!(counted <= limit.clients);
                assert!(!exact || counted == model.clients(now), "{counted} clients");
            }
        }
    }
}

/// One request, and what the model says of the limiter's verdict.
fn request(
    limiter: &ClientLimiter,
    model: &mut Model,
    exact: bool,
    (client, number): (Client, usize),
    (start, now): (Instant, u128),
) {
    let verdict = limiter.check(client.address(number), start + nanoseconds(now));
    match verdict {
        Verdict::Limited { retry_after } if !exact => {
            // Refused by an estimate, perhaps; that asks for a wait of two windows at most.
            assert!(!retry_after.is_zero() && retry_after.as_nanos() <= 2 * window(model));
        }
        _ => {
            let expected = model.check(client, now);
            match (verdict, expected) {
                (Verdict::Allow { remaining }, Verdict::Allow { remaining: most }) if !exact => {
                    assert!(remaining <= most, "{remaining} more at once, not {most}");
                }
                _ => assert_eq!(verdict, expected, "at {now} ns"),
            }
        }
    }
}

/// How long the estimator's window is.
fn window(model: &Model) -> u128 {
    (model.token * model.burst).max(Duration::from_secs(1).as_nanos())
}

fn time(wait: Wait, model: &Model, now: u128) -> u128 {
    match wait {
        Wait::Tenths(tenths) => model.token * u128::from(tenths) / 10,
        Wait::Bucket => model.token * model.burst,
        Wait::Nanosecond => 1,
        Wait::Sweep => Duration::from_millis(50).as_nanos(),
        Wait::Window => window(model) - now % window(model),
    }
}

fn nanoseconds(number: u128) -> Duration {
    Duration::from_nanos(u64::try_from(number).expect("a schedule is shorter than five centuries"))
}

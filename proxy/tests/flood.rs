//! Ten million client addresses in a minute, or, in the usual short run, as many in each second of some seconds. A test binary of
//! its own, because it measures the memory of its process.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use gopherproxy::config::Limit;
use gopherproxy::limit::{ClientLimiter, Verdict};

const LIMIT: Limit = Limit {
    burst: 5,
    per_second: 2.0,
    clients: 131_072,
    ipv6_prefix: 64,
    exempt: Vec::new(),
};
const A_SECOND: u32 = 10_000_000 / 60;

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("it is there");
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse().expect("a number")
}

#[test]
fn ten_million_addresses_in_a_minute_cost_little_memory_and_no_limit() {
    let seconds = if std::env::var_os("THOROUGH").is_some() { 60 } else { 6 };
    let before = resident_kib();
    let start = Instant::now();
    let limiter = ClientLimiter::new(&LIMIT, start);
    let throttled = IpAddr::from([192, 0, 2, 1]);
    let passes = |now| matches!(limiter.check(throttled, now), Verdict::Allow { .. });
    // It has used up its burst, and goes on asking ten times a second.
    let mut passed = (0..20).filter(|_| passes(start)).count();
    assert_eq!(passed, 5);
    for number in 0..A_SECOND * seconds {
        let now = start + Duration::from_secs(1) / A_SECOND * number;
        limiter.check(IpAddr::from(Ipv4Addr::from_bits(0x0b00_0000 + number)), now);
        if number % (A_SECOND / 10) == 0 && passes(now) {
            passed += 1;
        }
    }
    let grown = resident_kib().saturating_sub(before);
    assert!(grown <= 32 << 10, "{grown} KiB");
    let promised = 5 + 2 * seconds as usize;
    assert!(passed <= promised, "two a second and a burst: {passed}");
    assert!(limiter.clients(start + Duration::from_secs(seconds.into())) <= LIMIT.clients);
}

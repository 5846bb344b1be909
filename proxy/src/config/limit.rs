//! `limit`: the token bucket of each client.

use chassis::settings::{Section, positive, whole};
use ipnet::IpNet;

use super::address::network;

/// A bucket may take at most this long to fill, in seconds: beyond that it is a quota, not a rate.
const LONGEST_REFILL: f64 = 86_400.0;

/// The token bucket of each client.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// How many requests a client may send at once.
    pub burst: u32,
    /// How many requests a second a client gets back.
    pub per_second: f64,
    /// How many clients have an exact bucket at a time.
    pub clients: usize,
    /// How many bits of an IPv6 address make a client.
    pub ipv6_prefix: u8,
    /// Clients without a limit.
    pub exempt: Vec<IpNet>,
}

impl Limit {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let limit = Self {
            burst: section.value("burst", Some("RATE_LIMIT_BURST"), 5, whole(1..=1_000_000)),
            per_second: section.value("per_second", Some("RATE_LIMIT_PER_SECOND"), 2.0, positive(1e6)),
            clients: section.value("clients", None, 131_072, whole(1_024..=16_777_216)),
            ipv6_prefix: section.value("ipv6_prefix", None, 64, whole(1..=128)),
            exempt: section.list("exempt", None, Vec::new(), network),
        };
        if f64::from(limit.burst) / limit.per_second > LONGEST_REFILL {
            section.settings().mistake(
                &section.place("per_second"),
                format_args!(
                    "at {} requests a second, a burst of {} takes more than a day to come back; raise one or lower the other",
                    limit.per_second, limit.burst
                ),
            );
        }
        section.finish();
        limit
    }
}

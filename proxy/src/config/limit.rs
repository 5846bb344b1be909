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

/// How large a bucket is, and how fast it fills.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// How many requests a client may send at once.
    pub burst: u32,
    /// How many requests a second a client gets back.
    pub per_second: f64,
}

impl Limit {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let default = Rate {
            burst: 5,
            per_second: 2.0,
        };
        let variables = [Some("RATE_LIMIT_BURST"), Some("RATE_LIMIT_PER_SECOND")];
        let Rate { burst, per_second } = Rate::read(&mut section, variables, default);
        let limit = Self {
            burst,
            per_second,
            clients: section.value("clients", None, 131_072, whole(1_024..=16_777_216)),
            ipv6_prefix: section.value("ipv6_prefix", None, 64, whole(1..=128)),
            exempt: section.list("exempt", None, Vec::new(), network),
        };
        section.finish();
        limit
    }

    /// How large a bucket is, and how fast it fills.
    pub(super) fn rate(&self) -> Rate {
        Rate {
            burst: self.burst,
            per_second: self.per_second,
        }
    }

    /// The same with another rate.
    pub fn at(&self, rate: Rate) -> Self {
        Self {
            burst: rate.burst,
            per_second: rate.per_second,
            ..self.clone()
        }
    }
}

impl Rate {
    /// Reads its two keys, which these variables set too.
    pub(super) fn read(section: &mut Section<'_>, variables: [Option<&'static str>; 2], default: Self) -> Self {
        let [burst, per_second] = variables;
        let rate = Self {
            burst: section.value("burst", burst, default.burst, whole(1..=1_000_000)),
            per_second: section.value("per_second", per_second, default.per_second, positive(1e6)),
        };
        if f64::from(rate.burst) / rate.per_second > LONGEST_REFILL {
            section.settings().mistake(
                &section.place("per_second"),
                format_args!(
                    "at {} requests a second, a burst of {} takes more than a day to come back; raise one or lower the other",
                    rate.per_second, rate.burst
                ),
            );
        }
        rate
    }
}

//! `health`: how backends are checked, globally and for a pool.

use std::ops::RangeInclusive;
use std::time::Duration;

use chassis::settings::{Section, duration, whole};
use http::uri::Authority;

use super::or_none;

/// The most checks in a row that a change may take.
const MOST_IN_A_ROW: u32 = 100;
/// A longer path is no path of a check, in bytes.
const LONGEST_PATH: usize = 1024;

/// What only a check by HTTP has.
const OF_HTTP: [&str; 3] = ["path", "status", "host"];

/// The proxy's own health check of every backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What a check is.
    pub kind: HealthKind,
    /// What is asked for by HTTP.
    pub path: Box<str>,
    /// The status of a good answer.
    pub status: RangeInclusive<u16>,
    /// The host that is asked for; none: that of the backend.
    pub host: Option<Box<str>>,
    /// From one check to the next.
    pub interval: Duration,
    /// How long a check may take.
    pub timeout: Duration,
    /// How many good checks in a row make a dead address alive.
    pub rise: u32,
    /// How many bad ones in a row make an address dead that was alive.
    pub fall: u32,
}

/// What a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthKind {
    /// A connection.
    Tcp,
    /// A request, and its answer.
    Http,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            kind: HealthKind::Tcp,
            path: "/".into(),
            status: 200..=299,
            host: None,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            rise: 1,
            fall: 1,
        }
    }
}

impl Health {
    /// Reads the keys of `section`. What they don't say is as in `defaults`.
    pub(super) fn read(section: &mut Section<'_>, defaults: &Self) -> Self {
        Self {
            kind: section.value("kind", None, defaults.kind, kind),
            path: section.value("path", None, defaults.path.clone(), path),
            status: section.value("status", None, defaults.status.clone(), status),
            host: section.value("host", None, defaults.host.clone(), |text| or_none(text, host)),
            interval: section.value("interval", None, defaults.interval, duration),
            timeout: section.value("timeout", None, defaults.timeout, duration),
            rise: section.value("rise", None, defaults.rise, whole(1..=MOST_IN_A_ROW)),
            fall: section.value("fall", None, defaults.fall, whole(1..=MOST_IN_A_ROW)),
        }
    }

    /// Remarks that keys for HTTP in `section` have no effect.
    pub(super) fn remark_http(section: &Section<'_>) {
        for key in OF_HTTP {
            section.key_has_no_effect(key, "the check is a connection: health.kind is tcp");
        }
    }
}

fn kind(text: &str) -> Result<HealthKind, String> {
    match text {
        "tcp" => Ok(HealthKind::Tcp),
        "http" => Ok(HealthKind::Http),
        _ => Err("tcp or http".into()),
    }
}

fn path(text: &str) -> Result<Box<str>, String> {
    let is_path = text.starts_with('/')
        && text.len() <= LONGEST_PATH
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
        && text.parse::<http::uri::PathAndQuery>().is_ok();
    if is_path {
        Ok(text.into())
    } else {
        Err("a path, such as /healthz".into())
    }
}

fn host(text: &str) -> Result<Box<str>, String> {
    match text.parse::<Authority>() {
        Ok(authority) if !text.contains('@') && !authority.host().is_empty() => Ok(text.into()),
        _ => Err("a host, such as www.example.com".into()),
    }
}

/// A status, or the first and the last of a range.
fn status(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let number = text.trim().parse().ok();
        number.filter(|number| (200..=599).contains(number))
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err("a status from 200 to 599, or a range of them such as 200-299".into()),
    }
}

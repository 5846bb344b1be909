//! `client`: the limits on a client's connection.

use std::time::Duration;

use chassis::settings::{Section, duration, size, truth, whole};

use super::size_or_none;
use crate::http1::head::{MOST_FIELDS, Rules};
use crate::http1::names::is_in_token;
use crate::http1::progress::Limits;

/// `client.max_connections`, unless it is set.
pub const DEFAULT_MAX_CONNECTIONS: usize = 10_000;

/// What a client connection may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientLimits {
    /// From the first byte of a request head to its last.
    pub head_timeout: Duration,
    /// Between requests, and before the first.
    pub idle_timeout: Duration,
    /// What sending a request and reading its response may take.
    pub transfer: Limits,
    /// The longest request head, in bytes.
    pub max_head: usize,
    /// What a request head may be.
    pub head: Rules,
    /// How much clients may make the proxy hold, in bytes; `None` for a quarter of the memory that the process may have.
    pub max_held: Option<usize>,
    /// The most requests on one connection.
    pub max_requests: u64,
    /// The most connections at a time.
    pub max_connections: usize,
    /// The most connections at a time from one address that is not a trusted proxy's.
    pub max_connections_per_client: usize,
}

impl ClientLimits {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let seconds = Duration::from_secs;
        let head = Rules::default();
        let limits = Self {
            head_timeout: section.value("head_timeout", None, seconds(10), duration),
            idle_timeout: section.value("idle_timeout", None, seconds(60), duration),
            transfer: Limits {
                read_timeout: section.value("read_timeout", None, seconds(60), duration),
                write_timeout: section.value("write_timeout", None, seconds(60), duration),
                min_rate: section.value("min_rate", None, Some(10), size_or_none),
                max_body: section.value("max_body", None, None, size_or_none),
            },
            max_head: section.value("max_head", None, 32 << 10, head_size),
            head: Rules {
                max_fields: section.value("max_fields", None, head.max_fields, whole(1..=MOST_FIELDS)),
                raw_targets: section.value("raw_targets", None, head.raw_targets, truth),
                upgrades: section.list("upgrades", None, head.upgrades, protocol),
            },
            max_held: section.value("max_held", None, None, held_size),
            max_requests: section.value("max_requests", None, 10_000, whole(1..=u64::MAX)),
            max_connections: section.value("max_connections", None, DEFAULT_MAX_CONNECTIONS, whole(1..=1_000_000)),
            max_connections_per_client: section.value("max_connections_per_client", None, 5_000, whole(1..=1_000_000)),
        };
        if limits.max_connections_per_client > limits.max_connections {
            let why = "it is above client.max_connections, so that one client can take every connection";
            section.key_has_no_effect("max_connections_per_client", why);
        }
        section.finish();
        limits
    }
}

/// The size of a request head: below 512 B no browser gets through, and above 256 KiB backends take none.
fn head_size(text: &str) -> Result<usize, String> {
    let expected = || "a size from 512B to 256KiB".to_owned();
    let bytes = size(text).map_err(|_| expected())?;
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| (512..=256 << 10).contains(bytes))
        .ok_or_else(expected)
}

/// The budget for what clients make the proxy hold. With less, a share of it could be less than one connection takes.
fn held_size(text: &str) -> Result<Option<usize>, String> {
    if text == "auto" {
        return Ok(None);
    }
    let bytes = size(text).ok().filter(|bytes| *bytes >= 8 << 20);
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    bytes
        .map(Some)
        .ok_or_else(|| "auto, or a size of at least 8MiB".to_owned())
}

/// A protocol to switch to: a token, or two with a slash between (RFC 9110, section 7.8). HTTP is not allowed: after a switch to h2c
/// a client's requests would pass unseen.
fn protocol(text: &str) -> Result<String, String> {
    let is_token = |text: &str| !text.is_empty() && text.bytes().all(is_in_token);
    let (name, version) = text.split_once('/').unwrap_or((text, "1"));
    let is_http = ["h2c", "h2", "http"].iter().any(|http| name.eq_ignore_ascii_case(http));
    if is_http || !is_token(name) || !is_token(version) {
        return Err("a protocol such as websocket, and not HTTP".to_owned());
    }
    Ok(text.to_owned())
}

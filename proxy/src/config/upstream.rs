//! `upstream`: what backends speak, their deadlines, retries and ejection.

use std::time::Duration;

use chassis::settings::{Section, duration, duration_or_zero, size, whole};

use super::origin_tls::OriginTls;

/// The most tries after the first.
pub(super) const MOST_RETRIES: usize = 10;

/// What a backend speaks, and what it may take.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamLimits {
    /// What backends speak that don't speak TLS.
    pub protocol: Protocol,
    /// TLS to backends.
    pub tls: OriginTls,
    /// To take a connection.
    pub connect_timeout: Duration,
    /// For the whole head of a response, and between two pieces of its body.
    pub read_timeout: Duration,
    /// To take a piece of the request.
    pub write_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// How long one may have been unused for a request that can't be sent again.
    pub reuse_idle: Duration,
    /// How long an upgraded connection (WebSocket) may be silent.
    pub tunnel_idle_timeout: Duration,
    /// Tries after the first.
    pub retries: usize,
    /// How much of a request body is held to be sent again, in bytes.
    pub retry_buffer: usize,
    /// The ratio of retries to requests that is allowed in total.
    pub retry_budget: f64,
    /// When a failing backend is ejected.
    pub ejection: Ejection,
}

/// What a backend without TLS speaks. Over TLS that is negotiated (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 from the first byte ("prior knowledge").
    H2c,
}

/// When a failing backend is ejected, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Ejection {
    /// So many failures in a row take a backend out.
    pub failures: u32,
    /// For how long, the first time.
    pub time: Duration,
    /// For how long at most: each time in a row is twice as long as the one before.
    pub max_time: Duration,
    /// The largest share of the alive backends that may be out at a time.
    pub max_share: f64,
}

impl Default for UpstreamLimits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            protocol: Protocol::Http1,
            tls: OriginTls::default(),
            connect_timeout: seconds(2),
            read_timeout: seconds(60),
            write_timeout: seconds(60),
            idle_timeout: seconds(60),
            reuse_idle: Duration::from_millis(500),
            tunnel_idle_timeout: seconds(3600),
            retries: 2,
            retry_buffer: 64 << 10,
            retry_budget: 0.2,
            ejection: Ejection {
                failures: 3,
                time: seconds(5),
                max_time: seconds(60),
                max_share: 0.5,
            },
        }
    }
}

impl UpstreamLimits {
    /// Reads the keys of `section` that say what a backend may take. What they don't say is as in `defaults`.
    pub(super) fn read(section: &mut Section<'_>, defaults: &Self) -> Self {
        let limits = Self {
            protocol: section.value("protocol", None, defaults.protocol, protocol),
            tls: OriginTls::read(section.section("tls"), &defaults.tls),
            connect_timeout: section.value("connect_timeout", None, defaults.connect_timeout, duration),
            read_timeout: section.value("read_timeout", None, defaults.read_timeout, duration),
            write_timeout: section.value("write_timeout", None, defaults.write_timeout, duration),
            idle_timeout: section.value("idle_timeout", None, defaults.idle_timeout, duration),
            tunnel_idle_timeout: section.value("tunnel_idle_timeout", None, defaults.tunnel_idle_timeout, duration),
            reuse_idle: section.value("reuse_idle", None, defaults.reuse_idle, duration_or_zero),
            retry_buffer: section.value("retry_buffer", None, defaults.retry_buffer, buffer),
            retries: section.value("retries", None, defaults.retries, whole(0..=MOST_RETRIES)),
            retry_budget: section.value("retry_budget", None, defaults.retry_budget, share),
            ejection: Ejection::read(section.section("ejection"), &defaults.ejection),
        };
        if limits.retries == 0 {
            section.key_has_no_effect("retry_budget", "retries is 0");
        }
        limits
    }
}

impl Ejection {
    fn read(mut section: Section<'_>, defaults: &Self) -> Self {
        let ejection = Self {
            failures: section.value("failures", None, defaults.failures, whole(1..=1_000)),
            time: section.value("time", None, defaults.time, duration),
            max_time: section.value("max_time", None, defaults.max_time, duration),
            max_share: section.value("max_share", None, defaults.max_share, share),
        };
        section.finish();
        ejection
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "http1" => Ok(Protocol::Http1),
        "h2c" => Ok(Protocol::H2c),
        _ => Err("http1 or h2c".into()),
    }
}

/// How much may be held for each request.
fn buffer(text: &str) -> Result<usize, String> {
    let expected = || "a size up to 16MiB".to_owned();
    let bytes = size(text).map_err(|_| expected())?;
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= 16 << 20)
        .ok_or_else(expected)
}

/// A part of a whole.
fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "a number from 0 to 1, such as 0.2".into())
}

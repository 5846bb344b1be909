//! The metrics of the proxy.
//!
//! The first four are the Go program's, under its names and without labels where it had none, so that existing queries
//! keep working. Labels are bounded everywhere: a client's address or a path is never one, and a backend's
//! series leaves with the backend. Handles are made once, because looking a label up hashes it under a lock.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::routes::{CLASSES, class_of};
use crate::observe::pools::PoolsMetrics;
use crate::rejection::Rejection;

/// What came of a TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// A new session.
    Full,
    /// An earlier session goes on.
    Resumed,
    /// Client and proxy did not agree, or the client spoke something else.
    Failed,
    /// It took too long.
    Timeout,
}

/// Why the proxy ends a connection of HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoAway {
    /// The process is about to leave.
    Drain,
    /// It has had as many requests as a connection may have.
    MaxRequests,
    /// It had no stream for too long.
    Idle,
    /// The client has reset more than half of its streams.
    Resets,
    /// The client sends what makes work and means nothing.
    Flood,
    /// The client breaks the protocol.
    Protocol,
    /// The client takes too little of what it is sent.
    Slow,
}

impl GoAway {
    /// All of them, so that each has its series from the start.
    pub const ALL: [Self; 7] = [
        Self::Drain,
        Self::MaxRequests,
        Self::Idle,
        Self::Resets,
        Self::Flood,
        Self::Protocol,
        Self::Slow,
    ];

    /// The word in the metrics.
    const fn reason(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::MaxRequests => "max_requests",
            Self::Idle => "idle",
            Self::Resets => "resets",
            Self::Flood => "flood",
            Self::Protocol => "protocol",
            Self::Slow => "slow",
        }
    }
}

/// All metrics of the proxy; clones share the same series.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Requests that a backend answered.
    pub processed: IntCounter,
    /// Requests that a backend should have answered and none did: limited, no backend, backend failed.
    pub dropped: IntCounter,
    /// Those of backends, for each pool.
    pub pools: PoolsMetrics,
    /// By [`Rejection`], in the order of [`Rejection::ALL`].
    rejections: [IntCounter; Rejection::ALL.len()],
    /// By the first digit of the status, from 1.
    responses: [IntCounter; 5],
    /// Requests that have arrived and are not answered.
    pub inflight: IntGauge,
    /// Client connections that are open.
    pub connections: IntGauge,
    /// What clients make the proxy hold, in bytes.
    pub held: IntGauge,
    /// By [`GoAway`], in the order of [`GoAway::ALL`].
    goaways: [IntCounter; GoAway::ALL.len()],
    /// Reloads of the configuration, by result.
    reloads: [IntCounter; 2],
    /// Clients whose bucket is not full.
    pub limiter_clients: IntGauge,
    access_log_dropped: IntCounter,
    /// Refused requests without a line in the log.
    pub access_log_suppressed: IntCounter,
    panics: IntCounter,
    /// By [`Handshake`].
    tls_handshakes: [IntCounter; 4],
    /// When certificates end.
    tls_expiry: IntGaugeVec,
    /// Reloads of the certificates, by result.
    tls_reloads: [IntCounter; 2],
}

impl Metrics {
    /// Makes the metrics and registers them, with those of the process and the build.
    ///
    /// # Errors
    /// When one of the names is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let rejections = IntCounterVec::new(
            Opts::new(
                "gopherproxy_rejections_total",
                "Requests that the proxy answered itself, and responses that broke off, by reason.",
            ),
            &["reason"],
        )?;
        let responses = IntCounterVec::new(
            Opts::new(
                "gopherproxy_responses_total",
                "Responses that clients got, by class of status.",
            ),
            &["class"],
        )?;
        let reloads = IntCounterVec::new(
            Opts::new(
                "gopherproxy_config_reloads_total",
                "Reloads of the configuration, by result: ok, or refused.",
            ),
            &["result"],
        )?;
        let handshakes = IntCounterVec::new(
            Opts::new(
                "gopherproxy_tls_handshakes_total",
                "TLS handshakes with clients, by result: full, resumed, failed, or timeout.",
            ),
            &["result"],
        )?;
        let tls_reloads = IntCounterVec::new(
            Opts::new(
                "gopherproxy_tls_reloads_total",
                "Reloads of the certificates because a file had changed or by SIGHUP, by result: ok, or failed.",
            ),
            &["result"],
        )?;
        let goaways = IntCounterVec::new(
            Opts::new(
                "gopherproxy_http2_goaways_total",
                "Connections of HTTP/2 that the proxy ended, by reason.",
            ),
            &["reason"],
        )?;
        let metrics = Self {
            processed: IntCounter::new(
                "gopherproxy_processed_requests_total",
                "Requests that a backend answered.",
            )?,
            dropped: IntCounter::new(
                "gopherproxy_dropped_requests_total",
                "Requests that no backend answered: over the limit, no backend alive, or backends failed.",
            )?,
            pools: PoolsMetrics::new()?,
            rejections: Rejection::ALL.map(|rejection| rejections.with_label_values(&[rejection.reason()])),
            responses: CLASSES.map(|class| responses.with_label_values(&[class])),
            inflight: IntGauge::new(
                "gopherproxy_inflight_requests",
                "Requests that have arrived and are not answered.",
            )?,
            connections: IntGauge::new("gopherproxy_connections", "Client connections that are open.")?,
            held: IntGauge::new(
                "gopherproxy_held_bytes",
                "What clients that are waited for make the proxy hold, in memory and in the kernel's buffers; client.max_held is \
                 the limit.",
            )?,
            goaways: GoAway::ALL.map(|why| goaways.with_label_values(&[why.reason()])),
            reloads: ["ok", "refused"].map(|result| reloads.with_label_values(&[result])),
            limiter_clients: IntGauge::new("gopherproxy_limiter_clients", "Clients whose token bucket is not full.")?,
            access_log_dropped: IntCounter::new(
                "gopherproxy_access_log_dropped_lines_total",
                "Log lines that were dropped because standard output could not take them in time.",
            )?,
            access_log_suppressed: IntCounter::new(
                "gopherproxy_access_log_suppressed_lines_total",
                "Log lines of refused requests that were not written because their client, or all clients, had too many.",
            )?,
            panics: IntCounter::new(
                "gopherproxy_panics_total",
                "Panics, each a mistake in this program: of a request, which was cut, or of a background loop, which was \
                 started again.",
            )?,
            tls_handshakes: ["full", "resumed", "failed", "timeout"]
                .map(|result| handshakes.with_label_values(&[result])),
            tls_expiry: IntGaugeVec::new(
                Opts::new(
                    "gopherproxy_tls_certificate_expiry_timestamp_seconds",
                    "When a certificate for clients expires, in seconds since 1970, by the first host that it is for.",
                ),
                &["name"],
            )?,
            tls_reloads: ["ok", "failed"].map(|result| tls_reloads.with_label_values(&[result])),
        };
        let collectors: [Box<dyn Collector>; 17] = [
            Box::new(metrics.processed.clone()),
            Box::new(metrics.dropped.clone()),
            Box::new(metrics.pools.clone()),
            Box::new(rejections),
            Box::new(responses),
            Box::new(metrics.inflight.clone()),
            Box::new(metrics.limiter_clients.clone()),
            Box::new(metrics.access_log_dropped.clone()),
            Box::new(metrics.access_log_suppressed.clone()),
            Box::new(metrics.connections.clone()),
            Box::new(metrics.held.clone()),
            Box::new(reloads),
            Box::new(goaways),
            Box::new(metrics.panics.clone()),
            Box::new(handshakes),
            Box::new(metrics.tls_expiry.clone()),
            Box::new(tls_reloads),
        ];
        collectors
            .into_iter()
            .try_for_each(|collector| registry.register(collector))?;
        chassis::process_metrics::register(registry)?;
        chassis::build_info::register(registry, "gopherproxy_build_info")?;
        Ok(metrics)
    }

    /// Counts a request that the proxy answered itself, or whose response broke off.
    pub fn rejected(&self, rejection: Rejection) {
        if let Some(index) = Rejection::ALL.iter().position(|one| *one == rejection) {
            self.rejections[index].inc();
        }
    }

    /// Counts a response that a client got.
    pub fn responded(&self, status: u16) {
        self.responses[class_of(status)].inc();
    }

    /// Counts a connection of HTTP/2 that the proxy ends.
    pub fn goes_away(&self, why: GoAway) {
        if let Some(index) = GoAway::ALL.iter().position(|one| *one == why) {
            self.goaways[index].inc();
        }
    }

    /// Counts a reload of the configuration.
    pub fn reloaded(&self, taken: bool) {
        self.reloads[usize::from(!taken)].inc();
    }

    /// Counts a TLS handshake.
    pub fn shaken(&self, result: Handshake) {
        self.tls_handshakes[result as usize].inc();
    }

    /// Notes when each certificate ends, in seconds since 1970, in place of those before.
    pub fn certificates(&self, expiry: &BTreeMap<String, i64>) {
        self.tls_expiry.reset();
        for (name, ends) in expiry {
            self.tls_expiry.with_label_values(&[name]).set(*ends);
        }
    }

    /// Counts a reload of the certificates.
    pub fn tls_reloaded(&self, taken: bool) {
        self.tls_reloads[usize::from(!taken)].inc();
    }

    /// Brings the count of dropped log lines up to `total`.
    pub fn access_log_dropped(&self, total: u64) {
        catch_up(&self.access_log_dropped, total);
    }

    /// Brings the count of panics up to `total`.
    pub fn panics(&self, total: u64) {
        catch_up(&self.panics, total);
    }
}

fn catch_up(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

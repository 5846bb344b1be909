//! A backend: one member of the registry, however many addresses it has.
//!
//! Turns, ejection and metrics belong to the member. Its addresses take turns within the member's own: that spreads the load over
//! a name with many addresses, and a second address (A beside AAAA) brings no second share of the traffic.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use prometheus::Histogram;
use registry::{Host, Member};

use crate::config::{Protocol, UpstreamLimits};
use crate::observe::pools::PoolMetrics;
use crate::pool::balance::hash;
use crate::pool::balance::pace::Pace;
use crate::pool::ejection::EjectionState;
use crate::pool::kept::{Kept, Room};

/// How many requests share a connection over HTTP/2.
const MAX_STREAMS: u32 = 64;
/// How much of a response may come over HTTP/2 that its client does not take, in bytes; and of all responses on a connection, so
/// that slow clients don't hold up others.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS;

/// When a connection over HTTP/2 over which nothing comes is probed, how often, and after how many probes it is given up. Requests
/// would go on sharing one to a machine that is gone. Pings of HTTP/2 are no way to find out, because gRPC servers close connections for
/// them.
const PROBE_IDLE: Duration = Duration::from_secs(15);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: usize = 3;

/// A backend that requests can be sent to.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in the registry, as `host:port` or `https://host:port`.
    pub name: Arc<str>,
    /// If it speaks TLS, its host: the name that its certificate must have.
    tls: Option<Box<str>>,
    /// How many requests it has failed in a row, and whether it is ejected for that.
    pub ejection: EjectionState,
    /// How many requests are in flight to it, where its pool counts them.
    pub in_flight: AtomicU32,
    /// How long it takes to answer, in a pool that wants to know.
    pub pace: Pace,
    /// What identifies it where keys are hashed.
    pub seed: u64,
    /// Its connections that wait for their next request.
    pub kept: Kept,
    /// Where requests go: those of its addresses that are healthy; never empty.
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// Whose turn it is among them.
    turn: AtomicUsize,
    /// Those where HTTP/2 was chosen over TLS, the last time that there was a choice.
    http2: ArcSwap<Vec<SocketAddr>>,
    metrics: Arc<PoolMetrics>,
    /// How long its requests take. Created for its first request, so that a registry of thousands that get none does not
    /// create thousands of series.
    duration: OnceLock<Histogram>,
}

/// An address of a backend, for one try of a request.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The backend.
    pub upstream: Arc<Upstream>,
    /// Where to connect.
    pub address: SocketAddr,
}

impl Upstream {
    /// A backend at `addresses`, which must not be empty. All backends keep connections in the same `room`.
    pub fn new(name: Arc<str>, addresses: Vec<SocketAddr>, room: Arc<Room>, metrics: Arc<PoolMetrics>) -> Self {
        debug_assert!(!addresses.is_empty(), "a backend has an address");
        let member = name.parse().ok().filter(Member::is_tls);
        let tls = member.map(|member| match member.host() {
            Host::Address(address) => address.to_string(),
            Host::Name(name) => name.strip_suffix('.').unwrap_or(name).to_owned(),
        });
        Self {
            tls: tls.map(Into::into),
            seed: hash::seed(&name),
            name,
            ejection: EjectionState::default(),
            in_flight: AtomicU32::new(0),
            pace: Pace::default(),
            kept: Kept::new(room),
            addresses: ArcSwap::from_pointee(addresses),
            turn: AtomicUsize::new(0),
            http2: ArcSwap::default(),
            metrics,
            duration: OnceLock::new(),
        }
    }

    /// Its host and port.
    pub fn authority(&self) -> &str {
        self.name.strip_prefix("https://").unwrap_or(&self.name)
    }

    /// Whether it may speak HTTP/1.1 by these rules, with a request that asks to `upgrade` its connection or not. HTTP/2 has no
    /// upgrades, but servers that speak it without TLS usually speak HTTP/1.1 on the same port.
    pub fn may_speak_http1(&self, limits: &UpstreamLimits, upgrade: bool) -> bool {
        self.tls.is_some() || upgrade || limits.protocol == Protocol::Http1
    }

    /// Sends requests to `addresses` from now on. Without any, those that it has stay.
    pub fn serve_at(&self, addresses: Vec<SocketAddr>) {
        if !addresses.is_empty() && **self.addresses.load() != addresses {
            self.addresses.store(Arc::new(addresses));
        }
    }

    /// Sends no more requests to `address`, unless that is the last one. Returns whether others are left.
    pub fn set_aside(&self, address: SocketAddr) -> bool {
        let before = self.addresses.rcu(|addresses| {
            let others: Vec<_> = addresses.iter().copied().filter(|one| *one != address).collect();
            if others.is_empty() {
                Arc::clone(addresses)
            } else {
                Arc::new(others)
            }
        });
        **before != [address]
    }

    /// Its address, if it has one alone.
    pub fn only_address(&self) -> Option<SocketAddr> {
        match ***self.addresses.load() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The address whose turn it is.
    pub fn endpoint(self: &Arc<Self>) -> Endpoint {
        let addresses = self.addresses.load();
        let address = match addresses.as_slice() {
            [only] => *only,
            several => several[self.turn.fetch_add(1, Ordering::Relaxed) % several.len()],
        };
        Endpoint {
            upstream: Arc::clone(self),
            address,
        }
    }

    /// An address that is none of `tried`.
    pub fn endpoint_other_than(self: &Arc<Self>, tried: &[Endpoint]) -> Option<Endpoint> {
        let addresses = self.addresses.load();
        let turn = self.turn.load(Ordering::Relaxed);
        (0..addresses.len())
            .map(|step| addresses[turn.wrapping_add(step) % addresses.len()])
            .find(|address| tried.iter().all(|one| one.address != *address))
            .map(|address| Endpoint {
                upstream: Arc::clone(self),
                address,
            })
    }

    /// Records that it has answered, whatever the status.
    pub fn answered(&self) {
        self.ejection.answered();
    }

    /// How long its requests take.
    pub fn duration(&self) -> &Histogram {
        self.duration.get_or_init(|| self.metrics.request_duration(&self.name))
    }
}

impl Endpoint {
    /// What Pingora needs to connect, for a request that asks to `upgrade` its connection or not. Created for each request, because
    /// with a thousand backends one that was kept would be in no cache.
    pub fn peer(&self, limits: &UpstreamLimits, upgrade: bool) -> Box<HttpPeer> {
        // Never empty over TLS: Pingora would verify nothing.
        let server_name = self.server_name(limits).map(str::to_owned);
        let tls = server_name.is_some();
        let mut peer = Box::new(HttpPeer::new(self.address, tls, server_name.unwrap_or_default()));
        if tls {
            let credentials = limits.tls.credentials();
            peer.options.ca = Some(credentials.roots());
            peer.client_cert_key = credentials.identity();
            // Pingora tells its kept connections apart by less than what they were made with.
            peer.group_key = credentials.group.wrapping_add(u64::from(upgrade));
        }
        if !upgrade && (tls || limits.protocol == Protocol::H2c) {
            // Over TLS it is negotiated.
            peer.options.set_http_version(2, if tls { 1 } else { 2 });
            peer.options.max_h2_streams = MAX_STREAMS as usize;
            peer.options.h2_stream_window_size = Some(STREAM_WINDOW);
            peer.options.h2_connection_window_size = Some(CONNECTION_WINDOW);
            peer.options.tcp_keepalive = Some(TcpKeepalive {
                idle: PROBE_IDLE,
                interval: PROBE_INTERVAL,
                count: PROBES,
                // For what was sent and is not acknowledged.
                user_timeout: limits.write_timeout,
            });
        }
        // `headers` has written the head as the backend is to get it.
        peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
        peer.options.connection_timeout = Some(limits.connect_timeout);
        peer.options.total_connection_timeout = Some(limits.connect_timeout);
        peer.options.write_timeout = Some(limits.write_timeout);
        peer.options.idle_timeout = Some(limits.idle_timeout);
        peer
    }

    /// Whether it speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.upstream.tls.is_some()
    }

    /// If it speaks TLS, the name that its certificate must have.
    pub fn server_name<'n>(&'n self, limits: &'n UpstreamLimits) -> Option<&'n str> {
        let host = self.upstream.tls.as_deref()?;
        Some(limits.tls.name_of(host))
    }

    /// Whether it speaks HTTP/1.1, as far as is known, with a request that asks to `upgrade` its connection or not.
    pub fn speaks_http1(&self, limits: &UpstreamLimits, upgrade: bool) -> bool {
        let upstream = &self.upstream;
        if upstream.tls.is_none() {
            return upstream.may_speak_http1(limits, upgrade);
        }
        upgrade || !upstream.http2.load().contains(&self.address)
    }

    /// Notes that it has chosen HTTP/2 over TLS, where it had the choice, or has not.
    pub fn has_chosen(&self, http2: bool) {
        let upstream = &self.upstream;
        if upstream.tls.is_none() || upstream.http2.load().contains(&self.address) == http2 {
            return;
        }
        let addresses = upstream.addresses.load();
        upstream.http2.rcu(|before| {
            let others = before
                .iter()
                .filter(|one| **one != self.address && addresses.contains(one));
            let others = others.copied();
            others.chain(http2.then_some(self.address)).collect::<Vec<_>>()
        });
    }

    /// Whether both are the same backend, at whatever address.
    pub fn is_of(&self, upstream: &Arc<Upstream>) -> bool {
        Arc::ptr_eq(&self.upstream, upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::pools::PoolsMetrics;

    fn metrics() -> Arc<PoolMetrics> {
        PoolsMetrics::new().unwrap().of(&registry::PoolName::default()).unwrap()
    }

    fn upstream(ports: &[u16]) -> Arc<Upstream> {
        let addresses = ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port)));
        Arc::new(Upstream::new(
            "origin:80".into(),
            addresses.collect(),
            Arc::new(Room::new(0)),
            metrics(),
        ))
    }

    #[test]
    fn addresses_take_turns_and_the_last_one_stays() {
        let upstream = upstream(&[1, 2, 3]);
        let ports = || [(); 4].map(|()| upstream.endpoint().address.port());
        assert_eq!(ports(), [1, 2, 3, 1]);
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert!(upstream.set_aside(address(2)));
        assert!(upstream.set_aside(address(2)), "others are left");
        assert!(upstream.set_aside(address(3)));
        assert!(!upstream.set_aside(address(1)), "it is the last one");
        assert_eq!(ports(), [1; 4]);
        upstream.serve_at(vec![]);
        assert_eq!(ports(), [1; 4]);
    }

    fn limits(text: &str) -> UpstreamLimits {
        let text = format!("gopherproxy: {{upstream: {{{text}}}}}");
        crate::config::Config::parse(&text, chassis::settings::Settings::new([]))
            .unwrap()
            .every_pool
            .upstream
    }

    fn peer(member: &str, limits: &UpstreamLimits, upgrade: bool) -> Box<HttpPeer> {
        let address = SocketAddr::from(([127, 0, 0, 1], 443));
        let upstream = Arc::new(Upstream::new(
            member.into(),
            vec![address],
            Arc::new(Room::new(0)),
            metrics(),
        ));
        upstream.endpoint().peer(limits, upgrade)
    }

    #[test]
    fn over_tls_there_is_always_a_name_to_verify_and_something_to_verify_it_by() {
        for (member, text, name) in [
            ("https://origin.example:443", "", "origin.example"),
            ("https://origin.example.:443", "", "origin.example"),
            ("https://192.0.2.1:443", "", "192.0.2.1"),
            ("https://[2001:db8::1]:443", "", "2001:db8::1"),
            (
                "https://192.0.2.1:443",
                "tls: {server_name: other.example}",
                "other.example",
            ),
            ("https://a:443", "protocol: h2c", "a"),
        ] {
            for upgrade in [false, true] {
                let peer = peer(member, &limits(text), upgrade);
                assert_eq!((peer.is_tls(), peer.sni.as_str()), (true, name), "{member} {text}");
                assert!(peer.options.verify_cert && peer.options.verify_hostname);
                // Without files there are none, and Pingora connects to nobody.
                assert!(peer.options.ca.is_some_and(|roots| roots.is_empty()));
            }
        }
        for text in ["", "protocol: h2c", "tls: {server_name: other.example}"] {
            let peer = peer("origin.example:80", &limits(text), false);
            assert!(!peer.is_tls() && peer.sni.is_empty(), "{text}");
        }
    }

    #[test]
    fn what_is_spoken_follows_from_the_member_the_configuration_and_the_request() {
        use pingora::protocols::ALPN;
        for (member, text, upgrade, alpn, http1) in [
            ("a:80", "", false, ALPN::H1, true),
            ("a:80", "", true, ALPN::H1, true),
            ("a:80", "protocol: h2c", false, ALPN::H2, false),
            ("a:80", "protocol: h2c", true, ALPN::H1, true),
            ("https://a:443", "", false, ALPN::H2H1, true),
            ("https://a:443", "", true, ALPN::H1, true),
            ("https://a:443", "protocol: h2c", false, ALPN::H2H1, true),
        ] {
            let limits = limits(text);
            let address = SocketAddr::from(([127, 0, 0, 1], 80));
            let room = Arc::new(Room::new(0));
            let upstream = Arc::new(Upstream::new(member.into(), vec![address], room, metrics()));
            assert_eq!(
                upstream.may_speak_http1(&limits, upgrade),
                http1,
                "{member} {text} {upgrade}"
            );
            let endpoint = upstream.endpoint();
            assert_eq!(
                endpoint.speaks_http1(&limits, upgrade),
                http1,
                "{member} {text} {upgrade}"
            );
            assert_eq!(
                peer(member, &limits, upgrade).options.alpn,
                alpn,
                "{member} {text} {upgrade}"
            );
        }
        // A connection that was made for an upgrade is no other request's.
        let hash = |upgrade| peer("https://a:443", &limits(""), upgrade).group_key;
        assert_ne!(hash(true), hash(false));
    }

    #[test]
    fn the_choice_of_an_address_is_remembered_until_it_chooses_otherwise_or_is_gone() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let new = |member: &str| {
            let addresses = vec![address(1), address(2)];
            Arc::new(Upstream::new(
                member.into(),
                addresses,
                Arc::new(Room::new(0)),
                metrics(),
            ))
        };
        let limits = limits("");
        let upstream = new("https://a:443");
        let [first, second] = [upstream.endpoint(), upstream.endpoint()];
        let http1 = || [&first, &second].map(|endpoint| endpoint.speaks_http1(&limits, false));
        first.has_chosen(true);
        assert_eq!(http1(), [false, true]);
        assert!(first.speaks_http1(&limits, true), "an upgrade leaves no choice");
        second.has_chosen(true);
        first.has_chosen(true);
        assert_eq!((http1(), upstream.http2.load().len()), ([false, false], 2));
        first.has_chosen(false);
        assert_eq!(http1(), [true, false]);
        upstream.serve_at(vec![address(1), address(3)]);
        first.has_chosen(true);
        assert_eq!(**upstream.http2.load(), [address(1)]);
        let plain = new("a:80").endpoint();
        plain.has_chosen(true);
        assert!(plain.speaks_http1(&limits, false));
    }

    #[test]
    fn what_was_tried_is_not_found_again() {
        let upstream = upstream(&[1, 2]);
        let first = upstream.endpoint();
        let second = upstream.endpoint_other_than(std::slice::from_ref(&first)).unwrap();
        assert_ne!(first.address, second.address);
        assert!(upstream.endpoint_other_than(&[first, second]).is_none());
    }
}

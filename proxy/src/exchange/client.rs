//! Identifies the client of a request.
//!
//! The client is the peer of the connection, unless the peer is a trusted proxy: then it is the rightmost address of
//! X-Forwarded-For that is not a trusted proxy itself. What is further left was written by
//! somebody who is not trusted.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::Networks;

/// The field in which proxies list the client and each other.
pub const FORWARDED_FOR: &str = "x-forwarded-for";

/// Who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The client's address, IPv4 never mapped into IPv6.
    pub address: IpAddr,
    /// Whether the peer is a trusted proxy, so that its X-Forwarded-* are believed.
    pub trusted_peer: bool,
    /// A trusted proxy sent the request without X-Forwarded-For: it is the proxy's own, such as a health check, and no
    /// client's.
    pub peers_own: bool,
}

/// The client of a request that came from `peer` with these lines of X-Forwarded-For.
pub fn identify<'l>(
    peer: IpAddr,
    forwarded_for: impl DoubleEndedIterator<Item = &'l [u8]>,
    trusted: &Networks,
) -> Client {
    let peer = peer.to_canonical();
    if !trusted.contain(peer) {
        return Client {
            address: peer,
            trusted_peer: false,
            peers_own: false,
        };
    }
    let mut address = peer;
    let mut lines = forwarded_for.rev().peekable();
    let peers_own = lines.peek().is_none();
    let hops = lines.flat_map(|line| line.rsplit(|byte| *byte == b','));
    // A list may have empty elements, which mean nothing (RFC 9110, section 5.6.1).
    for hop in hops.filter(|hop| !hop.trim_ascii().is_empty()) {
        // An entry that is not an address ends the list: the client is the hop that passed it on.
        let Some(hop) = parse_hop(hop) else { break };
        address = hop;
        if !trusted.contain(hop) {
            break;
        }
    }
    Client {
        address,
        trusted_peer: true,
        peers_own,
    }
}

/// An entry of X-Forwarded-For: an address, with a port if need be.
fn parse_hop(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let address = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    let address = address.ok().or_else(|| bracketed().map(IpAddr::V6));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded_for: &[&str]) -> (String, bool) {
        let trusted = ["10.0.0.0/8", "::1/128"].map(|network| network.parse().unwrap());
        let lines = forwarded_for.iter().map(|line| line.as_bytes());
        let client = identify(peer.parse().unwrap(), lines, &Networks::new(trusted.into()));
        (client.address.to_string(), client.trusted_peer)
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says() {
        assert_eq!(client("192.0.2.1", &["1.1.1.1"]), ("192.0.2.1".into(), false));
        assert_eq!(client("::ffff:192.0.2.1", &[]), ("192.0.2.1".into(), false));
    }

    #[test]
    fn behind_trusted_proxies_the_rightmost_untrusted_address_is_the_client() {
        for (lines, expected) in [
            (&[][..], "10.0.0.1"),
            (&["1.1.1.1"], "1.1.1.1"),
            (&["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
            (&["6.6.6.6", "1.1.1.1,10.0.0.2"], "1.1.1.1"),
            (&["1.1.1.1:1234"], "1.1.1.1"),
            (&["[2001:db8::1]:1234"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["::ffff:1.1.1.1"], "1.1.1.1"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&["1.1.1.1, unknown"], "10.0.0.1"),
            (&["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2"),
            (&[""], "10.0.0.1"),
            (&["1.1.1.1,"], "1.1.1.1"),
            (&["1.1.1.1, ,\t, 10.0.0.2,,"], "1.1.1.1"),
            (&["1.1.1.1", "", " "], "1.1.1.1"),
            (&[",6.6.6.6,,1.1.1.1"], "1.1.1.1"),
            (&[" , ,"], "10.0.0.1"),
            (&["1.1.1.1, unknown,"], "10.0.0.1"),
            (&["1.1.1.1, [2.2.2.2]"], "10.0.0.1"),
            (&["1.1.1.1, [[::2"], "10.0.0.1"),
            (&["1.1.1.1, \u{a0}2.2.2.2"], "10.0.0.1"),
            (&[" \t1.1.1.1\t "], "1.1.1.1"),
        ] {
            assert_eq!(client("10.0.0.1", lines), (expected.into(), true), "{lines:?}");
        }
        assert_eq!(client("::ffff:10.0.0.1", &["1.1.1.1"]), ("1.1.1.1".into(), true));
    }

    #[test]
    fn only_a_trusted_proxy_that_sends_no_forwarded_for_speaks_for_itself() {
        let trusted = Networks::new(vec!["10.0.0.0/8".parse().unwrap()]);
        let own = |peer: &str, lines: &[&str]| {
            identify(
                peer.parse().unwrap(),
                lines.iter().map(|line| line.as_bytes()),
                &trusted,
            )
            .peers_own
        };
        assert!(own("10.0.0.1", &[]));
        for lines in [&[""][..], &["1.1.1.1"], &["10.0.0.1"], &["unknown"]] {
            assert!(!own("10.0.0.1", lines), "{lines:?}");
        }
        assert!(!own("192.0.2.1", &[]));
    }
}

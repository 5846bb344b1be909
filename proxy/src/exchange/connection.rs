//! What the requests of one connection have in common.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::limit::refusals::Refusals;
use crate::observe::metrics::Metrics;
use crate::tls::Agreed;

/// What the requests of one connection share. Its addresses are formatted once, because each request uses them more than once.
pub struct Connection {
    /// The other end, without its port; IPv4 never mapped into IPv6.
    pub peer: IpAddr,
    /// The same as text.
    pub peer_text: String,
    /// `peer` with its port, as text.
    pub remote_addr: String,
    /// What was agreed on in its handshake, if it is one with TLS.
    pub tls: Option<Agreed>,
    /// What it speaks, as the log has it: `h1` or `h2`.
    pub protocol: &'static str,
    /// Where its requests are counted.
    pub metrics: Arc<Metrics>,
    /// Which of its refusals are logged.
    pub refusals: Arc<Refusals>,
}

impl Connection {
    /// A connection to `remote`, without TLS.
    pub fn new(remote: SocketAddr, metrics: Arc<Metrics>, refusals: Arc<Refusals>) -> Self {
        let peer = remote.ip().to_canonical();
        let peer_text = text_of(peer);
        let mut port = itoa::Buffer::new();
        let port = port.format(remote.port());
        Self {
            peer,
            remote_addr: match peer {
                IpAddr::V4(_) => [&peer_text, ":", port].concat(),
                IpAddr::V6(_) => ["[", &peer_text, "]:", port].concat(),
            },
            peer_text,
            protocol: "h1",
            tls: None,
            metrics,
            refusals,
        }
    }

    /// `client` as text.
    pub fn text_of(&self, client: IpAddr) -> Cow<'_, str> {
        if client == self.peer {
            Cow::Borrowed(&self.peer_text)
        } else {
            Cow::Owned(client.to_string())
        }
    }
}

/// `address` as text. The standard library's way takes four times as many instructions for an IPv4 address, a visible part of what a
/// short connection costs.
fn text_of(address: IpAddr) -> String {
    let IpAddr::V4(address) = address else {
        return address.to_string();
    };
    let mut text = String::with_capacity("255.255.255.255".len());
    for (at, octet) in address.octets().into_iter().enumerate() {
        if at > 0 {
            text.push('.');
        }
        text.push_str(itoa::Buffer::new().format(octet));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_standard_library_writes_them() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let suppressed = metrics.access_log_suppressed.clone();
        let refusals = Arc::new(Refusals::new(suppressed, std::time::Instant::now()));
        for remote in [
            "192.0.2.1:80",
            "255.255.255.255:65535",
            "0.10.200.3:0",
            "[2001:db8::1]:443",
            "[::1]:1",
        ] {
            let remote: SocketAddr = remote.parse().unwrap();
            let connection = Connection::new(remote, Arc::new(metrics.clone()), Arc::clone(&refusals));
            assert_eq!(connection.peer_text, remote.ip().to_string());
            assert_eq!(connection.remote_addr, remote.to_string());
        }
    }
}

//! Sets of networks.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// A set of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// These networks. One of IPv4 addresses that are mapped into IPv6 is the IPv4 network.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks.into_iter().map(unmapped).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `address` is in one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(IpNet::to_string).collect();
        f.write_str(&all.join(", "))
    }
}

fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else { return network };
    let parts = mapped.addr().to_ipv4_mapped().zip(mapped.prefix_len().checked_sub(96));
    parts
        .and_then(|(address, length)| Ipv4Net::new(address, length).ok())
        .map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_mapped_ipv4_is_the_ipv4_network() {
        let networks = |network: &str| Networks::new(vec![network.parse().unwrap()]);
        for network in ["::ffff:10.0.0.0/104", "::ffff:10.0.0.1/128"] {
            assert!(networks(network).contain("10.0.0.1".parse().unwrap()), "{network}");
            assert!(!networks(network).contain("11.0.0.1".parse().unwrap()), "{network}");
        }
        assert!(
            !networks("::/0").contain("10.0.0.1".parse().unwrap()),
            "IPv6 is not IPv4"
        );
    }
}

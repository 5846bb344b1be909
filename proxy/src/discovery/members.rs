//! The members of the registry, each with its addresses.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora_load_balancing::{Backend, Extensions};
use registry::Meta;

/// Members by name (`host:port`, as in the registry), each with at least one address.
///
/// An address belongs to one member alone, so that no origin gets two turns under two names. A member whose addresses all
/// belong to others is the same origin under another name, and is left out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Members {
    addresses: BTreeMap<Arc<str>, Vec<SocketAddr>>,
    owners: HashMap<SocketAddr, Arc<str>>,
    /// Of those that have any that is not the default.
    meta: HashMap<Arc<str>, Meta>,
}

impl Members {
    /// Adds those of `addresses` to the member `name` that no member has yet.
    pub fn insert(&mut self, name: &Arc<str>, addresses: impl IntoIterator<Item = SocketAddr>) {
        for address in addresses {
            if let Entry::Vacant(vacant) = self.owners.entry(address) {
                vacant.insert(Arc::clone(name));
                let list = self.addresses.entry(Arc::clone(name)).or_default();
                // Sorted, because the order in which DNS gives them means nothing.
                let place = list.partition_point(|other| *other < address);
                list.insert(place, address);
            }
        }
    }

    /// Notes the weight and the like of the member `name`.
    pub fn describe(&mut self, name: &Arc<str>, meta: Meta) {
        self.meta.insert(Arc::clone(name), meta);
    }

    /// The weight and the like of the member `name`.
    pub fn meta(&self, name: &str) -> Meta {
        self.meta.get(name).copied().unwrap_or_default()
    }

    /// The member that has `address`.
    pub fn owner(&self, address: &SocketAddr) -> Option<&Arc<str>> {
        self.owners.get(address)
    }

    /// The addresses of the member `name`, in order.
    pub fn addresses_of(&self, name: &str) -> &[SocketAddr] {
        self.addresses.get(name).map_or(&[], Vec::as_slice)
    }

    /// All members, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &[SocketAddr])> {
        self.addresses
            .iter()
            .map(|(name, addresses)| (name, addresses.as_slice()))
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }
}

/// An address as Pingora knows it.
pub fn backend_at(address: SocketAddr) -> Backend {
    Backend {
        addr: PingoraAddr::Inet(address),
        weight: 1,
        ext: Extensions::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_the_first_member_that_has_it() {
        let addresses = ["192.0.2.2:80", "192.0.2.1:80", "192.0.2.3:80"].map(|text| text.parse().unwrap());
        let [two, one, three] = addresses;
        let [a, b, c] = ["a:80", "b:80", "c:80"].map(Arc::<str>::from);
        let mut members = Members::default();
        members.insert(&a, [two, one, two]);
        members.insert(&b, [one, two]);
        members.insert(&c, [one, three]);
        assert_eq!(members.len(), 2, "b is a under another name");
        assert_eq!(members.addresses_of("a:80"), [one, two]);
        assert_eq!(members.addresses_of("b:80"), []);
        assert_eq!(members.addresses_of("c:80"), [three]);
        assert_eq!(members.owner(&one), Some(&a));
    }
}

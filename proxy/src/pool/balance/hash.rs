//! The same backend for the same key: weighted rendezvous hashing with bounded loads.
//!
//! Each backend has a score for a key, and the highest wins. So when a backend leaves, its keys alone move, and there is no ring to
//! build. The scores depend on nothing but the key, the backend's name and its weight: all proxies choose alike.

use std::net::IpAddr;

use xxhash_rust::xxh3::xxh3_64;

use super::Asked;
use crate::config::{Algorithm, HashBy};

/// What of a request `algorithm` hashes; `None` if it doesn't hash, or the request has none of it.
pub fn key(algorithm: &Algorithm, asked: Asked<'_>) -> Option<u64> {
    let Algorithm::Hash(by) = algorithm else { return None };
    let value = match by {
        HashBy::Client => return Some(of_client(asked.client)),
        HashBy::Path => asked.path.split(|byte| *byte == b'?').next(),
        HashBy::Header(name) => asked.values(name).next(),
        HashBy::Cookie(name) => asked.cookie(name),
    };
    value.filter(|value| !value.is_empty()).map(xxh3_64)
}

/// Of an IPv4 address, or of the /64 of an IPv6 address, in which a client chooses at will.
fn of_client(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => xxh3_64(&address.octets()),
        IpAddr::V6(address) => xxh3_64(&address.octets()[..8]),
    }
}

/// What identifies a backend, for [`score`].
pub fn seed(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

/// The score of a backend for `key`, positive. `weighted`: the weights differ; otherwise they don't matter.
pub fn score(key: u64, seed: u64, weight: u32, weighted: bool) -> f64 {
    // The finalizer of MurmurHash3: every bit of the key changes every bit of the result, differently for each backend.
    let mut hash = key ^ seed;
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    // Between 0 and 1, neither of them included.
    let uniform = ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    // Schindelhauer and Schomaker, "Weighted distributed hash tables" (2005): the highest of these is each with the chance of its weight.
    // The logarithm changes no order, so that the weights alone make it necessary.
    if weighted {
        f64::from(weight) / -uniform.ln()
    } else {
        uniform
    }
}

/// Takes `other` in place of `best` if its score is higher.
pub fn prefer<B>(best: &mut Option<(B, f64)>, other: B, score: f64) {
    if best.as_ref().is_none_or(|(_, highest)| score > *highest) {
        *best = Some((other, score));
    }
}

/// Whether a backend with so many requests `in_flight` may have one more: it has less than 1.25 times its share of all, and the new one
/// is one of them.
pub fn is_within(in_flight: u64, of_all: u64, weight: u64, of_weights: u64) -> bool {
    4 * in_flight * of_weights < 5 * (of_all + 1) * weight
}

//! Whose request it is, from what X-Forwarded-For says.
//!
//! The first line of the input lists the trusted networks, the second is the peer, and each other is a line of
//! X-Forwarded-For. The answer has to be that of a model which does with a list and bits what the proxy does with iterators.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gopherproxy::config::Networks;
use gopherproxy::exchange::client::{Client, identify};
use http::HeaderValue;
use ipnet::IpNet;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|input: &[u8]| -> Corpus {
    let mut lines = input.split(|byte| *byte == b'\n');
    let mut text = || str::from_utf8(lines.next()?).ok();
    let (Some(networks), Some(peer)) = (text(), text()) else {
        return Corpus::Reject;
    };
    let Ok(peer) = peer.parse::<IpAddr>() else {
        return Corpus::Reject;
    };
    let networks: Vec<IpNet> = networks.split(',').filter_map(|text| text.parse().ok()).collect();
    // A line with a byte that no header may have never gets as far as this.
    let lines: Vec<_> = lines.filter_map(|line| HeaderValue::from_bytes(line).ok()).collect();

    let client = identify(
        peer,
        lines.iter().map(HeaderValue::as_bytes),
        &Networks::new(networks.clone()),
    );
    assert_eq!(client, model(peer, &lines, &networks), "{peer} {lines:?} {networks:?}");
    Corpus::Keep
});

/// The rightmost address that is not trusted; an entry that is no address ends the list, and an empty one is none.
fn model(peer: IpAddr, lines: &[HeaderValue], trusted: &[IpNet]) -> Client {
    let is_trusted = |address| trusted.iter().any(|network| contains(*network, address));
    let mut chain = Vec::new();
    for line in lines {
        let entries = line.as_bytes().split(|byte| *byte == b',');
        let said = entries.filter(|text| text.iter().any(|byte| !b" \t".contains(byte)));
        chain.extend(said.map(entry));
    }
    chain.push(Some(bits(peer)));
    // Everybody from here to the right is known: the last to the proxy itself, each other to a trusted one.
    let mut first = chain.len() - 1;
    while first > 0 && chain[first].is_some_and(is_trusted) && chain[first - 1].is_some() {
        first -= 1;
    }
    Client {
        address: IpAddr::from(Ipv6Addr::from_bits(chain[first].unwrap_or_default())).to_canonical(),
        trusted_peer: is_trusted(bits(peer)),
        peers_own: is_trusted(bits(peer)) && lines.is_empty(),
    }
}

/// An address as a number; IPv4 and IPv4 in IPv6 are the same one.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => 0xffff_u128 << 32 | u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn contains(network: IpNet, address: u128) -> bool {
    let length = match network {
        IpNet::V4(network) => 96 + network.prefix_len(),
        IpNet::V6(network) => network.prefix_len(),
    };
    let rest = 128 - u32::from(length);
    let same = (bits(network.addr()) ^ address).checked_shr(rest).unwrap_or(0) == 0;
    // All of IPv6 is no IPv4.
    same && (length >= 96 || address >> 32 != 0xffff)
}

/// `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]` or `[::1]:2`, with spaces around it; the last may have a zone too.
fn entry(text: &[u8]) -> Option<u128> {
    let text = str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let address = if let Some(rest) = text.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        let address = match address.split_once('%') {
            Some((address, zone)) if !after.is_empty() => number::<u32>(zone).map(|_| address)?,
            _ => address,
        };
        if !after.is_empty() {
            number::<u16>(after.strip_prefix(':')?)?;
        }
        IpAddr::from(address.parse::<Ipv6Addr>().ok()?)
    } else if let Ok(address) = text.parse::<Ipv6Addr>() {
        address.into()
    } else if let Some((address, port)) = text.split_once(':') {
        number::<u16>(port)?;
        address.parse::<Ipv4Addr>().ok()?.into()
    } else {
        text.parse::<Ipv4Addr>().ok()?.into()
    };
    Some(bits(address))
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

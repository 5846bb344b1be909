//! How a member of the registry is written, and what stands in the hash beside the set.
//!
//! The input is a set with a member a line. Each is read by a second description of what a member is, and has to come
//! out the same; what parses has to survive its own encoding, and the store; what does not has to be quoted harmlessly.
#![no_main]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use futures::FutureExt;
use libfuzzer_sys::fuzz_target;
use registry::{Host, InProcess, MAX_WEIGHT, Malformed, Member, Meta, PoolName, Registry, Snapshot};

fuzz_target!(|set: &[u8]| {
    let mut members = BTreeSet::new();
    for text in set.split(|byte| *byte == b'\n') {
        let read = Member::parse(text);
        let seen = read.as_ref().ok();
        let seen = seen.map(|member| (member.is_tls(), member.host().clone(), member.port()));
        assert_eq!(seen, model(text), "{:?}", text.escape_ascii().to_string());
        match read {
            Ok(member) => {
                round_trip(&member);
                members.insert(member);
            }
            Err(malformed) => harmless(&malformed),
        }
        if let Some(meta) = str::from_utf8(text).ok().and_then(|text| text.parse::<Meta>().ok()) {
            assert!(meta.weight <= MAX_WEIGHT);
            assert_eq!(meta.to_string().parse(), Ok(meta));
        }
    }
    store(members);
});

/// What `http://host:port` and `https://host:port` mean, told another way than the registry does: by the grammar of the whole, not
/// part by part.
fn model(text: &[u8]) -> Option<(bool, Host, u16)> {
    let text = str::from_utf8(text).ok()?.strip_prefix("http")?;
    let tls = text.starts_with('s');
    let text = text.strip_prefix('s').unwrap_or(text).strip_prefix("://")?;
    let text = text.strip_suffix('/').unwrap_or(text);
    let (name, digits) = text.split_at_checked(text.rfind(':')?)?;
    let port: u16 = digits[1..].parse().ok()?;
    if port == 0 || digits != format!(":{port}") {
        return None;
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        // A zone is no part of an address that means the same on every machine.
        return (!text.contains('%')).then_some((tls, Host::Address(address.ip()), port));
    }
    let name = name.to_ascii_lowercase();
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_name_byte);
    let relative = name.strip_suffix('.').unwrap_or(&name);
    let numeric = relative
        .split('.')
        .all(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    let is_name = relative.len() <= 253 && !numeric && relative.split('.').all(is_label);
    is_name.then_some((tls, Host::Name(name), port))
}

fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')
}

/// What is written is read again as the same, by this program and by one that knows these two forms alone.
fn round_trip(member: &Member) {
    let encoded = member.encode();
    assert_eq!(Member::parse(encoded.as_bytes()).as_ref(), Ok(member));
    assert_eq!(member.to_string().parse().as_ref(), Ok(member));
    let (port, scheme) = (member.port(), if member.is_tls() { "https://" } else { "http://" });
    let authority = match member.host() {
        Host::Address(address) => SocketAddr::new(*address, port).to_string(),
        Host::Name(name) => format!("{name}:{port}"),
    };
    assert_eq!(encoded, format!("{scheme}{authority}"));
    assert_eq!(member.to_string(), encoded.strip_prefix("http://").unwrap_or(&encoded));
    let address = authority.parse().ok();
    assert_eq!(member.socket_address(), address);
}

/// The log gets a short text in which no byte means anything.
fn harmless(malformed: &Malformed) {
    let shown = malformed.to_string();
    assert!(shown.len() < 1024, "{} bytes", shown.len());
    assert!(shown.chars().all(|shown| matches!(shown, ' '..='~' | '…')), "{shown:?}");
}

/// The store gives back what was published and is not absent.
fn store(members: BTreeSet<Member>) {
    let store = InProcess::default();
    let present: Vec<_> = members.iter().cloned().collect();
    let absent = &present[..present.len() / 2];
    let pool = PoolName::default();
    let publish = |present, absent| store.publish(&pool, "fuzz", present, absent).now_or_never();
    let holds = |members| {
        let expected = Snapshot {
            members,
            ..Snapshot::default()
        };
        assert_eq!(store.members(&pool).now_or_never(), Some(Ok(expected)));
    };
    assert_eq!(publish(&present, &[]), Some(Ok(())));
    holds(members.clone());
    assert_eq!(publish(&present, absent), Some(Ok(())));
    holds(members.iter().skip(absent.len()).cloned().collect());
}

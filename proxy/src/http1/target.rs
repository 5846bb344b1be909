//! Request targets and the authorities in them (RFC 9112, section 3.2).

use std::net::Ipv6Addr;

/// What is wrong with a target, which has to be of origin form, absolute form or `*`, without a fragment and without what no URI
/// has. The last check is the one that the HTTP library makes again.
pub fn why_no_target(target: &str) -> Option<&'static str> {
    if !(target.starts_with('/') || is_absolute(target) || target == "*") {
        Some("the target is neither a path nor an http:// URL")
    } else if target.contains('#') {
        Some("the target has a fragment")
    } else if target.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') || http::Uri::try_from(target).is_err()
    {
        Some("the target has a byte that no target may have")
    } else {
        None
    }
}

const SCHEME: &str = "http://";

fn is_absolute(target: &str) -> bool {
    let scheme = target.as_bytes().get(..SCHEME.len());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME.as_bytes()))
}

/// The host that a target in absolute form names, and the rest of the target.
pub fn split_target(target: &str) -> (Option<&str>, &str) {
    if !is_absolute(target) {
        return (None, target);
    }
    let rest = &target[SCHEME.len()..];
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    (Some(host), path)
}

/// Whether two authorities name the same host and port (RFC 9110, section 4.2.3). A target and a `Host` that differ would leave
/// it to each reader which to believe.
pub fn is_same_host(one: &[u8], other: &[u8]) -> bool {
    let without_default_port = |authority: &'_ [u8]| {
        let authority = authority.strip_suffix(b":80").unwrap_or(authority);
        authority.strip_suffix(b":").unwrap_or(authority).len()
    };
    one[..without_default_port(one)].eq_ignore_ascii_case(&other[..without_default_port(other)])
}

/// A host with an optional port: no user, no path, no list, not empty. RFC 3986 lets a name have more than these bytes, commas
/// among them, but no name that a client can look up does.
pub fn is_authority(value: &[u8]) -> bool {
    let is_in_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match value.strip_prefix(b"[") {
        Some(bracketed) => str::from_utf8(bracketed).is_ok_and(|bracketed| {
            bracketed
                .split_once(']')
                .is_some_and(|(address, port)| address.parse::<Ipv6Addr>().is_ok() && is_port(port.as_bytes()))
        }),
        None => {
            let name = value.iter().take_while(|byte| is_in_name(byte)).count();
            name > 0 && is_port(&value[name..])
        }
    }
}

/// What may follow a host: nothing, or a colon and a number, or nothing behind the colon.
fn is_port(rest: &[u8]) -> bool {
    let append = |port: u16, digit: &u8| {
        let value = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        port.checked_mul(10)?.checked_add(value)
    };
    match rest {
        [] => true,
        [b':', digits @ ..] => digits.iter().try_fold(0, append).is_some(),
        _ => false,
    }
}

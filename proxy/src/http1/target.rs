//! Request targets and the authorities in them (RFC 9112, section 3.2).

use std::net::Ipv6Addr;

/// What is wrong with a target, which has to be of origin form, absolute form or `*`, without a fragment.
///
/// RFC 3986 has fewer bytes in a URI than clients send, `{`, `"` and `<` above all. They pass as they are, as they do in other
/// proxies: none of them can end a target, and it is the origin's to say what they mean.
pub fn why_no_target(target: &[u8]) -> Option<&'static str> {
    if !(target.starts_with(b"/") || is_absolute(target) || target == b"*") {
        Some("the target is neither a path nor an http:// URL")
    } else if memchr::memchr(b'#', target).is_some() {
        Some("the target has a fragment")
    } else if target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        Some("the target has a byte that no target may have")
    } else {
        None
    }
}

const SCHEME: &[u8] = b"http://";

fn is_absolute(target: &[u8]) -> bool {
    let scheme = target.get(..SCHEME.len());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
}

/// The host that a target in absolute form names, and the rest of the target.
pub fn split_target(target: &[u8]) -> (Option<&[u8]>, &[u8]) {
    if !is_absolute(target) {
        return (None, target);
    }
    let rest = &target[SCHEME.len()..];
    let (host, path) = rest.split_at(memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len()));
    (Some(host), path)
}

/// Whether two authorities name the same host and port (RFC 9110, section 4.2.3). If the target and `Host` differ, each
/// reader may believe another one.
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

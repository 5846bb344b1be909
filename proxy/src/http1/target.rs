//! Request targets and the authorities in them (RFC 9112, section 3.2).

use std::net::Ipv6Addr;

/// What is wrong with a target, which has to be of origin form, absolute form or `*`, without a fragment.
///
/// RFC 3986 has fewer bytes in a URI than clients send, `{`, `"` and `<` above all. They pass as they are, as they do in other
/// proxies: none of them can end a target, and it is the origin's to say what they mean.
pub fn why_no_target(target: &[u8]) -> Option<&'static str> {
    if !(target.starts_with(b"/") || Scheme::of(target).is_some() || target == b"*") {
        Some("the target is neither a path nor an http:// or https:// URL")
    } else if memchr::memchr(b'#', target).is_some() {
        Some("the target has a fragment")
    } else if target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        Some("the target has a byte that no target may have")
    } else {
        None
    }
}

/// The scheme of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Http => b"http://",
            Self::Https => b"https://",
        }
    }

    const fn default_port(self) -> &'static [u8] {
        match self {
            Self::Http => b":80",
            Self::Https => b":443",
        }
    }

    /// The scheme of a target in absolute form.
    fn of(target: &[u8]) -> Option<Self> {
        let begins = |scheme: &Self| {
            let prefix = scheme.prefix();
            let beginning = target.get(..prefix.len());
            beginning.is_some_and(|beginning| beginning.eq_ignore_ascii_case(prefix))
        };
        [Self::Http, Self::Https].into_iter().find(begins)
    }
}

/// What a target in absolute form names before its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'b> {
    /// How to get there.
    pub scheme: Scheme,
    /// The host and perhaps a port.
    pub authority: &'b [u8],
}

/// The origin that a target in absolute form names, and the rest of the target.
pub fn split_target(target: &[u8]) -> (Option<Origin<'_>>, &[u8]) {
    // Nearly all begin with a slash.
    if target.starts_with(b"/") {
        return (None, target);
    }
    let Some(scheme) = Scheme::of(target) else {
        return (None, target);
    };
    let rest = &target[scheme.prefix().len()..];
    let (authority, path) = rest.split_at(memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len()));
    (Some(Origin { scheme, authority }), path)
}

/// The path and query of what may be a target, though a request with it is refused; `None` if it does not begin like one. Neither a
/// user's name and password nor a fragment is in it.
pub fn path_of(target: &[u8]) -> Option<&[u8]> {
    let end = memchr::memchr(b'#', target).unwrap_or(target.len());
    let (named, path) = split_target(&target[..end]);
    match named {
        Some(named) => {
            let user = memchr::memrchr(b'@', named.authority).map_or(0, |at| at + 1);
            // Else it is not clear where the authority ends: a password may have a slash.
            is_authority(&named.authority[user..]).then_some(if path.is_empty() { b"/" } else { path })
        }
        None => (path.starts_with(b"/") || path == b"*").then_some(path),
    }
}

/// Whether two authorities name the same host and port (RFC 9110, section 4.2.3). If the target and `Host` differ, each
/// reader may believe another one.
pub fn is_same_host(one: Origin<'_>, other: &[u8]) -> bool {
    let without_default_port = |authority: &'_ [u8]| {
        let authority = authority.strip_suffix(one.scheme.default_port()).unwrap_or(authority);
        authority.strip_suffix(b":").unwrap_or(authority).len()
    };
    let one = one.authority;
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

//! Which requests are a route's: hosts, paths and methods.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use chassis::settings::Section;

use crate::http1::names::is_in_token;
use crate::http1::path;
use crate::http1::target::is_authority;

/// The longest host in a URL, with its brackets if it is an address (RFC 1035, section 2.3.4).
pub const LONGEST_HOST: usize = 253;

/// Which requests are a route's. An empty list is any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matches {
    /// Requests for one of these.
    pub hosts: Vec<Host>,
    /// With one of these paths.
    pub paths: Vec<Path>,
    /// And with one of these methods.
    pub methods: Vec<String>,
}

/// The hosts of a route. Names are in lower case and without a dot at the end; IPv6 addresses are in brackets and in their canonical
/// form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// Exactly this one.
    Exact(String),
    /// All names that end with a dot and this: of one label more, or of several.
    Below(String),
}

/// The paths of a route, as [`path::plain`] has them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Exactly this one.
    Exact(Vec<u8>),
    /// This one, which has no slash at its end, and all below it. The empty one is above all.
    Below(Vec<u8>),
}

/// How specific a route is for a request: of two, the one with the greater rank is chosen. Hosts count first, then paths, then methods;
/// an exact one is above all others, and a longer one above a shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Exact or not, and how long.
    pub host: (bool, usize),
    /// Exact or not, and how long.
    pub path: (bool, usize),
    /// Whether it lists the method.
    pub method: bool,
}

/// What keeps a request from a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// Its host.
    Host,
    /// Its path.
    Path,
    /// Its method.
    Method,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "={}", String::from_utf8_lossy(path)),
            Self::Below(path) if path.is_empty() => f.write_str("/"),
            Self::Below(path) => f.write_str(&String::from_utf8_lossy(path)),
        }
    }
}

/// Each of a list, or once nothing if it is empty.
pub fn any_or_each<T>(list: &[T]) -> impl Iterator<Item = Option<&T>> {
    let any = list.is_empty().then_some(None);
    any.into_iter().chain(list.iter().map(Some))
}

impl Matches {
    /// How many patterns they make: each host with each path and each method.
    pub(super) fn patterns(&self) -> usize {
        let lengths = [self.hosts.len(), self.paths.len(), self.methods.len()];
        lengths
            .into_iter()
            .fold(1, |product, length| product.saturating_mul(length.max(1)))
    }

    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            hosts: section.list("hosts", None, Vec::new(), host),
            paths: section.list("paths", None, Vec::new(), self::path),
            methods: section.list("methods", None, Vec::new(), method),
        }
    }

    /// How specific they are for a request with this plain host and path.
    ///
    /// # Errors
    /// What is not a route's of this request. This looks at one pattern after the other, and is no way to find a route quickly.
    pub fn rank(&self, host: Option<&[u8]>, path: &[u8], method: &str) -> Result<Rank, Misfit> {
        let of_host = |pattern: &Host| match (pattern, host?) {
            (Host::Exact(name), host) => (name.as_bytes() == host).then_some((true, name.len())),
            (Host::Below(parent), host) => {
                let label = host.strip_suffix(parent.as_bytes())?.strip_suffix(b".")?;
                (!label.is_empty()).then_some((false, parent.len()))
            }
        };
        let of_path = |pattern: &Path| match pattern {
            Path::Exact(exact) => (exact == path).then_some((true, exact.len())),
            Path::Below(parent) => {
                let rest = path.strip_prefix(parent.as_slice())?;
                matches!(rest.first(), None | Some(b'/')).then_some((false, parent.len()))
            }
        };
        let any = (false, 0);
        let method = match self.methods.iter().any(|one| one == method) {
            true => Some(true),
            false => self.methods.is_empty().then_some(false),
        };
        Ok(Rank {
            host: best(&self.hosts, any, of_host).ok_or(Misfit::Host)?,
            path: best(&self.paths, any, of_path).ok_or(Misfit::Path)?,
            method: method.ok_or(Misfit::Method)?,
        })
    }
}

/// The greatest rank that a pattern gives, or that of `any` if there is none.
fn best<P, R: Ord>(patterns: &[P], any: R, rank: impl Fn(&P) -> Option<R>) -> Option<R> {
    if patterns.is_empty() {
        return Some(any);
    }
    patterns.iter().filter_map(rank).max()
}

/// Writes a host without its port as routes compare it to `to`; `None` if it is longer than any.
pub fn plain_host<'b>(authority: &[u8], to: &'b mut [u8; LONGEST_HOST]) -> Option<&'b [u8]> {
    if authority.starts_with(b"[") {
        let bracketed = &authority[1..memchr::memchr(b']', authority)?];
        let address: Ipv6Addr = str::from_utf8(bracketed).ok()?.parse().ok()?;
        let text = format!("[{address}]");
        let to = to.get_mut(..text.len())?;
        to.copy_from_slice(text.as_bytes());
        return Some(to);
    }
    let end = memchr::memchr(b':', authority).unwrap_or(authority.len());
    let name = &authority[..end];
    let name = name.strip_suffix(b".").unwrap_or(name);
    let to = to.get_mut(..name.len())?;
    to.copy_from_slice(name);
    to.make_ascii_lowercase();
    Some(to)
}

fn host(text: &str) -> Result<Host, String> {
    let expected = || {
        Err("a host without a port, such as www.example.com, or *.example.com for all names below it; leave hosts out for all".into())
    };
    let (name, is_parent) = match text.strip_prefix("*.") {
        Some(parent) => (parent, true),
        None => (text, false),
    };
    let bracketed = match name.parse::<IpAddr>() {
        Ok(_) if is_parent => return expected(),
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => name.to_owned(),
    };
    let end = bracketed.len().checked_sub(1);
    let (has_port, is_address) = (bracketed.contains(':'), bracketed.starts_with('['));
    let is_whole = if is_address {
        bracketed.find(']') == end
    } else {
        !has_port
    };
    let has_empty_label =
        ["", "."].contains(&bracketed.as_str()) || bracketed.contains("..") || bracketed.starts_with('.');
    if !is_whole || has_empty_label || !is_authority(bracketed.as_bytes()) {
        return expected();
    }
    let mut room = [0; LONGEST_HOST];
    let Some(Ok(plain)) = plain_host(bracketed.as_bytes(), &mut room).map(str::from_utf8) else {
        return expected();
    };
    let plain = plain.to_owned();
    match is_parent {
        true if plain.starts_with('[') => expected(),
        true => Ok(Host::Below(plain)),
        false => Ok(Host::Exact(plain)),
    }
}

fn path(text: &str) -> Result<Path, String> {
    let (path, is_exact) = match text.strip_prefix('=') {
        Some(path) => (path, true),
        None => (text, false),
    };
    if !path.starts_with('/') || path.contains(['?', '#', ';', '*']) {
        return Err(
            "a path such as /api, which stands for everything below it too, or =/api for this one alone; no wildcards"
                .into(),
        );
    }
    let plain = path::plain(path.as_bytes()).map_err(|problem| format!("a path that can be requested ({problem})"))?;
    let mut plain = plain.into_owned();
    if !is_exact && plain.ends_with(b"/") {
        plain.pop();
    }
    Ok(match is_exact {
        true => Path::Exact(plain),
        false => Path::Below(plain),
    })
}

fn method(text: &str) -> Result<String, String> {
    if matches!(text, "CONNECT" | "TRACE") {
        return Err("a method that is proxied".into());
    }
    if text.is_empty() || !text.bytes().all(is_in_token) || text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err("a method in capitals, such as GET".into());
    }
    Ok(text.to_owned())
}

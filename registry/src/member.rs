//! The format of a member: `http://host:port` or `https://host:port`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// What stands in front of a member.
const PLAIN: &str = "http://";
/// The same for one that speaks TLS.
const TLS: &str = "https://";

/// A longer member is not worth its place in the log.
const MAX_SHOWN: usize = 128;

/// The host of a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address: nothing to resolve.
    Address(IpAddr),
    /// A name, in lower case, to be resolved.
    Name(String),
}

/// An origin: a host and a port, and whether it speaks TLS.
///
/// `FromStr` and `Display` are the form in a target list and a metric's label: the bare `host:port` (IPv6 in brackets), with
/// `https://` in front for an origin that speaks TLS. [`Member::parse`] and [`Member::encode`] are the registry's encoding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    host: Host,
    port: u16,
    tls: bool,
}

impl Member {
    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port; never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The same origin over TLS.
    pub fn over_tls(self) -> Self {
        Self { tls: true, ..self }
    }

    /// Reads a member as it stands in the registry: `http://host:port` or `https://host:port`, with or without a `/` at its end.
    ///
    /// # Errors
    /// Whatever else it is: another scheme, a path, no port, bytes that are not text.
    pub fn parse(text: &[u8]) -> Result<Self, Malformed> {
        let malformed = |problem: &str| Malformed::new(text, problem);
        let member = std::str::from_utf8(text).map_err(|_| malformed("not UTF-8"))?;
        let plain = member.strip_prefix(PLAIN).map(|rest| (rest, false));
        let tls = || member.strip_prefix(TLS).map(|rest| (rest, true));
        let Some((rest, tls)) = plain.or_else(tls) else {
            return Err(malformed("expected http://host:port or https://host:port"));
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = host_and_port(rest).map_err(|problem| malformed(&problem))?;
        Ok(Self { host, port, tls })
    }

    /// The member as it stands in the registry.
    pub fn encode(&self) -> String {
        if self.tls {
            self.to_string()
        } else {
            format!("{PLAIN}{self}")
        }
    }

    /// The address to connect to, when the host is an address.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Address(address) => Some(SocketAddr::new(address, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let over_tls = text.strip_prefix(TLS);
        let (host, port) = host_and_port(over_tls.unwrap_or(text))?;
        let tls = over_tls.is_some();
        Ok(Self { host, port, tls })
    }
}

fn host_and_port(text: &str) -> Result<(Host, u16), String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("expected host:port, and the port is missing")?;
    let port = match port.parse::<u16>() {
        Ok(port) if port > 0 && port.to_string() == text[host.len() + 1..] => port,
        _ => return Err("expected a port from 1 to 65535".into()),
    };
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed
            .strip_suffix(']')
            .and_then(|address| address.parse::<Ipv6Addr>().ok())
            .map(|address| Host::Address(address.into()))
            .ok_or("expected an IPv6 address between [ and ]")?,
        None => parse_host(host)?,
    };
    Ok((host, port))
}

fn parse_host(host: &str) -> Result<Host, String> {
    if host.parse::<Ipv6Addr>().is_ok() {
        return Err("expected brackets around an IPv6 address, as in [::1]:8081".into());
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(Host::Address(address));
    }
    // Underscores are no part of a host name, but Docker and Kubernetes have service names with them.
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let all_digits = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || all_digits || !name.split('.').all(is_label) {
        return Err("expected a host name or an address in front of the port".into());
    }
    Ok(Host::Name(host.to_ascii_lowercase()))
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tls {
            f.write_str(TLS)?;
        }
        match &self.host {
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// An entry of the registry that does not parse. Its `Display` quotes the bytes so that none of them can mean anything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Malformed(String);

impl Malformed {
    pub(crate) fn new(text: &[u8], problem: &str) -> Self {
        // Somebody may have put a URL with credentials there: nothing before an @ is shown.
        let (hidden, place) = match text.iter().rposition(|byte| *byte == b'@') {
            Some(at) => ("…", &text[at..]),
            None => ("", text),
        };
        let shown = place[..place.len().min(MAX_SHOWN)].escape_ascii();
        let more = if place.len() > MAX_SHOWN { "…" } else { "" };
        Self(format!("\"{hidden}{shown}{more}\": {problem}"))
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_survive_the_round_trip_through_the_encoding() {
        for text in [
            "http://127.0.0.1:8081",
            "http://[::1]:8081",
            "http://host.docker.internal:8081",
            "http://origin_1:65535",
            "http://a.b.:1",
            "https://127.0.0.1:8443",
            "https://[::1]:8443",
            "https://origin.example:443",
        ] {
            let member = Member::parse(text.as_bytes()).unwrap();
            assert_eq!(member.encode(), text);
            assert_eq!(member.to_string().parse().as_ref(), Ok(&member));
            assert_eq!(member.is_tls(), text.starts_with("https"));
        }
        assert_eq!(
            Member::parse(b"http://Origin:80/").unwrap().encode(),
            "http://origin:80"
        );
        let address = Member::parse(b"http://[::1]:80").unwrap().socket_address();
        assert_eq!(address, Some("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn what_is_not_a_member_is_refused_with_the_reason() {
        for (text, problem) in [
            ("", "expected http://host:port"),
            ("127.0.0.1:8081", "expected http://host:port"),
            ("HTTP://127.0.0.1:8081", "expected http://host:port"),
            ("HTTPS://127.0.0.1:8081", "expected http://host:port"),
            ("https://127.0.0.1", "the port is missing"),
            ("https://https://a:1", "host name"),
            ("http://https://a:1", "host name"),
            ("https://user@host:443", "host name"),
            ("http://127.0.0.1", "the port is missing"),
            ("http://:8081", "host name"),
            ("http://127.0.0.1:0", "expected a port"),
            ("http://127.0.0.1:65536", "expected a port"),
            ("http://127.0.0.1:+80", "expected a port"),
            ("http://127.0.0.1:080", "expected a port"),
            ("http://::1:80", "brackets around"),
            ("http://[::1:80", "between [ and ]"),
            ("http://[127.0.0.1]:80", "between [ and ]"),
            ("http://256.0.0.1:80", "host name"),
            ("http://user@host:80", "host name"),
            ("http://host:80/path", "expected a port"),
            ("http://ho st:80", "host name"),
            ("http://host\n:80", "host name"),
            ("http://a..b:80", "host name"),
        ] {
            let malformed = Member::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(malformed.contains(problem), "{text:?}: {malformed}");
        }
    }

    #[test]
    fn a_malformed_member_is_quoted_safely_and_shortly() {
        let hostile = [b"\"\n\x1b[31m\xff".as_slice(), &[b'a'; 100_000]].concat();
        let shown = Member::parse(&hostile).unwrap_err().to_string();
        assert!(shown.starts_with(r#""\"\n\x1b[31m\xffaaa"#), "{shown}");
        assert!(shown.len() < 300 && !shown.contains('\n'), "{shown}");
        for text in ["http://user:secret@host:80", "redis://:secret@host:1", "secret@"] {
            let shown = Member::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(shown.starts_with("\"…@") && !shown.contains("secret"), "{shown}");
        }
    }
}

//! Sends a client from plain HTTP to HTTPS.

use std::fmt::Write;

use crate::http1::head::Head;
use crate::http1::path::plain;
use crate::http1::violation::Violation;
use crate::rejection::Rejection;

/// Where authorities look for the answer to a challenge (RFC 8555, section 8.3): over plain HTTP, because there may be no certificate.
pub const CHALLENGES: &str = "/.well-known/acme-challenge";

/// Which requests are sent to HTTPS, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The port that clients reach TLS on.
    pub port: u16,
    /// The paths that are served all the same, and everything below them.
    pub exempt: Vec<String>,
}

impl Redirect {
    /// The URL that the client should ask for instead; `None` if the request is served.
    ///
    /// # Errors
    /// When the request names no host, as only HTTP/1.0 may.
    pub fn location(&self, head: &Head<'_>) -> Option<Result<String, Violation>> {
        let mut exempt = self.exempt.iter().map(String::as_str).chain([CHALLENGES]);
        // A path with two meanings may lie elsewhere for the origin.
        if plain(head.path).is_ok_and(|path| exempt.any(|exempt| is_below(&path, exempt))) {
            return None;
        }
        let Some(host) = head.host else {
            let rule = "without a Host field there is nowhere to redirect to";
            return Some(Err(Violation::new(Rejection::BadRequest, rule)));
        };
        let mut url = "https://".to_owned();
        url.push_str(&String::from_utf8_lossy(without_port(host)));
        if self.port != 443 {
            let _ = write!(url, ":{}", self.port);
        }
        match head.path {
            b"*" => url.push('/'),
            path => {
                if !path.starts_with(b"/") {
                    url.push('/');
                }
                push_encoded(&mut url, path);
            }
        }
        Some(Ok(url))
    }
}

/// Appends a part of a target, with what a URL can't have encoded.
pub fn push_encoded(url: &mut String, part: &[u8]) {
    for byte in part {
        match byte {
            b'!'..=b'~' => url.push(char::from(*byte)),
            _ => drop(write!(url, "%{byte:02X}")),
        }
    }
}

/// Whether `path` is `exempt` or below it.
fn is_below(path: &[u8], exempt: &str) -> bool {
    let below = path.strip_prefix(exempt.as_bytes());
    below.is_some_and(|rest| matches!(rest.first(), None | Some(b'/')) || exempt.ends_with('/'))
}

/// An authority without its port.
pub fn without_port(authority: &[u8]) -> &[u8] {
    let end = match memchr::memchr(b']', authority) {
        Some(bracket) => bracket + 1,
        None => memchr::memchr(b':', authority).unwrap_or(authority.len()),
    };
    &authority[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::head::{self, Rules};

    fn location(port: u16, text: &str) -> Option<Result<String, Violation>> {
        let redirect = Redirect {
            port,
            exempt: vec!["/health".into(), "/open/".into()],
        };
        let mut scratch = head::scratch();
        let text = format!("{text}\r\n\r\n");
        let head = head::parse(text.as_bytes(), &mut scratch, &Rules::default()).unwrap();
        redirect.location(&head)
    }

    #[test]
    fn the_url_is_the_same_with_another_scheme_and_port() {
        for (port, head, expected) in [
            (
                443,
                "GET /a?b=c HTTP/1.1\r\nHost: shop.example",
                "https://shop.example/a?b=c",
            ),
            (
                443,
                "POST / HTTP/1.1\r\nHost: shop.example:8080",
                "https://shop.example/",
            ),
            (
                8443,
                "GET / HTTP/1.1\r\nHost: shop.example:80",
                "https://shop.example:8443/",
            ),
            (443, "GET / HTTP/1.1\r\nHost: [::1]:8080", "https://[::1]/"),
            (8443, "GET / HTTP/1.1\r\nHost: [::1]", "https://[::1]:8443/"),
            (
                443,
                "GET http://a.example?b HTTP/1.1\r\nHost: a.example",
                "https://a.example/?b",
            ),
            (443, "OPTIONS * HTTP/1.1\r\nHost: a.example", "https://a.example/"),
            (
                443,
                "GET //b.example/ HTTP/1.1\r\nHost: a.example",
                "https://a.example//b.example/",
            ),
            (
                443,
                "GET /\u{e4} HTTP/1.1\r\nHost: a.example",
                "https://a.example/%C3%A4",
            ),
            (443, "GET / HTTP/1.0\r\nHost: a.example", "https://a.example/"),
        ] {
            assert_eq!(location(port, head).unwrap().unwrap(), expected, "{head}");
        }
        assert!(location(443, "GET / HTTP/1.0").unwrap().is_err());
    }

    #[test]
    fn challenges_and_the_paths_in_the_list_are_served_with_all_below_them() {
        for (path, served) in [
            ("/health", true),
            ("/health?deep", true),
            ("/health/db", true),
            ("/%68ealth", true),
            ("/health;v=1/db", true),
            ("/healthy", false),
            ("/health/../orders", false),
            ("/health/%2e%2e/orders", false),
            ("/.well-known/acme-challenge/..%2f..%2forders", false),
            ("/open/", true),
            ("/open/a", true),
            ("/open", false),
            ("/.well-known/acme-challenge/token", true),
            ("/.well-known/acme-challenges", false),
            ("/a/health", false),
            ("/", false),
        ] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: a");
            assert_eq!(location(443, &head).is_none(), served, "{path}");
        }
    }
}

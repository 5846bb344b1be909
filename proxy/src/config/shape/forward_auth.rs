//! `forward_auth`: a service that is asked whether a request may pass.

use std::fmt;
use std::time::Duration;

use chassis::settings::{Section, duration};
use registry::Member;

use super::edits::{MOST, request_name};
use crate::http1::names::{is_alike, unified};

/// For the service's whole answer, unless the file says otherwise.
const TIMEOUT: Duration = Duration::from_secs(2);

const EXPECTED: &str = "a URL such as http://10.0.0.5:9000/verify";

/// A service that is asked whether a request may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardAuth {
    /// Where it is asked.
    pub url: AuthUrl,
    /// The fields of its answer that backends get, as the operator wrote them.
    pub copy: Vec<String>,
    /// For its whole answer.
    pub timeout: Duration,
    /// `copy` as [`is_alike`] compares it.
    unified: Vec<String>,
}

/// The URL at which a service is asked. The log and messages show no query, which may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthUrl {
    /// The service.
    pub service: Member,
    /// The path and the query.
    pub target: String,
}

impl AuthUrl {
    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("https://") {
            return Err(format!(
                "{EXPECTED}; the proxy speaks no TLS with authentication services, so ask one over a private network, or through a \
                 local proxy that speaks TLS"
            ));
        }
        let rest = text.strip_prefix("http://").ok_or(EXPECTED)?;
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(format!("{EXPECTED}, without a user and a password"));
        }
        if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(format!(
                "{EXPECTED}, with %20 and the like for other characters, and nothing behind a #"
            ));
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let service = match has_port {
            true => authority.parse(),
            false => format!("{authority}:80").parse(),
        };
        Ok(Self {
            service: service.map_err(|problem| format!("{EXPECTED} ({problem})"))?,
            target: if target.starts_with('/') {
                target.to_owned()
            } else {
                format!("/{target}")
            },
        })
    }
}

impl fmt::Display for AuthUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "http://{}{path}", self.service)
    }
}

impl ForwardAuth {
    /// Whether its answer alone says what backends get under this name, or another spelling of it.
    pub fn decides(&self, name: &str) -> bool {
        self.unified.iter().any(|copied| is_alike(name, copied))
    }

    pub(super) fn read(section: &mut Section<'_>) -> Option<Self> {
        if !section.has("forward_auth") {
            return None;
        }
        let mistakes = section.settings().mistakes();
        let (is_on, mut part) = section.switchable("forward_auth", None);
        // A value that is no group of keys has been named.
        let is_named = part.has("url") || part.settings().mistakes() > mistakes;
        // A URL may hold a secret.
        let url = part.secret("url", None, None, |text| AuthUrl::parse(text).map(Some));
        if is_on && !is_named {
            let problem = format_args!("expected {EXPECTED}, and there is none");
            part.settings().mistake(&part.place("url"), problem);
        }
        let copy = part.list("copy", None, Vec::new(), request_name);
        let unified: Vec<_> = copy.iter().map(|name| unified(name)).collect();
        let twice = (1..).zip(&unified).find(|(next, name)| unified[*next..].contains(name));
        if let Some((next, _)) = twice {
            let problem = format_args!("{} is there twice; list it once", copy[next - 1]);
            part.settings().mistake(&part.place("copy"), problem);
        }
        if copy.len() > MOST {
            let problem = format_args!("there are more than {MOST} fields; copy fewer");
            part.settings().mistake(&part.place("copy"), problem);
        }
        let timeout = part.value("timeout", None, TIMEOUT, duration);
        part.finish();
        is_on.then_some(Self {
            url: url?,
            copy,
            timeout,
            unified,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;

    #[test]
    fn a_url_has_a_host_a_port_and_a_target() {
        for (text, service, target) in [
            ("http://10.0.0.5:9000/verify", "10.0.0.5:9000", "/verify"),
            ("http://10.0.0.5/verify?a=b", "10.0.0.5:80", "/verify?a=b"),
            ("http://auth", "auth:80", "/"),
            ("http://auth?a", "auth:80", "/?a"),
            ("http://[::1]/", "[::1]:80", "/"),
            ("http://[::1]:9/", "[::1]:9", "/"),
        ] {
            let url = AuthUrl::parse(text).unwrap();
            assert_eq!(
                (url.service.to_string().as_str(), url.target.as_str()),
                (service, target)
            );
        }
        let shown = AuthUrl::parse("http://auth/a?token=secret").unwrap().to_string();
        assert_eq!(shown, "http://auth:80/a");
    }

    #[test]
    fn mistakes_name_the_key_and_no_secret() {
        for (keys, mistake) in [
            (
                "{}",
                "forward_auth.url: expected a URL such as http://10.0.0.5:9000/verify, and there is none",
            ),
            ("on", "forward_auth.url: expected a URL such as"),
            ("{url: 10.0.0.5}", "forward_auth.url: expected a URL such as"),
            (
                "{url: https://a/secret}",
                "forward_auth.url: expected a URL such as http://10.0.0.5:9000/verify; the proxy speaks no TLS",
            ),
            ("{url: 'http://u:secret@a/'}", "without a user and a password"),
            ("{url: 'http://a/secret#b'}", "nothing behind a #"),
            ("{url: 'http://a/secret b'}", "with %20"),
            ("{url: 'http://'}", "expected a host name"),
            ("{url: 'http://a:0/'}", "expected a port from 1 to 65535"),
            ("{url: 'http://::1/'}", "expected"),
            (
                "{url: http://a, copy: ['']}",
                "forward_auth.copy: entry 1: expected the name of a field",
            ),
            (
                "{url: http://a, copy: ['a b']}",
                "forward_auth.copy: entry 1: expected the name of a field",
            ),
            (
                "{url: http://a, copy: [Connection]}",
                "forward_auth.copy: entry 1: expected a field that does not concern a connection",
            ),
            (
                "{url: http://a, copy: [content_length]}",
                "forward_auth.copy: entry 1: expected a field that does not concern",
            ),
            (
                "{url: http://a, copy: [X-Forwarded-For]}",
                "forward_auth.copy: entry 1: expected a field that the proxy does not write",
            ),
            (
                "{url: http://a, copy: [Host]}",
                "forward_auth.copy: entry 1: expected a field other than Host",
            ),
            (
                "{url: http://a, copy: [Remote-User, remote_user]}",
                "forward_auth.copy: Remote-User is there twice",
            ),
            ("{url: http://a, timeout: 0s}", "forward_auth.timeout: expected"),
            ("{url: http://a, cpoy: [A]}", "forward_auth.cpoy: unknown key"),
            (
                "{url: http://a, copy: [A]}, request_headers: {set: {a: b}}",
                "forward_auth.copy: A is changed in request_headers too",
            ),
            (
                "{url: http://a, copy: [A]}, request_headers: {add: {a: b}}",
                "forward_auth.copy: A is changed in request_headers too",
            ),
            (
                "{url: http://a, copy: [A-B]}, request_headers: {remove: [a_b]}",
                "forward_auth.copy: A-B is changed in request_headers too",
            ),
        ] {
            let error = Shape::of(&format!("{{forward_auth: {keys}}}")).unwrap_err();
            assert!(error.contains(mistake) && !error.contains("secret"), "{keys}: {error}");
        }
        let shape = Shape::of("forward_auth: {url: http://a, copy: [Remote_User]}").unwrap();
        for (name, dropped) in [
            ("Remote-User", true),
            ("remote_user", true),
            ("REMOTE-user", true),
            ("Remote.User", true),
            ("remote~user", true),
            ("Remote-Users", false),
        ] {
            assert_eq!(shape.drops(name), dropped, "{name}");
        }
        assert_eq!(Shape::of("forward_auth: off").unwrap().auth, None);
    }
}

//! What a route does to its requests and their responses.

mod edits;
mod forward_auth;
mod prefix;
mod users;

#[cfg(test)]
use chassis::settings::Settings;
use chassis::settings::{Section, truth};
use std::net::IpAddr;

pub use edits::{Edits, Part};
pub use forward_auth::ForwardAuth;
pub use prefix::Prefix;
pub use users::{UserFile, Users};

use super::Networks;
use super::address::network;
use crate::http1::names::{is_alike, unified};

/// What a route does to its requests and their responses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// Which clients may use it.
    pub access: Access,
    /// Who may use it, with a password.
    pub users: Option<UserFile>,
    /// Who says whether a request may pass.
    pub auth: Option<ForwardAuth>,
    /// What is changed in the fields that its backends get.
    pub request_headers: Edits,
    /// What is changed in the fields that clients get from them.
    pub response_headers: Edits,
    /// What is changed in the paths that its backends get.
    pub prefix: Prefix,
    /// Whether the bodies of responses are compressed.
    pub compress: bool,
}

#[cfg(test)]
impl Shape {
    /// The one that these keys make.
    pub fn of(keys: &str) -> Result<Self, String> {
        let settings = Settings::new([]);
        let file = chassis::yaml::parse(keys).map_err(|error| error.to_string())?;
        let mut section = settings.top(file);
        let shape = Self::read(&mut section);
        section.finish();
        let (shape, _) = settings.finish(shape).map_err(|error| error.to_string())?;
        Ok(shape)
    }
}

/// Which clients may use a route. Whoever is in both lists may not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Only these, unless it is empty.
    pub allow: Networks,
    /// All but these.
    pub deny: Networks,
}

impl Access {
    /// Whether a client with this address may use the route.
    pub fn admits(&self, client: IpAddr) -> bool {
        !self.deny.contain(client) && (self.allow.is_empty() || self.allow.contain(client))
    }
}

impl Shape {
    /// The keys that only matter where requests go to a pool.
    pub const OF_BACKENDS: [&'static str; 5] = [
        "request_headers",
        "response_headers",
        "strip_prefix",
        "add_prefix",
        "compress",
    ];

    /// Whether a field of this name that a client has sent does not reach its backends.
    pub fn drops(&self, name: &str) -> bool {
        self.request_headers.drop(name)
            || self.is_password(name)
            || self.auth.as_ref().is_some_and(|auth| auth.decides(name))
    }

    /// Whether a field of this name holds a password for the proxy alone.
    pub fn is_password(&self, name: &str) -> bool {
        self.users.is_some() && is_alike(name, "authorization")
    }

    /// Notes as a mistake what would protect nothing in a route that has no backends.
    pub(super) fn check_without_backends(&self, section: &Section<'_>) {
        if self.users.is_some() {
            section.settings().mistake(
                &section.place("basic_auth"),
                "the proxy answers the requests of this route itself, and asks for no password; only routes to a pool can have one",
            );
        }
        if self.auth.is_some() {
            section.settings().mistake(
                &section.place("forward_auth"),
                "the proxy answers the requests of this route itself, and asks no service; only routes to a pool can have one",
            );
        }
    }

    /// Reads the files that it names.
    pub(super) fn load(&mut self) -> Result<(), String> {
        self.users.as_mut().map_or(Ok(()), UserFile::load)
    }

    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let shape = Self {
            access: Access {
                allow: Networks::new(section.list("allow", None, Vec::new(), network)),
                deny: Networks::new(section.list("deny", None, Vec::new(), network)),
            },
            users: section.value("basic_auth", None, None, UserFile::parse),
            auth: ForwardAuth::read(section),
            request_headers: Edits::of_requests(section.section("request_headers")),
            response_headers: Edits::of_responses(section.section("response_headers")),
            prefix: Prefix::read(section),
            compress: section.value("compress", None, false, truth),
        };
        let edits = &shape.request_headers;
        let clashes =
            |name: &str| edits.drop(name) || edits.added().iter().any(|(added, _)| is_alike(added, &unified(name)));
        let copied = shape
            .auth
            .iter()
            .flat_map(|auth| auth.copy.iter().filter(|name| clashes(name)));
        for name in copied {
            let problem = format_args!("{name} is changed in request_headers too; leave it out of one of them");
            section.settings().mistake(&section.place("forward_auth.copy"), problem);
        }
        shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_in_both_lists_may_not() {
        let admits = |keys: &str, client: &str| Shape::of(keys).unwrap().access.admits(client.parse().unwrap());
        for (keys, client, admitted) in [
            ("{}", "192.0.2.1", true),
            ("allow: [10.0.0.0/8]", "10.1.2.3", true),
            ("allow: [10.0.0.0/8]", "192.0.2.1", false),
            ("allow: [10.0.0.0/8]", "::ffff:10.0.0.1", true),
            ("deny: [10.0.0.0/8]", "10.1.2.3", false),
            ("deny: [10.0.0.0/8]", "192.0.2.1", true),
            ("{allow: [10.0.0.0/8], deny: [10.9.0.0/16]}", "10.9.0.1", false),
            ("{allow: [10.9.0.0/16], deny: [10.0.0.0/8]}", "10.9.0.1", false),
            ("allow: [2001:db8::/32]", "2001:db8::1", true),
        ] {
            assert_eq!(admits(keys, client), admitted, "{keys} {client}");
        }
    }

    #[test]
    fn mistakes_name_the_key_and_the_value() {
        for (keys, mistake) in [
            (
                "request_headers: {set: {X-Forwarded-For: a}}",
                "request_headers.set.X-Forwarded-For: expected a field",
            ),
            (
                "request_headers: {remove: [Host]}",
                "request_headers.remove: entry 1: expected a field other than Host",
            ),
            (
                "response_headers: {add: {Content-Length: 1}}",
                "response_headers.add.Content-Length: expected",
            ),
            ("response_headers: {set: {A: '{clint}'}}", "did you mean {client}?"),
            ("response_headers: {set: {A: b}, remove: [a]}", "A is in set too"),
            (
                "response_headers: {delete: [a]}",
                "response_headers.delete: unknown key",
            ),
            ("strip_prefix: api", "strip_prefix: expected the beginning of a path"),
            ("compress: gzip", "compress: expected"),
            ("allow: [10.0.0.0/33]", "allow: entry 1: expected"),
        ] {
            let error = Shape::of(keys).unwrap_err();
            assert!(error.contains(mistake), "{keys}: {error}");
        }
    }
}

//! The address and credentials of Redis, parsed from a URL. No message may quote it: it can hold a password.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};

use crate::Member;

/// What [`RedisUrl::parse`] takes.
const EXPECTED: &str = "host:port, redis://[user:password@]host[:port][/database] or rediss:// for TLS, with \
                        reserved characters in the password percent-encoded";

/// Where Redis is. Its `Display` and `Debug` are made of the scheme, the host, the port and the database, and never of
/// the text that was parsed.
#[derive(Clone)]
pub struct RedisUrl(Box<ConnectionInfo>);

impl RedisUrl {
    /// Reads `host:port`, `redis://…` or `rediss://…` (TLS), the URLs with `user:password@` and `/database` if need be.
    ///
    /// # Errors
    /// What the text should have been. Nothing of the text itself, for any part of a wrong URL may be the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = match text.split_once("://") {
            // The host ends at the first of these, so an @ behind one means that it belongs to a password, and what stands
            // where the host should is the password's end.
            Some(("redis" | "rediss", rest)) => match rest.split_once(['/', '?', '#']) {
                Some((_, behind)) if behind.contains('@') => return Err(EXPECTED.into()),
                _ => text.to_owned(),
            },
            Some(("unix" | "redis+unix", _)) => return Err(format!("{EXPECTED}; Unix sockets are not supported")),
            Some(_) => return Err(EXPECTED.into()),
            // "redis:6379" would be a URL of the scheme "redis".
            None => {
                text.parse::<Member>().map_err(|_| EXPECTED)?;
                format!("redis://{text}")
            }
        };
        let info = url.as_str().into_connection_info().map_err(|_| EXPECTED)?;
        Ok(Self(Box::new(info)))
    }

    /// What to connect to. The link authenticates by itself, so that it sees the server's own reply.
    pub(crate) fn connection(&self) -> ConnectionInfo {
        let plain = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP2)
            .set_skip_set_lib_name();
        (*self.0).clone().set_redis_settings(plain)
    }

    pub(crate) fn uses_tls(&self) -> bool {
        matches!(self.0.addr(), ConnectionAddr::TcpTls { .. })
    }

    pub(crate) fn username(&self) -> Option<&str> {
        self.0.redis_settings().username()
    }

    pub(crate) fn password(&self) -> Option<&str> {
        self.0.redis_settings().password()
    }

    /// The number of the database; 0 is where a connection starts.
    pub(crate) fn database(&self) -> i64 {
        self.0.redis_settings().db()
    }
}

impl PartialEq for RedisUrl {
    fn eq(&self, other: &Self) -> bool {
        self.0.addr() == other.0.addr()
            && self.username() == other.username()
            && self.password() == other.password()
            && self.database() == other.database()
    }
}

impl Eq for RedisUrl {}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port, unchecked) = match self.0.addr() {
            ConnectionAddr::Tcp(host, port) => ("redis", host, port, false),
            ConnectionAddr::TcpTls {
                host, port, insecure, ..
            } => ("rediss", host, port, *insecure),
            _ => return f.write_str("redis"),
        };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")?;
        } else {
            write!(f, "{scheme}://{host}:{port}")?;
        }
        if self.database() != 0 {
            write!(f, "/{}", self.database())?;
        }
        if unchecked {
            f.write_str("#insecure")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_addresses_and_urls_are_taken_and_the_password_is_never_shown() {
        for (text, shown) in [
            ("localhost:16379", "redis://localhost:16379"),
            ("redis:6379", "redis://redis:6379"),
            ("[::1]:6379", "redis://[::1]:6379"),
            ("redis://host/3", "redis://host:6379/3"),
            ("redis://user:secret@host:1/3", "redis://host:1/3"),
            ("redis://host:1?password=secret", "redis://host:1"),
            ("redis://host:1#secret", "redis://host:1"),
            ("rediss://:secret@host:1", "rediss://host:1"),
            ("rediss://:secret@[::1]:1#insecure", "rediss://[::1]:1#insecure"),
        ] {
            let url = RedisUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
    }

    #[test]
    fn other_texts_are_refused_and_not_repeated() {
        for text in [
            "",
            "localhost",
            "localhost:",
            "localhost:x",
            "http://secret.example:6379",
            "unix:///run/redis.sock?pass=secret",
            "redis+unix:///run/redis.sock?pass=secret",
            "redis://",
            "redis://host:port",
            "redis://host/secret",
            "redis://user:secret:host:6379",
            "redis://user:se/cret@host:6379",
            "redis//user:secret@host:6379",
            "user:secret@host:6379",
            "secret://host:6379",
            "rediss://host:6379#secret",
            "redis://user:pass@secret#word@host:6379",
            "redis://user:pass@secret?word@host:6379/1",
            "redis://secret/@host:6379",
            "redis://secret#@host:6379",
        ] {
            let problem = RedisUrl::parse(text).unwrap_err();
            assert!(!problem.contains("secret"), "{text:?}: {problem}");
        }
    }

    #[test]
    fn urls_are_equal_when_they_lead_to_the_same_place_as_the_same_user() {
        let url = |text| RedisUrl::parse(text).unwrap();
        assert_eq!(url("host:6379"), url("redis://host/0"));
        for other in [
            "redis://user:secret@host:2",
            "rediss://user:secret@host:1",
            "redis://user:other@host:1",
            "redis://other:secret@host:1",
            "redis://user:secret@host:1/1",
        ] {
            assert_ne!(url("redis://user:secret@host:1"), url(other));
        }
    }
}

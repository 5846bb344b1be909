//! The cookie that keeps a client at its backend.
//!
//! Its value is a keyed hash of the backend's name. So nothing is stored: another process, and another proxy, finds the same backend by it. With a
//! secret it tells nobody the backend's address; without one it can be compared with guesses.

use std::fmt::Write;
use std::sync::Arc;

use ring::hmac;

use crate::config;
use crate::pool::endpoint::Upstream;

/// How many bytes of the hash make the value, each of them two digits.
const BYTES: usize = 12;

/// A pool's cookie.
pub struct Sticky {
    name: Box<str>,
    pool: Box<str>,
    key: hmac::Key,
}

impl Sticky {
    /// The cookie that `config` asks for, of the pool of this name.
    pub fn new(config: &config::Sticky, pool: &str) -> Self {
        Self {
            name: config.cookie.clone(),
            pool: pool.into(),
            key: hmac::Key::new(hmac::HMAC_SHA256, config.secret.as_bytes()),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value for the backend of this name.
    pub fn value(&self, backend: &str) -> Box<str> {
        let mut context = hmac::Context::with_key(&self.key);
        for part in ["sticky", &self.pool, backend] {
            context.update(part.as_bytes());
            context.update(b"\0");
        }
        let mut value = String::with_capacity(2 * BYTES);
        for byte in &context.sign().as_ref()[..BYTES] {
            // Writing to a string can't fail.
            let _ = write!(value, "{byte:02x}");
        }
        value.into()
    }
}

/// What a request's cookie says.
#[derive(Clone)]
pub(super) enum Named {
    /// Nothing, or no backend that takes its requests.
    Nobody,
    /// This one.
    Backend(Arc<Upstream>),
    /// One that has too many requests just now, so that another gets this one request.
    Full,
}

/// The cookie of a request's pool, and what the request's own says.
#[derive(Clone)]
pub struct Sticking {
    pub(super) sticky: Arc<Sticky>,
    pub(super) named: Named,
    /// The client speaks TLS, with this proxy or one in front.
    pub secure: bool,
}

impl Sticking {
    /// The value of the `Set-Cookie` that a client gets with the answer of `upstream`, if it needs one.
    pub fn set_cookie(&self, upstream: &Upstream) -> Option<String> {
        match &self.named {
            Named::Full => return None,
            Named::Backend(named) if named.name == upstream.name => return None,
            Named::Backend(_) | Named::Nobody => {}
        }
        let (name, value) = (&self.sticky.name, self.sticky.value(&upstream.name));
        let secure = if self.secure { "; Secure" } else { "" };
        Some(format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}"))
    }
}

/// The value of the cookie `name` in these `Cookie` fields (RFC 6265, section 4.2.1).
pub(super) fn cookie<'h>(name: &str, mut fields: impl Iterator<Item = &'h [u8]>) -> Option<&'h [u8]> {
    fields.find_map(|field| {
        let mut pairs = field.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sticky(secret: &str, pool: &str) -> Sticky {
        let config = config::Sticky {
            cookie: "at".into(),
            secret: secret.into(),
        };
        Sticky::new(&config, pool)
    }

    #[test]
    fn a_value_is_the_same_in_every_process_and_another_for_another_pool_backend_or_secret() {
        // A change of this sends every client to another backend.
        assert_eq!(&*sticky("", "default").value("10.0.0.1:80"), "f6135bf618b2a7a1d25af28d");
        let values = [
            sticky("", "default").value("10.0.0.1:80"),
            sticky("", "default").value("10.0.0.2:80"),
            sticky("", "api").value("10.0.0.1:80"),
            sticky("12345678", "default").value("10.0.0.1:80"),
        ];
        for (index, value) in values.iter().enumerate() {
            assert_eq!(value.len(), 2 * BYTES);
            assert!(!values[..index].contains(value), "{values:?}");
        }
    }

    #[test]
    fn a_cookie_is_found_wherever_it_stands() {
        let found = |fields: &[&'static str]| cookie("at", fields.iter().map(|field| field.as_bytes()));
        for fields in [
            &["at=1"][..],
            &["a=2; at=1"],
            &["that=2;at=1;at=3"],
            &["a=2", "b=at; at=1; c"],
        ] {
            assert_eq!(found(fields), Some(&b"1"[..]), "{fields:?}");
        }
        for fields in [&[][..], &["AT=1"], &["at"], &["a=at=1"], &["hat=1"]] {
            assert_eq!(found(fields), None, "{fields:?}");
        }
    }
}

//! `balance`, `sticky`, `slow_start` and `max_inflight` of a pool: which of its backends gets a request.

use std::fmt;
use std::time::Duration;

use chassis::settings::{Section, duration, whole};

use super::or_none;
use crate::http1::names::is_in_token;

/// Which backend of a pool gets a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balance {
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// The cookie that keeps a client at its backend.
    pub sticky: Option<Sticky>,
    /// In this time a backend that has become alive gets from a tenth of its share to all of it.
    pub slow_start: Option<Duration>,
    /// The most requests in flight to a backend.
    pub max_inflight: Option<u32>,
}

/// How a backend is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Each in its turn.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastRequests,
    /// The same one for the same value of this.
    Hash(HashBy),
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoundRobin => f.write_str("round_robin"),
            Self::LeastRequests => f.write_str("least_requests"),
            Self::Hash(HashBy::Client) => f.write_str("hash:client"),
            Self::Hash(HashBy::Path) => f.write_str("hash:path"),
            Self::Hash(HashBy::Header(name)) => write!(f, "hash:header:{name}"),
            Self::Hash(HashBy::Cookie(name)) => write!(f, "hash:cookie:{name}"),
        }
    }
}

/// What of a request is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashBy {
    /// The client's address.
    Client,
    /// The field of this name.
    Header(Box<str>),
    /// The cookie of this name.
    Cookie(Box<str>),
    /// The path, without the query.
    Path,
}

/// The cookie that keeps a client at its backend.
#[derive(Clone, PartialEq, Eq)]
pub struct Sticky {
    /// Its name.
    pub cookie: Box<str>,
    /// What its values are hashed with.
    pub secret: Box<str>,
}

impl fmt::Debug for Sticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky")
            .field("cookie", &self.cookie)
            .finish_non_exhaustive()
    }
}

impl Balance {
    /// Reads these keys from the `section` of a pool.
    pub fn read(section: &mut Section<'_>) -> Self {
        let algorithm = section.value("balance", None, Algorithm::default(), algorithm);
        let slow_start = section.value("slow_start", None, None, |text| or_none(text, duration));
        let max_inflight = section.value("max_inflight", None, None, |text| or_none(text, whole(1..=1_000_000)));
        let mut part = section.section("sticky");
        let cookie = part.value("cookie", None, None, |text| or_none(text, cookie_name));
        let secret = part.secret("secret", None, Box::default(), secret);
        if cookie.is_none() {
            part.key_has_no_effect("secret", "sticky.cookie is not set");
        }
        part.finish();
        Self {
            algorithm,
            sticky: cookie.map(|cookie| Sticky { cookie, secret }),
            slow_start,
            max_inflight,
        }
    }
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    let hashed = |by| Ok(Algorithm::Hash(by));
    match text {
        "round_robin" => Ok(Algorithm::RoundRobin),
        "least_requests" => Ok(Algorithm::LeastRequests),
        "hash:client" => hashed(HashBy::Client),
        "hash:path" => hashed(HashBy::Path),
        _ => match (text.strip_prefix("hash:header:"), text.strip_prefix("hash:cookie:")) {
            (Some(name), _) if is_token(name) => hashed(HashBy::Header(name.to_ascii_lowercase().into())),
            (_, Some(name)) if is_token(name) => hashed(HashBy::Cookie(name.into())),
            _ => {
                Err("round_robin, least_requests, hash:client, hash:path, hash:header:NAME or hash:cookie:NAME".into())
            }
        },
    }
}

fn cookie_name(text: &str) -> Result<Box<str>, String> {
    match is_token(text) {
        true => Ok(text.into()),
        false => Err("the name of a cookie, such as backend".into()),
    }
}

fn secret(text: &str) -> Result<Box<str>, String> {
    match text.len() {
        8.. => Ok(text.into()),
        _ => Err("a text of at least 8 characters".into()),
    }
}

/// Whether `text` is a token (RFC 9110, section 5.6.2), which the names of fields and cookies are.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_in_token)
}

#[cfg(test)]
mod tests {
    use chassis::settings::Settings;
    use chassis::yaml;

    use super::*;

    fn read(text: &str) -> Result<Balance, String> {
        let settings = Settings::new([]);
        let mut top = settings.top(yaml::parse(text).unwrap());
        let balance = Balance::read(&mut top);
        top.finish();
        settings
            .finish(balance)
            .map(|(balance, _)| balance)
            .map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn each_algorithm_has_a_name_and_round_robin_is_the_default() {
        assert_eq!(read("").unwrap(), Balance::default());
        for (text, algorithm) in [
            ("round_robin", Algorithm::RoundRobin),
            ("least_requests", Algorithm::LeastRequests),
            ("hash:client", Algorithm::Hash(HashBy::Client)),
            ("hash:path", Algorithm::Hash(HashBy::Path)),
            ("hash:header:X-User", Algorithm::Hash(HashBy::Header("x-user".into()))),
            ("hash:cookie:User", Algorithm::Hash(HashBy::Cookie("User".into()))),
        ] {
            assert_eq!(read(&format!("balance: {text}")).unwrap().algorithm, algorithm);
        }
        let all = read("{sticky: {cookie: at, secret: 12345678}, slow_start: 30s, max_inflight: 200}").unwrap();
        assert_eq!(
            (all.slow_start, all.max_inflight),
            (Some(Duration::from_secs(30)), Some(200))
        );
        assert!(!format!("{all:?}").contains("12345678"));
        assert_eq!(all.sticky.map(|sticky| sticky.cookie).as_deref(), Some("at"));
        let none = read("{sticky: {cookie: none}, slow_start: none, max_inflight: none}");
        assert_eq!(none.unwrap(), Balance::default());
    }

    #[test]
    fn mistakes_name_the_key_and_the_value_and_never_a_secret() {
        for (text, key, quoted) in [
            ("balance: random", "balance", "random"),
            ("balance: 'hash:header:'", "balance", "hash:header:"),
            ("balance: 'hash:cookie:a b'", "balance", "a b"),
            ("sticky: {cookie: 'a;b'}", "sticky.cookie", "a;b"),
            ("sticky: {cooky: a}", "sticky.cooky", "cookie"),
            ("slow_start: soon", "slow_start", "soon"),
            ("max_inflight: 0", "max_inflight", "0"),
        ] {
            let mistake = read(text).unwrap_err();
            assert!(mistake.contains(key) && mistake.contains(quoted), "{text}: {mistake}");
        }
        let mistake = read("sticky: {cookie: a, secret: hunter2}").unwrap_err();
        assert!(
            mistake.contains("sticky.secret") && !mistake.contains("hunter2"),
            "{mistake}"
        );
    }
}

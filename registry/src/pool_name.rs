//! The name of a pool, and the Redis keys that belong to it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::KEY;

/// The name of the pool that reads [`KEY`] itself.
const DEFAULT: &str = "default";
/// A longer name has no place in a metric's label.
const MAX_LENGTH: usize = 63;

/// The name of a pool: 1 to 63 of `a-z`, `0-9`, `_` and `-`. There is a set of members for each.
///
/// Cloning copies a pointer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(Arc<str>);

impl PoolName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the pool whose set is [`KEY`], the only one that version 1 knows.
    pub fn is_default(&self) -> bool {
        *self.0 == *DEFAULT
    }

    /// The Redis set of the members: `gopher_backends`, or `gopher_backends:NAME`.
    pub fn key(&self) -> String {
        if self.is_default() {
            KEY.to_owned()
        } else {
            format!("{KEY}:{self}")
        }
    }

    /// The Redis hash that says more of the members.
    pub fn meta_key(&self) -> String {
        self.companion_key("meta")
    }

    /// The Redis set of the members that the writer `id` has registered.
    pub(crate) fn record_key(&self, id: &str) -> String {
        self.companion_key(&format!("registered:{id}"))
    }

    /// A key beside the set. The braces put it into the same slot of a Redis cluster.
    fn companion_key(&self, what: &str) -> String {
        format!("{{{}}}:{what}", self.key())
    }
}

/// The Redis set of the pools, but for the default one, in whose sets the writer `id` may have registered members.
pub(crate) fn pools_key(id: &str) -> String {
    format!("{{{KEY}}}:pools:{id}")
}

impl Default for PoolName {
    fn default() -> Self {
        Self(DEFAULT.into())
    }
}

impl FromStr for PoolName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        if (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(format!("a name of 1 to {MAX_LENGTH} of a-z, 0-9, _ and -"))
        }
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_pool_has_the_keys_of_version_1_and_the_others_have_their_own() {
        let default = PoolName::default();
        assert_eq!(default.key(), "gopher_backends");
        assert_eq!(default.meta_key(), "{gopher_backends}:meta");
        assert_eq!(default.record_key("a:1"), "{gopher_backends}:registered:a:1");
        assert_eq!("default".parse(), Ok(default));
        let api: PoolName = "api".parse().unwrap();
        assert_eq!(api.key(), "gopher_backends:api");
        assert_eq!(api.meta_key(), "{gopher_backends:api}:meta");
        assert_eq!(api.record_key("a"), "{gopher_backends:api}:registered:a");
    }

    #[test]
    fn a_name_is_short_and_means_nothing_in_a_key_or_a_label() {
        for text in ["a", "0", "api_v2-canary", &"a".repeat(63)] {
            assert_eq!(text.parse::<PoolName>().unwrap().as_str(), text);
        }
        for text in ["", "API", "a b", "a.b", "a:b", "a{b", "é", "a\n", &"a".repeat(64)] {
            let expected = text.parse::<PoolName>().unwrap_err();
            assert_eq!(expected, "a name of 1 to 63 of a-z, 0-9, _ and -", "{text:?}");
        }
    }
}

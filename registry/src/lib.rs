//! The registry: the set of origins that are up, shared by the sentinel, which writes it, and the proxy, which reads it.
//!
//! This crate alone knows the Redis key ([`KEY`]), how a [`Member`] is written, and how long a call may take. There are two
//! stores behind the one interface [`Registry`]: [`RedisStore`], for processes on several machines, and [`InProcess`], for
//! a proxy with the sentinel inside it. What is published in either is read from it as the same members.

mod in_process;
mod link;
mod member;
mod redis_store;
mod redis_url;
mod replaceable;
mod resolver;

use std::collections::BTreeSet;
use std::fmt;

pub use in_process::InProcess;
pub use member::{Host, Malformed, Member};
pub use redis_store::RedisStore;
pub use redis_url::RedisUrl;
pub use replaceable::Replaceable;
pub use resolver::Resolver;

/// The Redis set of the origins that are up.
pub const KEY: &str = "gopher_backends";

/// What the registry holds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The members that parse.
    pub members: BTreeSet<Member>,
    /// The others, each with what is wrong with it.
    pub malformed: Vec<Malformed>,
}

impl Snapshot {
    fn parse<'t>(texts: impl IntoIterator<Item = &'t [u8]>) -> Self {
        let mut snapshot = Self::default();
        for text in texts {
            match Member::parse(text) {
                Ok(member) => {
                    snapshot.members.insert(member);
                }
                Err(malformed) => snapshot.malformed.push(malformed),
            }
        }
        snapshot
    }
}

/// A store of members. Every call ends within the store's timeout, whatever the network does.
#[async_trait::async_trait]
pub trait Registry: Send + Sync + 'static {
    /// All members of the set.
    async fn members(&self) -> Result<Snapshot, Error>;

    /// Makes every one of `present` a member and none of `absent`, and leaves all others as they are. Idempotent.
    async fn publish(&self, present: &[Member], absent: &[Member]) -> Result<(), Error>;
}

/// Why a call failed, in words for the log. It never holds the store's password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    message: String,
    refused: bool,
}

impl Error {
    /// A failure that may pass by itself.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            refused: false,
        }
    }

    /// A refusal that lasts until somebody mends its cause. `message` says how.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            refused: true,
        }
    }

    /// Whether this lasts until somebody mends it: a wrong password, a missing permission, a key of another type.
    pub fn is_refusal(&self) -> bool {
        self.refused
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

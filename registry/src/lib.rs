//! The registry: the set of origins that are up. The sentinel writes it, and the proxy reads it.
//!
//! Only this crate knows the Redis key ([`KEY`]), the format of a [`Member`], and how long a call may take. There are two
//! stores behind the one interface [`Registry`]: [`RedisStore`], for processes on several machines, and [`InProcess`], for
//! a proxy with the sentinel inside it. What is published in either is read from it as the same members.

mod in_process;
mod link;
mod member;
mod redis_store;
mod redis_url;
mod replaceable;
mod resolver;

use std::collections::{BTreeSet, HashSet};
use std::fmt;

pub use in_process::InProcess;
pub use member::{Host, Malformed, Member};
pub use redis_store::RedisStore;
pub use redis_url::RedisUrl;
pub use replaceable::Replaceable;
pub use resolver::Resolver;

/// The Redis set of the origins that are up.
pub const KEY: &str = "gopher_backends";

/// The Redis set of the members of [`KEY`] that the writer `id` has registered. The braces put it into the same slot of a
/// Redis cluster.
fn record_key(id: &str) -> String {
    format!("{{{KEY}}}:registered:{id}")
}

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

/// What a writer has to know before it writes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Holdings {
    members: HashSet<Vec<u8>>,
    /// The members that this writer has registered and not removed since.
    pub registered: BTreeSet<Member>,
}

impl Holdings {
    /// Whether `member` is in the set, written just as this program writes it.
    pub fn contains(&self, member: &Member) -> bool {
        self.members.contains(member.encode().as_bytes())
    }
}

/// A store of members. Every call ends within the store's timeout, whatever the network does.
#[async_trait::async_trait]
pub trait Registry: Send + Sync + 'static {
    /// All members of the set.
    async fn members(&self) -> Result<Snapshot, Error>;

    /// All members of the set, and those that the writer `id` has registered.
    async fn holdings(&self, id: &str) -> Result<Holdings, Error>;

    /// Makes every one of `present` a member and none of `absent`, leaves all others as they are, and records both as the
    /// doing of the writer `id`. Idempotent.
    async fn publish(&self, id: &str, present: &[Member], absent: &[Member]) -> Result<(), Error>;
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

    /// A refusal that lasts until somebody fixes its cause. `message` says how.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            refused: true,
        }
    }

    /// Whether this lasts until somebody fixes it: a wrong password, a missing permission, a key of another type.
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

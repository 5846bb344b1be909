//! The registry: for each pool the set of origins that are up. The sentinel writes it, and the proxy reads it.
//!
//! Only this crate knows the Redis keys ([`PoolName`]), the format of a [`Member`] and of its [`Meta`], and how long a call may take.
//! There are two stores behind the one interface [`Registry`]: [`RedisStore`], for processes on several machines, and [`InProcess`], for
//! a proxy with the sentinel inside it. What is published in either is read from it as the same members.

mod in_process;
mod link;
mod member;
mod meta;
mod pool_name;
mod redis_store;
mod redis_url;
mod replaceable;
mod resolver;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

pub use in_process::InProcess;
pub use member::{Host, Malformed, Member};
pub use meta::{MAX_WEIGHT, Meta, MetaChange};
pub use pool_name::PoolName;
pub use redis_store::RedisStore;
pub use redis_url::RedisUrl;
pub use replaceable::Replaceable;
pub use resolver::Resolver;

/// The Redis set of the origins of the default pool that are up.
pub const KEY: &str = "gopher_backends";

/// What the registry holds of one pool.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The members that parse.
    pub members: BTreeSet<Member>,
    /// What differs from [`Meta::default`], also of origins that are no members now: one that is drained and leaves comes back drained.
    pub meta: BTreeMap<Member, Meta>,
    /// Why nothing is known of [`Snapshot::meta`], if nothing is. The members are good all the same.
    pub meta_error: Option<Error>,
    /// The entries that don't parse, each with what is wrong with it.
    pub malformed: Vec<Malformed>,
}

/// The members among `texts`, and what is wrong with the others.
fn parse_members<'t>(texts: impl IntoIterator<Item = &'t [u8]>) -> (BTreeSet<Member>, Vec<Malformed>) {
    let (mut members, mut malformed) = (BTreeSet::new(), Vec::new());
    for text in texts {
        match Member::parse(text) {
            Ok(member) => {
                members.insert(member);
            }
            Err(problem) => malformed.push(problem),
        }
    }
    (members, malformed)
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

/// A store of a set of members for each pool. A call ends within the store's timeout, whatever the network does.
#[async_trait::async_trait]
pub trait Registry: Send + Sync + 'static {
    /// All members of the pool's set, and what is known of them.
    async fn members(&self, pool: &PoolName) -> Result<Snapshot, Error>;

    /// All members of the pool's set, and those that the writer `id` has registered.
    async fn holdings(&self, pool: &PoolName, id: &str) -> Result<Holdings, Error>;

    /// The pools, but for the default one, in whose sets the writer `id` may have registered members.
    async fn pools_of(&self, id: &str) -> Result<BTreeSet<PoolName>, Error>;

    /// Makes every one of `present` a member of the pool's set and none of `absent`, leaves all others as they are, and records both as
    /// the doing of the writer `id`. Idempotent.
    async fn publish(&self, pool: &PoolName, id: &str, present: &[Member], absent: &[Member]) -> Result<(), Error>;

    /// Makes `change` to what is known of `member`, whether it is a member now or not, and returns the outcome. An entry that can't be read
    /// is replaced. Idempotent, and no change that another makes at the same time is lost.
    async fn describe(&self, pool: &PoolName, member: &Member, change: MetaChange) -> Result<Meta, Error>;
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

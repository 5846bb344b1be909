//! The registry in Redis: the set at [`KEY`].

use std::time::Duration;

use crate::link::Link;
use crate::{Error, KEY, Member, RedisUrl, Registry, Snapshot};

/// The set in Redis. Calls wait for one another; each process has one reader or one writer.
pub struct RedisStore(Link);

impl RedisStore {
    /// A store that connects when it is first used, inside the runtime that uses it.
    ///
    /// # Errors
    /// When the URL asks for something this build does not have.
    pub fn new(url: &RedisUrl) -> Result<Self, Error> {
        Ok(Self(Link::new(url)?))
    }

    /// Replaces each connection at this age instead of a minute's.
    #[must_use]
    pub fn with_max_age(mut self, age: Duration) -> Self {
        self.0.set_max_age(age);
        self
    }
}

#[async_trait::async_trait]
impl Registry for RedisStore {
    async fn members(&self) -> Result<Snapshot, Error> {
        let mut command = redis::pipe();
        command.smembers(KEY);
        let (members,): (Vec<Vec<u8>>,) = self.0.call(&command).await?;
        Ok(Snapshot::parse(members.iter().map(Vec::as_slice)))
    }

    async fn publish(&self, present: &[Member], absent: &[Member]) -> Result<(), Error> {
        let encode = |members: &[Member]| members.iter().map(Member::encode).collect::<Vec<_>>();
        let mut command = redis::pipe();
        // SADD and SREM without a member are errors.
        if !present.is_empty() {
            command.sadd(KEY, encode(present)).ignore();
        }
        if !absent.is_empty() {
            command.srem(KEY, encode(absent)).ignore();
        }
        if present.is_empty() && absent.is_empty() {
            return Ok(());
        }
        self.0.call(&command).await
    }
}

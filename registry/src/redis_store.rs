//! The registry in Redis: the set at [`KEY`], and beside it a record of what each writer has registered.

use std::collections::HashSet;
use std::time::Duration;

use crate::link::Link;
use crate::{Error, Holdings, KEY, Member, RedisUrl, Registry, Snapshot, record_key};

/// How long the record of what a writer has registered outlives its last write, in seconds: 30 days, so that the records
/// of writers that are gone for good don't pile up.
const RECORD_LIFE: i64 = 30 * 24 * 3600;

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

    async fn holdings(&self, id: &str) -> Result<Holdings, Error> {
        let mut commands = redis::pipe();
        commands.smembers(KEY).smembers(record_key(id));
        let (members, registered): (HashSet<Vec<u8>>, Vec<Vec<u8>>) = self.0.call(&commands).await?;
        Ok(Holdings {
            members,
            registered: Snapshot::parse(registered.iter().map(Vec::as_slice)).members,
        })
    }

    async fn publish(&self, id: &str, present: &[Member], absent: &[Member]) -> Result<(), Error> {
        let encode = |members: &[Member]| members.iter().map(Member::encode).collect::<Vec<_>>();
        let record = record_key(id);
        let mut commands = redis::pipe();
        // By hand, because the client library's own transaction panics in a debug build when MULTI is refused.
        commands.cmd("MULTI").ignore();
        // SADD and SREM without a member are errors.
        if !present.is_empty() {
            let present = encode(present);
            commands.sadd(KEY, &present).ignore().sadd(&record, present).ignore();
        }
        if !absent.is_empty() {
            let absent = encode(absent);
            commands.srem(KEY, &absent).ignore().srem(&record, absent).ignore();
        }
        commands.expire(&record, RECORD_LIFE).ignore();
        commands.cmd("EXEC");
        let (_replies,): (redis::Value,) = self.0.call(&commands).await?;
        Ok(())
    }
}

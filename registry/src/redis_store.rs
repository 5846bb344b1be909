//! The registry in Redis: for each pool a set of members, a hash that says more of them, and a record of what each writer has
//! registered.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use crate::link::Link;
use crate::pool_name::pools_key;
use crate::{Error, Holdings, Member, Meta, MetaChange, PoolName, RedisUrl, Registry, Snapshot, meta, parse_members};

/// How long the record of what a writer has registered outlives its last write, in seconds: 30 days, so that the records
/// of writers that are gone for good don't pile up.
const RECORD_LIFE: i64 = 30 * 24 * 3600;

/// Writes `ARGV[2]` at the field `ARGV[1]` of the hash, or deletes the field if that is empty, and deletes all other fields that follow, if
/// each of the fields that follow still has the text behind it. Nothing is there as an empty text.
const SWAP: &str = "\
for i = 3, #ARGV, 2 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
for i = 3, #ARGV, 2 do redis.call('HDEL', KEYS[1], ARGV[i]) end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return 1";

/// How often a change is tried again because another came first.
const MOST_SWAPS: usize = 10;

/// The sets in Redis. Calls wait for one another; each process has one reader or one writer.
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

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn as_slices(fields: &Fields) -> impl Iterator<Item = (&[u8], &[u8])> {
    fields.iter().map(|(field, text)| (field.as_slice(), text.as_slice()))
}

#[async_trait::async_trait]
impl Registry for RedisStore {
    async fn members(&self, pool: &PoolName) -> Result<Snapshot, Error> {
        let mut commands = redis::pipe();
        commands.smembers(pool.key()).hgetall(pool.meta_key());
        // A user of version 1 may not be allowed to read the hash.
        let (members, fields): (Vec<Vec<u8>>, _) = self.0.call_with_optional::<_, Fields>(pool, commands).await?;
        let (members, mut malformed) = parse_members(members.iter().map(Vec::as_slice));
        let (fields, meta_error) = match fields {
            Ok(fields) => (fields, None),
            Err(error) => (Fields::new(), Some(error)),
        };
        let (meta, malformed_meta) = meta::read(as_slices(&fields));
        malformed.extend(malformed_meta);
        Ok(Snapshot {
            members,
            meta,
            meta_error,
            malformed,
        })
    }

    async fn holdings(&self, pool: &PoolName, id: &str) -> Result<Holdings, Error> {
        let mut commands = redis::pipe();
        commands.smembers(pool.key()).smembers(pool.record_key(id));
        let (members, registered): (HashSet<Vec<u8>>, Vec<Vec<u8>>) = self.0.call(pool, &commands).await?;
        let (registered, _) = parse_members(registered.iter().map(Vec::as_slice));
        Ok(Holdings { members, registered })
    }

    async fn pools_of(&self, id: &str) -> Result<BTreeSet<PoolName>, Error> {
        let pool = PoolName::default();
        let mut commands = redis::pipe();
        // A user of version 1 may read the first alone, and has no other pools.
        commands.smembers(pool.record_key(id)).smembers(pools_key(id));
        let (_, names): (redis::Value, _) = self.0.call_with_optional::<_, Vec<String>>(&pool, commands).await?;
        Ok(names
            .unwrap_or_default()
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    async fn publish(&self, pool: &PoolName, id: &str, present: &[Member], absent: &[Member]) -> Result<(), Error> {
        let encode = |members: &[Member]| members.iter().map(Member::encode).collect::<Vec<_>>();
        let (key, record) = (pool.key(), pool.record_key(id));
        let mut commands = redis::pipe();
        if !pool.is_default() {
            let pools = pools_key(id);
            commands
                .sadd(&pools, pool.as_str())
                .ignore()
                .expire(&pools, RECORD_LIFE)
                .ignore();
        }
        // By hand, because the client library's own transaction panics in a debug build when MULTI is refused.
        commands.cmd("MULTI").ignore();
        // SADD and SREM without a member are errors.
        if !present.is_empty() {
            let present = encode(present);
            commands.sadd(&key, &present).ignore().sadd(&record, present).ignore();
        }
        if !absent.is_empty() {
            let absent = encode(absent);
            commands.srem(&key, &absent).ignore().srem(&record, absent).ignore();
        }
        commands.expire(&record, RECORD_LIFE).ignore();
        commands.cmd("EXEC");
        let (_replies,): (redis::Value,) = self.0.call(pool, &commands).await?;
        Ok(())
    }

    async fn describe(&self, pool: &PoolName, member: &Member, change: MetaChange) -> Result<Meta, Error> {
        let (key, field) = (pool.meta_key(), member.encode().into_bytes());
        for _ in 0..MOST_SWAPS {
            let mut read = redis::pipe();
            read.hgetall(&key);
            let (mut fields,): (Fields,) = self.0.call(pool, &read).await?;
            // Somebody may have written it as `http://HOST:80/`.
            fields.retain(|(field, _)| Member::parse(field).as_ref() == Ok(member));
            let (all, _) = meta::read(as_slices(&fields));
            let meta = all.get(member).copied().unwrap_or_default().with(change);
            let text = meta.to_string().into_bytes();
            if !fields.iter().any(|(known, _)| *known == field) {
                fields.push((field.clone(), Vec::new()));
            }
            if fields.as_slice() == [(field.clone(), text.clone())] {
                return Ok(meta);
            }
            let mut swap = redis::pipe();
            swap.cmd("EVAL")
                .arg(SWAP)
                .arg(1)
                .arg(&key)
                .arg(&field)
                .arg(text)
                .arg(fields);
            let (swapped,): (bool,) = self.0.call(pool, &swap).await?;
            if swapped {
                return Ok(meta);
            }
        }
        Err(Error::new(format!("others keep changing {key} at the same time")))
    }
}

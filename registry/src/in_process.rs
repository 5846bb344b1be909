//! The registry in memory, for a proxy with the sentinel inside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Holdings, Member, Meta, MetaChange, PoolName, Registry, Snapshot};

/// The sets of members in this process's memory.
///
/// They have a lock of the standard library because it is held for a few insertions and never across an `await`.
#[derive(Debug, Default)]
pub struct InProcess {
    sets: Mutex<BTreeMap<PoolName, Set>>,
}

#[derive(Debug, Default)]
struct Set {
    members: BTreeSet<Member>,
    meta: BTreeMap<Member, Meta>,
}

impl InProcess {
    fn sets(&self) -> MutexGuard<'_, BTreeMap<PoolName, Set>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Registry for InProcess {
    async fn members(&self, pool: &PoolName) -> Result<Snapshot, Error> {
        let sets = self.sets();
        let snapshot = sets.get(pool).map(|set| Snapshot {
            members: set.members.clone(),
            meta: set.meta.clone(),
            ..Snapshot::default()
        });
        Ok(snapshot.unwrap_or_default())
    }

    async fn holdings(&self, pool: &PoolName, _id: &str) -> Result<Holdings, Error> {
        let members = self.sets().get(pool).map(|set| set.members.clone());
        let members = members.unwrap_or_default();
        Ok(Holdings {
            members: members.iter().map(|member| member.encode().into_bytes()).collect(),
            // There is no other writer, and nothing outlives the process.
            registered: members,
        })
    }

    async fn pools_of(&self, _id: &str) -> Result<BTreeSet<PoolName>, Error> {
        Ok(self.sets().keys().filter(|pool| !pool.is_default()).cloned().collect())
    }

    async fn publish(&self, pool: &PoolName, _id: &str, present: &[Member], absent: &[Member]) -> Result<(), Error> {
        let mut sets = self.sets();
        let members = &mut sets.entry(pool.clone()).or_default().members;
        members.extend(present.iter().cloned());
        for member in absent {
            members.remove(member);
        }
        Ok(())
    }

    async fn describe(&self, pool: &PoolName, member: &Member, change: MetaChange) -> Result<Meta, Error> {
        let mut sets = self.sets();
        let all = &mut sets.entry(pool.clone()).or_default().meta;
        let meta = all.get(member).copied().unwrap_or_default().with(change);
        if meta == Meta::default() {
            all.remove(member);
        } else {
            all.insert(member.clone(), meta);
        }
        Ok(meta)
    }
}

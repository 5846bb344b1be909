//! The registry in memory, for a proxy with the sentinel inside it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::{Error, Holdings, Member, Registry, Snapshot};

/// A set of members in this process's memory.
///
/// It has a lock of the standard library because it is held for a few insertions and never across an `await`.
#[derive(Debug, Default)]
pub struct InProcess {
    members: Mutex<BTreeSet<Member>>,
}

#[async_trait::async_trait]
impl Registry for InProcess {
    async fn members(&self) -> Result<Snapshot, Error> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Snapshot {
            members: members.clone(),
            malformed: Vec::new(),
        })
    }

    async fn holdings(&self, _id: &str) -> Result<Holdings, Error> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Holdings {
            members: members.iter().map(|member| member.encode().into_bytes()).collect(),
            // There is no other writer, and nothing outlives the process.
            registered: members.clone(),
        })
    }

    async fn publish(&self, _id: &str, present: &[Member], absent: &[Member]) -> Result<(), Error> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.extend(present.iter().cloned());
        for member in absent {
            members.remove(member);
        }
        Ok(())
    }
}

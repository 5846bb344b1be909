//! A registry that can be replaced while it is in use, as when a reload brings a new password.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::{Error, Holdings, Member, Meta, MetaChange, PoolName, Registry, Snapshot};

/// A registry in front of another that can be replaced. A call that is under way ends with the one it began with.
pub struct Replaceable(ArcSwap<Arc<dyn Registry>>);

impl Replaceable {
    /// Passes calls on to `registry`.
    pub fn new(registry: Arc<dyn Registry>) -> Self {
        Self(ArcSwap::from_pointee(registry))
    }

    /// Passes calls on to `registry` from now on.
    pub fn replace(&self, registry: Arc<dyn Registry>) {
        self.0.store(Arc::new(registry));
    }
}

#[async_trait::async_trait]
impl Registry for Replaceable {
    async fn members(&self, pool: &PoolName) -> Result<Snapshot, Error> {
        let registry = self.0.load_full();
        registry.members(pool).await
    }

    async fn holdings(&self, pool: &PoolName, id: &str) -> Result<Holdings, Error> {
        let registry = self.0.load_full();
        registry.holdings(pool, id).await
    }

    async fn pools_of(&self, id: &str) -> Result<BTreeSet<PoolName>, Error> {
        let registry = self.0.load_full();
        registry.pools_of(id).await
    }

    async fn publish(&self, pool: &PoolName, id: &str, present: &[Member], absent: &[Member]) -> Result<(), Error> {
        let registry = self.0.load_full();
        registry.publish(pool, id, present, absent).await
    }

    async fn describe(&self, pool: &PoolName, member: &Member, change: MetaChange) -> Result<Meta, Error> {
        let registry = self.0.load_full();
        registry.describe(pool, member, change).await
    }
}

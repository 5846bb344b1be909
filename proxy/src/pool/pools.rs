//! All pools, by name: a reload adds, changes and removes them.
//!
//! A pool that stays keeps its backends with all that is known of them. One that is removed ends when its last request does: its routes
//! are what holds it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chassis::supervisor::supervise;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use registry::{PoolName, Registry, Resolver};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::{Config, PoolSettings};
use crate::discovery::state_store::StateStore;
use crate::discovery::{PoolDiscovery, Source};
use crate::observe::pools::{PoolMetrics, PoolsMetrics};
use crate::pool::auth_service::AuthServices;
use crate::pool::kept::Room;
use crate::pool::{Pool, loops};

/// How long a reload waits for new pools to find their backends.
const NEW_PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const POLL: Duration = Duration::from_millis(5);

/// Pools by their names.
pub type ByName = BTreeMap<PoolName, Arc<Pool>>;

/// All pools.
pub struct Pools {
    registry: Arc<dyn Registry>,
    resolver: Resolver,
    room: Arc<Room>,
    metrics: PoolsMetrics,
    all: watch::Sender<Arc<ByName>>,
    /// What is asked before a backend is.
    pub auth_services: Arc<AuthServices>,
}

/// What a configuration makes of the pools, before it holds.
pub struct Next {
    all: ByName,
    /// Where the backends of pools that stay come from, where that is elsewhere than before.
    moved: BTreeMap<PoolName, Source>,
}

impl Next {
    /// The pools.
    pub fn all(&self) -> &ByName {
        &self.all
    }
}

impl Pools {
    /// The pools of `config`, to be filled by running them as a service. Their sets are in `registry`, unless the configuration has them.
    ///
    /// # Errors
    /// When there is no thread for a state file.
    pub fn new(config: &Config, registry: Arc<dyn Registry>, metrics: PoolsMetrics) -> Result<Self, String> {
        let pools = Self {
            registry,
            resolver: Resolver::default(),
            room: Arc::new(Room::new(config.kept_connections())),
            metrics,
            all: watch::Sender::default(),
            auth_services: Arc::default(),
        };
        let next = pools.prepare(config)?;
        pools.all.send_replace(Arc::new(next.all));
        Ok(pools)
    }

    /// The pools now.
    pub fn all(&self) -> Arc<ByName> {
        Arc::clone(&self.all.borrow())
    }

    /// What `config` makes of the pools.
    ///
    /// # Errors
    /// When there is no thread for a state file.
    pub fn prepare(&self, config: &Config) -> Result<Next, String> {
        let now = self.all();
        let (mut all, mut moved) = (ByName::new(), BTreeMap::new());
        for (name, settings) in &config.pools {
            let pool = if let Some(pool) = now.get(name) {
                if !pool.discovery.is_fixed(&settings.backends) {
                    let source = self.source(name, settings, config, &pool.metrics)?;
                    moved.insert(name.clone(), source);
                }
                Arc::clone(pool)
            } else {
                Arc::new(self.create(name, settings, config)?)
            };
            all.insert(name.clone(), pool);
        }
        Ok(Next { all, moved })
    }

    fn create(&self, name: &PoolName, settings: &PoolSettings, config: &Config) -> Result<Pool, String> {
        let metrics = self.metrics.of(name).map_err(|error| error.to_string())?;
        let source = self.source(name, settings, config, &metrics)?;
        let discovery = PoolDiscovery::new(name.clone(), source, self.resolver.clone(), Arc::clone(&metrics));
        let room = Arc::clone(&self.room);
        Ok(Pool::new(discovery, settings, config.discovery.interval, room, metrics))
    }

    fn source(
        &self,
        name: &PoolName,
        settings: &PoolSettings,
        config: &Config,
        metrics: &Arc<PoolMetrics>,
    ) -> Result<Source, String> {
        if !settings.backends.is_empty() {
            return Ok(Source::Fixed(settings.backends.clone()));
        }
        let store = config.discovery.state_file_of(name).map(|path| {
            StateStore::open(path, Arc::clone(metrics))
                .map_err(|error| format!("no thread for the state file of the pool {name}: {error}"))
        });
        Ok(Source::Registry(Arc::clone(&self.registry), store.transpose()?))
    }

    /// Runs the new pools of `next` beside those that there are, and waits a moment for them to find their backends, so that the first
    /// requests to them have some.
    pub async fn begin(&self, next: &Next) {
        let now = self.all();
        let new: Vec<_> = next.all.iter().filter(|(name, _)| !now.contains_key(*name)).collect();
        if new.is_empty() {
            return;
        }
        let mut both = ByName::clone(&now);
        both.extend(new.iter().map(|(name, pool)| ((*name).clone(), Arc::clone(pool))));
        self.all.send_replace(Arc::new(both));
        let known = async {
            while !new.iter().all(|(_, pool)| pool.is_known()) {
                sleep(POLL).await;
            }
        };
        // Those that take longer, or have no backend, must not hold up the others.
        let _ = timeout(NEW_PATIENCE, known).await;
    }

    /// Makes the pools what `next` says, from `config`. The others end with the requests that they have.
    pub fn finish(&self, next: Next, config: &Config) {
        let Next { all, mut moved } = next;
        for (name, pool) in &all {
            if let Some(settings) = config.pools.get(name) {
                pool.change(settings, config.discovery.interval, moved.remove(name));
            }
        }
        self.all.send_replace(Arc::new(all));
    }

    /// Whether a backend of any pool that has passed a check is alive.
    pub fn any_alive(&self) -> bool {
        self.all.borrow().values().any(|pool| pool.is_alive())
    }

    /// Whether a backend of any pool was alive at any time, and of every other pool it is known that it has none, so that another
    /// process would serve requests no better.
    pub fn are_known(&self) -> bool {
        let all = self.all.borrow();
        all.values().any(|pool| pool.was_alive()) && all.values().all(|pool| pool.is_known())
    }

    /// What is wrong with pools that have no backend, as one line of text; `None` when each has one.
    pub fn without_backends(&self) -> Option<String> {
        self.said(Pool::problem, |name, problem| format!("pool {name}: {problem}"), "; ")
    }

    /// Whether there is a set of backends for any pool.
    ///
    /// # Errors
    /// Why not, as one line of text.
    pub fn have_set(&self) -> Result<(), String> {
        let all = self.all.borrow();
        let mut sets = all.values().map(|pool| pool.discovery.has_set());
        let first = sets.next().unwrap_or(Ok(()));
        sets.fold(first, |so_far, set| so_far.or(set))
    }

    /// How old the sets are whose last read gave none, as one line of text.
    pub fn staleness(&self) -> Option<String> {
        let named = |name: &PoolName, staleness| format!("in the pool {name} {staleness}");
        self.said(|pool| pool.discovery.staleness(), named, ", and ")
    }

    /// What there is to say of the pools, with what is `between` them; with their names if there are several.
    fn said(
        &self,
        what: impl Fn(&Pool) -> Option<String>,
        named: impl Fn(&PoolName, String) -> String,
        between: &str,
    ) -> Option<String> {
        let all = self.all.borrow();
        let several = all.len() > 1;
        let said = all.iter().filter_map(|(name, pool)| {
            let text = what(pool)?;
            Some(if several { named(name, text) } else { text })
        });
        let said: Vec<_> = said.collect();
        (!said.is_empty()).then(|| said.join(between))
    }
}

/// The loops of all pools and authentication services, as a Pingora service.
pub struct PoolsService(pub Arc<Pools>);

#[async_trait]
impl BackgroundService for PoolsService {
    async fn start(&self, shutdown: ShutdownWatch) {
        // Requests in flight may still be retried during the drain, so the pools are kept up to date until the process exits.
        drop(shutdown);
        let services = Arc::clone(&self.0.auth_services);
        let (_unending, never) = watch::channel(false);
        tokio::spawn(supervise("connections to authentication services", never, move || {
            Arc::clone(&services).run_sweeps(loops::BETWEEN_SWEEPS)
        }));
        let mut all = self.0.all.subscribe();
        // Each with what ends its loops when it is dropped.
        let mut running: Vec<(Arc<Pool>, watch::Sender<bool>)> = Vec::new();
        loop {
            let now = Arc::clone(&all.borrow_and_update());
            let is_there = |pool: &Arc<Pool>| now.values().any(|one| Arc::ptr_eq(one, pool));
            for (pool, end) in running.extract_if(.., |(pool, _)| !is_there(pool)) {
                drop(end);
                pool.close();
            }
            for pool in now.values() {
                if !running.iter().any(|(one, _)| Arc::ptr_eq(one, pool)) {
                    let (end, until_end) = watch::channel(false);
                    tokio::spawn(loops::run(Arc::clone(pool), until_end));
                    running.push((Arc::clone(pool), end));
                }
            }
            drop(now);
            if all.changed().await.is_err() {
                return;
            }
        }
    }
}

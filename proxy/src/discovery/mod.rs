//! Finds a pool's backends: in its set in the registry or in the configuration, and in DNS for members that are names.
//!
//! An old set is worth more than none. A read that fails, or finds the set empty, is an error here, because Pingora keeps
//! the backends it has on `Err` and would drop them all on an empty `Ok`; a name that does not resolve keeps the
//! addresses it last had; and a proxy that starts takes the set that an earlier one left in its [`state_file`]
//! when the registry has given none within a moment. Which of them are alive is for the health check to find.
//!
//! - [`members`]: the members of the registry, each with its addresses.
//! - [`state_store`]: saves the last good set for the next start.
//! - [`state_file`]: the format and the safety of its file.

pub mod members;
pub mod state_file;
pub mod state_store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{error, info, warn};
use pingora::prelude::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::discovery::ServiceDiscovery;
use registry::{Malformed, Member, Meta, PoolName, Registry, Resolver, Snapshot};
use tokio::time::{sleep, timeout};

use crate::discovery::members::{Members, backend_at};
use crate::discovery::state_store::StateStore;
use crate::observe::pools::PoolMetrics;

/// How long the names of one read may take, all at the same time.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the registry has at the start before the saved set serves: that may name what is somebody else's by now.
const FIRST_READ: Duration = Duration::from_millis(200);
/// How often an empty registry is read meanwhile. (In one process it is empty until the sentinel's first cycle has ended.)
const FIRST_READ_RETRY: Duration = Duration::from_millis(20);

/// How long an empty set may be one that its sentinel is still to fill.
const EMPTY_PATIENCE: Duration = Duration::from_secs(2);

/// How many malformed members a read logs by name. A set full of them would crowd everything else out of the log.
const MALFORMED_SHOWN: usize = 10;

/// Where the backends of a pool stand.
pub enum Source {
    /// In the pool's set in a registry. The last good set is kept in the state store.
    Registry(Arc<dyn Registry>, Option<StateStore>),
    /// In the configuration.
    Fixed(BTreeSet<Member>),
}

/// Reads the backends of a pool. Clones share what was last read.
#[derive(Clone)]
pub struct PoolDiscovery(Arc<Shared>);

struct Shared {
    pool: PoolName,
    source: ArcSwap<Source>,
    resolver: Resolver,
    metrics: Arc<PoolMetrics>,
    members: ArcSwap<Members>,
    /// What outlives a read. A lock of the standard library, because it is never held across an `await`.
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    last_success: Option<Instant>,
    /// Why the last read gave nothing, if it did not.
    problem: Option<Problem>,
    /// A failure to read was logged while there were no backends at all.
    failure_logged: bool,
    /// The addresses that each name last had.
    resolved: HashMap<Member, Vec<SocketAddr>>,
    /// The names that did not resolve at the last read.
    unresolved: BTreeSet<Member>,
    malformed: BTreeSet<Malformed>,
    /// The last read gave no weights.
    meta_failed: bool,
    /// The first read has begun.
    started: bool,
    /// When the set was first found empty.
    empty_since: Option<Instant>,
}

/// Why a read gave no usable set.
#[derive(Debug, Clone)]
enum Problem {
    /// There is none. At the start that is as it should be, until the sentinel has ended its first cycle.
    Empty,
    Failed(registry::Error),
}

impl Problem {
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Failed(error) if error.is_refusal())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the registry has no usable member"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl PoolDiscovery {
    /// Reads the backends of `pool` from `source`. All pools ask the same `resolver`.
    pub fn new(pool: PoolName, source: Source, resolver: Resolver, metrics: Arc<PoolMetrics>) -> Self {
        Self(Arc::new(Shared {
            pool,
            source: ArcSwap::from_pointee(source),
            resolver,
            metrics,
            members: ArcSwap::default(),
            memory: Mutex::default(),
        }))
    }

    /// One that has read `members` already, for tests of who uses them.
    #[cfg(test)]
    pub fn with(members: Members, metrics: Arc<PoolMetrics>) -> Self {
        let source = Source::Fixed(BTreeSet::new());
        let discovery = Self::new(PoolName::default(), source, Resolver::default(), metrics);
        discovery.0.members.store(Arc::new(members));
        discovery
    }

    /// Reads from `source` from the next read on.
    pub fn change(&self, source: Source) {
        self.0.source.store(Arc::new(source));
    }

    /// Whether these are the backends that stand in the configuration; none of them: whether they stand in the registry.
    pub fn is_fixed(&self, backends: &BTreeSet<Member>) -> bool {
        match &**self.0.source.load() {
            Source::Registry(..) => backends.is_empty(),
            Source::Fixed(now) => now == backends,
        }
    }

    /// The name of the pool.
    pub fn name(&self) -> &PoolName {
        &self.0.pool
    }

    /// The name of the pool, for the log; none for the default one, which there was before there could be others.
    pub fn pool(&self) -> Option<&str> {
        (!self.0.pool.is_default()).then(|| self.0.pool.as_str())
    }

    /// The last good set.
    pub fn members(&self) -> Arc<Members> {
        self.0.members.load_full()
    }

    /// Whether the registry has given no set yet, so that what there is comes from the state file.
    pub fn is_from_file(&self) -> bool {
        self.memory().last_success.is_none()
    }

    /// Whether the first read has an answer: a set, or that there is none and nobody has filled it in a while.
    pub fn is_answered(&self) -> bool {
        let memory = self.memory();
        memory.last_success.is_some() || memory.empty_since.is_some_and(|since| since.elapsed() > EMPTY_PATIENCE)
    }

    /// Whether there is a set.
    ///
    /// # Errors
    /// Why not, as one line of text.
    pub fn has_set(&self) -> Result<(), String> {
        match &self.memory().problem {
            _ if !self.0.members.load().is_empty() => Ok(()),
            Some(problem) => Err(format!("no backends discovered yet: {problem}")),
            None => Err("no backends discovered yet".into()),
        }
    }

    /// How old the last good set is, in words, when the last read gave none.
    pub fn staleness(&self) -> Option<String> {
        let memory = self.memory();
        let problem = memory.problem.as_ref()?;
        Some(match memory.last_success {
            Some(last) => format!("the set of backends is {} s old: {problem}", last.elapsed().as_secs()),
            None => format!("the set of backends is what an earlier process saved: {problem}"),
        })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `members` the set, and Pingora's backends from it: one for each address, because it is addresses that are checked.
    fn take(&self, members: &Arc<Members>) -> BTreeSet<Backend> {
        let addresses = members.iter().flat_map(|(_, addresses)| addresses);
        let backends = addresses.copied().map(backend_at).collect();
        self.0.members.store(Arc::clone(members));
        backends
    }

    /// At the first read: the registry's set when it comes within a moment, else what an earlier process saved.
    async fn first(&self, state_store: &StateStore) -> Option<BTreeSet<Backend>> {
        let read = async {
            loop {
                match self.read().await {
                    Err(Problem::Empty) => sleep(FIRST_READ_RETRY).await,
                    read => return read,
                }
            }
        };
        match timeout(FIRST_READ, read).await {
            Ok(Ok(members)) => {
                let members = self.completed(members, state_store).await;
                Some(self.succeeded(members))
            }
            Ok(Err(_)) | Err(_) => {
                let saved = Arc::new(state_store.saved().await?);
                self.recall(&saved);
                info!(pool = self.pool(), backends = saved.len(); "starting with the backends that an earlier process saved");
                Some(self.take(&saved))
            }
        }
    }

    /// Adds to the first set what is not known of its members and was to an earlier process: the addresses of names that do not resolve,
    /// and the weights where they can't be read.
    async fn completed(&self, mut members: Members, state_store: &StateStore) -> Members {
        let (unresolved, meta_failed) = {
            let memory = self.memory();
            (memory.unresolved.clone(), memory.meta_failed)
        };
        if unresolved.is_empty() && !meta_failed {
            return members;
        }
        let Some(saved) = state_store.saved().await else {
            return members;
        };
        self.recall(&saved);
        for (name, addresses) in saved.iter() {
            let is_unresolved = name.parse().is_ok_and(|member: Member| unresolved.contains(&member));
            if is_unresolved {
                members.insert(name, addresses.iter().copied());
            }
            let meta = saved.meta(name);
            let is_known = !members.addresses_of(name).is_empty();
            if (is_unresolved || meta_failed) && is_known && meta != Meta::default() {
                members.describe(name, meta);
            }
        }
        members
    }

    /// Remembers the addresses that the names in `saved` had.
    fn recall(&self, saved: &Members) {
        let mut memory = self.memory();
        for (name, addresses) in saved.iter() {
            if let Ok(member) = name.parse() {
                memory.resolved.entry(member).or_insert_with(|| addresses.to_vec());
            }
        }
    }

    async fn read(&self) -> Result<Members, Problem> {
        let failed = |error: &dyn fmt::Display| Problem::Failed(registry::Error::new(error.to_string()));
        let snapshot = match &*self.0.source.load_full() {
            Source::Registry(registry, _) => registry.members(&self.0.pool).await.map_err(Problem::Failed)?,
            Source::Fixed(members) => Snapshot {
                members: members.clone(),
                ..Snapshot::default()
            },
        };
        let Snapshot {
            members,
            meta,
            meta_error,
            malformed,
        } = snapshot;
        self.note_malformed(malformed);
        if members.is_empty() {
            return Err(Problem::Empty);
        }
        let lookups = members.iter().map(|member| {
            let (resolver, member) = (self.0.resolver.clone(), member.clone());
            tokio::spawn(async move {
                let addresses = resolver.resolve(&member, RESOLVE_TIMEOUT).await;
                (member, addresses)
            })
        });
        let mut found = Vec::with_capacity(members.len());
        for lookup in lookups.collect::<Vec<_>>() {
            found.push(lookup.await.map_err(|error| failed(&error))?);
        }
        let mut members = self.remember(found, &members);
        if members.is_empty() {
            return Err(failed(&"no member of the registry resolves to an address"));
        }
        self.describe(&mut members, &meta, meta_error);
        Ok(members)
    }

    /// Takes the weight and the like of each of `members` from what the registry said, or else what they had before.
    fn describe(&self, members: &mut Members, meta: &BTreeMap<Member, Meta>, error: Option<registry::Error>) {
        let before = self.members();
        let failed = error.is_some();
        let failed_before = std::mem::replace(&mut self.memory().meta_failed, failed);
        match error {
            Some(error) if !failed_before => {
                let text = error.to_string();
                warn!(pool = self.pool(), error = text.as_str(); "can't read the weights of the backends; the last ones stay");
            }
            None if failed_before => info!(pool = self.pool(); "the weights of the backends can be read again"),
            Some(_) | None => {}
        }
        let names: Vec<_> = members.iter().map(|(name, _)| Arc::clone(name)).collect();
        for name in names {
            let meta = if failed {
                before.meta(&name)
            } else {
                let member = name.parse().ok();
                member
                    .and_then(|member: Member| meta.get(&member).copied())
                    .unwrap_or_default()
            };
            if meta != Meta::default() {
                members.describe(&name, meta);
            }
        }
    }

    /// Takes what each name resolved to, or else what it resolved to before.
    fn remember(
        &self,
        found: Vec<(Member, Result<Vec<SocketAddr>, registry::Error>)>,
        members: &BTreeSet<Member>,
    ) -> Members {
        let mut memory = self.memory();
        memory.resolved.retain(|member, _| members.contains(member));
        memory.unresolved.retain(|member| members.contains(member));
        let mut good = Members::default();
        for (member, result) in found {
            let name = member.to_string();
            match result {
                Ok(now) => {
                    if memory.unresolved.remove(&member) {
                        info!(pool = self.pool(), backend = name.as_str(); "name resolves again");
                    }
                    memory.resolved.insert(member.clone(), now);
                }
                Err(error) if memory.unresolved.insert(member.clone()) => {
                    let kept = memory.resolved.contains_key(&member);
                    warn!(pool = self.pool(), backend = name.as_str(), error = error.to_string().as_str(), last_addresses_kept = kept; "name does not resolve");
                }
                Err(_) => {}
            }
            let addresses = memory.resolved.get(&member).into_iter().flatten();
            good.insert(&name.into(), addresses.copied());
        }
        good
    }

    /// Takes a set that the registry gave. It is used first and saved later, by another thread, because a disk may hang.
    fn succeeded(&self, members: Members) -> BTreeSet<Backend> {
        let members = Arc::new(members);
        let mut memory = self.memory();
        let first = memory.last_success.replace(Instant::now()).is_none();
        let failed_before = memory.problem.take().is_some();
        drop(memory);
        if first {
            info!(pool = self.pool(), backends = members.len(); "first backends discovered");
        } else if failed_before {
            info!(pool = self.pool(), backends = members.len(); "registry is back");
        }
        self.0.metrics.discovered(members.len());
        let backends = self.take(&members);
        if let Source::Registry(_, Some(state_store)) = &**self.0.source.load() {
            state_store.save(&members);
        }
        backends
    }

    /// Logs and counts that a read gave nothing: once, until the next good one.
    fn failed(&self, problem: Problem) -> Box<Error> {
        self.0.metrics.discovery_errors.inc();
        let kept = self.members().len();
        let text = problem.to_string();
        let mut memory = self.memory();
        if matches!(problem, Problem::Empty) {
            memory.empty_since.get_or_insert_with(Instant::now);
        }
        let before = memory.problem.replace(problem.clone());
        // Another refusal has another remedy.
        let refused_before = before.as_ref().filter(|before| before.is_refusal());
        if problem.is_refusal() && refused_before.is_none_or(|before| before.to_string() != text) {
            error!(pool = self.pool(), error = text.as_str(), backends_kept = kept; "registry gives no usable set");
        } else if kept > 0 {
            if before.is_none() {
                warn!(pool = self.pool(), error = text.as_str(), backends_kept = kept; "registry gives no usable set");
            }
        } else {
            match problem {
                Problem::Empty if before.is_none() => info!(pool = self.pool(); "waiting for the first backends"),
                Problem::Failed(_) if !std::mem::replace(&mut memory.failure_logged, true) => {
                    warn!(pool = self.pool(), error = text.as_str(); "waiting for the first backends");
                }
                _ => {}
            }
        }
        Error::explain(ErrorType::InternalError, text)
    }

    /// Counts the members that do not parse and logs those that did not stand there before, the first few by name.
    fn note_malformed(&self, malformed: Vec<Malformed>) {
        self.0
            .metrics
            .discovery_malformed
            .set(i64::try_from(malformed.len()).unwrap_or(i64::MAX));
        let mut memory = self.memory();
        let malformed: BTreeSet<_> = malformed.into_iter().collect();
        let mut new = malformed.difference(&memory.malformed);
        for member in new.by_ref().take(MALFORMED_SHOWN) {
            warn!(pool = self.pool(), member = member.to_string().as_str(); "skipping a member of the registry that does not parse");
        }
        let more = new.count();
        if more > 0 {
            warn!(pool = self.pool(), members = more; "skipping more members of the registry that do not parse");
        }
        memory.malformed = malformed;
    }
}

#[async_trait]
impl ServiceDiscovery for PoolDiscovery {
    async fn discover(&self) -> Result<(BTreeSet<Backend>, HashMap<u64, bool>), Box<Error>> {
        let first = !std::mem::replace(&mut self.memory().started, true);
        let source = self.0.source.load_full();
        let early = match &*source {
            Source::Registry(_, Some(state_store)) if first => self.first(state_store).await,
            _ => None,
        };
        let backends = match early {
            Some(backends) => backends,
            None => self
                .read()
                .await
                .map(|members| self.succeeded(members))
                .map_err(|problem| self.failed(problem))?,
        };
        Ok((backends, HashMap::new()))
    }
}

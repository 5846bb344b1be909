//! Where the pool's backends come from: the registry, and DNS for members that are names.
//!
//! The last good set is worth more than no set. A read that fails, or finds the set empty, is an error here, because Pingora keeps
//! the backends it has on `Err` and would drop them all on an empty `Ok`; a name that does not resolve keeps the
//! addresses it last had; and a proxy that starts takes the set that an earlier one left in its [`state_file`] until the
//! registry gives one. Who of them is alive is the health check's business, not this module's.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{error, info, warn};
use pingora::prelude::{Error, ErrorType};
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::{Backend, Extensions};
use registry::{Malformed, Member, Registry, Resolver, Snapshot};

use crate::metrics::Metrics;
use crate::state_file::{self, Addresses};

/// How long the names of one read may take, all at the same time.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the registry. Clones share what was last read.
#[derive(Clone)]
pub struct RegistryDiscovery(Arc<Shared>);

struct Shared {
    registry: Arc<dyn Registry>,
    resolver: Resolver,
    metrics: Metrics,
    addresses: ArcSwap<Addresses>,
    state_file: Option<PathBuf>,
    /// What outlives a read. A lock of the standard library, because it is never held across an `await`.
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    last_success: Option<Instant>,
    /// The error of the last read, if it failed.
    error: Option<registry::Error>,
    /// The addresses that each name last had.
    resolved: HashMap<Member, Vec<SocketAddr>>,
    /// The names that did not resolve at the last read.
    unresolved: BTreeSet<Member>,
    malformed: BTreeSet<Malformed>,
    /// The set of the state file, until it is taken.
    saved: Option<Addresses>,
    /// The set that the state file has.
    in_file: Addresses,
    /// The state file could not be written.
    unwritable: bool,
}

impl RegistryDiscovery {
    /// Reads `registry`, and keeps the last good set in `state_file`.
    pub fn new(registry: Arc<dyn Registry>, metrics: Metrics, state_file: Option<PathBuf>) -> Self {
        let saved = state_file.as_ref().and_then(|path| {
            state_file::read(path).unwrap_or_else(|problem| {
                let path = path.display().to_string();
                warn!(file = path.as_str(), error = problem.to_string().as_str(); "can't use the saved set of backends");
                None
            })
        });
        let memory = Memory {
            in_file: saved.clone().unwrap_or_default(),
            saved: saved.filter(|addresses| !addresses.is_empty()),
            ..Memory::default()
        };
        Self(Arc::new(Shared {
            registry,
            resolver: Resolver::default(),
            metrics,
            addresses: ArcSwap::default(),
            state_file,
            memory: Mutex::new(memory),
        }))
    }

    /// The addresses of the last good set.
    pub fn addresses(&self) -> Arc<Addresses> {
        self.0.addresses.load_full()
    }

    /// Whether the next read gives what an earlier process saved, and not what the registry has.
    pub fn has_saved(&self) -> bool {
        self.memory().saved.is_some()
    }

    /// Whether there has been a usable set at least once.
    ///
    /// # Errors
    /// Why not, as one line of text.
    pub fn ready(&self) -> Result<(), String> {
        let memory = self.memory();
        match (memory.last_success, &memory.error) {
            (Some(_), _) => Ok(()),
            (None, _) if !self.0.addresses.load().is_empty() => Ok(()),
            (None, Some(error)) => Err(format!("no backends discovered yet: {error}")),
            (None, None) => Err("no backends discovered yet".into()),
        }
    }

    /// How old the last good set is, in words, when the last read gave none.
    pub fn staleness(&self) -> Option<String> {
        let memory = self.memory();
        let error = memory.error.as_ref()?;
        Some(match memory.last_success {
            Some(last) => format!("the set of backends is {} s old: {error}", last.elapsed().as_secs()),
            None => format!("the set of backends is what an earlier process saved: {error}"),
        })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `addresses` the set, and Pingora's backends from it.
    fn take(&self, addresses: Addresses) -> BTreeSet<Backend> {
        let backends = addresses.keys().map(|address| Backend {
            addr: PingoraAddr::Inet(*address),
            weight: 1,
            ext: Extensions::new(),
        });
        let backends = backends.collect();
        self.0.addresses.store(Arc::new(addresses));
        backends
    }

    async fn read(&self) -> Result<Addresses, registry::Error> {
        let Snapshot { members, malformed } = self.0.registry.members().await?;
        self.note_malformed(malformed);
        if members.is_empty() {
            return Err(registry::Error::new("the registry has no usable member"));
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
            found.push(lookup.await.map_err(|ended| registry::Error::new(ended.to_string()))?);
        }
        let addresses = self.remember(found, &members);
        if addresses.is_empty() {
            return Err(registry::Error::new("no member of the registry resolves to an address"));
        }
        Ok(addresses)
    }

    /// Takes what each name resolved to, or else what it resolved to before.
    fn remember(
        &self,
        found: Vec<(Member, Result<Vec<SocketAddr>, registry::Error>)>,
        members: &BTreeSet<Member>,
    ) -> Addresses {
        let mut memory = self.memory();
        memory.resolved.retain(|member, _| members.contains(member));
        memory.unresolved.retain(|member| members.contains(member));
        let mut addresses = Addresses::new();
        for (member, result) in found {
            let name = member.to_string();
            match result {
                Ok(now) => {
                    if memory.unresolved.remove(&member) {
                        info!(backend = name.as_str(); "name resolves again");
                    }
                    memory.resolved.insert(member.clone(), now);
                }
                Err(error) if memory.unresolved.insert(member.clone()) => {
                    let kept = memory.resolved.contains_key(&member);
                    warn!(backend = name.as_str(), error = error.to_string().as_str(), last_addresses_kept = kept; "name does not resolve");
                }
                Err(_) => {}
            }
            let name = Arc::<str>::from(name);
            for address in memory.resolved.get(&member).into_iter().flatten() {
                addresses.entry(*address).or_insert_with(|| Arc::clone(&name));
            }
        }
        addresses
    }

    /// Writes the set to the state file when it is another than the one there.
    async fn save(&self, addresses: &Addresses) {
        let Some(path) = self.0.state_file.clone() else { return };
        if self.memory().in_file == *addresses {
            return;
        }
        let (set, to) = (addresses.clone(), path.clone());
        let written = tokio::task::spawn_blocking(move || state_file::write(&to, &set)).await;
        let written = written.unwrap_or_else(|ended| Err(std::io::Error::other(ended)));
        let mut memory = self.memory();
        let failed_before = std::mem::replace(&mut memory.unwritable, written.is_err());
        match written {
            Ok(()) => memory.in_file = addresses.clone(),
            Err(problem) if !failed_before => {
                let path = path.display().to_string();
                warn!(file = path.as_str(), error = problem.to_string().as_str(); "can't save the set of backends");
            }
            Err(_) => {}
        }
    }

    /// Counts the members that do not parse and logs those that did not stand there before.
    fn note_malformed(&self, malformed: Vec<Malformed>) {
        self.0
            .metrics
            .discovery_malformed
            .set(i64::try_from(malformed.len()).unwrap_or(i64::MAX));
        let mut memory = self.memory();
        let malformed: BTreeSet<_> = malformed.into_iter().collect();
        for new in malformed.difference(&memory.malformed) {
            warn!(member = new.to_string().as_str(); "skipping a member of the registry that does not parse");
        }
        memory.malformed = malformed;
    }
}

#[async_trait]
impl ServiceDiscovery for RegistryDiscovery {
    async fn discover(&self) -> Result<(BTreeSet<Backend>, HashMap<u64, bool>), Box<Error>> {
        let saved = self.memory().saved.take();
        if let Some(addresses) = saved {
            info!(backends = addresses.len(); "starting with the backends that an earlier process saved");
            return Ok((self.take(addresses), HashMap::new()));
        }
        let read = self.read().await;
        if let Ok(addresses) = &read {
            self.save(addresses).await;
        }
        let mut memory = self.memory();
        match read {
            Ok(addresses) => {
                let first = memory.last_success.replace(Instant::now()).is_none();
                let failed_before = memory.error.take().is_some();
                if first {
                    info!(backends = addresses.len(); "first backends discovered");
                } else if failed_before {
                    info!(backends = addresses.len(); "registry is back");
                }
                self.0.metrics.discovered(addresses.len());
                Ok((self.take(addresses), HashMap::new()))
            }
            Err(error) => {
                self.0.metrics.discovery_errors.inc();
                let (text, kept) = (error.to_string(), self.0.addresses.load().len());
                let refused_before = memory.error.as_ref().is_some_and(registry::Error::is_refusal);
                match (&memory.error, memory.last_success) {
                    _ if error.is_refusal() && !refused_before => {
                        error!(error = text.as_str(), backends_kept = kept; "registry gives no usable set");
                    }
                    (Some(_), _) => {}
                    (None, Some(_)) => {
                        warn!(error = text.as_str(), backends_kept = kept; "registry gives no usable set");
                    }
                    // At the start this is what happens until the sentinel has ended its first cycle.
                    (None, None) => info!(error = text.as_str(); "waiting for the first backends"),
                }
                memory.error = Some(error);
                Err(Error::explain(ErrorType::InternalError, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_the_addresses_it_last_had_until_it_leaves() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let discovery = RegistryDiscovery::new(Arc::new(registry::InProcess::default()), metrics, None);
        let name: Member = "origin:80".parse().unwrap();
        let members = BTreeSet::from([name.clone()]);
        let addresses = ["192.0.2.1:80", "[2001:db8::1]:80"].map(|address| address.parse().unwrap());
        let both = Addresses::from(addresses.map(|address: SocketAddr| (address, "origin:80".into())));
        let failed = || vec![(name.clone(), Err(registry::Error::new("no answer")))];

        assert_eq!(
            discovery.remember(failed(), &members),
            Addresses::new(),
            "it never had any"
        );
        assert_eq!(
            discovery.remember(vec![(name.clone(), Ok(addresses.into()))], &members),
            both
        );
        assert_eq!(discovery.remember(failed(), &members), both);
        assert_eq!(discovery.remember(vec![], &BTreeSet::new()), Addresses::new());
        assert_eq!(
            discovery.remember(failed(), &members),
            Addresses::new(),
            "it has left since"
        );
    }
}

//! `gopherproxy backend …`: lists a pool's backends, and changes what the registry says of one beside its address.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chassis::settings::whole;
use clap::{Args, Subcommand};
use registry::{MAX_WEIGHT, Member, Meta, MetaChange, PoolName, RedisStore, Registry, Snapshot};

use crate::config::{Config, RegistryKind};

/// What to do with a pool's backends.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// List the backends of a pool, with their weights and which of them are backups or drained.
    List(Pool),
    /// Send no new requests to a backend; those that it has go on. It stays drained when it restarts.
    Drain(Backend),
    /// Send requests to a drained backend again.
    Undrain(Backend),
    /// Set a backend's share of the requests, relative to the others; without a weight it is 1.
    Weight {
        /// From 0, for no requests, to 100.
        #[arg(value_name = "WEIGHT", value_parser = weight)]
        weight: u8,
        /// The backend that gets it.
        #[command(flatten)]
        backend: Backend,
    },
    /// Send requests to a backend only when no other in its pool can take them.
    Backup(Backend),
    /// Make a backup an ordinary backend again.
    Primary(Backend),
}

/// Which pool, and where its registry is.
#[derive(Debug, Args)]
pub struct Pool {
    /// The pool.
    #[arg(short, long, value_name = "NAME", default_value = "default", value_parser = pool_name)]
    pool: PoolName,

    /// The proxy's configuration, which says where Redis is; REDIS_URL wins over it.
    #[arg(short, long, value_name = "FILE")]
    conf: Option<PathBuf>,
}

/// Which backend.
#[derive(Debug, Args)]
pub struct Backend {
    /// The backend as it is registered; https://HOST:PORT for one that speaks TLS.
    #[arg(value_name = "HOST:PORT", value_parser = member)]
    member: Member,

    /// Allow a backend that is not registered, such as one that is about to start for the first time.
    #[arg(short, long)]
    force: bool,

    #[command(flatten)]
    pool: Pool,
}

fn pool_name(text: &str) -> Result<PoolName, String> {
    text.parse().map_err(|expected| format!("expected {expected}"))
}

fn weight(text: &str) -> Result<u8, String> {
    whole(0..=MAX_WEIGHT)(text).map_err(|expected| format!("expected {expected}"))
}

fn member(text: &str) -> Result<Member, String> {
    let text = text.strip_prefix("http://").unwrap_or(text);
    text.strip_suffix('/').unwrap_or(text).parse()
}

impl BackendCommand {
    /// Does it and returns what it did, in a line. A list is printed at once, for scripts too.
    ///
    /// # Errors
    /// When there is no Redis to ask, or it does not answer, or the backend is not registered.
    pub fn run(self) -> Result<String, Box<dyn Error>> {
        let (backend, change) = match self {
            Self::List(pool) => return pool.list(),
            Self::Drain(backend) => (backend, MetaChange::Drain(true)),
            Self::Undrain(backend) => (backend, MetaChange::Drain(false)),
            Self::Weight { weight, backend } => (backend, MetaChange::Weight(weight)),
            Self::Backup(backend) => (backend, MetaChange::Backup(true)),
            Self::Primary(backend) => (backend, MetaChange::Backup(false)),
        };
        let Backend { member, force, pool } = backend;
        pool.ask(async |registry| {
            let snapshot = read(registry, &pool.pool).await?;
            if !force {
                is_known(&snapshot, &member, &pool.pool)?;
            }
            let before = snapshot.meta.get(&member).copied().unwrap_or_default();
            let meta = registry.describe(&pool.pool, &member, change).await?;
            Ok(done(&member, &pool.pool, change, before, meta))
        })
    }
}

impl Pool {
    fn list(&self) -> Result<String, Box<dyn Error>> {
        let lines = self.ask(async |registry| Ok(listed(&self.pool, &read(registry, &self.pool).await?)))?;
        #[allow(clippy::print_stdout, reason = "scripts read it there")]
        {
            println!("{lines}");
        }
        Ok(String::new())
    }

    /// Asks the registry of the configuration.
    fn ask(
        &self,
        question: impl AsyncFnOnce(&dyn Registry) -> Result<String, Box<dyn Error>>,
    ) -> Result<String, Box<dyn Error>> {
        let registry = open(self.conf.as_deref(), &self.pool)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(question(registry.as_ref()))
    }
}

/// The registry of the configuration, which has the backends of `pool`.
fn open(conf: Option<&Path>, pool: &PoolName) -> Result<Arc<dyn Registry>, Box<dyn Error>> {
    let config = Config::load(conf)?;
    // What the registry says of a backend would change nothing for one that comes from the file.
    if config
        .pools
        .get(pool)
        .is_some_and(|settings| !settings.backends.is_empty())
    {
        return Err(format!(
            "the backends of the pool {pool} are in the configuration (gopherproxy.pools.{pool}.backends) and not in the registry; \
             change them there, and reload"
        )
        .into());
    }
    match config.registry {
        RegistryKind::Redis(url) => Ok(Arc::new(RedisStore::new(&url)?)),
        RegistryKind::InProcess => Err(
            "registry.kind is in-process, so only the proxy itself knows its backends, and there is no Redis to \
                                        write to; with registry.kind: redis this works"
                .into(),
        ),
    }
}

/// The pool's backends and what is known of them, which is nothing to go on if the latter can't be read.
async fn read(registry: &dyn Registry, pool: &PoolName) -> Result<Snapshot, Box<dyn Error>> {
    let snapshot = registry.members(pool).await?;
    match snapshot.meta_error {
        Some(error) => Err(format!("{}: {error}", pool.meta_key()).into()),
        None => Ok(snapshot),
    }
}

/// Whether `member` is in the set, or was when something was last said of it.
fn is_known(snapshot: &Snapshot, member: &Member, pool: &PoolName) -> Result<(), String> {
    if snapshot.members.contains(member) || snapshot.meta.contains_key(member) {
        return Ok(());
    }
    let over_tls = member.clone().over_tls();
    let hint = if snapshot.members.is_empty() {
        format!("{} is empty", pool.key())
    } else if snapshot.members.contains(&over_tls) {
        format!("{over_tls} is")
    } else {
        "see `gopherproxy backend list`".to_owned()
    };
    Err(format!(
        "{member} is not registered in the pool {pool} ({hint}); if it is about to start, add --force"
    ))
}

/// What came of a change, in a line.
fn done(member: &Member, pool: &PoolName, change: MetaChange, before: Meta, meta: Meta) -> String {
    let what = match (change, before == meta) {
        (MetaChange::Drain(true), false) => "is now drained".to_owned(),
        (MetaChange::Drain(true), true) => "is already drained".to_owned(),
        (MetaChange::Drain(false), false) => "is no longer drained".to_owned(),
        (MetaChange::Drain(false), true) => "was not drained".to_owned(),
        (MetaChange::Backup(true), false) => "is now a backup".to_owned(),
        (MetaChange::Backup(true), true) => "is already a backup".to_owned(),
        (MetaChange::Backup(false), false) => "is no longer a backup".to_owned(),
        (MetaChange::Backup(false), true) => "was not a backup".to_owned(),
        (MetaChange::Weight(_), false) => format!("now has the weight {}", meta.weight),
        (MetaChange::Weight(_), true) => format!("already has the weight {}", meta.weight),
    };
    format!("{member} in the pool {pool} {what} ({})", shown(meta))
}

/// A meta with its weight, whatever that is.
fn shown(meta: Meta) -> String {
    match meta.to_string() {
        words if words.starts_with("weight=") => words,
        words => format!("weight={} {words}", meta.weight).trim_end().to_owned(),
    }
}

/// All backends in lines.
fn listed(pool: &PoolName, snapshot: &Snapshot) -> String {
    let meta = |member| snapshot.meta.get(member).copied().unwrap_or_default();
    let members = snapshot
        .members
        .iter()
        .map(|member| format!("{member} {}", shown(meta(member))));
    let gone = snapshot
        .meta
        .iter()
        .filter(|(member, _)| !snapshot.members.contains(member));
    let gone = gone.map(|(member, meta)| format!("{member} {} (not registered now)", shown(*meta)));
    let malformed = snapshot.malformed.iter().map(|problem| format!("malformed: {problem}"));
    let lines: Vec<String> = members.chain(gone).chain(malformed).collect();
    if lines.is_empty() {
        format!("{} is empty", pool.key())
    } else {
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_says_what_is_new_and_everything_that_is_so() {
        let (member, pool): (Member, _) = ("a:1".parse().unwrap(), PoolName::default());
        let usual = Meta::default();
        let drained = usual.with(MetaChange::Drain(true));
        let answer = |change, before| done(&member, &pool, change, before, before.with(change));
        assert_eq!(
            answer(MetaChange::Drain(true), usual),
            "a:1 in the pool default is now drained (weight=1 drain)"
        );
        assert_eq!(
            answer(MetaChange::Drain(true), drained),
            "a:1 in the pool default is already drained (weight=1 drain)"
        );
        assert_eq!(
            answer(MetaChange::Weight(3), drained),
            "a:1 in the pool default now has the weight 3 (weight=3 drain)"
        );
        assert_eq!(
            answer(MetaChange::Backup(false), usual),
            "a:1 in the pool default was not a backup (weight=1)"
        );
    }

    #[test]
    fn a_backend_is_taken_as_a_browser_shows_it() {
        for (text, shown) in [
            ("a:1", "a:1"),
            ("http://a:1/", "a:1"),
            ("https://a:1", "https://a:1"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(member(text).unwrap().to_string(), shown);
        }
        assert!(member("a").unwrap_err().contains("the port is missing"));
        assert_eq!(weight("a:1").unwrap_err(), "expected a whole number from 0 to 100");
    }
}

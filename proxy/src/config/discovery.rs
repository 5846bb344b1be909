//! `registry`, `discovery` and `readiness`: where the sets of backends are, and how they are read.

use std::path::PathBuf;
use std::time::Duration;

use chassis::settings::{Section, duration};
use registry::{PoolName, RedisUrl};

use super::absolute_or_none;

/// Where Redis is by default.
const REDIS: &str = "localhost:16379";

/// Where the set of origins is.
#[derive(Debug, Clone, PartialEq)]
pub enum RegistryKind {
    /// In Redis.
    Redis(RedisUrl),
    /// In this process, written by the sentinel inside it.
    InProcess,
}

/// How the set of origins is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// From one read to the next.
    pub interval: Duration,
    /// The file that keeps the last good set of the default pool. Those of others have its name and theirs.
    pub state_file: Option<PathBuf>,
}

/// When the process calls itself ready (`/readyz`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Once a backend has passed a check, until the shutdown. When all backends are dead another proxy would not do better.
    OnceAlive,
    /// While a backend is alive.
    WhileAlive,
}

impl RegistryKind {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let in_process = section.value("kind", None, false, |text| match text {
            "redis" => Ok(false),
            "in-process" => Ok(true),
            _ => Err("redis or in-process".into()),
        });
        let default = RedisUrl::parse(REDIS).expect("a host and a port");
        let url = section.secret("redis", Some("REDIS_URL"), default, RedisUrl::parse);
        if in_process {
            section.key_has_no_effect("redis", "the registry is in this process (registry.kind)");
        }
        section.finish();
        if in_process { Self::InProcess } else { Self::Redis(url) }
    }
}

impl Discovery {
    /// The file that keeps the last good set of `pool`: for the default pool the one that is configured, for each other one beside it.
    pub fn state_file_of(&self, pool: &PoolName) -> Option<PathBuf> {
        let mut path = self.state_file.clone()?.into_os_string();
        if !pool.is_default() {
            path.push(format!(".{pool}"));
        }
        Some(path.into())
    }

    pub(super) fn read(mut section: Section<'_>) -> Self {
        let discovery = Self {
            interval: section.value("interval", None, Duration::from_secs(5), duration),
            state_file: section.value("state_file", None, None, file_or_none),
        };
        section.finish();
        discovery
    }
}

pub(super) fn readiness(text: &str) -> Result<Readiness, String> {
    match text {
        "once-alive" => Ok(Readiness::OnceAlive),
        "while-alive" => Ok(Readiness::WhileAlive),
        _ => Err("once-alive or while-alive".into()),
    }
}

fn file_or_none(text: &str) -> Result<Option<PathBuf>, String> {
    absolute_or_none(
        text,
        "none or the absolute path of a file, such as /var/lib/gopherproxy/backends",
    )
}

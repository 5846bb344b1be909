//! Reloads the configuration while the proxy runs (SIGHUP).
//!
//! It applies all of it or none: a file with a mistake, or with a change that a running process can't make, changes nothing, and
//! the log says why. Requests in progress finish under the rules they began with.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use chassis::settings::Remark;
use log::{error, info};
use pingora::server::configuration::ServerConf;
use registry::{RedisStore, Replaceable};
use tokio::sync::{Notify, watch};

use crate::config::{Acme, Config, RegistryKind};
use crate::listen::acme;
use crate::observe::metrics::Metrics;
use crate::pool::pools::Pools;
use crate::snapshot::Live;
use crate::tls;

/// Everything that a reload changes.
pub struct Reload {
    /// The file; without one there is only the environment, which does not change.
    pub path: Option<PathBuf>,
    /// The configuration that the process runs with, but for Pingora's own keys.
    pub running: Mutex<Config>,
    /// Pingora's own keys.
    pub server: Arc<ServerConf>,
    /// One for each user of the registry.
    pub registries: Vec<Arc<Replaceable>>,
    /// The rules for requests.
    pub live: Arc<Live>,
    /// What TLS handshakes are made with.
    pub certificates: Option<Arc<tls::server::Live>>,
    /// What certificates are got by.
    pub acme: watch::Sender<Option<Arc<Acme>>>,
    /// The backends.
    pub pools: Arc<Pools>,
    /// The sentinel inside this process.
    pub sentinel: watch::Sender<Arc<sentinel::Config>>,
    /// Where reloads are counted.
    pub metrics: Metrics,
}

impl Reload {
    /// Reads the configuration and applies it, or logs why not.
    pub fn run(&self) {
        let taken = Config::load(self.path.as_deref())
            .map_err(|mistakes| mistakes.to_string())
            .and_then(|config| self.take(config));
        self.metrics.reloaded(taken.is_ok());
        match taken {
            Ok(()) => info!("configuration reloaded"),
            Err(problem) => error!(error = problem.as_str(); "configuration not reloaded; the old one stays"),
        }
    }

    fn take(&self, config: Config) -> Result<(), String> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = config.needs_restart(&running, &self.server);
        if !changed.is_empty() {
            return Err(format!(
                "{} can't change in a running process: restart it, or upgrade it with -u",
                changed.join(", ")
            ));
        }
        let stores = match &config.registry {
            RegistryKind::Redis(url) if config.registry != running.registry => {
                let stores = self.registries.iter().map(|_| RedisStore::new(url));
                stores.collect::<Result<_, _>>().map_err(|error| error.to_string())?
            }
            _ => Vec::new(),
        };
        if let Some(acme) = &config.acme {
            acme::check(acme).map_err(|problem| Config::mistake(self.path.as_deref(), "acme", problem))?;
        }
        let pools = self.pools.prepare(&config)?;
        // The last that can fail.
        if let Some(certificates) = &self.certificates {
            let changed = certificates.change(&config.tls.settings);
            self.metrics.tls_reloaded(changed.is_ok());
            changed.map_err(|problem| Config::mistake(self.path.as_deref(), "tls", problem))?;
            self.metrics.certificates(&certificates.server().certificates.expiry());
        }
        for (registry, store) in self.registries.iter().zip(stores) {
            registry.replace(Arc::new(store));
        }
        tokio::runtime::Handle::current().block_on(self.pools.begin(&pools));
        self.live.change(&config, pools.all());
        self.pools.finish(pools, &config);
        self.sentinel.send_if_modified(|now| {
            let modified = **now != config.sentinel;
            if modified {
                *now = Arc::new(config.sentinel.clone());
            }
            modified
        });
        self.acme.send_if_modified(|now| {
            let modified = now.as_deref() != config.acme.as_ref();
            if modified {
                *now = config.acme.clone().map(Arc::new);
            }
            modified
        });
        config.remarks.iter().for_each(Remark::log);
        *running = config;
        Ok(())
    }
}

/// Does `work` when notified, beside the caller: whoever waits for signals must not wait for a disk. Once at a time; any number of
/// notifications while it is being done become one more.
pub fn one_at_a_time(work: impl Fn() + Send + Sync + 'static) -> Arc<Notify> {
    let asked = Arc::new(Notify::new());
    let (notified, work) = (Arc::clone(&asked), Arc::new(work));
    tokio::spawn(async move {
        loop {
            notified.notified().await;
            let work = Arc::clone(&work);
            // A panic has been logged, and ends this work alone.
            let _ = tokio::task::spawn_blocking(move || work()).await;
        }
    });
    asked
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_asked_for_during_work_becomes_one_more_and_a_panic_ends_nothing() {
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let ends = Mutex::new(ends);
        let done = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&done);
        let asked = one_at_a_time(move || {
            begun.send(()).unwrap();
            ends.lock().unwrap_or_else(PoisonError::into_inner).recv().unwrap();
            assert_ne!(count.fetch_add(1, Ordering::SeqCst), 0, "the first panics");
        });
        let begins = Arc::new(Mutex::new(begins));
        let begin = |patience: Duration| {
            let begins = Arc::clone(&begins);
            async move {
                let wait = move || begins.lock().unwrap().recv_timeout(patience).is_ok();
                tokio::task::spawn_blocking(wait).await.unwrap()
            }
        };
        asked.notify_one();
        assert!(begin(Duration::from_secs(20)).await);
        (0..5).for_each(|_| asked.notify_one());
        end.send(()).unwrap();
        assert!(begin(Duration::from_secs(20)).await, "one more");
        end.send(()).unwrap();
        assert!(!begin(Duration::from_millis(100)).await, "and no others");
        assert_eq!(done.load(Ordering::SeqCst), 2);
    }
}

//! The configuration read again while the proxy runs (SIGHUP).
//!
//! All of it is taken or none: a file with a mistake, or with a change of what can't change in a running process, leaves
//! everything as it was and says why. Requests under way are served to their end by the rules that they began with.

use std::path::PathBuf;
use std::sync::Arc;

use log::{error, info};
use tokio::sync::watch;

use crate::config::{Config, Fixed};
use crate::metrics::Metrics;
use crate::policy::Live;
use crate::upstream::Pool;

/// Everything that a new configuration is given to.
pub struct Reload {
    /// The file; without one there is only the environment, which does not change.
    pub path: Option<PathBuf>,
    /// What can't change, as the running configuration has it.
    pub fixed: Fixed,
    /// The rules for requests.
    pub live: Arc<Live>,
    /// The backends.
    pub pool: Arc<Pool>,
    /// The sentinel inside this process.
    pub sentinel: watch::Sender<Arc<sentinel::Config>>,
    /// Where reloads are counted.
    pub metrics: Metrics,
}

impl Reload {
    /// Reads the configuration and takes it, or says why not.
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
        let changed: Vec<_> = self
            .fixed
            .iter()
            .zip(config.fixed())
            .filter(|((_, old), (_, new))| old != new)
            .map(|((key, _), _)| *key)
            .collect();
        if !changed.is_empty() {
            return Err(format!(
                "{} can't change in a running process: restart it, or upgrade it with -u",
                changed.join(", ")
            ));
        }
        self.live.change(&config);
        self.pool.change(config.discovery.interval, &config.health);
        self.sentinel.send_if_modified(|now| {
            let modified = **now != config.sentinel;
            if modified {
                *now = Arc::new(config.sentinel);
            }
            modified
        });
        Ok(())
    }
}

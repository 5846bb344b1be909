//! Looks for renewed certificates while the proxy runs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chassis::supervisor::supervise;
use log::{error, info};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::time::sleep;

use crate::observe::metrics::Metrics;
use crate::tls::server::Live;

/// From one look at the files to the next. So a renewed certificate is used within 15 s.
const INTERVAL: Duration = Duration::from_secs(10);

/// Loads certificates that have changed on disk.
#[derive(Clone)]
pub struct Watch {
    /// What handshakes are made with.
    pub certificates: Arc<Live>,
    /// Where reloads are counted.
    pub metrics: Metrics,
}

impl Watch {
    async fn run(self) {
        loop {
            sleep(INTERVAL).await;
            let watch = self.clone();
            // A panic has been logged, and ends this look alone.
            let _ = tokio::task::spawn_blocking(move || watch.look()).await;
        }
    }

    /// Loads those that have changed.
    pub fn look(&self) {
        let Some(loaded) = self.certificates.look() else {
            return;
        };
        self.metrics.tls_reloaded(loaded.is_ok());
        match loaded {
            Ok(()) => {
                self.metrics
                    .certificates(&self.certificates.server().certificates.expiry());
                info!("certificates reloaded");
            }
            Err(problem) => {
                error!(error = problem.to_string().as_str(); "certificates not reloaded; the old ones stay");
            }
        }
    }
}

#[async_trait]
impl BackgroundService for Watch {
    async fn start(&self, shutdown: ShutdownWatch) {
        supervise("certificates", shutdown, || self.clone().run()).await;
    }
}

//! Background loops that outlive their own panics.
//!
//! Pingora swallows a panic in a background service: the service is gone while the process looks healthy. A loop that discovery
//! or health depends on must not die like that.

use std::time::Duration;

use log::error;
use pingora::server::ShutdownWatch;

/// How long a loop that panicked stays down before it is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs the loop that `start` makes until `shutdown`, and starts it anew when it panics or returns.
pub async fn supervise<F, T>(name: &str, mut shutdown: ShutdownWatch, mut start: F)
where
    F: FnMut() -> T,
    T: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut running = tokio::spawn(start());
        let ended = tokio::select! {
            ended = &mut running => ended,
            // The sender lives as long as the server, so an error too means that the end has come.
            () = async { drop(shutdown.wait_for(|down| *down).await) } => {
                running.abort();
                return;
            }
        };
        let why = ended.map_or_else(|error| error.to_string(), |()| "it returned".into());
        error!(r#loop = name, error = why.as_str(); "background loop ended; starting it again");
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panics_is_started_again_until_shutdown() {
        let runs = Arc::new(AtomicUsize::new(0));
        let (down, watch) = tokio::sync::watch::channel(false);
        let counted = Arc::clone(&runs);
        let supervised = tokio::spawn(async move {
            supervise("test", watch, || {
                let run = counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    assert!(run >= 2, "the first two runs panic");
                    std::future::pending::<()>().await;
                }
            })
            .await;
        });
        while runs.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(PAUSE).await;
        }
        down.send(true).expect("the watch lives");
        supervised.await.expect("ends at shutdown");
        assert_eq!(runs.load(Ordering::SeqCst), 3);
    }
}

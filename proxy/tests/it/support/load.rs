//! Steady traffic that counts every request: what was answered, and in words what was lost.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::Connection;
use super::tls::Client;
use super::traffic::HOST;

/// What some clients saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub answered: u64,
    /// Requests that got no answer, or one that is not 200.
    pub lost: Vec<String>,
}

/// Clients that send one GET after the other, at a rate that does not depend on the answers unless they are late.
pub struct Load {
    clients: Vec<JoinHandle<Seen>>,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// `rate` requests a second in all, by 20 clients. Half of them keep their connections, and replace one only when an
    /// answer has announced its end; the other half open one for each request.
    pub fn start(to: SocketAddr, path: &'static str, rate: u32) -> Self {
        Self::over(
            move || Connection::try_open(to, IpAddr::from(Ipv4Addr::LOCALHOST)),
            path,
            rate,
        )
    }

    /// The same with TLS, to the host that [`traffic`](super::traffic) asks for.
    pub fn over_tls(to: SocketAddr, client: &Client, path: &'static str, rate: u32) -> Self {
        let client = client.clone();
        let open = move || {
            let client = client.clone();
            async move { client.try_open(to, HOST).await }
        };
        Self::over(open, path, rate)
    }

    /// The same over connections that `open` opens.
    pub fn over<S, O, F>(open: O, path: &'static str, rate: u32) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        O: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = io::Result<Connection<S>>> + Send,
    {
        const CLIENTS: u32 = 20;
        let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let clients = (0..CLIENTS).map(|number| {
            let (answered, stop) = (Arc::clone(&answered), Arc::clone(&stop));
            let open = open.clone();
            tokio::spawn(async move {
                let mut seen = Seen::default();
                let mut ticks = interval(Duration::from_secs(1) * CLIENTS / rate);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    match one(&open, path, kept.take()).await {
                        Ok(connection) => {
                            seen.answered += 1;
                            answered.fetch_add(1, Ordering::Relaxed);
                            kept = connection.filter(|_| number % 2 == 0);
                        }
                        Err(problem) => seen.lost.push(problem),
                    }
                }
                seen
            })
        });
        Self {
            clients: clients.collect(),
            answered,
            stop,
        }
    }

    /// How many requests have been answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends it when every request that was sent has its answer.
    pub async fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for client in self.clients {
            let seen = client.await.expect("a client does not panic");
            all.answered += seen.answered;
            all.lost.extend(seen.lost);
        }
        all
    }

    /// Ends it, and none may have been lost; returns how many were answered.
    pub async fn lost_none(self) -> u64 {
        let seen = self.stop().await;
        assert_eq!(seen.lost, [""; 0], "besides {} answers", seen.answered);
        seen.answered
    }
}

/// One request; returns the connection when it may be used again.
async fn one<S, F>(
    open: impl Fn() -> F,
    path: &str,
    kept: Option<Connection<S>>,
) -> Result<Option<Connection<S>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = io::Result<Connection<S>>>,
{
    let mut connection = match kept {
        Some(connection) => connection,
        None => open().await.map_err(|error| format!("no connection: {error}"))?,
    };
    let response = connection
        .try_request("GET", path, "", "")
        .await
        .map_err(|error| format!("no answer: {error}"))?;
    if response.status != 200 {
        return Err(format!("{}: {}", response.status, response.text()));
    }
    Ok((response.header("connection") != Some("close")).then_some(connection))
}

//! The sentinel as its own process: configured by the environment, with `/metrics` and `/healthz` on port 2113.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chassis::admin::{Admin, Probed};
use chassis::listener::Doors;
use chassis::settings::{Settings, whole};
use chassis::{build_info, descriptors, healthcheck, listener, process, process_metrics, service_manager};
use clap::Parser;
use log::{error, info, warn};
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use registry::{RedisStore, RedisUrl};
use sentinel::{Config, Metrics, Sentinel};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, watch};

/// The log filter when `RUST_LOG` is not set: Pingora logs its own services at `info`.
const LOG_FILTER: &str = "info,pingora=warn,pingora_core=warn";

/// After the time of this many cycles without a good one the sentinel calls itself not ready.
const READY_CYCLES: u32 = 5;

/// Probes origins over TCP and keeps the Redis set gopher_backends up to date, and gopher_backends:NAME for each other pool.
///
/// It is configured by the environment: SENTINEL_TARGETS, SENTINEL_ID, SENTINEL_INTERVAL, SENTINEL_TIMEOUT, SENTINEL_RISE,
/// SENTINEL_FALL, SENTINEL_CONCURRENCY, SENTINEL_METRICS_PORT, REDIS_URL and RUST_LOG. Each can have the prefix GOPHERPROXY_.
#[derive(Parser)]
#[command(name = "sentinel", version = build_info::describe())]
struct Arguments {
    /// Ask the sentinel that runs with this environment whether it is ready, and exit with 0 if it is.
    #[arg(long)]
    healthcheck: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.healthcheck {
        return process::answer(LOG_FILTER, "not ready", || run(None).map(|()| String::new()));
    }
    // It must not end a process that starts either.
    let hangup = process::listen(SignalKind::hangup());
    process::run(LOG_FILTER, "can't start", || run(Some(hangup?)))
}

/// Runs until a signal other than `hangup`; without that, only asks whether the sentinel that runs is ready.
fn run(hangup: Option<Signal>) -> Result<(), Box<dyn Error>> {
    let settings = Settings::from_process();
    let mut section = settings.top(None);
    let config = Config::read(&mut section);
    let redis = settings.secret_variable("REDIS_URL", RedisUrl::parse);
    let redis = redis.map_or_else(|| RedisUrl::parse("localhost:16379"), Ok)?;
    let port = settings
        .variable("SENTINEL_METRICS_PORT", whole(0..=u16::MAX))
        .unwrap_or(2113);
    section.finish();
    // Without a file there is nothing to remark on.
    let ((config, redis, port), _) = settings.finish((config, redis, port))?;

    let address = listener::every_address(port);
    let Some(hangup) = hangup else {
        return healthcheck::ready(address);
    };
    let socket = listener::bind(address)?;
    let id = config.id_or_default(socket.local_addr()?.port());
    let registry = prometheus::Registry::new();
    process_metrics::register(&registry)?;
    build_info::register(&registry, "gopherproxy_build_info")?;
    let metrics = Metrics::register(&registry)?;
    let recently = Recently {
        metrics: metrics.clone(),
        limit: (config.interval + config.timeout) * READY_CYCLES,
    };

    // Each probe under way takes one.
    descriptors::raise_limit();
    info!(version = build_info::VERSION, commit = build_info::COMMIT, redis = redis.to_string().as_str(); "starting");
    let store = Arc::new(RedisStore::new(&redis)?);
    let mut server = Server::new_with_opt_and_conf(None, ServerConf::default());
    let doors = Doors::default();
    doors.open();
    // Neither ever changes: the environment stays what it is, and the admin port is served until the end.
    let (_never_changed, config) = watch::channel(Arc::new(config));
    let (_never_ended, end) = watch::channel(false);
    server.add_service(Admin::new(registry, Arc::new(recently))?.listen(socket, doors.clone(), end)?);
    let sentinel = Sentinel::new(config, store, metrics, id);
    let startup = Startup {
        doors,
        first_cycle: sentinel.first_cycle(),
    };
    server.add_service(background_service("sentinel", sentinel));
    server.add_service(background_service("startup", startup));
    server.run(RunArgs {
        shutdown_signal: Box::new(AnySignal {
            hangup: Mutex::new(hangup),
        }),
    });
    Ok(())
}

/// Notifies the service manager when the sentinel is at work. It does so without Redis too: then it probes, and publishes
/// as soon as it can.
struct Startup {
    doors: Doors,
    first_cycle: watch::Receiver<bool>,
}

#[async_trait]
impl BackgroundService for Startup {
    async fn start(&self, _shutdown: ShutdownWatch) {
        self.doors.serving(1).await;
        let mut first_cycle = self.first_cycle.clone();
        if first_cycle.wait_for(|ended| *ended).await.is_ok() {
            service_manager::serving();
        }
    }
}

/// Ready while the last good cycle is not long ago.
struct Recently {
    metrics: Metrics,
    limit: Duration,
}

impl Probed for Recently {
    fn ready(&self) -> Result<String, String> {
        match self.metrics.since_last_success() {
            Err(None) => Err("no cycle has reached the registry yet".into()),
            Err(Some(pool)) => Err(format!("no cycle of the pool {pool} has reached the registry yet")),
            Ok(age) if age > self.limit => Err(format!("the last good cycle ended {} s ago", age.as_secs())),
            Ok(_) => Ok("ready".into()),
        }
    }
}

/// SIGTERM and SIGINT end the process at once: there is no request to wait for, and the targets stay registered. SIGHUP changes
/// nothing.
struct AnySignal {
    hangup: Mutex<Signal>,
}

#[async_trait]
impl ShutdownSignalWatch for AnySignal {
    async fn recv(&self) -> ShutdownSignal {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
        let [Ok(mut terminate), Ok(mut interrupt)] = kinds.map(signal) else {
            error!("can't listen for signals; SIGKILL will end this process");
            return std::future::pending().await;
        };
        let mut hangup = self.hangup.lock().await;
        let name = loop {
            tokio::select! {
                _ = terminate.recv() => break "SIGTERM",
                _ = interrupt.recv() => break "SIGINT",
                // Whoever reloads the proxy may send it to both, and a terminal that closes sends it too.
                _ = hangup.recv() => warn!("SIGHUP changes nothing: the sentinel has no file to read again; restart it to change its variables"),
            }
        };
        info!(signal = name; "leaving; the targets stay registered");
        ShutdownSignal::FastShutdown
    }
}

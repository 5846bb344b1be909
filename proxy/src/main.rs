//! `gopherproxy`: the configuration becomes services, and the services run until a signal.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use chassis::admin::Admin;
use chassis::listener::{self, Listening};
use chassis::{build_info, healthcheck, process};
use clap::Parser;
use gopherproxy::client::Networks;
use gopherproxy::config::{Config, RegistryKind};
use gopherproxy::connection::Edge;
use gopherproxy::discovery::RegistryDiscovery;
use gopherproxy::lifecycle::{DrainOnSignal, Lifecycle};
use gopherproxy::limiter::ClientLimiter;
use gopherproxy::metrics::Metrics;
use gopherproxy::rejection::LimitedAnswers;
use gopherproxy::service::EdgeProxy;
use gopherproxy::status::Status;
use gopherproxy::upstream::{Pool, PoolService};
use log::info;
use pingora::listeners::ListenerConfig;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora::services::listening::Service;
use pingora_proxy::http_proxy;
use registry::{InProcess, RedisStore, Registry};
use sentinel::Sentinel;

/// The proxy allocates on every request; this allocator took a fifth of the CPU time off a bare one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What `RUST_LOG` means when it is not set. Pingora tells of its own services at `info`, and of what the access log tells
/// better at `error`.
const LOG_FILTER: &str = "info,pingora=warn,pingora_core=warn,pingora_proxy=off,pingora_load_balancing=error";

/// Bytes that each client connection has for reading and for writing. Pingora's 64 KiB for reading would be most of
/// what an idle connection costs.
const CONNECTION_BUFFERS: (usize, usize) = (4096, 1460);

/// An edge proxy that balances HTTP over origins that come and go.
#[derive(Parser)]
#[command(name = "gopherproxy", version = build_info::describe())]
struct Arguments {
    /// The configuration; without one every default holds.
    #[arg(short, long, value_name = "FILE")]
    conf: Option<PathBuf>,

    /// Check the configuration and exit.
    #[arg(short, long)]
    test: bool,

    /// Ask the proxy that runs with this configuration whether it is ready, and exit with 0 if it is.
    #[arg(long)]
    healthcheck: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let failure = if arguments.healthcheck {
        "not ready"
    } else {
        "can't start"
    };
    process::run(LOG_FILTER, failure, || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let config = Config::load(arguments.conf.as_deref())?;
    if arguments.test {
        info!("the configuration is good");
        return Ok(());
    }
    if arguments.healthcheck {
        return healthcheck::ready(config.admin_listen);
    }
    // Both ports are taken before anything is started, so that a taken one is an error and nothing else.
    let client_socket = listener::bind(config.listen)?;
    let admin_socket = listener::bind(config.admin_listen)?;
    let waiting = client_socket.try_clone()?;
    info!(version = build_info::VERSION, commit = build_info::COMMIT; "starting");

    let prometheus = prometheus::Registry::new();
    let metrics = Metrics::register(&prometheus)?;
    let lifecycle = Arc::new(Lifecycle::default());
    let limiter = Arc::new(ClientLimiter::new(&config.limit, Instant::now()));
    // Two stores where the registry is Redis: each belongs to the runtime of the service that uses it.
    let in_process = Arc::new(InProcess::default());
    let open_registry = || -> Result<Arc<dyn Registry>, registry::Error> {
        match &config.registry {
            RegistryKind::InProcess => Ok(Arc::clone(&in_process) as _),
            RegistryKind::Redis(url) => Ok(Arc::new(RedisStore::new(url)?)),
        }
    };
    let discovery = RegistryDiscovery::new(open_registry()?, metrics.clone());
    let pool = Arc::new(Pool::new(
        discovery.clone(),
        config.discovery_interval,
        config.health.clone(),
        config.upstream.clone(),
        metrics.clone(),
    ));

    let mut server = Server::new_with_opt_and_conf(None, config.server);
    let proxy = EdgeProxy {
        pool: Arc::clone(&pool),
        limited: LimitedAnswers::new(config.limit.burst, limiter.refill()),
        limiter: Arc::clone(&limiter),
        exempt: Networks::new(config.limit.exempt),
        trusted: Networks::new(config.trusted_proxies),
        client: config.client.clone(),
        upstream: config.upstream,
        lifecycle: Arc::clone(&lifecycle),
        metrics: metrics.clone(),
    };
    let edge = Edge {
        proxy: Arc::new(http_proxy(&server.configuration, proxy)),
        limits: config.client,
        lifecycle: Arc::clone(&lifecycle),
        metrics: metrics.clone(),
    };
    if let Some(targets) = config.sentinel {
        let sentinel = Sentinel::new(targets, open_registry()?, sentinel::Metrics::register(&prometheus)?);
        server.add_service(background_service("sentinel", sentinel));
    }
    let status = Status {
        discovery,
        lifecycle: Arc::clone(&lifecycle),
        limiter,
        metrics,
    };
    server.add_service(background_service("pool", PoolService(pool)));
    server.add_service(Admin::new(prometheus, Arc::new(status)).listen(admin_socket)?);
    server.add_service(Listening::new(client_socket, |address| {
        let (read, write) = CONNECTION_BUFFERS;
        let mut service = Service::new("proxy".into(), edge);
        service.add_listener(ListenerConfig::tcp(address).l4_buffer(L4BufferSettings::new(read, write)));
        service
    })?);
    server.run(RunArgs {
        shutdown_signal: Box::new(DrainOnSignal::new(lifecycle, config.drain_timeout, waiting)),
    });
    Ok(())
}

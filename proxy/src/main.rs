//! `gopherproxy`: builds the services from the configuration and runs them until a signal.

use std::error::Error;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Once};
use std::time::{Instant, SystemTime};

use allocator::Allocator;
use chassis::admin::Admin;
use chassis::listener::{Doors, Listening};
use chassis::settings::Remark;
use chassis::{build_info, descriptors, healthcheck, memory, process};
use clap::{Parser, Subcommand};
use gopherproxy::config::{Config, RegistryKind};
use gopherproxy::exchange::admission::Admission;
use gopherproxy::exchange::passwords::Passwords;
use gopherproxy::forward::authentication::Authentication;
use gopherproxy::forward::direct::Direct;
use gopherproxy::forward::proxy::EdgeProxy;
use gopherproxy::http1::held::Budget;
use gopherproxy::lifecycle::Lifecycle;
use gopherproxy::limit::refusals::Refusals;
use gopherproxy::listen::accept::Accept;
use gopherproxy::listen::acme::{self, Failing, Issuer};
use gopherproxy::listen::connection::Edge;
use gopherproxy::listen::port::Port;
use gopherproxy::observe::acme::AcmeMetrics;
use gopherproxy::observe::metrics::Metrics;
use gopherproxy::observe::routes::RouteMetrics;
use gopherproxy::pool::pools::{Pools, PoolsService};
use gopherproxy::process::backend_command::BackendCommand;
use gopherproxy::process::certificates::Watch;
use gopherproxy::process::explain::explain;
use gopherproxy::process::reload::Reload;
use gopherproxy::process::signals::{Early, OnSignal, Signals};
use gopherproxy::process::startup::{self, Startup};
use gopherproxy::process::status::Status;
use gopherproxy::snapshot::{Live, Machine};
use gopherproxy::tls::{self, self_made};
use httpdate::fmt_http_date;
use log::info;
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora_limits::inflight::Inflight;
use pingora_proxy::http_proxy;
use registry::{InProcess, RedisStore, Registry, Replaceable};
use sentinel::Sentinel;
use tokio::sync::{Semaphore, watch};

/// The proxy allocates on every request; this allocator took a fifth of the CPU time off a bare one.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The log filter when `RUST_LOG` is not set. Pingora logs its own services at `info`, and at `error` what the access log reports
/// better.
const LOG_FILTER: &str = "info,pingora=warn,pingora_core=warn,pingora_proxy=off,pingora_load_balancing=error";

/// An edge proxy that balances HTTP over origins that come and go.
#[derive(Parser)]
#[command(name = "gopherproxy", version = build_info::describe(), args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration; without one, everything has its default.
    #[arg(short, long, value_name = "FILE")]
    conf: Option<PathBuf>,

    /// Check the configuration and exit.
    #[arg(short, long)]
    test: bool,

    /// With --test: print which route a request for this URL takes, what is done with it, and why other routes are not chosen.
    #[arg(long, value_name = "URL", requires = "test")]
    explain: Option<String>,

    /// With --explain: the method of the request.
    #[arg(
        short = 'X',
        long,
        value_name = "METHOD",
        default_value = "GET",
        requires = "explain"
    )]
    request: String,

    /// Take over from the running proxy: wait for its listening sockets, which it hands over on SIGQUIT or SIGTERM.
    #[arg(short, long)]
    upgrade: bool,

    /// Ask the proxy that runs with this configuration whether it is ready; exit with 0 if it is.
    #[arg(long)]
    healthcheck: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make a certificate to try TLS with, and the file by which clients trust it; keep one that is still valid.
    Certificate {
        /// Where to put self-made.crt, self-made.key and self-made-ca.pem.
        #[arg(short, long, value_name = "DIRECTORY")]
        directory: PathBuf,

        /// The names and addresses that clients will connect to.
        #[arg(value_name = "HOST", default_values = ["localhost", "127.0.0.1", "::1"])]
        hosts: Vec<String>,
    },

    /// List a pool's backends, drain one, or change its weight, in the Redis that all proxies read.
    #[command(subcommand)]
    Backend(BackendCommand),
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    match arguments.command.take() {
        Some(Command::Certificate { directory, hosts }) => return make_certificate(&directory, &hosts),
        Some(Command::Backend(command)) => {
            return process::answer(LOG_FILTER, "nothing done", || command.run());
        }
        None => {}
    }
    let load = || Config::load(arguments.conf.as_deref());
    if arguments.test {
        let check = || {
            let config = load()?;
            config.remarks.iter().for_each(Remark::log);
            certificates(&config, arguments.conf.as_deref())?;
            Ok(config)
        };
        return match &arguments.explain {
            Some(url) => process::answer(LOG_FILTER, "can't explain", || {
                let text = explain(&check()?, &arguments.request, url)?;
                #[allow(clippy::print_stdout, reason = "somebody reads it there, through a pipe too")]
                {
                    println!("{text}");
                }
                Ok(String::new())
            }),
            None => process::answer(LOG_FILTER, "the configuration is bad", || {
                check().map(|_| "the configuration is good".into())
            }),
        };
    }
    if arguments.healthcheck {
        return process::answer(LOG_FILTER, "not ready", || {
            healthcheck::ready(load()?.admin_listen)?;
            Ok(String::new())
        });
    }
    let signals = Early::new();
    process::run(LOG_FILTER, "can't start", || run(&arguments, signals?, load()?))
}

fn make_certificate(directory: &Path, hosts: &[String]) -> ExitCode {
    process::answer(LOG_FILTER, "no certificate", || {
        let made = self_made::make(directory, hosts, SystemTime::now())?;
        let what = if made.found { "is there already" } else { "is made" };
        let (cert, ca, until) = (
            made.cert.display(),
            made.authority.display(),
            fmt_http_date(made.not_after),
        );
        Ok(format!(
            "{cert} {what}, valid until {until}; clients trust it with {ca}"
        ))
    })
}

fn run(arguments: &Arguments, early: Early, mut config: Config) -> Result<(), Box<dyn Error>> {
    config.remarks.iter().for_each(Remark::log);
    let certificates = certificates(&config, arguments.conf.as_deref())?.map(Arc::new);
    // All ports are this process's before anything is started, so that a taken one is an error and nothing else.
    let (sockets, predecessor, signals) = if arguments.upgrade {
        match startup::inherit(&config, early)? {
            Some(inherited) => (inherited.sockets, Some(inherited.predecessor), inherited.signals),
            None => return Ok(()),
        }
    } else {
        (startup::bind(&config)?, None, Signals::new(early)?)
    };
    let (client_socket, admin_socket) = (sockets.client.try_clone()?, sockets.admin.try_clone()?);
    let tls_socket = sockets.tls.as_ref().map(TcpListener::try_clone).transpose()?;
    info!(version = build_info::VERSION, commit = build_info::COMMIT; "starting");

    let prometheus = prometheus::Registry::new();
    let metrics = Metrics::register(&prometheus)?;
    let acme_metrics = AcmeMetrics::register(&prometheus)?;
    let lifecycle = Arc::new(Lifecycle::default());
    let held = Arc::new(Budget::default());
    // Two stores where the registry is Redis: each belongs to the runtime of the service that uses it.
    let in_process = Arc::new(InProcess::default());
    let open_registry = || -> Result<Arc<Replaceable>, registry::Error> {
        let registry: Arc<dyn Registry> = match &config.registry {
            RegistryKind::InProcess => Arc::clone(&in_process) as _,
            RegistryKind::Redis(url) => Arc::new(RedisStore::new(url)?),
        };
        Ok(Arc::new(Replaceable::new(registry)))
    };
    let (read_from, written_to) = (open_registry()?, open_registry()?);
    let pools = Pools::new(&config, Arc::clone(&read_from) as _, metrics.pools.clone())?;
    let pools = Arc::new(pools);
    let machine = machine();
    let route_metrics = RouteMetrics::register(&prometheus)?;
    let live = Arc::new(Live::new(
        &config,
        &pools.all(),
        Arc::clone(&pools.auth_services),
        route_metrics,
        machine,
    ));
    let sentinel = watch::Sender::new(Arc::new(config.sentinel.clone()));

    let upgrade_socket = PathBuf::from(&config.server.upgrade_sock);
    let mut server = Server::new_with_opt_and_conf(None, std::mem::take(&mut config.server));
    if config.sentinel_enabled {
        let metrics = sentinel::Metrics::register(&prometheus)?;
        let id = config.sentinel.id_or_default(admin_socket.local_addr()?.port());
        let sentinel = Sentinel::new(sentinel.subscribe(), Arc::clone(&written_to) as _, metrics, id);
        server.add_service(background_service("sentinel", sentinel));
    }
    server.add_service(background_service("pools", PoolsService(Arc::clone(&pools))));
    let doors = Doors::default();
    let startup = Startup::new(
        predecessor,
        Arc::clone(&pools),
        Arc::clone(&live),
        certificates.clone(),
        doors.clone(),
        sockets.all().len(),
    );
    let stage = startup.stage();
    let failing = Arc::new(Failing::default());
    let acme = watch::Sender::new(config.acme.clone().map(Arc::new));
    server.add_service(background_service("startup", startup));
    let status = Status {
        pools: Arc::clone(&pools),
        was_ready: AtomicBool::new(false),
        lifecycle: Arc::clone(&lifecycle),
        held: Arc::clone(&held),
        live: Arc::clone(&live),
        metrics: metrics.clone(),
        failing: Arc::clone(&failing),
    };
    let admin = Admin::new(prometheus, Arc::new(status))?;
    server.add_service(admin.listen(admin_socket, doors.clone(), lifecycle.admin_end())?);
    let shared_metrics = Arc::new(metrics.clone());
    let direct = Direct::new(Arc::clone(&lifecycle), &server.configuration);
    let proxy = EdgeProxy {
        direct,
        metrics: Arc::clone(&shared_metrics),
    };
    let edge = Edge {
        proxy: Arc::new(http_proxy(&server.configuration, proxy)),
        admission: Admission {
            certificates: certificates.clone(),
        },
        passwords: Passwords::new().map_err(|_| "the system has no random numbers")?,
        authentication: Authentication::default(),
        live: Arc::clone(&live),
        held,
        by_client: Inflight::new(),
        turned_away: Semaphore::new(machine.turned_away),
        lifecycle: Arc::clone(&lifecycle),
        metrics: shared_metrics,
        refusals: Arc::new(Refusals::new(metrics.access_log_suppressed.clone(), Instant::now())),
        limit_explained: Once::new(),
        descriptors_explained: Once::new(),
    };
    let edge = Arc::new(edge);
    let mut listen = |name: &str, socket, tls| {
        let port = Port {
            edge: Arc::clone(&edge),
            tls,
        };
        let listening = Listening::new(name, socket, doors.clone());
        listening.map(|listening| server.add_service(Accept::new(listening, port)))
    };
    listen("proxy", client_socket, None)?;
    if let (Some(socket), Some(certificates)) = (tls_socket, &certificates) {
        listen("proxy tls", socket, Some(Arc::clone(certificates)))?;
        metrics.certificates(&certificates.server().certificates.expiry());
        let watch = Watch {
            certificates: Arc::clone(certificates),
            metrics: metrics.clone(),
        };
        let renewed = watch.clone();
        let issuer = Issuer {
            acme: acme.subscribe(),
            stage: stage.subscribe(),
            failing,
            metrics: acme_metrics,
            installed: Arc::new(move || renewed.look()),
        };
        server.add_service(background_service("acme", issuer));
        server.add_service(background_service("certificates", watch));
    }
    let (lame_duck, drain_timeout) = (config.lame_duck, config.drain_timeout);
    let reload = Reload {
        path: arguments.conf.clone(),
        running: Mutex::new(config),
        server: Arc::clone(&server.configuration),
        registries: vec![read_from, written_to],
        live,
        certificates,
        acme,
        pools,
        sentinel,
        metrics,
    };
    server.run(RunArgs {
        shutdown_signal: Box::new(OnSignal {
            lifecycle,
            lame_duck,
            drain_timeout,
            sockets,
            upgrade_socket,
            reload: Arc::new(reload),
            stage,
            signals: Mutex::new(Some(signals)),
        }),
    });
    Ok(())
}

/// What TLS handshakes are made with, if there is a port for it in `config`, which was read at `path`.
fn certificates(config: &Config, path: Option<&Path>) -> Result<Option<tls::server::Live>, Box<dyn Error>> {
    if config.tls.listen.is_none() {
        return Ok(None);
    }
    if let Some(acme) = &config.acme {
        acme::check(acme).map_err(|error| Config::mistake(path, "acme", error))?;
    }
    let secret = tls::tickets::random_secret()?;
    let certificates = tls::server::Live::new(config.tls.settings.clone(), secret.into());
    Ok(Some(certificates.map_err(|error| Config::mistake(path, "tls", error))?))
}

/// What this process may have.
fn machine() -> Machine {
    Machine::new(descriptors::raise_limit(), memory::limit())
}

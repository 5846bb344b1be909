//! The configuration: a Pingora conf file with one section of ours, and the environment over it.
//!
//! Pingora's own keys are at the top level of the file, ours under `gopherproxy:`. Pingora ignores keys it doesn't know, so a
//! misspelt one would do nothing; here an unknown key is a mistake at either level. One error lists all mistakes
//! ([`chassis::settings`]). Without a file every default below holds.

mod acme;
mod address;
mod balance;
mod client;
mod discovery;
mod error_pages;
mod health;
mod http2;
mod limit;
mod networks;
mod origin_tls;
mod pools;
pub mod routes;
mod server;
mod shape;
#[cfg(test)]
mod tests;
mod tls;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chassis::settings::{Remark, Section, Settings, duration_or_zero, size, truth};
use chassis::yaml;
use ipnet::IpNet;
use pingora::server::configuration::ServerConf;
use registry::PoolName;

pub use acme::{Acme, Challenge};
use address::{any, network, port, socket_address};
pub use balance::{Algorithm, Balance, HashBy, Sticky};
pub use client::{ClientLimits, DEFAULT_MAX_CONNECTIONS};
pub use discovery::{Discovery, Readiness, RegistryKind};
pub use error_pages::ErrorPages;
pub use health::{Health, HealthKind};
pub use http2::Http2;
pub use limit::{Limit, Rate};
pub use networks::Networks;
pub use origin_tls::OriginTls;
pub use pools::PoolSettings;
use pools::Pools;
pub use routes::Route;
pub use server::NO_ROOTS;
pub use shape::{Edits, ForwardAuth, Part, Prefix, Shape, UserFile, Users};
pub use tls::Tls;
use upstream::MOST_RETRIES;
pub use upstream::{Ejection, Protocol, UpstreamLimits};

/// Our section in the file.
const SECTION: &str = "gopherproxy";

/// All that can be configured.
#[derive(Debug, PartialEq)]
pub struct Config {
    /// Pingora's own settings.
    pub server: ServerConf,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where Prometheus and the probes connect.
    pub admin_listen: SocketAddr,
    /// The peers whose X-Forwarded-* and X-Request-Id are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The balancers that begin each connection with a PROXY protocol header.
    pub proxy_protocol: Vec<IpNet>,
    /// Where the set of origins is.
    pub registry: RegistryKind,
    /// How the set is read.
    pub discovery: Discovery,
    /// Whether clients are limited at all.
    pub limit_enabled: bool,
    /// The limit for each client.
    pub limit: Limit,
    /// Which requests go where. Without any, all go to one pool.
    pub routes: Vec<Route>,
    /// TLS with clients.
    pub tls: Tls,
    /// Certificates that the proxy gets itself.
    pub acme: Option<Acme>,
    /// What a client connection may take.
    pub client: ClientLimits,
    /// What a client connection of HTTP/2 may take beside that.
    pub http2: Http2,
    /// The pools of backends; at least one.
    pub pools: BTreeMap<PoolName, PoolSettings>,
    /// What is the same for all pools that don't say otherwise.
    pub every_pool: PoolSettings,
    /// What users see when the proxy itself answers.
    pub error_pages: ErrorPages,
    /// Who forwards admitted requests.
    pub forwarder: Forwarder,
    /// How long the process calls itself not ready, and serves on, before it stops taking connections.
    pub lame_duck: Duration,
    /// How long requests in flight may go on after that.
    pub drain_timeout: Duration,
    /// When the process calls itself ready.
    pub readiness: Readiness,
    /// Whether there is a sentinel inside this process.
    pub sentinel_enabled: bool,
    /// What it probes, and how.
    pub sentinel: sentinel::Config,
    /// What the user should know about settings that are not wrong.
    pub remarks: Vec<Remark>,
}

impl Config {
    /// Reads the file at `path`, if any, and the environment of this process over it.
    ///
    /// # Errors
    /// All mistakes in both, or that the file can't be read.
    pub fn load(path: Option<&Path>) -> Result<Self, Box<dyn std::error::Error>> {
        let Some(path) = path else {
            let mut config = Self::parse("", Settings::from_process())?;
            config.load_files()?;
            return Ok(config);
        };
        let text = yaml::read_file(path)
            .map_err(|problem| format!("can't read the configuration {}: {problem}", path.display()))?;
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let mut config = Self::parse(&text, Settings::from_process()).map_err(|error| named(&error))?;
        // The next good set would replace it.
        let real = |path: &Path| path.canonicalize().ok();
        let of_pool = |pool: &PoolName| match pool.is_default() {
            true => String::new(),
            false => format!(", with .{pool} behind it,"),
        };
        for pool in config.pools.keys() {
            let state_file = config.discovery.state_file_of(pool).as_deref().and_then(real);
            if state_file.is_some() && state_file == real(path) {
                return Err(format!(
                    "{}: {SECTION}.discovery.state_file{} is this file, which the proxy would overwrite; give it a file of its own",
                    path.display(),
                    of_pool(pool)
                )
                .into());
            }
        }
        config.load_files().map_err(|error| named(&error))?;
        Ok(config)
    }

    /// What is wrong with a file that the section `key` of the file at `path` names, as mistakes in that are reported.
    pub fn mistake(path: Option<&Path>, key: &str, why: impl std::fmt::Display) -> String {
        let file = path.map(|path| format!("{}: ", path.display())).unwrap_or_default();
        format!("{file}{SECTION}.{key}: {why}")
    }

    /// Reads the files that it names.
    fn load_files(&mut self) -> Result<(), String> {
        server::check()?;
        let probed = self.sentinel_enabled && self.sentinel.targets().any(registry::Member::is_tls);
        let every = &mut self.every_pool.upstream.tls;
        every.load("gopherproxy.upstream.tls", probed)?;
        for (name, pool) in &mut self.pools {
            let expected = pool.backends.iter().any(registry::Member::is_tls);
            let section = format!("gopherproxy.pools.{name}.tls");
            pool.upstream.tls.load_like(every, &section, expected)?;
        }
        self.error_pages.load()?;
        self.routes.iter_mut().try_for_each(Route::load)
    }

    /// Reads `text` as the file, and the environment of `settings` over it.
    ///
    /// # Errors
    /// All mistakes in both, or that `text` is not YAML.
    pub fn parse(text: &str, settings: Settings) -> Result<Self, Box<dyn std::error::Error>> {
        let file = yaml::parse(text).map_err(|error| format!("the configuration has a mistake: {error}"))?;
        let config = Self::read(settings.top(file));
        let (config, remarks) = settings.finish(config)?;
        Ok(Self { remarks, ..config })
    }

    fn read(mut top: Section<'_>) -> Self {
        let settings = top.settings();
        settings.knows(keys_of_groups());
        let mut section = top.section(SECTION);
        let server = server::read(top);

        let any_address = section.value("listen", None, any(8080), socket_address);
        let listen = section.part("listen", "PROXY_PORT", any_address, port, with_port);
        let any_address = section.value("admin_listen", None, any(2112), socket_address);
        let admin_listen = section.part("admin_listen", "METRICS_PORT", any_address, port, with_port);
        if listen == admin_listen && listen.port() != 0 {
            settings.mistake(
                &section.place("admin_listen"),
                format_args!("{listen} is the address of listen too; each needs its own"),
            );
        }
        let acme = Acme::read(section.section("acme"));
        let tls = Tls::read(
            section.section("tls"),
            &[("listen", listen), ("admin_listen", admin_listen)],
            acme.as_ref(),
        );
        let trusted_proxies = section.list("trusted_proxies", Some("TRUSTED_PROXIES"), Vec::new(), network);
        let proxy_protocol = section.list("proxy_protocol", None, Vec::new(), network);
        let lame_duck = section.value("lame_duck", None, Duration::ZERO, duration_or_zero);
        let drain_timeout = section.value("drain_timeout", None, Duration::from_secs(30), duration_or_zero);
        let readiness = section.value("readiness", None, Readiness::OnceAlive, discovery::readiness);

        let forwarder = section.value("forwarder", Some("FORWARDER"), Forwarder::Direct, forwarder);
        let registry = RegistryKind::read(section.section("registry"));
        let discovery = Discovery::read(section.section("discovery"));
        let mut health = section.section("health");
        let (limit_enabled, part) = section.switchable("limit", Some("RATE_LIMIT"));
        let limit = Limit::read(part);
        let client = ClientLimits::read(section.section("client"));
        let http2 = Http2::read(section.section("http2"));
        let mut upstream = section.section("upstream");
        let every_pool = PoolSettings {
            health: Health::read(&mut health, &Health::default()),
            upstream: UpstreamLimits::read(&mut upstream, &UpstreamLimits::default()),
            ..PoolSettings::default()
        };
        upstream.finish();
        let pools = Pools::read(&mut section, &every_pool);
        let names: BTreeSet<_> = pools.all.keys().cloned().collect();
        let routes = routes::read(&mut section, &names, &limit);
        pools.check(&section, &routes);
        if pools.all.values().all(|pool| pool.health.kind == HealthKind::Tcp) {
            Health::remark_http(&health);
        }
        health.finish();
        let error_pages = ErrorPages::read(&mut section);
        let mut part = section.section("sentinel");
        let enabled = part.value("enabled", None, false, truth);
        let sentinel = sentinel::Config::read(&mut part);
        if !enabled {
            part.has_no_effect(
                "gopherproxy.sentinel.enabled is not true; set it, or run the sentinel as a process of its own and configure it by variables",
            );
        }
        if matches!(registry, RegistryKind::InProcess) && !enabled {
            settings.mistake(
                &part.place("enabled"),
                "nothing would fill the registry: with registry.kind: in-process this must be true",
            );
        }
        part.finish();
        section.finish();

        let mut config = Self {
            server,
            listen,
            admin_listen,
            trusted_proxies,
            proxy_protocol,
            registry,
            discovery,
            limit_enabled,
            limit,
            routes,
            tls,
            acme,
            client,
            http2,
            pools: pools.all,
            every_pool,
            error_pages,
            forwarder,
            lame_duck,
            drain_timeout,
            readiness,
            sentinel_enabled: enabled,
            sentinel,
            remarks: Vec::new(),
        };
        // Pingora sleeps this long after SIGTERM whatever happens; `lifecycle` leaves as soon as it can, so this only has
        // to be longer than the drain.
        config.server.grace_period_seconds = Some(config.drain_timeout.as_secs() + 10);
        // The total number of tries. The forwarder decides each one by `upstream.retries`, which a reload can change; Pingora's own limit,
        // which it can't, must not be lower.
        config.server.max_retries = MOST_RETRIES + 1;
        config
    }

    /// How many connections all backends together keep for the next request. The key counts them for each thread, as Pingora does.
    pub fn kept_connections(&self) -> usize {
        let per_thread = self.server.upstream_keepalive_pool_size;
        per_thread.saturating_mul(self.server.threads.max(1))
    }

    /// What differs from `running` in this configuration and takes a restart or an upgrade. `server` is what Pingora runs with.
    pub fn needs_restart(&self, running: &Self, server: &ServerConf) -> Vec<&'static str> {
        let kind = |config: &Self| std::mem::discriminant(&config.registry);
        [
            // Pingora's grace period follows from the drain timeout, which is named below.
            (
                "Pingora's own keys",
                self.server != *server && self.drain_timeout == running.drain_timeout,
            ),
            ("listen", self.listen != running.listen),
            ("admin_listen", self.admin_listen != running.admin_listen),
            ("tls.listen", self.tls.listen != running.tls.listen),
            ("lame_duck", self.lame_duck != running.lame_duck),
            ("drain_timeout", self.drain_timeout != running.drain_timeout),
            ("registry.kind", kind(self) != kind(running)),
            (
                "discovery.state_file",
                self.discovery.state_file != running.discovery.state_file,
            ),
            ("sentinel.enabled", self.sentinel_enabled != running.sentinel_enabled),
            ("sentinel.id", self.sentinel.id != running.sentinel.id),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

/// Who forwards admitted requests. A request and its response are the same with either; this is for finding out whether that is
/// true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarder {
    /// Our own, for HTTP/1.1 without TLS.
    Direct,
    /// Pingora's.
    Pingora,
}

fn forwarder(text: &str) -> Result<Forwarder, String> {
    match text {
        "direct" => Ok(Forwarder::Direct),
        "pingora" => Ok(Forwarder::Pingora),
        _ => Err("direct or pingora".into()),
    }
}

/// The keys of pools and routes, for files that have none.
fn keys_of_groups() -> BTreeSet<String> {
    let example = Settings::new([]);
    let file = yaml::parse("gopherproxy: {pools: {a: {}}, routes: {a: {pool: a}}}").unwrap_or_default();
    let mut section = example.top(file).section(SECTION);
    let pools = Pools::read(&mut section, &PoolSettings::default());
    let names = pools.all.into_keys().collect();
    let limit = Limit::read(section.section("limit"));
    routes::read(&mut section, &names, &limit);
    example.known()
}

fn with_port(address: &SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), port)
}

fn size_or_none(text: &str) -> Result<Option<u64>, String> {
    or_none(text, size)
}

/// `none`, or what `parse` takes.
fn or_none<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if text == "none" {
        return Ok(None);
    }
    parse(text).map(Some).map_err(|expected| format!("{expected}, or none"))
}

/// `none`, or an absolute path. What was `expected` is said of all else.
fn absolute_or_none(text: &str, expected: &str) -> Result<Option<PathBuf>, String> {
    match text {
        "none" => Ok(None),
        _ if Path::new(text).is_absolute() => Ok(Some(text.into())),
        _ => Err(expected.into()),
    }
}

//! The configuration: a Pingora conf file with one section of ours, and the environment over it.
//!
//! Pingora's own keys stand at the top level of the file, ours under `gopherproxy:`. Pingora ignores keys it doesn't know,
//! so that a misspelt one would do nothing; here a key that nobody knows is a mistake at either level. All mistakes come in
//! one error ([`chassis::settings`]), and without a file every default below holds.

mod address;
mod client;
mod discovery;
mod limit;
mod server;
#[cfg(test)]
mod tests;
mod upstream;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use chassis::settings::{Settings, duration_or_zero, size, truth, whole};
use ipnet::IpNet;
use pingora::server::configuration::ServerConf;
use yaml_serde::{Mapping, Value};

use address::{any, network, socket_address};
pub use client::{ClientLimits, DEFAULT_MAX_CONNECTIONS};
pub use discovery::{Discovery, Health, Readiness, RegistryKind};
pub use limit::Limit;
pub use upstream::{Ejection, UpstreamLimits};

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
    /// Where the set of origins is.
    pub registry: RegistryKind,
    /// How the set is read.
    pub discovery: Discovery,
    /// The proxy's own health check.
    pub health: Health,
    /// The limit for each client.
    pub limit: Limit,
    /// What a client connection may take.
    pub client: ClientLimits,
    /// What a backend may take.
    pub upstream: UpstreamLimits,
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
}

impl Config {
    /// Reads the file at `path`, if any, and the environment of this process over it.
    ///
    /// # Errors
    /// All mistakes in both, or that the file can't be read.
    pub fn load(path: Option<&Path>) -> Result<Self, Box<dyn std::error::Error>> {
        let text = match path {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("can't read the configuration {}: {error}", path.display()))?,
        };
        let config = Self::parse(&text, Settings::from_process());
        match path {
            None => config,
            Some(path) => config.map_err(|error| format!("{}: {error}", path.display()).into()),
        }
    }

    /// Reads `text` as the file, and the environment of `settings` over it.
    ///
    /// # Errors
    /// All mistakes in both, or that `text` is no YAML.
    pub fn parse(text: &str, settings: Settings) -> Result<Self, Box<dyn std::error::Error>> {
        let mut top = match yaml_serde::from_str(text) {
            Ok(Value::Null) => Mapping::new(),
            Ok(Value::Mapping(mapping)) => mapping,
            Ok(_) => return Err("the configuration is not a group of keys".into()),
            Err(error) => return Err(format!("the configuration is not YAML: {error}").into()),
        };
        let ours = top.remove(SECTION);
        let server = server::read(&settings, top);

        let mut section = settings.section(SECTION, ours);
        let listen = with_port(
            section.value("listen", None, any(8080), socket_address),
            settings.variable("PROXY_PORT", whole(0..=u16::MAX)),
        );
        let admin_listen = with_port(
            section.value("admin_listen", None, any(2112), socket_address),
            settings.variable("METRICS_PORT", whole(0..=u16::MAX)),
        );
        if listen == admin_listen && listen.port() != 0 {
            settings.mistake(format!(
                "{SECTION}.admin_listen: {listen} is listen too, takes an address of its own"
            ));
        }
        let trusted_proxies = section.list("trusted_proxies", Some("TRUSTED_PROXIES"), Vec::new(), network);
        let lame_duck = section.value("lame_duck", None, Duration::ZERO, duration_or_zero);
        let drain_timeout = section.value("drain_timeout", None, Duration::from_secs(30), duration_or_zero);
        let readiness = section.value("readiness", None, Readiness::OnceAlive, discovery::readiness);

        let registry = RegistryKind::read(section.section("registry"));
        let discovery = Discovery::read(section.section("discovery"));
        let health = Health::read(section.section("health"));
        let limit = Limit::read(&settings, section.section("limit"));
        let client = ClientLimits::read(section.section("client"));
        let upstream = UpstreamLimits::read(section.section("upstream"));
        let mut part = section.section("sentinel");
        let enabled = part.value("enabled", None, false, truth);
        let sentinel = sentinel::Config::read(&settings, &mut part);
        part.finish();
        if matches!(registry, RegistryKind::InProcess) && !enabled {
            settings.mistake(format!(
                "{SECTION}.registry.kind: in-process without {SECTION}.sentinel.enabled: true, so nothing would fill it"
            ));
        }
        section.finish();

        let mut config = Self {
            server,
            listen,
            admin_listen,
            trusted_proxies,
            registry,
            discovery,
            health,
            limit,
            client,
            upstream,
            lame_duck,
            drain_timeout,
            readiness,
            sentinel_enabled: enabled,
            sentinel,
        };
        // Pingora sleeps this long after SIGTERM whatever happens; `lifecycle` leaves as soon as it can, so this only has
        // to be longer than the drain.
        config.server.grace_period_seconds = Some(config.drain_timeout.as_secs() + 10);
        // The total number of tries. `service` decides each one; Pingora's own limit must not be lower.
        config.server.max_retries = config.upstream.retries + 1;
        Ok(settings.finish(config)?)
    }

    /// What differs from `running` in this configuration and takes a restart or an upgrade. `server` is what Pingora runs with.
    pub fn needs_restart(&self, running: &Self, server: &ServerConf) -> Vec<&'static str> {
        let kind = |config: &Self| std::mem::discriminant(&config.registry);
        [
            ("Pingora's own keys", self.server != *server),
            ("listen", self.listen != running.listen),
            ("admin_listen", self.admin_listen != running.admin_listen),
            ("lame_duck", self.lame_duck != running.lame_duck),
            ("drain_timeout", self.drain_timeout != running.drain_timeout),
            ("registry.kind", kind(self) != kind(running)),
            (
                "discovery.state_file",
                self.discovery.state_file != running.discovery.state_file,
            ),
            ("sentinel.enabled", self.sentinel_enabled != running.sentinel_enabled),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

fn with_port(mut address: SocketAddr, port: Option<u16>) -> SocketAddr {
    if let Some(port) = port {
        address.set_port(port);
    }
    address
}

fn size_or_none(text: &str) -> Result<Option<u64>, String> {
    if text == "none" {
        return Ok(None);
    }
    size(text).map(Some).map_err(|expected| format!("{expected}, or none"))
}

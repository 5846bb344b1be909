//! The configuration: a Pingora conf file with one section of ours, and the environment over it.
//!
//! Pingora's own keys stand at the top level of the file, ours under `gopherproxy:`. Pingora ignores keys it doesn't know,
//! so that a misspelt one would do nothing; here a key that nobody knows is a mistake at either level. All mistakes come in
//! one error ([`chassis::settings`]), and without a file every default below holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chassis::settings::{Section, Settings, duration, duration_or_zero, positive, size, whole};
use ipnet::IpNet;
use pingora::server::configuration::ServerConf;
use registry::RedisUrl;
use yaml_serde::{Mapping, Value};

use crate::head::MOST_FIELDS;

/// Our section in the file.
const SECTION: &str = "gopherproxy";

/// Where a successor waits for the listening sockets, in a directory of its own that nobody else may enter.
const UPGRADE_SOCKET: &str = "/run/gopherproxy/upgrade.sock";

/// The longest that a token bucket may take to fill, in seconds: what is longer is a quota, not a rate.
const LONGEST_REFILL: f64 = 86_400.0;

/// All that can be configured.
#[derive(Debug)]
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
    /// Whether there is a sentinel inside this process.
    pub sentinel_enabled: bool,
    /// What it probes, and how.
    pub sentinel: sentinel::Config,
}

/// Keys, each with its value in words.
pub type Fixed = Vec<(&'static str, String)>;

/// Where the set of origins is.
#[derive(Debug)]
pub enum RegistryKind {
    /// In Redis.
    Redis(RedisUrl),
    /// In this process, written by the sentinel inside it.
    InProcess,
}

/// How the set of origins is read.
#[derive(Debug, Clone)]
pub struct Discovery {
    /// From one read to the next.
    pub interval: Duration,
    /// The file that the last good set is kept in.
    pub state_file: Option<PathBuf>,
}

/// The proxy's own health check of every backend.
#[derive(Debug, Clone)]
pub struct Health {
    /// From one check to the next.
    pub interval: Duration,
    /// How long a connection may take.
    pub timeout: Duration,
}

/// The token bucket of each client.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// How many requests a client may send at once.
    pub burst: u32,
    /// How many requests a second a client gets back.
    pub per_second: f64,
    /// How many clients have an exact bucket at a time.
    pub clients: usize,
    /// How many bits of an IPv6 address make a client.
    pub ipv6_prefix: u8,
    /// Clients without a limit.
    pub exempt: Vec<IpNet>,
}

/// What a client connection may take.
#[derive(Debug, Clone)]
pub struct ClientLimits {
    /// From the first byte of a request head to its last.
    pub head_timeout: Duration,
    /// Between requests, and before the first.
    pub idle_timeout: Duration,
    /// Between two pieces of a request body.
    pub read_timeout: Duration,
    /// For the client to take a piece of the response.
    pub write_timeout: Duration,
    /// The fewest bytes a second, on the average, that a request body may come at and a response be taken at.
    pub min_rate: Option<u64>,
    /// The longest request head, in bytes.
    pub max_head: usize,
    /// The most fields in a request head.
    pub max_fields: usize,
    /// The longest request body, in bytes.
    pub max_body: Option<u64>,
    /// The most requests on one connection.
    pub max_requests: u64,
    /// The most connections at a time.
    pub max_connections: usize,
    /// The most connections at a time from one address that is no trusted proxy.
    pub max_connections_per_client: usize,
}

/// What a backend may take.
#[derive(Debug, Clone)]
pub struct UpstreamLimits {
    /// To take a connection.
    pub connect_timeout: Duration,
    /// For the whole head of a response, and between two pieces of its body.
    pub read_timeout: Duration,
    /// To take a piece of the request.
    pub write_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// How long an upgraded connection (WebSocket) may be silent.
    pub tunnel_idle_timeout: Duration,
    /// Tries after the first.
    pub retries: usize,
    /// How many tries after the first there may be in all, for each request: a share.
    pub retry_budget: f64,
    /// When a backend that fails is left alone.
    pub ejection: Ejection,
}

/// When a backend that fails is left alone, and for how long.
#[derive(Debug, Clone)]
pub struct Ejection {
    /// So many failures in a row take a backend out.
    pub failures: u32,
    /// For how long, the first time.
    pub time: Duration,
    /// For how long at most: each time in a row is twice as long as the one before.
    pub max_time: Duration,
    /// The largest share of the alive backends that may be out at a time.
    pub max_share: f64,
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
        let server = server_conf(&settings, top);

        let mut section = settings.section(SECTION, ours);
        let listen = port_of(
            section.value("listen", None, any(8080), socket_address),
            settings.variable("PROXY_PORT", whole(0..=u16::MAX)),
        );
        let admin_listen = port_of(
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

        let mut part = section.section("registry");
        let kind = part.value("kind", None, "redis", |text| match text {
            "redis" => Ok("redis"),
            "in-process" => Ok("in-process"),
            _ => Err("redis or in-process".into()),
        });
        let url = part.value(
            "redis",
            Some("REDIS_URL"),
            RedisUrl::parse("localhost:16379")?,
            RedisUrl::parse,
        );
        part.finish();
        let registry = match kind {
            "in-process" => RegistryKind::InProcess,
            _ => RegistryKind::Redis(url),
        };

        let mut part = section.section("discovery");
        let discovery = Discovery {
            interval: part.value("interval", None, Duration::from_secs(5), duration),
            state_file: part.value("state_file", None, None, file_or_none),
        };
        part.finish();

        let mut part = section.section("health");
        let health = Health {
            interval: part.value("interval", None, Duration::from_secs(10), duration),
            timeout: part.value("timeout", None, Duration::from_secs(2), duration),
        };
        part.finish();

        let mut part = section.section("limit");
        let limit = Limit {
            burst: part.value("burst", Some("RATE_LIMIT_BURST"), 5, whole(1..=1_000_000)),
            per_second: part.value("per_second", Some("RATE_LIMIT_PER_SECOND"), 2.0, positive(1e6)),
            clients: part.value("clients", None, 131_072, whole(1_024..=16_777_216)),
            ipv6_prefix: part.value("ipv6_prefix", None, 64, whole(1..=128)),
            exempt: part.list("exempt", None, Vec::new(), network),
        };
        part.finish();
        if f64::from(limit.burst) / limit.per_second > LONGEST_REFILL {
            settings.mistake(format!(
                "{SECTION}.limit: a burst of {} at {} a second takes more than a day to come back, takes a day or less",
                limit.burst, limit.per_second
            ));
        }

        let mut part = section.section("client");
        let client = ClientLimits {
            head_timeout: part.value("head_timeout", None, Duration::from_secs(10), duration),
            idle_timeout: part.value("idle_timeout", None, Duration::from_secs(60), duration),
            read_timeout: part.value("read_timeout", None, Duration::from_secs(60), duration),
            write_timeout: part.value("write_timeout", None, Duration::from_secs(60), duration),
            min_rate: part.value("min_rate", None, Some(240), size_or_none),
            max_head: part.value("max_head", None, 32 << 10, head_size),
            max_fields: part.value("max_fields", None, 100, whole(1..=MOST_FIELDS)),
            max_body: part.value("max_body", None, None, size_or_none),
            max_requests: part.value("max_requests", None, 10_000, whole(1..=u64::MAX)),
            max_connections: part.value("max_connections", None, 10_000, whole(1..=1_000_000)),
            max_connections_per_client: part.value("max_connections_per_client", None, 5_000, whole(1..=1_000_000)),
        };
        part.finish();

        let mut part = section.section("upstream");
        let upstream = UpstreamLimits {
            connect_timeout: part.value("connect_timeout", None, Duration::from_secs(2), duration),
            read_timeout: part.value("read_timeout", None, Duration::from_secs(60), duration),
            write_timeout: part.value("write_timeout", None, Duration::from_secs(60), duration),
            idle_timeout: part.value("idle_timeout", None, Duration::from_secs(60), duration),
            tunnel_idle_timeout: part.value("tunnel_idle_timeout", None, Duration::from_secs(3600), duration),
            retries: part.value("retries", None, 2, whole(0..=10)),
            retry_budget: part.value("retry_budget", None, 0.2, share),
            ejection: Ejection::read(part.section("ejection")),
        };
        part.finish();

        let mut part = section.section("sentinel");
        let enabled = part.value("enabled", None, false, chassis::settings::truth);
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
}

impl Config {
    /// What a running process can't change, each key with its value in words.
    pub fn fixed(&self) -> Fixed {
        vec![
            ("Pingora's own keys", format!("{:?}", self.server)),
            ("listen", self.listen.to_string()),
            ("admin_listen", self.admin_listen.to_string()),
            ("lame_duck", format!("{:?}", self.lame_duck)),
            ("drain_timeout", format!("{:?}", self.drain_timeout)),
            ("registry", format!("{:?}", self.registry)),
            ("discovery.state_file", format!("{:?}", self.discovery.state_file)),
            ("sentinel.enabled", self.sentinel_enabled.to_string()),
        ]
    }
}

impl Ejection {
    fn read(mut part: Section<'_>) -> Self {
        let ejection = Self {
            failures: part.value("failures", None, 3, whole(1..=1_000)),
            time: part.value("time", None, Duration::from_secs(5), duration),
            max_time: part.value("max_time", None, Duration::from_secs(60), duration),
            max_share: part.value("max_share", None, 0.5, share),
        };
        part.finish();
        ejection
    }
}

/// Pingora's own keys, each read by itself so that one mistake doesn't hide the next.
fn server_conf(settings: &Settings, keys: Mapping) -> ServerConf {
    const SUPERVISOR: &str = "that is for a supervisor (systemd, a container) to do";
    /// Keys that Pingora has and this program sets itself or can't have, and what to do instead.
    const OURS: [(&str, &str); 12] = [
        ("daemon", SUPERVISOR),
        ("daemon_wait_for_ready", SUPERVISOR),
        ("daemon_ready_timeout_seconds", SUPERVISOR),
        ("daemon_notify_timeout_seconds", SUPERVISOR),
        ("pid_file", SUPERVISOR),
        ("user", SUPERVISOR),
        ("group", SUPERVISOR),
        ("working_directory", SUPERVISOR),
        ("grace_period_seconds", "set gopherproxy.drain_timeout instead"),
        (
            "graceful_shutdown_timeout_seconds",
            "set gopherproxy.drain_timeout instead",
        ),
        ("max_retries", "set gopherproxy.upstream.retries instead"),
        ("error_log", "the log goes to standard output"),
    ];
    let default = ServerConf {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        upgrade_sock: UPGRADE_SOCKET.into(),
        // With fewer than there are backends nearly every request would open a connection. Pingora's 128 are for one site.
        upstream_keepalive_pool_size: 1024,
        ..ServerConf::default()
    };
    let Ok(Value::Mapping(mut accepted)) = yaml_serde::to_value(&default) else {
        return default;
    };
    for (key, value) in keys {
        let name = key.as_str().unwrap_or("a key that is no text");
        if let Some((_, instead)) = OURS.iter().find(|(ours, _)| *ours == name) {
            settings.mistake(format!("{name}: can't be set here; {instead}"));
            continue;
        }
        if !accepted.contains_key(&key) {
            settings.mistake(format!("{name}: unknown key, takes Pingora's own keys or {SECTION}"));
            continue;
        }
        let alone = Mapping::from_iter([(key.clone(), value.clone())]);
        match yaml_serde::from_value::<ServerConf>(Value::Mapping(alone)) {
            Ok(conf)
                if !conf
                    .client_bind_to_ipv4
                    .iter()
                    .all(|address| address.parse::<Ipv4Addr>().is_ok()) =>
            {
                settings.mistake(format!(
                    "{name}: got {:?}, takes IPv4 addresses",
                    conf.client_bind_to_ipv4
                ));
            }
            Ok(conf)
                if !conf
                    .client_bind_to_ipv6
                    .iter()
                    .all(|address| address.parse::<Ipv6Addr>().is_ok()) =>
            {
                settings.mistake(format!(
                    "{name}: got {:?}, takes IPv6 addresses",
                    conf.client_bind_to_ipv6
                ));
            }
            Ok(conf) if conf.threads == 0 => settings.mistake("threads: got \"0\", takes a number from 1"),
            Ok(_) => {
                accepted.insert(key, value);
            }
            Err(error) => settings.mistake(format!("{name}: {error}")),
        }
    }
    let conf = yaml_serde::from_value::<ServerConf>(Value::Mapping(accepted));
    match conf.map(ServerConf::validate) {
        Ok(Ok(conf)) => conf,
        Ok(Err(error)) => {
            settings.mistake(error.to_string());
            default
        }
        Err(error) => {
            settings.mistake(error.to_string());
            default
        }
    }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

fn port_of(mut address: SocketAddr, port: Option<u16>) -> SocketAddr {
    if let Some(port) = port {
        address.set_port(port);
    }
    address
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "an address and a port, such as 0.0.0.0:8080 or [::]:8080".into())
}

/// A network in CIDR notation; a bare address is a network of one.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network
        .map(|network| network.trunc())
        .map_err(|_| "an address or a network, such as 10.0.0.0/8 or fd00::/8".into())
}

/// A request head: below 512 B no browser gets through. Pingora reads up to 1 MiB of the head that is written for it, which can be
/// more than twice as long as the one that came.
fn head_size(text: &str) -> Result<usize, String> {
    let expected = || "a size from 512B to 256KiB".to_owned();
    let bytes = size(text).map_err(|_| expected())?;
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| (512..=256 << 10).contains(bytes))
        .ok_or_else(expected)
}

/// A part of a whole.
fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "a share from 0 to 1, such as 0.2".into())
}

fn file_or_none(text: &str) -> Result<Option<PathBuf>, String> {
    match text {
        "none" => Ok(None),
        _ if Path::new(text).is_absolute() => Ok(Some(text.into())),
        _ => Err("the absolute path of a file, or none".into()),
    }
}

fn size_or_none(text: &str) -> Result<Option<u64>, String> {
    if text == "none" {
        return Ok(None);
    }
    size(text).map(Some).map_err(|expected| format!("{expected}, or none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_KEY: &str = include_str!("../../conf/gopherproxy.yaml");

    fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Config::parse(text, Settings::new(variables)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_documented_file_shows_every_key_at_its_default() {
        let default = read("", &[]).unwrap();
        let documented = read(EVERY_KEY, &[]).unwrap();
        assert_eq!(format!("{documented:?}"), format!("{default:?}"));
        // Nothing is left out: each key is read, and taking it away leaves one key fewer in the file.
        for line in EVERY_KEY.lines().filter(|line| line.starts_with("  ")) {
            let key = line.trim_start().trim_start_matches("# ").split(':').next().unwrap();
            let misspelt = EVERY_KEY.replacen(line, &line.replacen(key, "misspelt", 1), 1);
            if !line.trim_start().starts_with('#') {
                let error = read(&misspelt, &[]).unwrap_err();
                for known in error.split("takes ").nth(1).unwrap().split(", ") {
                    assert!(EVERY_KEY.contains(&format!("{known}:")), "{known} is not documented");
                }
            }
        }
    }

    #[test]
    fn the_embedded_file_needs_no_redis() {
        let config = read(include_str!("../../conf/embedded.yaml"), &[]).unwrap();
        assert!(matches!(config.registry, RegistryKind::InProcess));
        assert!(config.sentinel_enabled);
    }

    #[test]
    fn the_file_of_the_image_waits_for_balancers_and_keeps_the_set() {
        let config = read(include_str!("../../conf/container.yaml"), &[]).unwrap();
        assert_eq!(config.lame_duck, Duration::from_secs(2));
        assert!(config.discovery.state_file.is_some());
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let file = "gopherproxy: {listen: '127.0.0.1:1', limit: {burst: 7}}";
        let config = read(file, &[]).unwrap();
        assert_eq!(config.listen, "127.0.0.1:1".parse().unwrap());
        assert_eq!(config.limit.burst, 7);
        let variables = [
            ("PROXY_PORT", "80"),
            ("METRICS_PORT", "81"),
            ("RATE_LIMIT_BURST", "9"),
            ("RATE_LIMIT_PER_SECOND", "0.5"),
            ("REDIS_URL", "rediss://user:secret@redis:6380/2"),
            ("TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
            ("SENTINEL_TARGETS", "a:1"),
        ];
        let config = read(file, &variables).unwrap();
        assert_eq!(config.listen, "127.0.0.1:80".parse().unwrap());
        assert_eq!(config.admin_listen, "0.0.0.0:81".parse().unwrap());
        assert_eq!((config.limit.burst, config.limit.per_second), (9, 0.5));
        assert_eq!(config.trusted_proxies.len(), 2);
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn each_bad_value_is_named_with_what_it_takes() {
        for (text, named) in [
            (
                "gopherproxy: {listen: 8080}",
                "gopherproxy.listen: got \"8080\", takes an address and a port",
            ),
            (
                "gopherproxy: {listen: '0.0.0.0:2112'}",
                "admin_listen: 0.0.0.0:2112 is listen too",
            ),
            (
                "gopherproxy: {trusted_proxies: [10.0.0.0/33]}",
                "trusted_proxies: entry 1 is \"10.0.0.0/33\"",
            ),
            (
                "gopherproxy: {drain_timeout: 30}",
                "drain_timeout: got \"30\", takes a duration with its unit",
            ),
            (
                "gopherproxy: {registry: {kind: etcd}}",
                "registry.kind: got \"etcd\", takes redis or in-process",
            ),
            ("gopherproxy: {registry: {kind: in-process}}", "nothing would fill it"),
            (
                "gopherproxy: {registry: {redis: 'http://x'}}",
                "registry.redis: got \"http://x\", takes host:port",
            ),
            (
                "gopherproxy: {discovery: {interval: 0s}}",
                "discovery.interval: got \"0s\"",
            ),
            ("gopherproxy: {health: {timeout: soon}}", "health.timeout: got \"soon\""),
            (
                "gopherproxy: {limit: {burst: 0}}",
                "limit.burst: got \"0\", takes a whole number from 1",
            ),
            (
                "gopherproxy: {limit: {per_second: 0}}",
                "limit.per_second: got \"0\", takes a number above 0",
            ),
            ("gopherproxy: {limit: {per_second: 0.00001}}", "takes more than a day"),
            ("gopherproxy: {limit: {clients: 1}}", "limit.clients: got \"1\""),
            (
                "gopherproxy: {limit: {ipv6_prefix: 129}}",
                "limit.ipv6_prefix: got \"129\"",
            ),
            (
                "gopherproxy: {client: {max_head: 2MiB}}",
                "client.max_head: got \"2MiB\", takes a size from 512B",
            ),
            ("gopherproxy: {client: {max_body: 1}}", "client.max_body: got \"1\""),
            ("gopherproxy: {upstream: {retries: -1}}", "upstream.retries: got \"-1\""),
            ("gopherproxy: {upstreams: {}}", "gopherproxy.upstreams: unknown key"),
            ("gopherproxy: {sentinel: {targets: [a]}}", "SENTINEL_TARGETS"),
            (
                "gopherproxy: {sentinel: {enabled: yes please}}",
                "sentinel.enabled: got \"yes please\"",
            ),
            ("gopherproxy: 1", "gopherproxy: got \"1\", takes keys and values"),
            ("threads: many", "threads: invalid type"),
            ("threads: 0", "threads: got \"0\""),
            ("thread: 2", "thread: unknown key"),
            ("daemon: true", "daemon: can't be set here"),
            (
                "max_retries: 3",
                "max_retries: can't be set here; set gopherproxy.upstream.retries",
            ),
            (
                "client_bind_to_ipv4: [nonsense]",
                "client_bind_to_ipv4: got [\"nonsense\"], takes IPv4 addresses",
            ),
            (
                "client_bind_to_ipv6: [127.0.0.1]",
                "client_bind_to_ipv6: got [\"127.0.0.1\"], takes IPv6",
            ),
            ("user: www", "user: can't be set here; that is for a supervisor"),
            ("- a", "not a group of keys"),
            ("a: [", "not YAML"),
        ] {
            let error = read(text, &[]).expect_err(text);
            assert!(error.contains(named), "{text}: {error}");
        }
        for (variable, value) in [
            ("PROXY_PORT", "65536"),
            ("METRICS_PORT", ""),
            ("REDIS_URL", ""),
            ("TRUSTED_PROXIES", "10.0.0.0/8,x"),
            ("SENTINEL_TARGETS", "x"),
            ("RATE_LIMIT_BURST", "1.5"),
            ("RATE_LIMIT_PER_SECOND", "-2"),
        ] {
            let error = read("", &[(variable, value)]).expect_err(variable);
            assert!(error.contains(variable), "{error}");
        }
    }

    #[test]
    fn all_mistakes_come_at_once() {
        let text = "threads: x\nwork_stealing: perhaps\ngopherproxy: {limit: {burst: x}, typo: 1}";
        let error = read(text, &[("PROXY_PORT", "x")]).unwrap_err();
        for part in [
            "threads",
            "work_stealing",
            "limit.burst",
            "typo",
            "PROXY_PORT",
            "mistakes",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

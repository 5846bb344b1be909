use super::*;

const EVERY_KEY: &str = include_str!("../../../conf/gopherproxy.yaml");

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
    let config = read(include_str!("../../../conf/embedded.yaml"), &[]).unwrap();
    assert!(matches!(config.registry, RegistryKind::InProcess));
    assert!(config.sentinel_enabled);
}

#[test]
fn the_file_of_the_image_waits_for_balancers_and_keeps_the_set() {
    let config = read(include_str!("../../../conf/container.yaml"), &[]).unwrap();
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
            "gopherproxy: {readiness: always}",
            "readiness: got \"always\", takes once-alive or while-alive",
        ),
        (
            "gopherproxy: {registry: {kind: etcd}}",
            "registry.kind: got \"etcd\", takes redis or in-process",
        ),
        ("gopherproxy: {registry: {kind: in-process}}", "nothing would fill it"),
        (
            "gopherproxy: {registry: {redis: 'http://x'}}",
            "registry.redis: takes host:port",
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

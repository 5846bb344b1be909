use super::*;
use crate::tls::Source;

const EVERY_KEY: &str = include_str!("../../../conf/gopherproxy.yaml");

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    Config::parse(text, Settings::new(variables)).map_err(|error| error.to_string())
}

/// The remarks as lines.
fn remarks(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let remarks = read(text, variables).unwrap().remarks;
    let line = |remark| match remark {
        Remark::Overridden { key, line, variable } => format!("{line} {key} < {variable}"),
        Remark::NoEffect { key, line, why } => format!("{line} {key}: {why}"),
    };
    remarks.into_iter().map(line).collect()
}

#[test]
fn the_documented_file_shows_every_key_at_its_default() {
    assert_eq!(read(EVERY_KEY, &[]), read("", &[]));
    // Nothing is left out of it but what of Pingora's is not worth knowing.
    let settings = Settings::new([]);
    Config::read(settings.top(None));
    let mut path = Vec::new();
    let mut documented = Vec::new();
    for line in EVERY_KEY.lines() {
        let key = line.trim_start().split(':').next().unwrap();
        let depth = (line.len() - line.trim_start().len()) / 2;
        if !key.is_empty() && !key.contains(['#', ' ']) {
            path.truncate(depth);
            path.push(key);
            documented.push(path.join("."));
        }
    }
    for key in settings.known() {
        let is_ours = key.starts_with("gopherproxy.");
        assert!(!is_ours || documented.contains(&key), "{key} is not documented");
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
fn the_file_for_https_takes_ten_lines_and_a_directory_to_write_to() {
    const FILE: &str = include_str!("../../../conf/https.yaml");
    let config = read(FILE, &[]).unwrap();
    assert_eq!(config.remarks, []);
    assert!(FILE.lines().count() <= 10);
    let acme = config.acme.unwrap();
    assert_eq!(
        (acme.hosts, acme.challenge),
        (vec!["www.shop.example".to_owned()], Challenge::Http01)
    );
    let issued = "/var/lib/gopherproxy/acme/www.shop.example.pem".into();
    assert_eq!(config.tls.settings.certificates, [Source::Issued(issued)]);
    let unit = include_str!("../../../conf/gopherproxy.service");
    assert!(unit.contains("StateDirectory=gopherproxy\n"), "it may write there");
    let page = include_str!("../../../docs/https.md");
    let keys = FILE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('#').next().unwrap().trim_end());
    assert!(
        page.contains(&keys.collect::<Vec<_>>().join("\n")),
        "the page shows the file"
    );
}

#[test]
fn certificates_are_not_ordered_without_what_they_take() {
    let with = |more: &str| {
        let file = format!("gopherproxy:\n  tls: {{listen: 443}}\n  acme:\n    hosts: [a.example]\n{more}");
        read(&file, &[]).unwrap_err()
    };
    let refused = with("");
    assert!(
        refused.contains("gopherproxy.acme.terms_agreed: expected true, got false: "),
        "{refused}"
    );
    let refused = with("    terms_agreed: false\n");
    assert!(
        refused.contains("line 5: gopherproxy.acme.terms_agreed: expected true"),
        "{refused}"
    );
    for (more, says) in [
        (
            "directory: http://ca.example/dir",
            "gopherproxy.acme.directory: expected the URL of an ACME directory, https://",
        ),
        (
            "storage: acme",
            "gopherproxy.acme.storage: expected the absolute path of a directory",
        ),
        (
            "challenge: dns-01",
            "gopherproxy.acme.challenge: expected http-01 or tls-alpn-01",
        ),
        (
            "emails: [ops]",
            "gopherproxy.acme.emails: entry 1: expected an address for mail",
        ),
        (
            "ca_file: ca.pem",
            "gopherproxy.acme.ca_file: expected none or the absolute path",
        ),
    ] {
        let refused = with(&format!("    terms_agreed: true\n    {more}\n"));
        assert!(refused.contains(&format!("line 6: {says}")), "{refused}");
    }
    let refused = read(
        "gopherproxy: {tls: {listen: 443}, acme: {hosts: ['*.a.example'], terms_agreed: true}}",
        &[],
    );
    assert!(
        refused
            .unwrap_err()
            .contains("entry 1: expected the name of one host (a wildcard")
    );
    let refused = read("gopherproxy: {acme: {hosts: [a.example], terms_agreed: true}}", &[]).unwrap_err();
    assert!(
        refused.contains("gopherproxy.tls.listen: acme.hosts gets certificates"),
        "{refused}"
    );
    assert_eq!(
        remarks("gopherproxy:\n  acme:\n    storage: /a\n", &[]),
        ["3 gopherproxy.acme.storage: gopherproxy.acme.hosts names no host"]
    );
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
        ("REDIS_URL", "rediss://user:hunter2@redis:6380/2"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
        ("SENTINEL_TARGETS", "a:1"),
    ];
    let config = read(file, &variables).unwrap();
    assert_eq!(config.listen, "127.0.0.1:80".parse().unwrap());
    assert_eq!(config.admin_listen, "0.0.0.0:81".parse().unwrap());
    assert_eq!((config.limit.burst, config.limit.per_second), (9, 0.5));
    assert_eq!(config.trusted_proxies.len(), 2);
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn each_bad_value_is_named_with_its_line_and_what_was_expected() {
    for (text, named) in [
        (
            "gopherproxy:\n  listen: 127.0.0.1",
            "line 2: gopherproxy.listen: expected an address and a port, such as 8080, 127.0.0.1:8080",
        ),
        (
            "gopherproxy: {admin_listen: '0.0.0.0:8080'}",
            "line 1: gopherproxy.admin_listen: 0.0.0.0:8080 is the address of listen too",
        ),
        (
            "gopherproxy: {trusted_proxies: [10.0.0.0/33]}",
            "trusted_proxies: entry 1: expected an address or a network, such as 10.0.0.0/8 or fd00::/8, got \"10.0.0.0/33\"",
        ),
        (
            "gopherproxy: {drain_timeout: 30}",
            "drain_timeout: expected a duration with a unit, such as 30s or 30ms, or 0s for none, got \"30\"",
        ),
        (
            "gopherproxy: {readiness: always}",
            "readiness: expected once-alive or while-alive, got \"always\"",
        ),
        (
            "gopherproxy: {registry: {kind: etcd}}",
            "registry.kind: expected redis or in-process, got \"etcd\"",
        ),
        (
            "gopherproxy: {registry: {kind: in-process}}",
            "gopherproxy.sentinel.enabled: nothing would fill the registry",
        ),
        (
            "gopherproxy: {registry: {redis: 'http://x'}}",
            "registry.redis: expected host:port, redis://",
        ),
        (
            "gopherproxy: {discovery: {interval: 0s}}",
            "discovery.interval: expected a duration above zero",
        ),
        (
            "gopherproxy: {discovery: {state_file: here}}",
            "state_file: expected none or the absolute path of a file",
        ),
        (
            "gopherproxy: {health: {timeout: soon}}",
            "health.timeout: expected a duration above zero with a unit, such as 5s, 500ms or 1m30s, got \"soon\"",
        ),
        (
            "gopherproxy: {tls: {listen: 443}}",
            "gopherproxy.tls.listen: TLS needs a certificate: tls.certificates lists files",
        ),
        (
            "gopherproxy: {tls: {listen: '0.0.0.0:8080', certificates: /c}}",
            "gopherproxy.tls.listen: 0.0.0.0:8080 is the address of listen too",
        ),
        (
            "gopherproxy: {tls: {listen: tls}}",
            "tls.listen: expected an address and a port, such as 8080, 127.0.0.1:8080 or \"[::]:8080\", or none, got \"tls\"",
        ),
        (
            "gopherproxy:\n  tls:\n    certificates:\n    - certs",
            "line 4: gopherproxy.tls.certificates: expected {cert: FILE, key: FILE}, or the absolute path of a directory, got \"certs\"",
        ),
        (
            "gopherproxy: {tls: {certificates: [{cert: /a}]}}",
            "gopherproxy.tls.certificates.key: expected the absolute path of a PEM file, got nothing",
        ),
        (
            "gopherproxy: {tls: {certificates: {cert: a, key: /b}}}",
            "tls.certificates.cert: expected the absolute path of a PEM file, got \"a\"",
        ),
        (
            "gopherproxy: {tls: {certificates: [{cert: /a, key: /b, keys: /c}]}}",
            "gopherproxy.tls.certificates.keys: unknown key; did you mean key?",
        ),
        (
            "gopherproxy: {tls: {min_version: 1.1}}",
            "tls.min_version: expected 1.2 or 1.3, got \"1.1\"",
        ),
        (
            "gopherproxy: {tls: {client_auth: yes}}",
            "tls.client_auth: expected none, optional or required, got \"yes\"",
        ),
        (
            "gopherproxy: {tls: {listen: 443, certificates: /c, client_auth: required}}",
            "gopherproxy.tls.client_auth: clients' certificates are verified by an authority: tls.client_ca names the file",
        ),
        (
            "gopherproxy: {tls: {redirect_exempt: [health]}}",
            "tls.redirect_exempt: entry 1: expected a path such as /health, got \"health\"",
        ),
        (
            "gopherproxy: {tls: {redirect_port: 0}}",
            "tls.redirect_port: expected auto, or a port from 1 to 65535, got \"0\"",
        ),
        (
            "gopherproxy: {tls: {hsts: 365}}",
            "tls.hsts: expected a duration with a unit, such as 365s or 365ms, or none, got \"365\"",
        ),
        (
            "gopherproxy: {tls: {ticket_secret: here}}",
            "tls.ticket_secret: expected none or the absolute path of a file, got \"here\"",
        ),
        (
            "gopherproxy: {limit: {burst: 0}}",
            "limit.burst: expected a whole number from 1 to 1000000, got \"0\"",
        ),
        (
            "gopherproxy: {limit: {per_second: 0}}",
            "limit.per_second: expected a number above 0",
        ),
        (
            "gopherproxy: {limit: {per_second: 0.00001}}",
            "line 1: gopherproxy.limit.per_second: at 0.00001 requests a second, a burst of 5 takes more than a day",
        ),
        (
            "gopherproxy: {limit: 5}",
            "limit: expected keys and values, or off, got \"5\"",
        ),
        (
            "gopherproxy: {limit: {clients: 1}}",
            "limit.clients: expected a whole number from 1024",
        ),
        (
            "gopherproxy: {limit: {ipv6_prefix: 129}}",
            "limit.ipv6_prefix: expected a whole number",
        ),
        (
            "gopherproxy: {client: {max_head: 2MiB}}",
            "client.max_head: expected a size from 512B to 256KiB, got \"2MiB\"",
        ),
        (
            "gopherproxy: {client: {max_body: 1}}",
            "client.max_body: expected a size with a unit, such as 1B, 1KiB or 1MiB, or none, got \"1\"",
        ),
        (
            "gopherproxy: {client: {max_held: 1MiB}}",
            "client.max_held: expected auto, or a size of at least 8MiB, got \"1MiB\"",
        ),
        (
            "gopherproxy: {client: {raw_targets: sometimes}}",
            "client.raw_targets: expected true or false, got \"sometimes\"",
        ),
        (
            "gopherproxy: {client: {upgrades: [websocket, h2c]}}",
            "client.upgrades: entry 2: expected a protocol such as websocket, and not HTTP, got \"h2c\"",
        ),
        (
            "gopherproxy: {client: {upgrades: 'a b'}}",
            "client.upgrades: entry 1: expected a protocol such as websocket",
        ),
        (
            "gopherproxy: {client: {upgrades: [HTTP/2.0]}}",
            "client.upgrades: entry 1: expected a protocol such as websocket",
        ),
        (
            "gopherproxy: {upstream: {retries: -1}}",
            "upstream.retries: expected a whole number",
        ),
        (
            "gopherproxy: {upstreams: {}}",
            "line 1: gopherproxy.upstreams: unknown key; did you mean upstream?",
        ),
        (
            "gopherproxy: {sentinel: {targets: [a]}}",
            "sentinel.targets: entry 1: expected a host and a port, such as 10.0.0.7:8081, origin:8081 or [::1]:8081 (the port is missing), got \"a\"",
        ),
        (
            "gopherproxy: {sentinel: {enabled: yes please}}",
            "sentinel.enabled: expected true or false, got \"yes please\"",
        ),
        ("gopherproxy: 1", "gopherproxy: expected keys and values"),
        (
            "gopherproxy:\n  listen:8080",
            "gopherproxy: expected keys and values (each in a line of its own, with a space after the colon)",
        ),
        (
            "threads: two",
            "line 1: threads: expected a whole number from 1 to 1024, got \"two\"",
        ),
        ("threads: 0", "threads: expected a whole number from 1"),
        (
            "listener_tasks_per_fd: 0",
            "listener_tasks_per_fd: expected a whole number from 1",
        ),
        (
            "upstream_keepalive_pool_size: 18446744073709551615",
            "expected a whole number from 0",
        ),
        (
            "work_stealing: perhaps",
            "work_stealing: expected true or false, got \"perhaps\"",
        ),
        (
            "max_blocking_threads: many",
            "max_blocking_threads: expected a whole number, got \"many\"",
        ),
        (
            "max_blocking_threads: 0",
            "max_blocking_threads: expected another number",
        ),
        (
            "ca_file: 5",
            "ca_file: this key can't be set here; set gopherproxy.upstream.tls.ca_file instead",
        ),
        (
            "gopherproxy: {upstream: {protocol: h2}}",
            "gopherproxy.upstream.protocol: expected http1 or h2c, got \"h2\"",
        ),
        (
            "gopherproxy: {upstream: {tls: {server_name: 'a b'}}}",
            "gopherproxy.upstream.tls.server_name: expected a host name or an address",
        ),
        (
            "gopherproxy: {upstream: {tls: {cert: /a.pem}}}",
            "gopherproxy.upstream.tls.cert: a certificate needs its private key: set key too",
        ),
        ("thread: 2", "line 1: thread: unknown key; did you mean threads?"),
        (
            "nonsense: 2",
            "unknown key; the keys here are gopherproxy and Pingora's own",
        ),
        (
            "listen: 8080",
            "listen: unknown key; did you mean gopherproxy.listen or gopherproxy.tls.listen?",
        ),
        (
            "gopherproxy: {threads: 2}",
            "gopherproxy.threads: unknown key; did you mean threads?",
        ),
        (
            "daemon: true",
            "daemon: this key can't be set here; that is the job of a supervisor",
        ),
        (
            "max_retries: 3",
            "max_retries: this key can't be set here; set gopherproxy.upstream.retries",
        ),
        (
            "client_bind_to_ipv4: [nonsense]",
            "client_bind_to_ipv4: expected a list of IPv4 addresses",
        ),
        (
            "client_bind_to_ipv6: [127.0.0.1]",
            "client_bind_to_ipv6: expected a list of IPv6 addresses",
        ),
        ("- a", "the file: expected keys and values"),
        ("a: [", "not YAML"),
        (
            "gopherproxy:\n\tlisten: 80",
            "line 2: YAML is indented with spaces, and there is a tab",
        ),
    ] {
        let error = read(text, &[]).expect_err(text);
        assert!(error.contains("has a mistake: "), "one: {error}");
        assert!(error.contains(named), "{text}: {error}");
    }
    for (variable, value) in [
        ("PROXY_PORT", "65536"),
        ("METRICS_PORT", "http"),
        ("TLS_PORT", "https"),
        ("REDIS_URL", "redis"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,x"),
        ("SENTINEL_TARGETS", "x"),
        ("RATE_LIMIT", "5"),
        ("RATE_LIMIT_BURST", "1.5"),
        ("RATE_LIMIT_PER_SECOND", "-2"),
    ] {
        for name in [variable.to_owned(), format!("GOPHERPROXY_{variable}")] {
            let error = read("", &[(&name, value)]).expect_err(variable);
            let beginning = format!("the configuration has a mistake: {name}: ");
            assert!(error.starts_with(&beginning), "{error}");
        }
        assert!(read("", &[(variable, "")]).is_ok(), "an empty variable is unset");
    }
    let error = read("", &[("METRICS_PORT", "8080")]).unwrap_err();
    assert!(
        error.contains("METRICS_PORT: 0.0.0.0:8080 is the address of listen too"),
        "{error}"
    );
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
        "5 mistakes",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn no_mistake_repeats_a_redis_password() {
    for url in [
        "redis://user:hunter2:host:6379",
        "redis+unix:///run/redis.sock?pass=hunter2",
        "redis://user:hunter2@host/x",
        "hunter2",
        "user:hunter2",
    ] {
        for (text, variables) in [
            ("", &[("REDIS_URL", url)][..]),
            (&format!("gopherproxy: {{registry: {{redis: '{url}'}}}}"), &[]),
        ] {
            let error = read(text, variables).unwrap_err();
            assert!(error.contains("not shown"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

#[test]
fn values_are_taken_as_other_proxies_write_them() {
    let config = read(
        "threads: 3\ngopherproxy: {listen: 80, admin_listen: 'localhost:2112', client: {max_head: 32K, max_body: 10MB}, \
         sentinel: {enabled: yes, targets: http://origin:8081/}, limit: off}",
        &[],
    );
    let config = config.unwrap();
    assert_eq!(config.server.threads, 3);
    assert_eq!(config.kept_connections(), 3 * 1024);
    assert_eq!(config.listen, "0.0.0.0:80".parse().unwrap());
    assert_eq!(config.admin_listen, "127.0.0.1:2112".parse().unwrap());
    assert_eq!(
        (config.client.max_head, config.client.transfer.max_body),
        (32_768, Some(10_000_000))
    );
    assert_eq!(config.sentinel.targets, ["origin:8081".parse().unwrap()]);
    assert!(config.sentinel_enabled && !config.limit_enabled);
    assert!(!read("", &[("RATE_LIMIT", "off")]).unwrap().limit_enabled);
    assert!(
        read("gopherproxy: {limit: off}", &[("RATE_LIMIT", "on")])
            .unwrap()
            .limit_enabled
    );
}

#[test]
fn the_protocols_to_switch_to_are_a_list_that_can_be_empty() {
    let upgrades = |value: &str| {
        let text = format!("gopherproxy: {{client: {{upgrades: {value}}}}}");
        read(&text, &[]).unwrap().client.head.upgrades
    };
    assert_eq!(read("", &[]).unwrap().client.head.upgrades, ["websocket"]);
    assert_eq!(upgrades("[WebSocket, irc/6.9]"), ["WebSocket", "irc/6.9"]);
    assert_eq!(upgrades("websocket"), ["websocket"]);
    assert_eq!(upgrades("[]"), [""; 0]);
    assert_eq!(upgrades("none"), [""; 0]);
}

#[test]
fn anchors_aliases_and_merge_keys_are_taken() {
    let text =
        "x-limits: &limits {burst: 7, per_second: 3}\ngopherproxy:\n  limit:\n    <<: *limits\n    per_second: 4";
    let limit = read(text, &[]).unwrap().limit;
    assert_eq!((limit.burst, limit.per_second), (7, 4.0));
}

#[test]
fn a_key_without_effect_is_remarked() {
    for (text, variables, expected) in [
        (
            "gopherproxy: {sentinel: {targets: ['a:1']}}",
            &[][..],
            "1 gopherproxy.sentinel.targets: gopherproxy.sentinel.enabled is not true",
        ),
        (
            "gopherproxy:\n  registry: {kind: in-process, redis: 'a:1'}\n  sentinel: {enabled: true}",
            &[],
            "2 gopherproxy.registry.redis: the registry is in this process",
        ),
        (
            "gopherproxy: {upstream: {retries: 0, retry_budget: 0.5}}",
            &[],
            "1 gopherproxy.upstream.retry_budget: upstream.retries is 0",
        ),
        (
            "gopherproxy: {client: {max_connections: 10, max_connections_per_client: 20}}",
            &[],
            "1 gopherproxy.client.max_connections_per_client: it is above client.max_connections",
        ),
        (
            "gopherproxy:\n  limit: {burst: 7}",
            &[("RATE_LIMIT_BURST", "5")],
            "2 gopherproxy.limit.burst < RATE_LIMIT_BURST",
        ),
        (
            "gopherproxy:\n  limit: {burst: 7}",
            &[("RATE_LIMIT", "off")],
            "2 gopherproxy.limit < RATE_LIMIT",
        ),
        (
            "gopherproxy:\n  listen: 127.0.0.1:1",
            &[("GOPHERPROXY_PROXY_PORT", "2")],
            "2 gopherproxy.listen < GOPHERPROXY_PROXY_PORT",
        ),
        (
            "gopherproxy: {registry: {redis: 'redis://:hunter2@a:1'}}",
            &[("REDIS_URL", "a:1")],
            "1 gopherproxy.registry.redis < REDIS_URL",
        ),
    ] {
        let remarks = remarks(text, variables);
        assert_eq!(remarks.len(), 1, "{text}: {remarks:?}");
        assert!(remarks[0].starts_with(expected), "{text}: {remarks:?}");
        assert!(!remarks[0].contains("hunter2"), "{remarks:?}");
    }
    // Values that the environment gives too, a separate sentinel's targets among them, are nothing to remark on.
    let variables = [
        ("SENTINEL_TARGETS", "a:1"),
        ("RATE_LIMIT_BURST", "7"),
        ("PROXY_PORT", "1"),
    ];
    let text = "gopherproxy: {listen: '127.0.0.1:1', limit: {burst: 7}}";
    assert_eq!(remarks(text, &variables), [""; 0]);
}

#[test]
fn only_what_a_running_process_cannot_change_needs_a_restart() {
    let running = read("", &[]).unwrap();
    for (text, expected) in [
        ("threads: 3", &["Pingora's own keys"][..]),
        ("gopherproxy: {listen: 81}", &["listen"]),
        ("gopherproxy: {admin_listen: 81}", &["admin_listen"]),
        ("gopherproxy: {lame_duck: 1s}", &["lame_duck"]),
        ("gopherproxy: {drain_timeout: 1s}", &["drain_timeout"]),
        (
            "gopherproxy: {registry: {kind: in-process}, sentinel: {enabled: true}}",
            &["registry.kind", "sentinel.enabled"],
        ),
        ("gopherproxy: {discovery: {state_file: /x}}", &["discovery.state_file"]),
        ("gopherproxy: {registry: {redis: 'redis://:secret@a:1'}}", &[]),
        ("gopherproxy: {trusted_proxies: ['::1'], readiness: while-alive}", &[]),
        (
            "gopherproxy: {discovery: {interval: 1s}, health: {interval: 1s, timeout: 1s}}",
            &[],
        ),
        ("gopherproxy: {limit: off}", &[]),
        (
            "gopherproxy: {client: {max_connections: 9000}, upstream: {retries: 10, retry_budget: 1}}",
            &[],
        ),
        ("gopherproxy: {sentinel: {targets: ['a:1']}}", &[]),
    ] {
        let config = read(text, &[]).unwrap();
        assert_eq!(config.needs_restart(&running, &running.server), expected, "{text}");
    }
}

#[test]
fn tls_is_on_where_it_has_a_port() {
    let certificates = "gopherproxy: {tls: {certificates: [/dir, {cert: /a.pem, key: /b.pem}]}}";
    let config = read(certificates, &[("TLS_PORT", "443")]).unwrap();
    assert_eq!(config.tls.listen, Some(any(443)));
    let (cert, key) = ("/a.pem".into(), "/b.pem".into());
    let sources = [Source::Directory("/dir".into()), Source::Pair { cert, key }];
    assert_eq!(config.tls.settings.certificates, sources);
    let config = read(
        "gopherproxy: {tls: {listen: '[::1]:1', certificates: /dir}}",
        &[("TLS_PORT", "443")],
    );
    assert_eq!(config.unwrap().tls.listen, Some("[::1]:443".parse().unwrap()));
    assert_eq!(
        remarks(certificates, &[]),
        ["1 gopherproxy.tls.certificates: gopherproxy.tls.listen is none; set it, or TLS_PORT"]
    );
    assert!(
        read("", &[("TLS_PORT", "443")])
            .unwrap_err()
            .contains("TLS_PORT: TLS needs a certificate")
    );
    let config = read("gopherproxy: {tls: {certificates: none}}", &[]).unwrap();
    assert_eq!((config.tls.listen, config.tls.settings.certificates), (None, vec![]));
}

use super::*;

mod https;
mod mistakes;
mod pools;

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
        let is_of_group = key.contains(".NAME.");
        assert!(
            !is_ours || is_of_group || documented.contains(&key),
            "{key} is not documented"
        );
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

    // With TLS it is the same but for that, and fewer connections, of which each takes more memory.
    let secure = read(include_str!("../../../conf/compose-https.yaml"), &[]).unwrap();
    assert_eq!(secure.lame_duck, config.lame_duck);
    assert_eq!(secure.discovery.state_file, config.discovery.state_file);
    assert_eq!(secure.tls.listen.map(|address| address.port()), Some(8443));
    assert!(secure.remarks.is_empty(), "{:?}", secure.remarks);
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
    assert!(config.sentinel.targets().eq(&["origin:8081".parse().unwrap()]));
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
            "gopherproxy: {sentinel: {pools: {api: ['a:1']}}}",
            &[],
            "1 gopherproxy.sentinel.pools: gopherproxy.sentinel.enabled is not true",
        ),
        (
            "gopherproxy:\n  registry: {kind: in-process, redis: 'a:1'}\n  sentinel: {enabled: true}",
            &[],
            "2 gopherproxy.registry.redis: the registry is in this process",
        ),
        (
            "gopherproxy: {upstream: {retries: 0, retry_budget: 0.5}}",
            &[],
            "1 gopherproxy.upstream.retry_budget: retries is 0",
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

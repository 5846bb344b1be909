//! Pools, and how their backends are checked.

use super::*;

fn name(text: &str) -> PoolName {
    text.parse().unwrap()
}

#[test]
fn without_pools_there_is_the_default_one_made_from_the_global_keys() {
    let config = read(
        "gopherproxy: {upstream: {protocol: h2c, retries: 1}, health: {fall: 3, interval: 1s}}",
        &[],
    )
    .unwrap();
    assert_eq!(config.pools.keys().collect::<Vec<_>>(), [&PoolName::default()]);
    let pool = &config.pools[&PoolName::default()];
    assert_eq!(pool, &config.every_pool);
    assert!(pool.backends.is_empty());
    assert_eq!((pool.upstream.protocol, pool.upstream.retries), (Protocol::H2c, 1));
    assert_eq!((pool.health.fall, pool.health.interval), (3, Duration::from_secs(1)));
    for none in ["pools:", "pools: {}"] {
        let file = format!(
            "gopherproxy:\n  upstream: {{protocol: h2c, retries: 1}}\n  health: {{fall: 3, interval: 1s}}\n  {none}"
        );
        assert_eq!(read(&file, &[]).unwrap().pools, config.pools, "{none}");
    }
}

#[test]
fn a_pool_takes_from_the_global_keys_what_it_does_not_say() {
    let file = "
gopherproxy:
  upstream: {read_timeout: 9s, ejection: {failures: 7}, tls: {server_name: global.example}}
  health: {kind: http, path: /alive, interval: 1s}
  pools:
    default: {}
    api:
      protocol: h2c
      ejection: {time: 8s}
      tls: {server_name: api.example}
      health: {path: '/healthz?full', status: 204, host: api.example, timeout: 4s, rise: 2}
    old: {backends: ['10.0.0.9:80', 'https://old.example:443'], health: {kind: tcp}, read_timeout: 1s}
";
    let config = read(file, &[]).unwrap();
    let [default, api, old] = ["default", "api", "old"].map(|pool| &config.pools[&name(pool)]);
    assert_eq!(default, &config.every_pool);
    assert_eq!(
        (
            api.upstream.protocol,
            api.upstream.read_timeout,
            api.upstream.tls.name_of("its.host")
        ),
        (Protocol::H2c, Duration::from_secs(9), "api.example")
    );
    assert_eq!(
        (api.upstream.ejection.failures, api.upstream.ejection.time),
        (7, Duration::from_secs(8))
    );
    let health = &api.health;
    assert_eq!(
        (health.kind, &*health.path, health.host.as_deref()),
        (HealthKind::Http, "/healthz?full", Some("api.example"))
    );
    assert_eq!((health.status.clone(), health.rise, health.fall), (204..=204, 2, 1));
    assert_eq!(
        (health.interval, health.timeout),
        (Duration::from_secs(1), Duration::from_secs(4))
    );
    let backends = old.backends.iter().map(ToString::to_string);
    assert_eq!(backends.collect::<Vec<_>>(), ["10.0.0.9:80", "https://old.example:443"]);
    assert_eq!(
        (old.health.kind, old.upstream.read_timeout),
        (HealthKind::Tcp, Duration::from_secs(1))
    );
    assert_eq!(old.upstream.tls.name_of("its.host"), "global.example");
}

#[test]
fn what_has_no_effect_in_pools_is_remarked() {
    let unused = "no request goes to this pool; name it in a route";
    let tcp = "the check is a connection: health.kind is tcp";
    assert_eq!(
        remarks(
            "gopherproxy:\n  pools:\n    default:\n    api: {health: {path: /x}}\n  health: {host: a}",
            &[]
        ),
        [
            format!("4 gopherproxy.pools.api.health.path: {tcp}"),
            format!("4 gopherproxy.pools.api: {unused}"),
            format!("5 gopherproxy.health.host: {tcp}"),
        ]
    );
    let one_by_http = "gopherproxy:\n  pools:\n    default: {health: {kind: http}}\n  health: {path: /x}";
    assert_eq!(remarks(one_by_http, &[]), [""; 0]);
    let no_retries = "gopherproxy:\n  pools:\n    default: {retries: 0, retry_budget: 0.1}";
    assert_eq!(
        remarks(no_retries, &[]),
        ["3 gopherproxy.pools.default.retry_budget: retries is 0"]
    );
}

#[test]
fn a_mistake_in_a_pool_names_the_pool() {
    for (pools, named) in [
        (
            "{API: {}}",
            "gopherproxy.pools.API: expected a name of 1 to 63 of a-z, 0-9, _ and -, got the name API",
        ),
        (
            "{api: {}}",
            "gopherproxy.pools: without routes requests go to the pool default, and there is none of that name; add it, or routes",
        ),
        ("{default: 5}", "gopherproxy.pools.default: expected keys and values"),
        ("[default]", "gopherproxy.pools: expected keys and values"),
        (
            "{default: {protocl: h2c}}",
            "gopherproxy.pools.default.protocl: unknown key; did you mean protocol?",
        ),
        (
            "{default: {backends: [a]}}",
            "pools.default.backends: entry 1: expected host:port, or https://host:port for TLS (expected host:port, and the port is missing), got \"a\"",
        ),
        (
            "{default: {tls: {cert: /c}}}",
            "gopherproxy.pools.default.tls.cert: a certificate needs its private key",
        ),
        (
            "{default: {health: {kind: grpc}}}",
            "pools.default.health.kind: expected tcp or http, got \"grpc\"",
        ),
        (
            "{default: {health: {path: healthz}}}",
            "health.path: expected a path, such as /healthz, got \"healthz\"",
        ),
        ("{default: {health: {path: '/a b'}}}", "health.path: expected a path"),
        (
            "{default: {health: {status: 299-200}}}",
            "health.status: expected a status from 200 to 599, or a range of them such as 200-299",
        ),
        (
            "{default: {health: {status: 100}}}",
            "health.status: expected a status from 200",
        ),
        ("{default: {health: {host: 'a@b'}}}", "health.host: expected a host"),
        (
            "{default: {health: {rise: 0}}}",
            "health.rise: expected a whole number from 1 to 100",
        ),
    ] {
        let refused = read(&format!("gopherproxy: {{pools: {pools}}}"), &[]).unwrap_err();
        assert!(refused.contains(named), "{pools}: {refused}");
    }
}

#[test]
fn each_pool_has_a_state_file_of_its_own() {
    let config = read("gopherproxy: {discovery: {state_file: /var/lib/set}}", &[]).unwrap();
    let file = |pool: &str| config.discovery.state_file_of(&name(pool)).unwrap();
    assert_eq!(file("default"), Path::new("/var/lib/set"));
    assert_eq!(file("api"), Path::new("/var/lib/set.api"));
}

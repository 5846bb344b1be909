//! The configuration: a file and the environment over it.
//!
//! The input is the environment, a `NAME=value` a line, then a line `---`, then the file; without that line it is all file.
//! Whatever they are, there is either a configuration that keeps its promises or one message that says what is wrong; and
//! the same again the second time.
#![no_main]

use chassis::settings::Settings;
use gopherproxy::config::{Config, PoolSettings, RegistryKind};
use libfuzzer_sys::fuzz_target;

/// A password that the seeds have in `REDIS_URL`. No message may repeat it, wherever in the variable it stands.
const PASSWORD: &str = "hunter2hunter2";

fuzz_target!(|input: &str| {
    let (environment, file) = input.split_once("\n---\n").unwrap_or(("", input));
    let read = || {
        let variables = environment.lines().filter_map(|line| line.split_once('='));
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Config::parse(file, Settings::new(variables))
    };
    match (read(), read()) {
        (Ok(config), Ok(again)) => {
            assert!(config == again);
            sound(&config);
        }
        (Err(error), Err(again)) => {
            let message = error.to_string();
            assert!(!message.trim().is_empty());
            assert_eq!(message, again.to_string());
            assert!(!leaks(&message, environment, input), "{message}");
        }
        (first, again) => unreachable!("{first:?}, and then {again:?}"),
    }
});

/// What the rest of the proxy takes for granted.
fn sound(config: &Config) {
    assert!(config.listen != config.admin_listen || config.listen.port() == 0);
    assert!(config.server.threads > 0);
    assert!(matches!(config.registry, RegistryKind::Redis(_)) || config.sentinel_enabled);
    assert!(!format!("{:?}", config.registry).contains('@'));
    let limit = &config.limit;
    assert!(limit.burst > 0 && limit.per_second > 0.0 && limit.clients > 0);
    assert!(f64::from(limit.burst) / limit.per_second <= 86_400.0);
    assert!((1..=128).contains(&limit.ipv6_prefix));
    let waits = [
        config.discovery.interval,
        config.client.head_timeout,
        config.client.idle_timeout,
        config.client.transfer.read_timeout,
        config.client.transfer.write_timeout,
    ];
    assert!(waits.iter().all(|wait| !wait.is_zero()));
    assert!(!config.pools.is_empty());
    for pool in config.pools.values().chain([&config.every_pool]) {
        check_pool(pool);
    }
    let sentinel = &config.sentinel;
    assert!(sentinel.targets().next().is_some() && sentinel.pools.values().all(|targets| !targets.is_empty()));
    assert!(sentinel.concurrency > 0);
    assert!(sentinel.rise > 0 && sentinel.fall > 0);
}

fn check_pool(PoolSettings { health, upstream, .. }: &PoolSettings) {
    let ejection = &upstream.ejection;
    let waits = [
        health.interval,
        health.timeout,
        upstream.connect_timeout,
        upstream.read_timeout,
        upstream.write_timeout,
        upstream.idle_timeout,
        upstream.tunnel_idle_timeout,
        ejection.time,
        ejection.max_time,
    ];
    assert!(waits.iter().all(|wait| !wait.is_zero()));
    assert!(health.path.starts_with('/') && health.rise > 0 && health.fall > 0);
    assert!(*health.status.start() >= 200 && *health.status.end() <= 599);
    assert!(ejection.failures > 0 && (0.0..=1.0).contains(&ejection.max_share));
    assert!((0.0..=1.0).contains(&upstream.retry_budget));
    assert!(upstream.retry_buffer <= 16 << 20);
}

/// Whether `message` has the password, which stands nowhere but in `REDIS_URL`.
fn leaks(message: &str, environment: &str, input: &str) -> bool {
    let is_secret = |line: &str| {
        let url = line.trim_start_matches("GOPHERPROXY_").strip_prefix("REDIS_URL=");
        url.is_some_and(|url| url.contains(PASSWORD))
    };
    input.matches(PASSWORD).count() == 1 && environment.lines().any(is_secret) && message.contains(PASSWORD)
}

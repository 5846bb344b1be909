//! Pingora's own keys, at the top level of the file.

use std::net::{Ipv4Addr, Ipv6Addr};

use chassis::settings::Settings;
use pingora::server::configuration::ServerConf;
use yaml_serde::{Mapping, Value};

use super::SECTION;

/// Where a successor waits for the listening sockets, in a directory of its own that nobody else may enter.
const UPGRADE_SOCKET: &str = "/run/gopherproxy/upgrade.sock";

/// Pingora's own keys, each read by itself so that one mistake doesn't hide the next.
pub(super) fn read(settings: &Settings, keys: Mapping) -> ServerConf {
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

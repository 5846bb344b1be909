//! Pingora's own keys, at the top level of the file.
//!
//! Pingora reads them with serde, whose errors name Rust's types. So each key is parsed by itself here, which also keeps one
//! mistake from hiding the next; the type of its default says what it accepts.

use std::net::{Ipv4Addr, Ipv6Addr};

use chassis::settings::{Expected, Section, truth, whole};
use chassis::yaml::{Node, Value};
use pingora::server::configuration::ServerConf;
use serde_json::{Map, Value as Json};

/// Where a successor waits for the listening sockets, in a directory of its own that nobody else may enter.
const UPGRADE_SOCKET: &str = "/run/gopherproxy/upgrade.sock";

/// Where Pingora finds no root certificates: it would panic on one that it can't use, and each origin has its own from us.
pub const NO_ROOTS: &str = "/dev/null";

const SUPERVISOR: &str = "that is the job of a supervisor (systemd, a container)";

/// Keys that Pingora has and this program sets itself or can't have, and what to do instead.
const OURS: [(&str, &str); 13] = [
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
    ("ca_file", "set gopherproxy.upstream.tls.ca_file instead"),
    ("error_log", "the log goes to standard output"),
];

/// Whether Pingora will find what it needs at the start.
///
/// # Errors
/// When it would panic.
pub(super) fn check() -> Result<(), String> {
    std::fs::File::open(NO_ROOTS).map_err(|error| format!("this machine lacks {NO_ROOTS}: {error}"))?;
    Ok(())
}

/// Reads Pingora's keys from the top level of the file, of which our own section is taken out already.
pub(super) fn read(mut top: Section<'_>) -> ServerConf {
    let settings = top.settings();
    let default = ServerConf {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        upgrade_sock: UPGRADE_SOCKET.into(),
        // With fewer than there are backends nearly every request would open a connection. Pingora's 128 are for one site.
        upstream_keepalive_pool_size: 1024,
        ca_file: Some(NO_ROOTS.into()),
        ..ServerConf::default()
    };
    let Ok(Json::Object(mut keys)) = serde_json::to_value(&default) else {
        return default;
    };
    for (key, instead) in OURS {
        if let Some((place, _)) = top.entry(key) {
            settings.mistake(&place, format_args!("this key can't be set here; {instead}"));
        }
    }
    for (key, value) in &mut keys {
        if OURS.iter().any(|(ours, _)| ours == key) {
            continue;
        }
        let Some((place, node)) = top.entry(key) else { continue };
        match json(key, &node, value).and_then(|read| alone(key, read)) {
            Ok(read) => *value = read,
            Err(expected) => settings.wrong(&place, &expected, &node),
        }
    }
    top.ignore_extensions();
    top.finish_with("gopherproxy and Pingora's own, such as threads");
    // Pingora looks at each key by itself, which `alone` did before.
    serde_json::from_value(Json::Object(keys)).unwrap_or(default)
}

/// A value of the file as Pingora would read it, by the type of its default.
fn json(key: &str, node: &Node, default: &Json) -> Result<Json, Expected> {
    match (&node.value, default) {
        (_, Json::Null) if node.is_null() => Ok(Json::Null),
        (Value::List(nodes), Json::Array(_)) => nodes.iter().map(|node| address(key, node)).collect(),
        (Value::Scalar { text, .. }, Json::Bool(_)) => truth(text).map(Json::from),
        (Value::Scalar { text, .. }, Json::Number(_)) => number(key, text).map(Json::from),
        (Value::Scalar { text, .. }, Json::String(_)) if !text.is_empty() => Ok(text.as_str().into()),
        // An optional value, whose type its default doesn't tell.
        (Value::Scalar { text, quoted: false }, Json::Null) => {
            Ok(text.parse::<u64>().map_or_else(|_| text.as_str().into(), Json::from))
        }
        (Value::Scalar { text, .. }, Json::Null) => Ok(text.as_str().into()),
        (_, Json::Array(_)) => Err("a list of addresses".into()),
        (_, Json::String(_)) => Err("a text".into()),
        _ => Err("one value".into()),
    }
}

fn number(key: &str, text: &str) -> Result<u64, Expected> {
    match key {
        // Without one of these nobody serves, or nobody accepts.
        "threads" | "listener_tasks_per_fd" => whole(1..=1_024)(text),
        // Pingora multiplies it by the number of threads.
        "upstream_keepalive_pool_size" => whole(0..=1_000_000)(text),
        _ => whole(0..=u64::from(u32::MAX))(text),
    }
}

/// An address of this machine that connections to backends come from.
fn address(key: &str, node: &Node) -> Result<Json, Expected> {
    let Value::Scalar { text, .. } = &node.value else {
        return Err("a list of addresses".into());
    };
    match key {
        "client_bind_to_ipv6" if text.parse::<Ipv6Addr>().is_err() => Err("a list of IPv6 addresses".into()),
        "client_bind_to_ipv4" if text.parse::<Ipv4Addr>().is_err() => Err("a list of IPv4 addresses".into()),
        _ => Ok(text.as_str().into()),
    }
}

/// The value, if Pingora takes it when it is the only one.
fn alone(key: &str, value: Json) -> Result<Json, Expected> {
    let conf = Json::Object(Map::from_iter([(key.to_owned(), value.clone())]));
    match serde_json::from_value::<ServerConf>(conf).map(ServerConf::validate) {
        Ok(Ok(_)) => Ok(value),
        Ok(Err(_)) => Err("another number: this one is 0 or too large".into()),
        Err(error) => {
            let error = error.to_string();
            Err(match error.rsplit("expected ").next() {
                Some("usize" | "u64") => "a whole number".into(),
                Some("a string") => "a text".into(),
                Some(choices) if choices.starts_with('`') => choices.replace('`', ""),
                _ => "another value".into(),
            })
        }
    }
}

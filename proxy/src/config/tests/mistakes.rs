//! Each bad value, and what is said of it.

use super::*;

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
            "gopherproxy.tls.certificates.key: each entry names two files, its certificate as cert and its private key as key; one of \
             them has none",
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
            "gopherproxy: {http2: {cleartext: maybe}}",
            "gopherproxy.http2.cleartext: expected true or false, got \"maybe\"",
        ),
        (
            "gopherproxy: {http2: {max_streams: 0}}",
            "gopherproxy.http2.max_streams: expected a whole number from 1 to 10000, got \"0\"",
        ),
        (
            "gopherproxy: {http2: {max_streams: 10001}}",
            "gopherproxy.http2.max_streams: expected a whole number from 1 to 10000, got \"10001\"",
        ),
        (
            "gopherproxy: {http2: {stream_window: 65534B}}",
            "gopherproxy.http2.stream_window: expected a size from 64KiB to 2147483647B, got \"65534B\"",
        ),
        (
            "gopherproxy: {http2: {connection_window: 2GiB}}",
            "gopherproxy.http2.connection_window: expected a size from 64KiB to 2147483647B, got \"2GiB\"",
        ),
        (
            "gopherproxy: {http2: {send_buffer: 4095B}}",
            "gopherproxy.http2.send_buffer: expected a size from 4KiB to 16MiB, got \"4095B\"",
        ),
        (
            "gopherproxy: {http2: {send_buffer: 17MiB}}",
            "gopherproxy.http2.send_buffer: expected a size from 4KiB to 16MiB, got \"17MiB\"",
        ),
        (
            "gopherproxy: {http2: {max_resets: -1}}",
            "gopherproxy.http2.max_resets: expected a whole number from 1 to 100000, got \"-1\"",
        ),
        (
            "gopherproxy: {http2: {max_stream: 5}}",
            "gopherproxy.http2.max_stream: unknown key; did you mean max_streams?",
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
            "gopherproxy: {balance: least_requests}",
            "gopherproxy.balance: unknown key; did you mean gopherproxy.pools.NAME.balance?",
        ),
        (
            "gopherproxy: {compress: true}",
            "gopherproxy.compress: unknown key; did you mean gopherproxy.routes.NAME.compress?",
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

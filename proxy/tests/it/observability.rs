//! What the metrics and the log say of requests.

use std::net::SocketAddr;

use crate::support::{Connection, Process, UNLIMITED, embedded, eventually, get, loopback, origin, proxy_over};

#[tokio::test]
async fn the_go_programs_metrics_are_here_under_their_names_and_mean_what_they_meant() {
    let origin = origin();
    let few = "  limit: {burst: 4, per_second: 0.01}\n";
    let proxy = Process::proxy(&embedded(&[origin.address()]).replace(UNLIMITED, few)).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    for (path, status) in [
        ("/", 200),
        ("/status/204", 204),
        ("/status/404", 404),
        ("/status/500", 500),
        ("/", 429),
        ("/", 429),
    ] {
        assert_eq!(client.get(path).await.status, status);
    }
    proxy.reaches("gopherproxy_dropped_requests_total", 2.0).await;
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    let metrics = proxy.metrics().await;
    let metric = |name: &str| *metrics.get(name).unwrap_or_else(|| panic!("no {name} in {metrics:#?}"));
    assert_eq!(metric("gopherproxy_processed_requests_total"), 4.0);
    assert_eq!(metric("gopherproxy_dropped_requests_total"), 2.0);
    assert_eq!(metric("gopherproxy_active_backends"), 1.0);
    let backend = format!("backend=\"{}\"", origin.address());
    assert_eq!(
        metric(&format!("gopherproxy_request_duration_seconds_count{{{backend}}}")),
        4.0
    );
    for bound in [
        "0.0005", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf",
    ] {
        metric(&format!(
            "gopherproxy_request_duration_seconds_bucket{{{backend},le=\"{bound}\"}}"
        ));
    }
    assert_eq!(metric("gopherproxy_rejections_total{reason=\"limited\"}"), 2.0);
    assert_eq!(metric("gopherproxy_responses_total{class=\"2xx\"}"), 2.0);
    assert_eq!(metric("gopherproxy_responses_total{class=\"4xx\"}"), 3.0);
    assert_eq!(metric("gopherproxy_responses_total{class=\"5xx\"}"), 1.0);
    assert_eq!(metric("gopherproxy_inflight_requests"), 0.0);
    assert_eq!(metric("gopherproxy_upstream_retries_total"), 0.0);
    assert_eq!(metric("gopherproxy_discovery_backends"), 1.0);
    assert!(metric("gopherproxy_discovery_last_success_timestamp_seconds") > 1.7e9);
    assert_eq!(metric("gopherproxy_limiter_clients"), 1.0);
    assert_eq!(metric("gopherproxy_access_log_dropped_lines_total"), 0.0);
    assert!(metric("process_resident_memory_bytes") > 0.0);
    // CPU time is counted to the clock tick, far less than a second.
    eventually("the CPU time is no whole number", async || {
        proxy.metric("process_cpu_seconds_total").await.fract() != 0.0
    })
    .await;
    assert!(metrics.contains_key("gopherproxy_discovery_errors_total"));
    assert!(
        metrics
            .keys()
            .any(|name| name.starts_with("gopherproxy_build_info{commit="))
    );
    // No label ever carries a client or a path.
    assert!(
        !metrics
            .keys()
            .any(|name| name.contains("127.0.0.1\"") || name.contains("status/404")),
        "{metrics:#?}"
    );
}

#[tokio::test]
async fn a_request_has_one_line_with_all_its_fields() {
    let (proxy, origins) = proxy_over(1).await;
    assert_eq!(get(proxy.address(), "/bytes/7?token=secret").await.status, 200);
    let line = proxy.request_line("/bytes/7").await;
    let field = |key: &str| line[key].as_str().unwrap_or_else(|| panic!("no {key} in {line}"));
    assert_eq!(
        (field("level"), field("msg"), field("method")),
        ("INFO", "request", "GET")
    );
    assert_eq!(field("backend"), origins[0].address().to_string());
    assert_eq!(field("client"), "127.0.0.1");
    assert!(field("remote_addr").starts_with("127.0.0.1:"));
    assert_eq!(field("request_id").len(), 32);
    assert_eq!((line["status"].as_u64(), line["bytes"].as_u64()), (Some(200), Some(7)));
    assert!(line["duration_ms"].as_f64().is_some_and(|millis| millis > 0.0));
    let time = field("time");
    assert!(
        time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T' && time.as_bytes()[19] == b'.',
        "{time}"
    );
    assert!(line.get("reason").is_none() && line.get("error").is_none());
    assert_eq!(proxy.lines("request").len(), 1);
}

#[tokio::test]
async fn an_ipv4_client_of_an_ipv6_socket_is_written_as_ipv4_everywhere() {
    let origin = origin();
    let configuration = embedded(&[origin.address()]).replacen("127.0.0.1:0", "'[::]:0'", 1);
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    for host in loopback() {
        let at = SocketAddr::new(host, proxy.address().port());
        let remote_addr = if at.is_ipv4() { "127.0.0.1:" } else { "[::1]:" };
        // One that goes to a backend, and one that the proxy answers itself.
        assert_eq!(get(at, &format!("/passed/{host}")).await.status, 200);
        let mut refused = Connection::open(at).await;
        refused
            .send(format!("BAD /refused/{host} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"))
            .await;
        assert_eq!(refused.response().await.status, 400);
        let passed = proxy.request_line(&format!("/passed/{host}")).await;
        assert_eq!(passed["client"], host.to_string());
        for line in [passed, proxy.request_line(&format!("/refused/{host}")).await] {
            let written = line["remote_addr"].as_str().expect("text");
            assert!(written.starts_with(remote_addr), "{line}");
        }
    }
}

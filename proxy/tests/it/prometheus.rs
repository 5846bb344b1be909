//! The dashboard and the alert rules, asked of a real Prometheus that scrapes a proxy and a sentinel under traffic.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::tls::{Authority, with_tls};
use crate::support::{
    BlackHole, Connection, Process, RawOrigin, Redis, Started, child, eventually, free_port, get, origin,
};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../observability")
        .join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A running Prometheus with the stack's own configuration, but for where it scrapes and how often.
struct Prometheus {
    _server: Started,
    address: SocketAddr,
    _files: TempDir,
}

impl Prometheus {
    async fn start(proxy: SocketAddr, sentinel: SocketAddr) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let configuration = read("prometheus/prometheus.yml")
            .replace("proxy:2112", &proxy.to_string())
            .replace("sentinel:2113", &format!("127.0.0.1:{}", sentinel.port()))
            .replace("15s", "1s");
        std::fs::write(files.path().join("prometheus.yml"), configuration).expect("written");
        std::fs::write(files.path().join("alerts.yml"), read("prometheus/alerts.yml")).expect("written");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = child::command(child::tool("prometheus"));
        command
            .arg(format!(
                "--config.file={}",
                files.path().join("prometheus.yml").display()
            ))
            .arg(format!("--storage.tsdb.path={}", files.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let prometheus = Self {
            _server: child::start(command),
            address,
            _files: files,
        };
        eventually("Prometheus is ready", async || {
            match Connection::try_open(address, [127, 0, 0, 1].into()).await {
                Ok(mut client) => client.get("/-/ready").await.status == 200,
                Err(_) => false,
            }
        })
        .await;
        prometheus
    }

    /// The samples that `query` gives now: the labels and the value of each.
    async fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = get(self.address, &format!("/api/v1/query?query={encoded}"))
            .await
            .text();
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let data = &answer["data"];
        let value = |value: &Value| value[1].as_str().and_then(|value| value.parse().ok()).expect("a value");
        if data["resultType"] == "scalar" {
            return vec![(Value::Null, value(&data["result"]))];
        }
        let samples = data["result"].as_array().expect("samples").iter();
        samples
            .map(|sample| (sample["metric"].clone(), value(&sample["value"])))
            .collect()
    }

    /// The one value that `query` gives now.
    async fn value(&self, query: &str) -> f64 {
        match self.query(query).await.as_slice() {
            [(_, value)] => *value,
            other => panic!("{query} gives {other:?}"),
        }
    }
}

/// Every query of every panel, with the title of the panel.
fn panels() -> Vec<(String, String)> {
    fn collect(panels: &Value, queries: &mut Vec<(String, String)>) {
        for panel in panels.as_array().into_iter().flatten() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let (title, query) = (panel["title"].as_str(), target["expr"].as_str());
                queries.push((title.expect("a title").to_owned(), query.expect("a query").to_owned()));
            }
            collect(&panel["panels"], queries);
        }
    }
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboards/gopherproxy.json")).expect("JSON");
    let mut queries = Vec::new();
    collect(&dashboard["panels"], &mut queries);
    queries
}

/// Every alert's query, made to tell whether it would fire (0 or 1) instead of giving nothing when it would not.
fn alerts() -> Vec<(String, String)> {
    let rules: yaml_serde::Value = yaml_serde::from_str(&read("prometheus/alerts.yml")).expect("YAML");
    let rules = rules["groups"]
        .as_sequence()
        .expect("groups")
        .iter()
        .flat_map(|group| group["rules"].as_sequence().expect("rules").clone());
    rules
        .map(|rule| {
            let text = |key: &str| rule[key].as_str().expect("text").to_owned();
            (
                text("alert"),
                text("expr")
                    .replace(" == ", " == bool ")
                    .replace(" > ", " > bool ")
                    .replace(" < ", " < bool "),
            )
        })
        .collect()
}

#[test]
fn promtool_finds_no_fault_with_the_configuration_and_the_rules() {
    for arguments in [
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let output = Command::new(child::tool("promtool"))
            .args(arguments)
            .current_dir(file("prometheus"))
            .output();
        let output = output.expect("it runs");
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn every_alert_has_its_line_in_the_runbook() {
    let runbook = std::fs::read_to_string(file("../docs/alerts.md")).expect("it is there");
    for (alert, _) in alerts() {
        let first = |line: &&str| {
            line.split('|')
                .nth(1)
                .is_some_and(|cell| cell.contains(&format!("`{alert}`")))
        };
        assert!(runbook.lines().any(|line| first(&line)), "{alert}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_returns_data_and_the_numbers_are_what_the_clients_saw() {
    let redis = Redis::start().await;
    let origins = [origin(), origin()];
    // It takes requests and breaks, so that there are failures and retries; one more target is dead.
    let broken = RawOrigin::start(|mut peer| async move { drop(peer.request().await) }).await;
    let mut targets: Vec<SocketAddr> = origins.iter().map(origin::Origin::address).collect();
    let dead = BlackHole::new();
    targets.extend([broken.address, dead.address]);
    let targets = targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let url = redis.address().to_string();
    let sentinel = Process::sentinel(&[
        ("REDIS_URL", &url),
        ("SENTINEL_TARGETS", &targets),
        ("SENTINEL_INTERVAL", "500ms"),
    ])
    .await;
    let configuration = "
gopherproxy:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  discovery: {interval: 500ms}
  limit: {burst: 20, per_second: 10, exempt: [127.0.0.2]}
  upstream: {retry_budget: 1, ejection: {max_share: 0}}
";
    let certificates = tempfile::tempdir().expect("a directory");
    Authority::new().issue(&["a.example"]).write(certificates.path(), "a");
    let configuration = with_tls(configuration, certificates.path(), "");
    let proxy = Process::proxy_with(&configuration, &[("REDIS_URL", &url)]).await;
    proxy.active_backends(3).await;
    let prometheus = Prometheus::start(proxy.admin(), sentinel.admin()).await;

    // Prometheus takes some seconds to begin, and a rate takes two scrapes.
    let scraped = async |times: f64| {
        eventually("both are scraped", async || {
            let scrapes = prometheus.query("count_over_time(up[5m]) and up == 1").await;
            scrapes.len() == 2 && scrapes.iter().all(|(_, count)| *count >= times)
        })
        .await;
    };
    scraped(1.0).await;

    // Traffic for some scrapes: GETs that succeed, POSTs of which some break, and a client over its limit.
    let (mut answered, mut refused, mut failed) = (0u32, 0u32, 0u32);
    let mut good = Connection::open_from(proxy.address(), [127, 0, 0, 2].into()).await;
    let mut bad = Connection::open_from(proxy.address(), [127, 0, 0, 3].into()).await;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for _ in 0..5 {
            assert_eq!(good.get("/delay/30").await.status, 200);
            answered += 1;
        }
        match Connection::open_from(proxy.address(), [127, 0, 0, 2].into())
            .await
            .request("POST", "/", "", "x")
            .await
            .status
        {
            200 => answered += 1,
            502 => failed += 1,
            status => panic!("{status}"),
        }
        for _ in 0..20 {
            match bad.get("/").await.status {
                200 => answered += 1,
                429 => refused += 1,
                status => panic!("{status}"),
            }
        }
    }
    assert!(
        answered > 0 && refused > 0 && failed > 0,
        "{answered} {refused} {failed}"
    );
    eventually("the last requests are scraped", async || {
        prometheus.value("gopherproxy_processed_requests_total").await == f64::from(answered)
    })
    .await;

    scraped(3.0).await;

    let mut missing = Vec::new();
    for (name, query) in panels().into_iter().chain(alerts()) {
        let samples = prometheus.query(&query).await;
        // A backend that never answered has no percentiles; one series that has a value is enough.
        if samples.iter().all(|(_, value)| value.is_nan()) {
            missing.push(format!("{name}: {query} gives {samples:?}"));
        }
    }
    assert_eq!(missing, [""; 0]);

    let panel = |title: &str| {
        let found: Vec<_> = panels()
            .into_iter()
            .filter(|(name, _)| name == title)
            .map(|(_, query)| query)
            .collect();
        assert!(!found.is_empty(), "{title}");
        found
    };
    assert_eq!(
        prometheus.value(&panel("Total Processed")[0]).await,
        f64::from(answered)
    );
    assert_eq!(
        prometheus.value(&panel("Total Dropped")[0]).await,
        f64::from(refused + failed)
    );
    assert_eq!(prometheus.value(&panel("Active Backends")[0]).await, 3.0);
    let success = 100.0 * f64::from(answered) / f64::from(answered + refused + failed);
    let shown = prometheus.value(&panel("Success Rate %")[0]).await;
    assert!((shown - success).abs() < 0.5, "{shown} is shown, {success} was seen");
    // Most requests took 30 ms in the backend, and each percentile is within its bucket.
    for (labels, p95) in prometheus
        .query("histogram_quantile(0.95, sum by (le, backend) (rate(gopherproxy_request_duration_seconds_bucket[1m])))")
        .await
    {
        assert!(p95.is_nan() || (0.025..=0.25).contains(&p95), "{labels}: {p95}");
    }
    let medians = prometheus.query(&panel("Latency Percentiles")[0]).await;
    let finite = medians.iter().filter(|(_, median)| median.is_finite()).count();
    assert_eq!(finite, 2, "one line for each that answers: {medians:?}");
}

//! Certificates that the proxy gets from an authority. They are not tested where pebble is not installed.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::support::pebble::{self, Pebble, Rule};
use crate::support::tls::{Authority, Client, shown};
use crate::support::{Connection, Process, embedded, eventually, get, origin};

const FAILED: &str = "no certificate";
const ISSUED: &str = "the certificate is there";

fn orders(result: &str) -> String {
    format!("gopherproxy_acme_orders_total{{result=\"{result}\"}}")
}

fn failures(host: &str) -> String {
    format!("gopherproxy_acme_failures{{host=\"{host}\"}}")
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Waits until clients get a certificate for `host`.
async fn has_certificate(client: &Client, port: u16, host: &str) {
    eventually(&format!("there is a certificate for {host}"), async || {
        client.try_open(local(port), host).await.is_ok()
    })
    .await;
}

/// Lets an order for `host`, which has failed, be made again at once.
async fn forgive(proxy: &Process, pebble: &Pebble, host: &str) {
    // It is said before it is written.
    proxy.reaches(&failures(host), 1.0).await;
    pebble::forgive(&pebble.storage());
}

fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).expect("it is there").next().is_none()
}

#[tokio::test]
async fn hosts_get_certificates_while_the_plain_port_serves() {
    let Some(pebble) = Pebble::new(3600) else { return };
    let origin = origin();
    let one_a_day = "  limit: {burst: 2, per_second: 0.001}\n  client: {max_connections: 100}\n";
    let configuration = embedded(&[origin.address()]).replace(crate::support::UNLIMITED, one_a_day);
    let emails = "    emails: [ops@a.example]\n";
    let configuration = pebble.proxy(&configuration, "a.example, B.Example", emails);
    let redirecting = configuration.replace("  tls: {", "  tls: {redirect: true, redirect_exempt: [/plain], ");
    let proxy = Process::proxy(&redirecting).await;
    proxy.active_backends(1).await;
    // There is nobody to order from yet.
    assert_eq!(get(local(pebble.http), "/").await.status, 200);
    let line = proxy.said(FAILED, |line| line["host"] == "b.example").await;
    assert!(line["error"].as_str().unwrap().contains("Connection refused"), "{line}");
    proxy.reaches(&orders("directory"), 2.0).await;
    // Once the backend has passed a check.
    let ready = async || get(proxy.admin(), "/readyz").await;
    eventually("it is ready", async || ready().await.status == 200).await;
    let text = ready().await.text();
    assert!(
        text.starts_with("ready, but no new certificate for a.example (localhost:") && text.contains("tried 1 times"),
        "{text}"
    );

    pebble.run().await;
    let client = pebble.client().await;
    assert!(client.try_open(local(pebble.tls), "a.example").await.is_err());
    forgive(&proxy, &pebble, "b.example").await;
    for host in ["a.example", "b.example"] {
        proxy.said(ISSUED, |line| line["host"] == host).await;
        // At once, and not when the files are looked at the next time.
        client.open(local(pebble.tls), host).await;
        proxy.reaches(&failures(host), 0.0).await;
    }
    assert_eq!(proxy.metric(&orders("issued")).await, 2.0);
    assert_eq!(get(proxy.admin(), "/readyz").await.text().trim(), "ready");
    assert!(
        proxy
            .metrics()
            .await
            .keys()
            .any(|name| name.contains("expiry") && name.contains("b.example"))
    );

    // The authority asked more often than its address may, and has been answered; nobody else is.
    let answered = proxy
        .metric("gopherproxy_rejections_total{reason=\"acme_challenge\"}")
        .await;
    assert!(answered >= 2.0, "{answered}");
    let line = proxy.said("request", |line| line["reason"] == "acme_challenge").await;
    assert_eq!(
        (&line["status"], &line["backend"]),
        (&200.into(), &Value::Null),
        "{line}"
    );
    assert!(line["bytes"].as_u64().unwrap() > 40, "{line}");
    let path = line["path"].as_str().unwrap();
    let mut stranger = Connection::open(local(pebble.http)).await;
    assert_eq!(stranger.get("/").await.status, 308, "there is something to redirect to");
    assert_eq!(stranger.get("/plain").await.status, 200);
    assert_eq!(stranger.get(path).await.status, 429, "the token is over");

    let storage = pebble.storage();
    assert!(is_empty(&storage.join("challenges")));
    for file in ["a.example.pem", "b.example.pem", "account.json", "state.json"] {
        let mode = std::fs::metadata(storage.join(file)).expect(file).permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{file}");
    }
    assert!(!storage.join("a.example.order").exists());
    let account = std::fs::read_to_string(storage.join("account.json")).unwrap();
    let account: Value = serde_json::from_str(&account).unwrap();
    assert_eq!(account["emails"][0], "ops@a.example");
    let key = account["credentials"]["key_pkcs8"].as_str().unwrap();
    assert!(!proxy.text().contains(key) && !proxy.text().contains("PRIVATE KEY"));
}

#[tokio::test]
async fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
    let Some(pebble) = Pebble::start(18).await else { return };
    let origin = origin();
    let proxy = Process::proxy(&pebble.proxy(&embedded(&[origin.address()]), "a.example", "")).await;
    proxy.active_backends(1).await;
    let client = pebble.client().await;
    has_certificate(&client, pebble.tls, "a.example").await;
    let mut kept = client.open(local(pebble.tls), "a.example").await;
    let first = shown(&kept);
    assert_eq!(kept.get("/").await.status, 200);
    let mut renewed = 0;
    eventually("it is renewed", async || {
        let new = client.try_open(local(pebble.tls), "a.example").await;
        renewed += usize::from(new.is_ok_and(|connection| shown(&connection) != first));
        renewed > 0
    })
    .await;
    assert_eq!(kept.get("/").await.status, 200, "a connection keeps what it has");
    assert_eq!(proxy.lines(FAILED), Vec::<Value>::new());
}

#[tokio::test]
async fn a_certificate_is_renewed_early_when_the_authority_says_so() {
    let Some(pebble) = Pebble::start(40).await else { return };
    pebble.rule(Rule::Renew);
    let origin = origin();
    let proxy = Process::proxy(&pebble.proxy(&embedded(&[origin.address()]), "a.example", "")).await;
    proxy.said(ISSUED, |_| true).await;
    eventually("it is asked", async || pebble.count("/renewal-info/") > 0).await;
    // Pebble, which can't do this, ignores that the order replaces a certificate. The library does not, so the second try does without.
    proxy.said(FAILED, |_| true).await;
    forgive(&proxy, &pebble, "a.example").await;
    proxy.reaches(&orders("issued"), 2.0).await;
}

#[tokio::test]
async fn a_host_that_fails_leaves_the_others_alone_and_is_not_tried_again_at_once() {
    let Some(pebble) = Pebble::start(3600).await else {
        return;
    };
    pebble.lose("b.example", true).await;
    let origin = origin();
    let configuration = pebble.proxy(&embedded(&[origin.address()]), "b.example, a.example", "");
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let client = pebble.client().await;
    has_certificate(&client, pebble.tls, "a.example").await;
    let line = proxy.said(FAILED, |line| line["host"] == "b.example").await;
    let why = line["error"].as_str().unwrap();
    assert!(
        why.contains("the authority says connection") && why.contains("127.0.0.77"),
        "{line}"
    );
    assert!(line["next_attempt_in_seconds"].as_u64().unwrap() > 250, "{line}");
    proxy.reaches(&failures("b.example"), 1.0).await;
    assert_eq!(proxy.metric(&orders("challenge")).await, 1.0);
    let text = get(proxy.admin(), "/readyz").await.text();
    assert!(
        text.contains("no new certificate for b.example (the authority says connection"),
        "{text}"
    );
    assert!(is_empty(&pebble.storage().join("challenges")));

    // Nor by a process that starts.
    proxy.signal("TERM");
    proxy.ended().await;
    let ordered = pebble.count("/order-plz");
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    proxy.reaches(&failures("b.example"), 1.0).await;
    has_certificate(&client, pebble.tls, "a.example").await;
    assert_eq!(pebble.count("/order-plz"), ordered);

    pebble.lose("b.example", false).await;
    forgive(&proxy, &pebble, "b.example").await;
    proxy.said(ISSUED, |line| line["host"] == "b.example").await;
    has_certificate(&client, pebble.tls, "b.example").await;
    proxy.reaches(&failures("b.example"), 0.0).await;
    assert_eq!(pebble.count("/order-plz"), ordered + 1);
    assert_eq!(pebble.count("/sign-me-up"), 1, "there is one account");
}

#[tokio::test]
async fn an_authority_that_asks_for_time_gets_it() {
    let Some(pebble) = Pebble::start(3600).await else {
        return;
    };
    pebble.rule(Rule::Limit(5000));
    let origin = origin();
    let proxy = Process::proxy(&pebble.proxy(&embedded(&[origin.address()]), "a.example", "")).await;
    let line = proxy.said(FAILED, |_| true).await;
    let why = line["error"].as_str().unwrap();
    assert!(why.ends_with("it answers 429: too many orders"), "{line}");
    let wait = line["next_attempt_in_seconds"].as_u64().unwrap();
    assert!((4900..=5000).contains(&wait), "{line}");
    proxy.reaches(&orders("rate_limited"), 1.0).await;
    pebble.rule(Rule::Pass);
    forgive(&proxy, &pebble, "a.example").await;
    proxy.said(ISSUED, |_| true).await;
    assert_eq!(pebble.count("/order-plz"), 2);
}

#[tokio::test]
async fn an_order_that_a_process_leaves_is_finished_by_the_next() {
    let Some(pebble) = Pebble::start(3600).await else {
        return;
    };
    pebble.rule(Rule::Hold);
    let origin = origin();
    let configuration = pebble.proxy(&embedded(&[origin.address()]), "a.example", "");
    let proxy = Process::proxy(&configuration).await;
    eventually("the order is in its last step", async || {
        pebble.count("/finalize-order/") > 0
    })
    .await;
    proxy.signal("KILL");
    proxy.ended().await;
    let order = pebble.storage().join("a.example.order");
    let mode = std::fs::metadata(&order).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    pebble.rule(Rule::Pass);
    let proxy = Process::proxy(&configuration).await;
    proxy.said(ISSUED, |_| true).await;
    assert_eq!(pebble.count("/order-plz"), 1);
    assert!(!order.exists());
    let client = pebble.client().await;
    has_certificate(&client, pebble.tls, "a.example").await;

    // An order that nobody can finish any more is no obstacle.
    std::fs::remove_file(pebble.storage().join("a.example.pem")).unwrap();
    let lost = serde_json::json!({"directory": pebble.url(), "url": pebble.url().replace("/dir", "/my-order/lost"), "key": ""});
    std::fs::write(&order, lost.to_string()).unwrap();
    eventually("it is ordered again", async || proxy.lines(ISSUED).len() == 2).await;
    assert_eq!(pebble.count("/order-plz"), 2);
}

#[tokio::test]
async fn of_two_processes_that_share_a_storage_one_orders_and_both_use_the_certificates() {
    let Some(pebble) = Pebble::start(3600).await else {
        return;
    };
    let origin = origin();
    let hosts = "a.example, b.example, c.example";
    let base = embedded(&[origin.address()]);
    let one = Process::proxy(&pebble.proxy(&base, hosts, "")).await;
    let ports = (crate::support::free_port(), crate::support::free_port());
    let other = Process::proxy(&pebble.proxy_at(ports.0, ports.1, &base, hosts, "")).await;
    let client = pebble.client().await;
    for host in hosts.split(", ") {
        for port in [pebble.tls, ports.1] {
            has_certificate(&client, port, host).await;
        }
    }
    assert_eq!(pebble.count("/order-plz"), 3);
    let issued = one.metric(&orders("issued")).await + other.metric(&orders("issued")).await;
    assert_eq!(issued, 3.0);
    assert!(one.lines(FAILED).is_empty() && other.lines(FAILED).is_empty());
}

#[tokio::test]
async fn hosts_prove_themselves_in_a_handshake_where_that_is_wanted() {
    let Some(pebble) = Pebble::start(3600).await else {
        return;
    };
    let origin = origin();
    let lines = "    challenge: tls-alpn-01\n";
    let proxy = Process::proxy(&pebble.proxy(&embedded(&[origin.address()]), "a.example", lines)).await;
    proxy.active_backends(1).await;
    proxy.said(ISSUED, |_| true).await;
    let client = pebble.client().await;
    let mut connection = client.open(local(pebble.tls), "a.example").await;
    assert_eq!(connection.get("/").await.status, 200);
    // Who asks for a proof that nobody waits for gets none, and nothing else.
    let mut authority = client.clone();
    authority.0.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let error = authority
        .try_open(local(pebble.tls), "a.example")
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    assert!(is_empty(&pebble.storage().join("challenges")));
}

#[tokio::test]
async fn hosts_come_and_go_with_a_reload() {
    let Some(pebble) = Pebble::start(3600).await else {
        return;
    };
    let origin = origin();
    let base = embedded(&[origin.address()]);
    let proxy = Process::proxy(&pebble.proxy(&base, "a.example", "")).await;
    let client = pebble.client().await;
    has_certificate(&client, pebble.tls, "a.example").await;
    proxy.reconfigure(&pebble.proxy(&base, "b.example", ""));
    proxy.signal("HUP");
    has_certificate(&client, pebble.tls, "b.example").await;
    assert!(client.try_open(local(pebble.tls), "a.example").await.is_err());
    eventually("the series are those of the hosts", async || {
        let series = proxy.metrics().await;
        !series.contains_key(&failures("a.example")) && series.contains_key(&failures("b.example"))
    })
    .await;
    // With a mistake everything stays.
    proxy.reconfigure(&pebble.proxy(&base, "b.example", "").replace("ca.pem", "none.pem"));
    proxy.signal("HUP");
    let line = proxy
        .said("configuration not reloaded; the old one stays", |_| true)
        .await;
    assert!(line["error"].as_str().unwrap().contains("none.pem: "), "{line}");
}

#[tokio::test]
async fn what_can_not_be_used_is_named_before_anything_starts() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("file");
    std::fs::write(&file, "nothing").unwrap();
    let configuration = |more: &str| {
        embedded(&[local(1)])
            + "  tls: {listen: '127.0.0.1:0'}\n  acme:\n    hosts: [a.example]\n    directory: https://localhost:1/dir\n    terms_agreed: true\n"
            + more
    };
    let file = file.display();
    for (more, why) in [
        (format!("    storage: {file}\n"), "acme.storage: "),
        (format!("    storage: {file}/below\n"), "acme.storage: "),
        (
            format!("    storage: /proc/acme\n    ca_file: {file}\n"),
            "file: it holds no certificate",
        ),
        (
            "    ca_file: /nowhere/ca.pem\n".to_owned(),
            "/nowhere/ca.pem: No such file",
        ),
    ] {
        let checked = Process::check(&configuration(&more));
        assert_eq!(checked.ended().await.0.code(), Some(1), "{more}");
        let line = checked.said("the configuration is bad", |_| true).await;
        let error = line["error"].as_str().unwrap();
        assert!(
            error.contains(why) && error.contains(".yaml: gopherproxy.acme: "),
            "{line}"
        );
    }
}

#[tokio::test]
async fn an_authority_whose_certificates_are_over_at_once_is_not_asked_in_a_loop() {
    let Some(pebble) = Pebble::start(1).await else { return };
    let origin = origin();
    let proxy = Process::proxy(&pebble.proxy(&embedded(&[origin.address()]), "a.example", "")).await;
    proxy.said(ISSUED, |_| true).await;
    let line = proxy.said(FAILED, |_| true).await;
    assert!(
        line["error"].as_str().unwrap().contains("due for renewal already"),
        "{line}"
    );
    assert!(line["next_attempt_in_seconds"].as_u64().unwrap() > 250, "{line}");
    proxy.reaches(&failures("a.example"), 1.0).await;
    assert_eq!(pebble.count("/order-plz"), 1);
    // It waits longer each time.
    forgive(&proxy, &pebble, "a.example").await;
    let line = proxy.said(FAILED, |line| line["failures"] == 2).await;
    assert!(line["next_attempt_in_seconds"].as_u64().unwrap() > 550, "{line}");
}

#[tokio::test]
async fn a_certificate_that_could_not_be_kept_is_not_ordered_again() {
    let Some(pebble) = Pebble::start(3600).await else {
        return;
    };
    let taken = pebble.storage().join("a.example.pem");
    std::fs::create_dir_all(&taken).unwrap();
    let origin = origin();
    let proxy = Process::proxy(&pebble.proxy(&embedded(&[origin.address()]), "a.example", "")).await;
    let line = proxy.said(FAILED, |_| true).await;
    assert!(line["error"].as_str().unwrap().contains("acme.storage: "), "{line}");
    proxy.reaches(&orders("storage"), 1.0).await;
    std::fs::remove_dir(&taken).unwrap();
    forgive(&proxy, &pebble, "a.example").await;
    proxy.said(ISSUED, |_| true).await;
    assert_eq!(pebble.count("/order-plz"), 1);
    let order = pebble.storage().join("a.example.order");
    eventually("the order is over", async || !order.exists()).await;
}

#[tokio::test]
async fn a_storage_that_does_not_answer_keeps_nobody_else_waiting() {
    let origin = origin();
    let storage = tempfile::tempdir().unwrap();
    let challenges = storage.path().join("challenges");
    std::fs::create_dir(&challenges).unwrap();
    // Nothing is due. Whoever opens the proof waits until somebody writes it.
    let soon = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 24 * 3600;
    let state = serde_json::json!({"a.example": {"failures": 1, "next_attempt": soon}});
    std::fs::write(storage.path().join("state.json"), state.to_string()).unwrap();
    let proof = challenges.join("token");
    let (fifo, mode) = (
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    );
    rustix::fs::mknodat(rustix::fs::CWD, &proof, fifo, mode, 0).unwrap();
    let ca = storage.path().join("ca.pem");
    std::fs::write(&ca, Authority::new().pem()).unwrap();
    let acme = format!(
        "  tls: {{listen: '127.0.0.1:0'}}\n  acme:\n    hosts: [a.example]\n    directory: https://localhost:1/dir\n    \
         terms_agreed: true\n    ca_file: {}\n    storage: {}\n",
        ca.display(),
        storage.path().display()
    );
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + &acme)).await;
    proxy.active_backends(1).await;
    // More than there are threads for requests.
    let mut asking = Vec::new();
    for _ in 0..8 {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send("GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: a.example\r\n\r\n")
            .await;
        asking.push(client);
    }
    proxy.reaches("gopherproxy_connections", 8.0).await;
    for _ in 0..8 {
        assert_eq!(get(proxy.address(), "/").await.status, 200);
    }
    let answered = proxy
        .metric("gopherproxy_rejections_total{reason=\"acme_challenge\"}")
        .await;
    assert_eq!(answered, 0.0, "they still wait");
    // Whoever is at the other end gets it, and the others its end.
    std::fs::write(&proof, "proof").unwrap();
    let first = asking.first_mut().unwrap().response().await;
    assert_eq!(first.status, 200);
}

//! TLS with clients.

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::http2::{CLEARTEXT, Http2};
use crate::support::tls::{Authority, Client, shown, with_tls};
use crate::support::{Connection, Load, Process, RawOrigin, embedded, eventually, free_port, get, origin, thorough};
use crate::upgrade::{TOOK_OVER, WAITING, upgradable};

const FAILED: &str = "TLS handshake failed";
const RELOADED: &str = "certificates reloaded";
const REFUSED: &str = "certificates not reloaded; the old ones stay";

fn handshakes(result: &str) -> String {
    format!("gopherproxy_tls_handshakes_total{{result=\"{result}\"}}")
}

#[tokio::test]
async fn a_request_over_tls_is_answered_and_its_origin_and_the_log_say_so() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let proxy = Process::proxy(&with_tls(&embedded(&[origin.address()]), files.path(), "")).await;
    proxy.active_backends(1).await;
    for (number, version) in (1u8..).zip([&TLS12, &TLS13]) {
        let client = authority.client_with(&[version], None);
        let mut connection = client.open(proxy.tls_address(), "a.example").await;
        let path = format!("/headers?{number}");
        let response = connection
            .request("GET", &path, "X-Forwarded-Proto: http\r\n", "")
            .await;
        assert_eq!(response.status, 200);
        let seen = response.text().to_lowercase();
        assert!(seen.contains("x-forwarded-proto: https"), "{seen}");
        // The connection is kept, bodies pass both ways, and the target may be a URL with this scheme and no other.
        let body = "x".repeat(300_000);
        let echo = connection.request("POST", "/echo", "", &body).await;
        assert!(echo.status == 200 && echo.text() == body, "{}", echo.status);
        connection
            .send("GET https://test:443/absolute HTTP/1.1\r\nHost: test\r\n\r\n")
            .await;
        assert_eq!(connection.response().await.status, 200);
        connection
            .send("GET http://test/other HTTP/1.1\r\nHost: test\r\n\r\n")
            .await;
        assert_eq!(connection.response().await.status, 400);
    }
    let line = proxy.request_line("/absolute").await;
    assert_eq!(
        (&line["tls"], &line["protocol"], &line["sni"]),
        (&"1.2".into(), &"h1".into(), &"a.example".into())
    );
    proxy.said("request", |line| line["tls"] == "1.3").await;
    proxy.reaches(&handshakes("full"), 2.0).await;

    // The port without TLS is as it was, and takes no URL with TLS.
    let mut plain = Connection::open(proxy.address()).await;
    let seen = plain.get("/headers").await.text().to_lowercase();
    assert!(
        seen.contains("x-forwarded-proto: http\n") || seen.contains("x-forwarded-proto: http\r"),
        "{seen}"
    );
    plain.send("GET https://test/ HTTP/1.1\r\nHost: test\r\n\r\n").await;
    assert_eq!(plain.response().await.status, 400);
    proxy
        .said("request", |line| line["path"] == "/headers" && line["tls"].is_null())
        .await;
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_host_that_it_asks_for() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    let [first, exact, wildcard] =
        [&["first.example"], &["www.shop.example"], &["*.shop.example"]].map(|names| authority.issue(names));
    for (pair, name) in [(&first, "1"), (&exact, "2"), (&wildcard, "3")] {
        pair.write(files.path(), name);
    }
    let configuration = with_tls(&embedded(&[origin.address()]), files.path(), "");
    let proxy = Process::proxy(&configuration).await;
    let client = authority.client();
    for (name, pair) in [
        ("first.example", &first),
        ("www.shop.example", &exact),
        ("api.shop.example", &wildcard),
    ] {
        let connection = client.open(proxy.tls_address(), name).await;
        assert_eq!(shown(&connection), pair.der(), "{name}");
    }
    // The default is not for this host, which the client finds out.
    let error = client
        .try_open(proxy.tls_address(), "other.example")
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("not valid for name"), "{error}");

    let strict = configuration.clone() + "    strict_sni: true\n";
    proxy.reconfigure(&strict);
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    client.open(proxy.tls_address(), "api.shop.example").await;
    for name in ["other.example", "127.0.0.1"] {
        let error = client
            .try_open(proxy.tls_address(), name)
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("UnrecognisedName"), "{name}: {error}");
    }
    let line = proxy
        .said(FAILED, |line| {
            line["sni"] == "other.example" && line["error"] != "received fatal alert: BadCertificate"
        })
        .await;
    assert!(line["error"].as_str().unwrap().contains("tls.strict_sni"), "{line}");
}

#[tokio::test]
async fn what_is_no_handshake_gets_an_answer_or_an_end_and_is_counted() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let lines = "    handshake_timeout: 500ms\n    min_version: 1.3\n";
    let proxy = Process::proxy(&with_tls(&embedded(&[origin.address()]), files.path(), lines)).await;
    let mut failed = 0.0;

    // HTTP, whole and in pieces.
    for pieces in [
        &["GET /plain HTTP/1.1\r\nHost: a\r\n\r\n"][..],
        &["G", "ET / HTTP/1.1\r\n\r\n"],
    ] {
        let mut plain = Connection::open(proxy.tls_address()).await;
        plain.send(pieces[0]).await;
        let response = plain.response().await;
        assert_eq!((response.status, response.header("connection")), (400, Some("close")));
        assert!(response.text().contains("use https"), "{}", response.text());
        for piece in &pieces[1..] {
            let _ = plain.try_send(piece).await;
        }
        failed += 1.0;
    }
    let line = proxy.request_line("/plain").await;
    assert_eq!((&line["status"], &line["reason"]), (&400.into(), &"plain_http".into()));
    proxy.reaches(&handshakes("failed"), failed).await;

    // What is neither, a broken message, and a version that is too old.
    for bytes in [&b"\0\0\0\0"[..], b"\x16\x03\x01\0\x05hello", b"\x16\x03\x01\xff\xff"] {
        let mut garbage = Connection::open(proxy.tls_address()).await;
        garbage.send(bytes).await;
        garbage.finish().await;
        garbage.rest().await;
        failed += 1.0;
        proxy.reaches(&handshakes("failed"), failed).await;
    }
    let old = authority.client_with(&[&TLS12], None);
    assert!(old.try_open(proxy.tls_address(), "a.example").await.is_err());
    failed += 1.0;
    proxy.reaches(&handshakes("failed"), failed).await;
    proxy
        .said(FAILED, |line| {
            line["client"] == "127.0.0.1" && line["error"].is_string()
        })
        .await;

    // One that never finishes, however far it got.
    for (number, bytes) in (1u8..).zip([&b""[..], b"\x16\x03\x01\x02\0\x01"]) {
        let mut slow = Connection::open(proxy.tls_address()).await;
        slow.send(bytes).await;
        assert_eq!(slow.rest().await, b"");
        proxy.reaches(&handshakes("timeout"), f64::from(number)).await;
    }
    // A check of the port is no handshake.
    Connection::open(proxy.tls_address()).await.finish().await;
    eventually("all have left", async || {
        proxy.metric("gopherproxy_connections").await == 0.0
    })
    .await;
    assert_eq!(proxy.metric(&handshakes("failed")).await, failed);
}

#[tokio::test]
async fn a_client_over_its_connections_is_cut_before_the_handshake() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let configuration = with_tls(&embedded(&[origin.address()]), files.path(), "");
    let proxy = Process::proxy(&(configuration + "  client: {max_connections_per_client: 1}\n")).await;
    let client = authority.client();
    let kept = client.open(proxy.tls_address(), "a.example").await;
    assert!(client.try_open(proxy.tls_address(), "a.example").await.is_err());
    proxy
        .said("request", |line| line["reason"] == "too_many_connections")
        .await;
    proxy.reaches(&handshakes("full"), 1.0).await;
    drop(kept);
    eventually("its place is free", async || {
        client.try_open(proxy.tls_address(), "a.example").await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn certificates_that_can_not_be_used_are_named_before_anything_starts() {
    let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let (one, other) = (authority.issue(&["a.example"]), authority.issue(&["a.example"]));
    let configuration = with_tls(&embedded(&[([127, 0, 0, 1], 1).into()]), files.path(), "");
    for (cert, key, why) in [
        (&one.cert, &other.key, "a.key: it is not the key of "),
        (&one.key, &one.key, "a.crt: it holds no certificate"),
    ] {
        std::fs::write(files.path().join("a.crt"), cert).unwrap();
        std::fs::write(files.path().join("a.key"), key).unwrap();
        for (process, says) in [
            (Process::check(&configuration), "the configuration is bad"),
            (
                Process::start(Process::binary("gopherproxy"), Some(&configuration), &[]),
                "can't start",
            ),
        ] {
            assert_eq!(process.ended().await.0.code(), Some(1));
            let line = process.said(says, |_| true).await;
            let error = line["error"].as_str().unwrap();
            assert!(
                error.contains(why) && error.contains(".yaml: gopherproxy.tls: "),
                "{line}"
            );
        }
    }
    // One that has expired is a warning.
    let expired = authority.issue_with(&["old.example"], |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    expired.write(files.path(), "a");
    let checked = Process::check(&configuration);
    assert_eq!(checked.ended().await.0.code(), Some(0));
    let says = "the certificate has expired: clients will refuse it";
    checked
        .said(says, |line| line["level"] == "WARN" && line["name"] == "old.example")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_used_within_seconds_and_a_bad_one_never() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    let before = authority.issue(&["a.example"]);
    before.write(files.path(), "a");
    let proxy = Process::proxy(&with_tls(&embedded(&[origin.address()]), files.path(), "")).await;
    proxy.active_backends(1).await;
    let client = authority.client();
    let mut kept = client.open(proxy.tls_address(), "a.example").await;
    assert_eq!(kept.get("/").await.status, 200);
    let expiry = "gopherproxy_tls_certificate_expiry_timestamp_seconds{name=\"a.example\"}";
    assert!(proxy.metric(expiry).await > 0.0);

    // Half of a new pair: the old one stays. Nobody is told that it has changed.
    let after = authority.issue_with(&["a.example"], |params| {
        params.not_after = rcgen::date_time_ymd(2040, 1, 1)
    });
    std::fs::write(files.path().join("a.key"), &after.key).unwrap();
    let line = proxy.said(REFUSED, |_| true).await;
    assert!(
        line["error"].as_str().unwrap().contains("a.key: it is not the key of "),
        "{line}"
    );
    proxy
        .reaches("gopherproxy_tls_reloads_total{result=\"failed\"}", 1.0)
        .await;
    assert_eq!(
        shown(&client.open(proxy.tls_address(), "a.example").await),
        before.der()
    );

    after.write(files.path(), "a");
    proxy.said(RELOADED, |_| true).await;
    assert_eq!(shown(&client.open(proxy.tls_address(), "a.example").await), after.der());
    proxy.reaches("gopherproxy_tls_reloads_total{result=\"ok\"}", 1.0).await;
    assert_eq!(proxy.metric(expiry).await, 2_208_988_800.0);
    assert_eq!(kept.get("/").await.status, 200, "a connection keeps what it has");

    // A reload of the configuration reads them too, and is refused as a whole.
    let again = authority.issue(&["b.example"]);
    std::fs::write(files.path().join("a.crt"), &again.cert).unwrap();
    proxy.signal("HUP");
    let line = proxy
        .said("configuration not reloaded; the old one stays", |_| true)
        .await;
    let names = ".yaml: gopherproxy.tls: ";
    assert!(line["error"].as_str().unwrap().contains(names), "{line}");
    again.write(files.path(), "a");
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    assert_eq!(shown(&client.open(proxy.tls_address(), "b.example").await), again.der());
    let series = proxy.metrics().await;
    assert!(!series.contains_key(expiry), "the series of a name that is gone");
}

#[tokio::test]
async fn a_response_ends_with_tls_and_one_that_breaks_off_does_not() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let proxy = Process::proxy(&with_tls(&embedded(&[origin.address()]), files.path(), "")).await;
    proxy.active_backends(1).await;
    let mut connection = authority.client().open(proxy.tls_address(), "a.example").await;
    let response = connection.request("GET", "/", "Connection: close\r\n", "").await;
    assert_eq!(response.status, 200);
    // Without close_notify this would be an error.
    assert_eq!(connection.try_rest().await.expect("close_notify"), b"");

    // A client of HTTP/1.0 knows the end of a response by that alone.
    let origin = RawOrigin::start(|mut peer| async move {
        peer.request().await;
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            .await;
    })
    .await;
    let configuration = with_tls(&embedded(&[origin.address]), files.path(), "");
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let mut connection = authority.client().open(proxy.tls_address(), "a.example").await;
    connection.send("GET / HTTP/1.0\r\n\r\n").await;
    assert!(connection.try_rest().await.is_err(), "there is no close_notify");
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_by_the_deadline_of_a_response() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let configuration = with_tls(&embedded(&[origin.address()]), files.path(), "");
    let proxy = Process::proxy(&(configuration + "  client: {write_timeout: 1s}\n")).await;
    proxy.active_backends(1).await;
    let mut connection = authority.client().open(proxy.tls_address(), "a.example").await;
    connection
        .send("GET /bytes/50000000 HTTP/1.1\r\nHost: test\r\n\r\n")
        .await;
    let line = proxy.request_line("/bytes/50000000").await;
    assert_eq!(line["error"], "the client read the response too slowly", "{line}");
    proxy.reaches("gopherproxy_connections", 0.0).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

#[tokio::test]
async fn the_subject_of_a_client_is_verified_and_never_taken_from_outside() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let (clients, strangers) = (Authority::new(), Authority::new());
    let ca = files.path().join("clients.pem");
    std::fs::write(&ca, clients.pem()).unwrap();
    let ca = format!("    client_ca: {}\n", ca.display());
    let trusting = embedded(&[origin.address()]) + "  trusted_proxies: [127.0.0.1]\n";
    let configuration = with_tls(&trusting, files.path(), &ca);
    let proxy = Process::proxy(&(configuration.clone() + "    client_auth: optional\n")).await;
    proxy.active_backends(1).await;
    let (known, stranger) = (clients.issue_client("till 7"), strangers.issue_client("till 7"));
    let claims = "X-Client-Cert-Subject: CN=admin\r\nx_client_cert_subject: CN=admin\r\n";
    let seen = async |client: &Client| {
        let mut connection = client.try_open(proxy.tls_address(), "a.example").await?;
        let response = connection.try_request("GET", "/headers", claims, "").await?;
        Ok::<_, std::io::Error>(response.text().to_lowercase())
    };
    for version in [&TLS12, &TLS13] {
        let with = authority.client_with(&[version], Some(&known));
        // The second time, too.
        for _ in 0..2 {
            let seen = seen(&with).await.unwrap();
            assert!(seen.contains("x-client-cert-subject: cn=till 7\n"), "{seen}");
            assert!(!seen.contains("admin"), "{seen}");
        }
        let seen_without = seen(&authority.client_with(&[version], None)).await.unwrap();
        assert!(!seen_without.contains("cert"), "{seen_without}");
        assert!(seen(&authority.client_with(&[version], Some(&stranger))).await.is_err());
    }
    // Who resumes a session shows no certificate, which may have expired since.
    assert_eq!(proxy.metric(&handshakes("resumed")).await, 0.0);
    assert_eq!(proxy.metric(&handshakes("full")).await, 6.0);
    let mut plain = Connection::open(proxy.address()).await;
    let text = plain.request("GET", "/headers", claims, "").await.text();
    assert!(!text.to_lowercase().contains("admin"), "{text}");

    proxy.reconfigure(&(configuration + "    client_auth: required\n"));
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    let without = authority.client();
    assert!(seen(&without).await.is_err());
    assert!(seen(&authority.client_with(&[&TLS13], Some(&known))).await.is_ok());
}

#[tokio::test]
async fn a_session_is_resumed_unless_clients_show_certificates() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let secret = files.path().join("secret");
    std::fs::write(&secret, [7; 32]).unwrap();
    let shared = format!("    ticket_secret: {}\n", secret.display());
    let configuration = with_tls(&embedded(&[origin.address()]), files.path(), &shared);
    let (one, replica) = (
        Process::proxy(&configuration).await,
        Process::proxy(&configuration).await,
    );
    one.active_backends(1).await;
    replica.active_backends(1).await;
    let ca = files.path().join("clients.pem");
    std::fs::write(&ca, Authority::new().pem()).unwrap();
    let other = format!(
        "{configuration}    client_auth: optional\n    client_ca: {}\n",
        ca.display()
    );
    for (number, version) in (1u8..).zip([&TLS12, &TLS13]) {
        let client = authority.client_with(&[version], None);
        let resumed = async |proxy: &Process| {
            let mut connection = client.open(proxy.tls_address(), "a.example").await;
            // The ticket of TLS 1.3 comes behind the handshake.
            assert_eq!(connection.get("/").await.status, 200);
            connection.stream().get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
        };
        assert!(!resumed(&one).await);
        assert!(resumed(&one).await);
        assert!(resumed(&replica).await, "it has the secret too");
        replica.reaches(&handshakes("resumed"), f64::from(number)).await;
        let reload = async |configuration: &str| {
            one.reconfigure(configuration);
            let reloads = one.lines("configuration reloaded").len();
            one.signal("HUP");
            eventually("reloaded", async || one.lines("configuration reloaded").len() > reloads).await;
        };
        // Reloaded, it has the same keys; none where clients may show certificates.
        reload(&configuration).await;
        assert!(resumed(&one).await, "{version:?}");
        reload(&other).await;
        for _ in 0..2 {
            assert!(!resumed(&one).await, "{version:?}");
        }
        reload(&configuration).await;
        // TLS 1.3 uses a ticket once.
        resumed(&one).await;
        assert!(resumed(&one).await, "{version:?}");
    }
}

#[tokio::test]
async fn a_balancer_names_its_client_before_the_handshake() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let configuration = with_tls(&embedded(&[origin.address()]), files.path(), "");
    let proxy = Process::proxy(&(configuration + "  proxy_protocol: [127.0.0.1]\n")).await;
    proxy.active_backends(1).await;
    let mut tcp = TcpStream::connect(proxy.tls_address()).await.unwrap();
    tcp.write_all(b"PROXY TCP4 192.0.2.9 192.0.2.1 5000 443\r\n")
        .await
        .unwrap();
    let mut connection = authority.client().shake(tcp, "a.example").await.unwrap();
    assert_eq!(connection.get("/named").await.status, 200);
    let line = proxy.request_line("/named").await;
    assert_eq!((&line["client"], &line["tls"]), (&"192.0.2.9".into(), &"1.3".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_tls_lose_no_request_and_sessions_are_resumed() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    let certificates = files.path().join("certificates");
    std::fs::create_dir(&certificates).unwrap();
    authority.issue(&["a.example"]).write(&certificates, "a");
    let plain = upgradable(&embedded(&[origin.address()]), files.path());
    let configuration = with_tls(&plain, &certificates, "");
    let configuration = configuration.replace(
        "    listen: 127.0.0.1:0",
        &format!("    listen: 127.0.0.1:{}", free_port()),
    );
    // The first has no TLS, so that the second binds the port.
    let mut proxy = Process::proxy(&plain).await;
    proxy.active_backends(1).await;
    let handed_over = async |proxy: Process, configuration: &str| {
        let successor = Process::successor(configuration);
        successor.said(WAITING, |_| true).await;
        proxy.signal("QUIT");
        successor.said(TOOK_OVER, |_| true).await;
        assert_eq!(proxy.ended().await.0.code(), Some(0));
        successor
    };
    proxy = handed_over(proxy, &configuration).await;
    let (address, client) = (proxy.tls_address(), authority.client());
    let mut first = client.open(address, "a.example").await;
    assert_eq!(first.get("/").await.status, 200);
    let loaded = authority.client();
    let open = move || {
        let client = loaded.clone();
        async move { client.try_open(address, "a.example").await }
    };
    let load = Load::over(open, "/delay/3", 200);
    for _ in 0..thorough(3, 50) {
        let before = load.answered();
        eventually("traffic flows", async || load.answered() > before + 100).await;
        proxy = handed_over(proxy, &configuration).await;
        let resumed = client.open(address, "a.example").await;
        let kind = resumed.stream().get_ref().1.handshake_kind();
        assert_eq!(kind, Some(HandshakeKind::Resumed), "{:?}", proxy.metrics().await);
        let mut resumed = resumed;
        assert_eq!(resumed.get("/").await.status, 200);
    }
    load.lost_none().await;
    // Without TLS again, the port is closed.
    proxy = handed_over(proxy, &plain).await;
    assert!(client.try_open(address, "a.example").await.is_err());
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_answers_whoever_is_connected_with_tls() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let proxy = Process::proxy(&with_tls(&embedded(&[origin.address()]), files.path(), "")).await;
    proxy.active_backends(1).await;
    let (client, address) = (authority.client(), proxy.tls_address());
    let mut under_way = client.open(address, "a.example").await;
    under_way.send("GET /delay/500 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    proxy.reaches("gopherproxy_inflight_requests", 1.0).await;
    // Connected, and the handshake is still to come.
    let connected = TcpStream::connect(address).await.unwrap();
    proxy.reaches("gopherproxy_connections", 2.0).await;
    proxy.signal("TERM");
    eventually("the port is closed", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
    let mut late = client.shake(connected, "a.example").await.expect("a handshake");
    let response = late.get("/").await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    assert_eq!(under_way.response().await.status, 200);
    assert_eq!(proxy.ended().await.0.code(), Some(0));
}

#[tokio::test]
async fn the_plain_port_sends_clients_to_https_and_responses_keep_them_there() {
    let (origin, files, authority) = (origin(), tempfile::tempdir().unwrap(), Authority::new());
    authority.issue(&["a.example"]).write(files.path(), "a");
    let lines = "    redirect: true\n    redirect_port: 8443\n    redirect_exempt: [/health]\n    hsts: 365d\n";
    let trusting = embedded(&[origin.address()]) + "  trusted_proxies: [127.0.0.2]\n";
    let configuration = with_tls(&(trusting + CLEARTEXT), files.path(), lines);
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let mut plain = Connection::open(proxy.address()).await;
    for method in ["GET", "POST", "HEAD"] {
        plain
            .send(format!("{method} /a?b HTTP/1.1\r\nHost: shop.example:80\r\n\r\n"))
            .await;
        let response = plain.try_response(method == "HEAD").await.unwrap();
        assert_eq!(response.status, 308);
        assert_eq!(response.header("location"), Some("https://shop.example:8443/a?b"));
        assert_eq!(response.header("strict-transport-security"), None);
    }
    for served in ["/health", "/health/db", "/.well-known/acme-challenge/token"] {
        let response = plain.get(served).await;
        assert_eq!(
            (response.status, response.header("strict-transport-security")),
            (200, None),
            "{served}"
        );
    }
    let line = proxy.request_line("/a").await;
    assert_eq!((&line["status"], &line["reason"]), (&308.into(), &"redirected".into()));
    let mut http2 = Http2::open(proxy.address()).await;
    let answer = http2.get("/a?b").await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (308, Some("https://test:8443/a?b"))
    );
    assert_eq!(http2.get("/health").await.status, 200);
    proxy
        .reaches("gopherproxy_rejections_total{reason=\"redirected\"}", 4.0)
        .await;

    // A proxy in front that speaks TLS with the client would be sent round in circles.
    let mut balancer = Connection::open_from(proxy.address(), [127, 0, 0, 2].into()).await;
    for (scheme, status) in [("https", 200), ("http", 308)] {
        let line = format!("X-Forwarded-Proto: {scheme}\r\n");
        assert_eq!(balancer.request("GET", "/", &line, "").await.status, status, "{scheme}");
    }
    assert_eq!(
        plain
            .request("GET", "/", "X-Forwarded-Proto: https\r\n", "")
            .await
            .status,
        308
    );

    let mut secure = authority.client().open(proxy.tls_address(), "a.example").await;
    let response = secure.get("/").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("strict-transport-security"), Some("max-age=31536000"));
    let mut http2 = authority.client().open_http2(proxy.tls_address(), "a.example").await;
    let answer = http2.get("/").await;
    assert_eq!(
        (answer.status, answer.header("strict-transport-security")),
        (200, Some("max-age=31536000"))
    );

    proxy.reconfigure(&configuration.replace("redirect: true", "redirect: false"));
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    assert_eq!(plain.get("/").await.status, 200);
}

//! Origins that speak TLS: verified by name, over HTTP/1.1 and HTTP/2; and all that can be wrong with them.

use std::process::Command;

use tempfile::TempDir;

use crate::support::authority::{Authority, Identity};
use crate::support::http2::{CLEARTEXT, Http2, request};
use crate::support::http2_origin::Http2Origin;
use crate::support::{Connection, Process, RawOrigin, embedded_targets, eventually, forwarder, get, origin};

/// An authority and the directory that its certificate is in.
struct Files {
    authority: Authority,
    directory: TempDir,
    ca_file: String,
}

impl Files {
    fn new() -> Self {
        let (authority, directory) = (Authority::new(), tempfile::tempdir().expect("a directory"));
        let ca_file = authority.write(directory.path());
        Self {
            authority,
            directory,
            ca_file,
        }
    }

    /// The lines of `upstream`, with these further keys of `tls`.
    fn upstream(&self, tls: &str, more: &str) -> String {
        format!("  upstream: {{tls: {{ca_file: '{}'{tls}}}{more}}}\n", self.ca_file)
    }

    async fn origin(&self, protocols: &[&str]) -> Http2Origin {
        Http2Origin::over_tls(self.authority.issue("localhost").acceptor(protocols, None)).await
    }
}

/// A member for an origin whose certificate is for `localhost`.
fn local(origin: &Http2Origin) -> String {
    format!("https://localhost:{}", origin.address.port())
}

/// How many connections serve for nothing but to find out which version of HTTP an origin chooses.
fn chosen(version: &str) -> usize {
    usize::from(version == "h2" && forwarder::variable().is_none())
}

async fn proxy_over(targets: &[String], more: &str) -> Process {
    let proxy = Process::proxy(&(embedded_targets(targets) + more)).await;
    proxy.active_backends(targets.len()).await;
    proxy
}

#[tokio::test]
async fn an_origin_is_spoken_to_over_tls_in_the_version_that_it_offers() {
    let files = Files::new();
    for (protocols, version) in [
        (&[][..], "h1"),
        (&["http/1.1"], "h1"),
        (&["h2", "http/1.1"], "h2"),
        (&["h2"], "h2"),
    ] {
        let origin = files.origin(protocols).await;
        let target = local(&origin);
        let proxy = proxy_over(std::slice::from_ref(&target), &files.upstream("", "")).await;
        let mut client = Connection::open(proxy.address()).await;
        for number in 0..5 {
            let response = client.get(&format!("/{number}?a=b")).await;
            assert_eq!((response.status, response.text()), (200, "ok".into()), "{protocols:?}");
            assert_eq!(response.header("x-version"), Some(version));
            let response = client.request("POST", "/post", "X-Field: Value\r\n", "a body").await;
            assert_eq!((response.status, response.text()), (200, "ok".into()), "{protocols:?}");
            assert_eq!(client.request("HEAD", "/head", "", "").await.status, 200);
        }
        assert_eq!(client.get("/last").await.status, 200);
        let requests = origin.requests();
        // Each of the five HEADs has a connection of its own.
        assert_eq!(
            (requests.len(), origin.connections()),
            (16, 6 + chosen(version)),
            "{protocols:?}"
        );
        for seen in &requests {
            assert_eq!(seen.version, version);
            let head = seen.head.to_lowercase();
            assert!(head.contains("x-forwarded-for: 127.0.0.1\r\n"), "{head}");
            assert!(!head.contains("transfer-encoding"), "{head}");
            if version == "h2" {
                assert!(
                    head.contains("te: trailers\r\n") && head.contains(" https://test/"),
                    "{head}"
                );
                assert!(!head.contains("\r\nhost: ") && !head.contains("connection"), "{head}");
            } else {
                assert!(
                    head.contains("\r\nhost: test\r\n") && !head.contains("\r\nte: "),
                    "{head}"
                );
            }
        }
        let post = requests.iter().find(|seen| seen.head.starts_with("POST")).expect("one");
        assert_eq!(post.body, b"a body");
        let line = proxy.request_line("/last").await;
        assert_eq!(
            (&line["backend"], &line["status"]),
            (&target.clone().into(), &200.into())
        );
        let series = format!("gopherproxy_request_duration_seconds_count{{backend=\"{target}\"}}");
        proxy.reaches(&series, 16.0).await;
    }
}

#[tokio::test]
async fn an_origin_that_can_not_be_verified_gets_no_request() {
    let (files, others) = (Files::new(), Authority::new());
    let plain = RawOrigin::start(|mut peer| async move {
        peer.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        peer.until("never").await;
    })
    .await;
    let closing = RawOrigin::start(|peer| async move { drop(peer) }).await;
    let acceptor = |identity: Identity| identity.acceptor(&["h2", "http/1.1"], None);
    let wrong_name = Http2Origin::over_tls(acceptor(files.authority.issue("other.example"))).await;
    let untrusted = Http2Origin::over_tls(acceptor(others.issue("localhost"))).await;
    let expired = Http2Origin::over_tls(acceptor(files.authority.issue_expired("localhost"))).await;
    let by_address = Http2Origin::over_tls(acceptor(files.authority.issue("127.0.0.1"))).await;
    for (target, why) in [
        (local(&wrong_name), "is not for the name of the member"),
        (format!("https://{}", wrong_name.address), "is not for the name"),
        (local(&by_address), "is not for the name of the member"),
        (local(&untrusted), "signed by nobody that is trusted"),
        (local(&expired), "has expired"),
        (format!("https://{}", plain.address), "does not speak TLS"),
        (format!("https://{}", closing.address), "ends the TLS handshake"),
    ] {
        let more = files.upstream("", ", ejection: {failures: 1000}");
        let proxy = proxy_over(std::slice::from_ref(&target), &more).await;
        let mut client = Connection::open(proxy.address()).await;
        for method in ["GET", "POST"] {
            let response = client.request(method, &format!("/{method}"), "", "").await;
            assert_eq!(response.status, 502, "{why}");
            assert!(response.text().starts_with("Bad Gateway: "), "{why}: {response:?}");
            client = Connection::open(proxy.address()).await;
            let line = proxy.request_line(&format!("/{method}")).await;
            let error = line["error"].as_str().expect("why");
            assert!(error.contains(why), "{target}: {error}");
            assert!(!error.contains("example"), "nothing of the certificate: {error}");
            assert_eq!(
                (&line["reason"], &line["backend"]),
                (&"backend_failed".into(), &target.clone().into())
            );
        }
        assert_eq!(proxy.metric("gopherproxy_upstream_retries_total").await, 0.0);
    }
    for origin in [wrong_name, untrusted, expired] {
        assert!(origin.requests().is_empty());
        assert!(origin.attempts() <= 4, "each request tries once");
    }
    assert!(plain.requests().is_empty());
    // By its address the same certificate is good.
    let proxy = proxy_over(&[format!("https://{}", by_address.address)], &files.upstream("", "")).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

#[tokio::test]
async fn an_origin_that_can_not_be_verified_is_ejected_and_others_answer() {
    let files = Files::new();
    let bad = Http2Origin::over_tls(Authority::new().issue("localhost").acceptor(&["h2"], None)).await;
    let (secure, plain) = (files.origin(&["h2"]).await, origin());
    let targets = [local(&bad), local(&secure), plain.address().to_string()];
    let more = files.upstream("", ", ejection: {failures: 3, time: 60s}");
    let proxy = proxy_over(&targets, &more).await;
    let mut client = Connection::open(proxy.address()).await;
    for number in 0..30 {
        let (method, body) = if number % 2 == 0 { ("GET", "") } else { ("POST", "body") };
        let response = client.request(method, "/", "", body).await;
        assert_eq!(response.status, 200, "request {number}");
    }
    assert_eq!(proxy.metric("gopherproxy_ejections_total").await, 1.0);
    proxy.active_backends(2).await;
    assert!(bad.requests().is_empty() && bad.attempts() == 3, "{}", bad.attempts());
    assert!(secure.requests().len() >= 10);
}

#[tokio::test]
async fn requests_move_between_origins_with_and_without_tls() {
    let files = Files::new();
    let (secure, plain) = (files.origin(&["h2", "http/1.1"]).await, origin());
    let gone = RawOrigin::answering("").await;
    let more = files.upstream("", ", ejection: {failures: 1000}") + "  health: {interval: 1h}\n";
    let targets = [local(&secure), gone.address.to_string(), plain.address().to_string()];
    let configuration = (embedded_targets(&targets) + &more + CLEARTEXT)
        .replace("  health: {interval: 100ms}\n", "")
        .replace("interval: 100ms, targets", "interval: 1h, targets");
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(3).await;
    drop(gone);
    let mut client = Connection::open(proxy.address()).await;
    let mut http2 = Http2::open(proxy.address()).await;
    for number in 0..6 {
        let (method, body) = if number % 2 == 0 { ("GET", "") } else { ("POST", "body") };
        let response = client.request(method, &format!("/{number}"), "", body).await;
        assert_eq!(response.status, 200, "request {number}");
        let asked = request(method, &format!("/{number}/http2"));
        let answer = http2.send(asked, body.as_bytes()).await.expect("an answer");
        assert_eq!(answer.status, 200, "request {number} over HTTP/2");
    }
    assert!(!secure.requests().is_empty());
    drop(plain);
    for number in 0..6 {
        let (method, body) = if number % 2 == 0 { ("GET", "") } else { ("PUT", "body") };
        let response = client.request(method, &format!("/{number}/again"), "", body).await;
        assert_eq!(
            (response.status, response.header("x-version")),
            (200, Some("h2")),
            "request {number}"
        );
        let asked = request(method, &format!("/{number}/again/http2"));
        let answer = http2.send(asked, body.as_bytes()).await.expect("an answer");
        assert_eq!(
            (answer.status, answer.header("x-version")),
            (200, Some("h2")),
            "request {number} over HTTP/2"
        );
    }
    let requests = secure.requests();
    let puts: Vec<_> = requests.iter().filter(|seen| seen.head.starts_with("PUT")).collect();
    assert_eq!(puts.len(), 6);
    assert!(puts.iter().all(|put| put.body == b"body"));
}

#[tokio::test]
async fn a_server_name_of_its_own_and_a_client_certificate() {
    let (files, clients) = (Files::new(), Authority::new());
    let acceptor = files.authority.issue("origin.example");
    for protocols in [&["h2"][..], &["http/1.1"]] {
        let origin = Http2Origin::over_tls(acceptor.acceptor(protocols, Some(&clients))).await;
        let (cert, key) = clients.issue("proxy.example").write(files.directory.path());
        let tls = format!(", server_name: origin.example, cert: '{cert}', key: '{key}'");
        let target = format!("https://{}", origin.address);
        let proxy = proxy_over(std::slice::from_ref(&target), &files.upstream(&tls, "")).await;
        let mut client = Connection::open(proxy.address()).await;
        for _ in 0..3 {
            assert_eq!(client.get("/").await.status, 200);
        }
        let version = if protocols == ["h2"] { "h2" } else { "h1" };
        assert_eq!(
            (origin.requests().len(), origin.connections()),
            (3, 1 + chosen(version))
        );
        // Without it the origin ends the handshake, or the connection at its first use.
        let tls = ", server_name: origin.example";
        let proxy = proxy_over(&[target], &files.upstream(tls, "")).await;
        assert_eq!(get(proxy.address(), "/refused").await.status, 502);
        assert_eq!(origin.requests().len(), 3);
    }
}

#[tokio::test]
async fn a_reload_changes_whom_origins_are_verified_by() {
    let (files, others) = (Files::new(), Files::new());
    for protocols in [&["h2"][..], &["http/1.1"]] {
        let origin = files.origin(protocols).await;
        let before = embedded_targets(&[local(&origin)]);
        let proxy = proxy_over(&[local(&origin)], &files.upstream("", "")).await;
        assert_eq!(get(proxy.address(), "/").await.status, 200);
        let reload = async |configuration: &str, message: &str| {
            let count = proxy.lines(message).len();
            proxy.reconfigure(configuration);
            proxy.signal("HUP");
            eventually(message, async || proxy.lines(message).len() > count).await;
        };
        let missing = before.clone() + "  upstream: {tls: {ca_file: /nowhere/ca.pem}}\n";
        reload(&missing, "configuration not reloaded; the old one stays").await;
        assert_eq!(get(proxy.address(), "/").await.status, 200);
        // The kept connection was made with the old authority.
        reload(&(before.clone() + &others.upstream("", "")), "configuration reloaded").await;
        assert_eq!(get(proxy.address(), "/").await.status, 502);
        reload(&(before.clone() + &files.upstream("", "")), "configuration reloaded").await;
        assert_eq!(get(proxy.address(), "/").await.status, 200);
        assert_eq!(origin.requests().len(), 3);
    }
}

#[tokio::test]
async fn the_platforms_roots_verify_origins_when_there_are_no_others() {
    let files = Files::new();
    let origin = files.origin(&["h2"]).await;
    let configuration = embedded_targets(&[local(&origin)]);
    let proxy = Process::proxy_with(&configuration, &[("SSL_CERT_FILE", &files.ca_file)]).await;
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    let other = Files::new();
    let proxy = Process::proxy_with(&configuration, &[("SSL_CERT_FILE", &other.ca_file)]).await;
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.status, 502);
}

#[test]
fn bad_files_are_mistakes_and_no_panics() {
    let (files, others) = (Files::new(), Authority::new());
    let directory = files.directory.path();
    let (cert, key) = files.authority.issue("proxy.example").write(directory);
    let other_directory = tempfile::tempdir().expect("a directory");
    let (_, other_key) = others.issue("proxy.example").write(other_directory.path());
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let (nonsense, empty) = (file("nonsense", "nonsense\n"), file("empty", ""));
    let cut = file("cut", &files.authority.pem().replacen("MI", "AA", 1));
    let configuration = |tls: &str| {
        file(
            "gopherproxy.yaml",
            &format!("gopherproxy: {{upstream: {{tls: {{{tls}}}}}}}\n"),
        )
    };
    let check = |tls: &str, variables: &[(&str, &str)]| {
        let path = configuration(tls);
        let mut command = Command::new(env!("CARGO_BIN_EXE_gopherproxy"));
        let command = command.env_clear().envs(variables.iter().copied());
        let output = command.args(["-t", "-c", &path]).output().expect("it starts");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), said)
    };
    let ca_file = &files.ca_file;
    for (tls, variables, problem) in [
        (format!("ca_file: {nonsense}"), &[][..], "ca_file: /"),
        (format!("ca_file: {empty}"), &[], "there is no certificate in PEM form"),
        (format!("ca_file: {cut}"), &[], "certificate 1 of it can't be used"),
        ("ca_file: /dev/zero".into(), &[], "not a regular file"),
        ("ca_file: ca.pem".into(), &[], "the absolute path of a PEM file"),
        (format!("ca_file: {ca_file}, cert: {cert}"), &[], "set key too"),
        (format!("ca_file: {ca_file}, key: {key}"), &[], "set cert too"),
        (format!("cert: {cert}, key: {other_key}"), &[], "it is not the key of"),
        (format!("cert: {cert}, key: {nonsense}"), &[], "there is no private key"),
        (format!("cert: {cut}, key: {key}"), &[], "can't be parsed"),
        ("server_name: ''".into(), &[], "server_name"),
        ("server_name: 'a b'".into(), &[], "a host name or an address"),
        (String::new(), &[("SSL_CERT_FILE", "/nowhere/ca.pem")], "SSL_CERT_FILE"),
        (String::new(), &[("SSL_CERT_FILE", &nonsense)], "SSL_CERT_FILE"),
        (String::new(), &[("SSL_CERT_FILE", &cut)], "SSL_CERT_FILE"),
        (String::new(), &[("SSL_CERT_DIR", "/nowhere")], "SSL_CERT_DIR"),
    ] {
        let (code, said) = check(&tls, variables);
        assert_eq!(code, Some(1), "{tls} {variables:?}: {said}");
        assert!(said.contains(problem), "{tls} {variables:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("PRIVATE KEY"), "{said}");
    }
    for (tls, variables) in [
        (format!("ca_file: {ca_file}, cert: {cert}, key: {key}"), &[][..]),
        (format!("ca_file: {ca_file}"), &[("SSL_CERT_FILE", &*nonsense)]),
        (String::new(), &[("SSL_CERT_FILE", &**ca_file)]),
    ] {
        let (code, said) = check(&tls, variables);
        assert_eq!(code, Some(0), "{tls} {variables:?}: {said}");
    }
}

#[tokio::test]
async fn a_websocket_goes_over_http_1_1_whatever_else_the_origin_speaks() {
    let files = Files::new();
    let origin = files.origin(&["h2", "http/1.1"]).await;
    let proxy = proxy_over(&[local(&origin)], &files.upstream("", "")).await;
    for round in 0..3 {
        assert_eq!(get(proxy.address(), "/").await.header("x-version"), Some("h2"));
        let mut client = Connection::open(proxy.address()).await;
        client
            .send("GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        assert_eq!(client.head().await.status, 101, "{round}");
        client.send("hello").await;
        assert_eq!(client.bytes(5).await, b"hello");
        client.send("more").await;
        assert_eq!(client.bytes(4).await, b"more");
    }
}

#[tokio::test]
async fn an_upload_without_a_length_ends_once() {
    let files = Files::new();
    let origin = files.origin(&["http/1.1"]).await;
    let proxy = proxy_over(&[local(&origin)], &files.upstream("", "")).await;
    let mut client = Connection::open(proxy.address()).await;
    for body in ["", "2\r\nab\r\n"] {
        for number in 0..3 {
            client
                .send(format!(
                    "PUT /{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                ))
                .await;
            for byte in format!("{body}0\r\n\r\n").bytes() {
                client.send([byte]).await;
                tokio::task::yield_now().await;
            }
            assert_eq!(client.response().await.status, 200);
        }
    }
    let requests = origin.requests();
    assert_eq!((requests.len(), origin.connections()), (6, 1));
    for seen in requests {
        let (head, body) = (seen.head, String::from_utf8_lossy(&seen.body).into_owned());
        // A second end would be what the next request begins with.
        assert!(head.starts_with("PUT /"), "{head:?}");
        assert_eq!(body.matches("0\r\n\r\n").count(), 1, "{body:?}");
    }
}

//! Health checks that ask over HTTP, the way that requests go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::authority::{Authority, Identity};
use crate::support::http2_origin::Http2Origin;
use crate::support::{Process, RawOrigin, eventually, origin};

const DOWN: &str = "backend went down";

/// A configuration whose only pool has these backends and this check.
fn configuration(backends: &str, health: &str, more: &str) -> String {
    format!(
        "threads: 2
gopherproxy:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  discovery: {{interval: 100ms}}
  pools:
    default:
      backends: ['{backends}']
      health: {{kind: http, interval: 50ms, {health}}}
{more}"
    )
}

/// A proxy with that.
async fn proxy(backends: &str, health: &str, more: &str) -> Process {
    Process::proxy(&configuration(backends, health, more)).await
}

async fn reason(proxy: &Process) -> String {
    let line = proxy.said(DOWN, |_| true).await;
    line["reason"].as_str().expect("a reason").to_owned()
}

#[tokio::test]
async fn the_status_decides_and_a_change_takes_as_many_checks_as_it_is_to() {
    let (status, asked) = (Arc::new(AtomicU16::new(204)), Arc::new(AtomicUsize::new(0)));
    let (answer, count) = (Arc::clone(&status), Arc::clone(&asked));
    let origin = RawOrigin::start(move |mut peer| {
        let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
        async move {
            while peer.request().await.is_some() {
                let status = answer.load(Ordering::SeqCst);
                count.fetch_add(1, Ordering::SeqCst);
                // An answer may begin with others, and nobody waits for its body.
                let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
                peer.send(format!(
                    "{interim}HTTP/1.1 {status} X\r\nContent-Length: 1000000\r\n\r\nbegin"
                ))
                .await;
            }
        }
    })
    .await;
    let health = "path: '/healthz?full', host: health.example, status: 200-299, rise: 3, fall: 4";
    let proxy = proxy(&origin.address.to_string(), health, "").await;
    proxy.active_backends(1).await;
    eventually("it was asked", async || !origin.requests().is_empty()).await;
    let head = origin.requests().remove(0);
    assert!(head.starts_with("GET /healthz?full HTTP/1.1\r\n"), "{head}");
    let lower = head.to_ascii_lowercase();
    assert!(
        lower.contains("\r\nhost: health.example\r\n") && lower.contains("\r\nconnection: close\r\n"),
        "{head}"
    );

    for (now, alive, needed) in [(503, 0, 4), (200, 1, 3)] {
        // All that are asked from now on get it, and one may be under way.
        status.store(now, Ordering::SeqCst);
        let before = asked.load(Ordering::SeqCst);
        proxy.active_backends(alive).await;
        let checks = asked.load(Ordering::SeqCst) - before;
        assert!(checks >= needed, "{now}: {checks}");
    }
    assert_eq!(reason(&proxy).await, "status 503, expected 200-299");
    proxy.said("backend recovered", |_| true).await;
    assert_eq!(proxy.lines(DOWN).len(), 1);
    assert_eq!(proxy.lines("backend recovered").len(), 1);
}

#[tokio::test]
async fn one_bad_check_among_good_ones_changes_nothing() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let origin = RawOrigin::start(move |mut peer| {
        let count = Arc::clone(&count);
        async move {
            while peer.request().await.is_some() {
                // At first a round and the check of a new address may ask at the same time.
                let asked = count.fetch_add(1, Ordering::SeqCst);
                let status = if asked < 10 || asked.is_multiple_of(2) {
                    200
                } else {
                    500
                };
                peer.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"))
                    .await;
            }
        }
    })
    .await;
    let proxy = proxy(&origin.address.to_string(), "fall: 2", "").await;
    proxy.active_backends(1).await;
    eventually("it was asked often", async || asked.load(Ordering::SeqCst) > 30).await;
    assert_eq!(proxy.lines(DOWN).len(), 0);
}

#[tokio::test]
async fn what_is_slow_silent_endless_or_no_http_is_bad_and_says_why() {
    const SLOW: &str = "no answer within 300ms";
    for (kind, why) in [
        ("silent", SLOW),
        ("drip", SLOW),
        ("interim", SLOW),
        ("nonsense", ""),
        ("closes", ""),
    ] {
        let origin = RawOrigin::start(move |mut peer| async move {
            if peer.request().await.is_none() {
                return;
            }
            match kind {
                "nonsense" => peer.send("SSH-2.0-OpenSSH\r\n\r\n").await,
                "closes" => return,
                _ => {}
            }
            if kind == "drip" {
                peer.send("HTTP/1.1 200 OK\r\nX: ").await;
            }
            if kind == "silent" {
                std::future::pending::<()>().await;
            }
            loop {
                peer.send(if kind == "interim" {
                    "HTTP/1.1 103 X\r\n\r\n"
                } else {
                    "x"
                })
                .await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let proxy = proxy(&origin.address.to_string(), "timeout: 300ms", "").await;
        let reason = reason(&proxy).await;
        assert!(
            reason.contains(' ') && (why.is_empty() || reason == why),
            "{kind}: {reason}"
        );
        proxy.active_backends(0).await;
    }
}

#[tokio::test]
async fn it_asks_over_http2_where_requests_go_over_http2() {
    let origin = Http2Origin::plain().await;
    let proxy = proxy(&origin.address.to_string(), "path: /healthz", "      protocol: h2c\n").await;
    proxy.active_backends(1).await;
    eventually("it was asked", async || !origin.requests().is_empty()).await;
    let seen = origin.requests().remove(0);
    assert_eq!(seen.version, "h2");
    assert!(seen.head.contains("/healthz"), "{}", seen.head);
    eventually("each check has a connection of its own", async || {
        origin.connections() > 3
    })
    .await;
    let port = format!(":{:04X}", origin.address.port());
    eventually("and leaves none behind", async || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux has it");
        let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let open = rows.filter(|row| row[2].ends_with(&port) && row[3] == "01");
        open.count() < 2
    })
    .await;

    // One that speaks only HTTP/1.1 is no good for such requests.
    let other = crate::support::RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = self::proxy(&other.address.to_string(), "timeout: 1s", "      protocol: h2c\n").await;
    assert!(!reason(&proxy).await.is_empty());
}

#[tokio::test]
async fn a_certificate_that_requests_would_not_trust_makes_a_backend_dead() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().expect("a directory");
    let ca_file = authority.write(directory.path());
    let tls = |more: &str| format!("      tls: {{ca_file: '{ca_file}'{more}}}\n");
    let member = |origin: &Http2Origin| format!("https://localhost:{}", origin.address.port());
    for protocols in [&["h2", "http/1.1"][..], &["http/1.1"]] {
        let good = Http2Origin::over_tls(authority.issue("localhost").acceptor(protocols, None)).await;
        let proxy = proxy(&member(&good), "path: /healthz", &tls("")).await;
        proxy.active_backends(1).await;
        // One that was never checked is alive too while there is no other.
        eventually("it was asked", async || !good.requests().is_empty()).await;
        let seen = good.requests().remove(0);
        assert_eq!(seen.version, if protocols.len() == 2 { "h2" } else { "h1" });

        let other_name = self::proxy(&member(&good), "path: /", &tls(", server_name: other.example")).await;
        assert!(reason(&other_name).await.contains("not for the name"), "{protocols:?}");
        let bad = Http2Origin::over_tls(stranger.issue("localhost").acceptor(protocols, None)).await;
        let proxy = self::proxy(&member(&bad), "path: /", &tls("")).await;
        assert!(
            reason(&proxy).await.contains("signed by nobody that is trusted"),
            "{protocols:?}"
        );
        assert!(bad.requests().is_empty(), "nothing was sent");
    }
    // What asks for a certificate gets the one that requests would bring.
    let demanding = Http2Origin::over_tls(authority.issue("localhost").acceptor(&["h2"], Some(&authority))).await;
    let without = proxy(&member(&demanding), "path: /", &tls("")).await;
    let why = reason(&without).await;
    assert!(!why.is_empty() && demanding.requests().is_empty(), "{why}");
    let client: Identity = authority.issue("client.example");
    let (cert, key) = client.write(directory.path());
    let with = proxy(
        &member(&demanding),
        "path: /",
        &tls(&format!(", cert: '{cert}', key: '{key}'")),
    )
    .await;
    eventually("it was asked", async || demanding.requests().len() > 2).await;
    assert_eq!(with.lines(DOWN).len(), 0);
}

#[tokio::test]
async fn a_reload_changes_what_a_check_is() {
    let origin = origin();
    let proxy = proxy(&origin.address().to_string(), "path: /status/500", "").await;
    assert_eq!(reason(&proxy).await, "status 500, expected 200-299");
    let before = "path: /status/500";
    for (reloads, health, alive) in [(1, "status: 500", 1), (2, "status: 404", 0), (3, "path: /", 1)] {
        let health = if reloads == 3 {
            health.to_owned()
        } else {
            format!("{before}, {health}")
        };
        proxy.reconfigure(&configuration(&origin.address().to_string(), &health, ""));
        proxy.signal("HUP");
        proxy.active_backends(alive).await;
    }
}

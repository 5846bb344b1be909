//! When the proxy calls itself ready, and what it says until then.

use std::net::SocketAddr;

use crate::discovery::readyz;
use crate::support::{Process, Redis, embedded, eventually, free_port, get, origin, origin_at, with_redis};

#[tokio::test]
async fn not_ready_until_a_backend_has_passed_a_check() {
    let (redis, address) = (Redis::start().await, SocketAddr::from(([127, 0, 0, 1], free_port())));
    let dead = free_port();
    redis
        .command(&format!(
            "SADD gopher_backends http://{address} http://127.0.0.1:{dead}"
        ))
        .await;
    let configuration = with_redis(&redis);
    let proxy = Process::proxy(&configuration).await;
    proxy.reaches("gopherproxy_discovery_backends", 2.0).await;
    eventually("both were checked", async || {
        proxy.lines("backend went down").len() == 2
    })
    .await;
    assert_eq!(
        readyz(&proxy).await,
        (503, "no backend passes its health check yet\n".into())
    );
    assert_eq!(get(proxy.address(), "/").await.status, 503);

    let first = origin_at(address);
    eventually("one is enough", async || {
        readyz(&proxy).await == (200, "ready\n".into())
    })
    .await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    first.stop().await;
    proxy.active_backends(0).await;
    assert_eq!(readyz(&proxy).await.0, 200, "it was ready once");

    proxy.reconfigure(&format!("{configuration}  readiness: while-alive\n"));
    proxy.signal("HUP");
    eventually("now that counts", async || {
        readyz(&proxy).await == (503, "no backend passes its health check\n".into())
    })
    .await;
    let _again = origin_at(address);
    eventually("and it is ready again", async || readyz(&proxy).await.0 == 200).await;
}

#[tokio::test]
async fn the_healthcheck_command_says_no_while_every_backend_is_dead() {
    let (listen, admin, dead) = (free_port(), free_port(), free_port());
    let redis = Redis::start().await;
    redis
        .command(&format!("SADD gopher_backends http://127.0.0.1:{dead}"))
        .await;
    let configuration = with_redis(&redis)
        .replacen("listen: 127.0.0.1:0", &format!("listen: 127.0.0.1:{listen}"), 1)
        .replace("admin_listen: 127.0.0.1:0", &format!("admin_listen: 127.0.0.1:{admin}"));
    let proxy = Process::proxy(&configuration).await;
    proxy.said("backend went down", |_| true).await;
    let arguments = ["--healthcheck"];
    let asked = || Process::start_with(Process::binary("gopherproxy"), Some(&configuration), &[], &arguments);
    assert_eq!(asked().ended().await.0.code(), Some(1));
    let _origin = origin_at(([127, 0, 0, 1], dead).into());
    proxy.active_backends(1).await;
    assert_eq!(asked().ended().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_fleet_that_is_all_dead_does_not_make_an_upgrade_impossible() {
    let (redis, files) = (Redis::start().await, tempfile::tempdir().expect("a directory"));
    redis
        .command(&format!("SADD gopher_backends http://127.0.0.1:{}", free_port()))
        .await;
    let directory = files.path().join("private");
    let configuration = format!(
        "upgrade_sock: {}/upgrade.sock\n{}",
        directory.display(),
        with_redis(&redis)
    );
    let old = Process::proxy(&configuration).await;
    old.said("backend went down", |_| true).await;
    let new = Process::successor(&configuration);
    new.said(
        "waiting for the running proxy to hand over: send it SIGQUIT or SIGTERM",
        |_| true,
    )
    .await;
    old.signal("QUIT");
    new.said("no backend passes its health check; taking over all the same", |_| true)
        .await;
    new.said("took over from the running proxy", |_| true).await;
    assert_eq!(old.ended().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_healthy_start_says_nothing_of_errors() {
    let origin = origin();
    let proxy = Process::proxy(&embedded(&[origin.address()])).await;
    proxy.active_backends(1).await;
    for line in proxy.lines("waiting for the first backends") {
        assert_eq!(
            (&line["level"], &line["error"]),
            (&"INFO".into(), &serde_json::Value::Null),
            "{line}"
        );
    }

    // An empty registry is nothing wrong either.
    let redis = Redis::start().await;
    let proxy = Process::proxy(&with_redis(&redis)).await;
    let line = proxy.said("waiting for the first backends", |_| true).await;
    assert_eq!(
        (&line["level"], &line["error"]),
        (&"INFO".into(), &serde_json::Value::Null),
        "{line}"
    );
    redis.kill();
    let line = proxy
        .said("waiting for the first backends", |line| line["level"] == "WARN")
        .await;
    assert!(line["error"].is_string(), "{line}");
}

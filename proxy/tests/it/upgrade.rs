//! A running proxy replaced by another without a lost request, and one that goes on when its successor fails.

use std::path::Path;

use crate::support::{Connection, Load, Process, Redis, embedded, eventually, get, origin, thorough, with_redis};

/// What a running proxy's successor says when it waits.
pub const WAITING: &str = "waiting for the running proxy to hand over: send it SIGQUIT or SIGTERM";
pub const TOOK_OVER: &str = "took over from the running proxy";

/// `configuration` with a place of its own for the handover.
pub fn upgradable(configuration: &str, directory: &Path) -> String {
    format!(
        "upgrade_sock: {}/private/upgrade.sock\n{configuration}",
        directory.display()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_in_a_row_under_traffic_lose_no_request() {
    let (origins, files) = (
        [origin(), origin(), origin()],
        tempfile::tempdir().expect("a directory"),
    );
    let redis = Redis::start().await;
    for origin in &origins {
        redis
            .command(&format!("SADD gopher_backends http://{}", origin.address()))
            .await;
    }
    let configuration = upgradable(&with_redis(&redis), files.path());
    let mut proxy = Process::proxy(&configuration).await;
    proxy.active_backends(3).await;
    let address = proxy.address();
    let load = Load::start(address, "/delay/3", 1000);
    let mut logged = 0;
    for round in 0..thorough(4, 50) {
        let before = load.answered();
        eventually("traffic flows", async || load.answered() > before + 200).await;
        let successor = Process::successor(&configuration);
        successor.said(WAITING, |_| true).await;
        proxy.signal(if round % 2 == 0 { "TERM" } else { "QUIT" });
        successor.said(TOOK_OVER, |_| true).await;
        let (status, _) = proxy.ended().await;
        assert_eq!(status.code(), Some(0));
        proxy.said("drained; leaving", |_| true).await;
        logged += proxy.lines("request").len();
        proxy = successor;
    }
    let answered = load.lost_none().await;
    let received: u64 = origins.iter().map(origin::Origin::requests).sum();
    assert_eq!(received, answered, "each request reached an origin once");
    proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    eventually("and has its line", async || {
        (logged + proxy.lines("request").len()) as u64 == answered
    })
    .await;
    assert_eq!(
        get(proxy.admin(), "/readyz").await.status,
        200,
        "the admin port went along"
    );
}

#[tokio::test]
async fn a_kept_connection_is_answered_once_more_by_the_old_one_and_told_to_close() {
    let (origin, files) = (origin(), tempfile::tempdir().expect("a directory"));
    let configuration = upgradable(&embedded(&[origin.address()]), files.path());
    let old = Process::proxy(&configuration).await;
    old.active_backends(1).await;
    let mut kept = Connection::open(old.address()).await;
    assert_ne!(kept.get("/before").await.header("connection"), Some("close"));
    let new = Process::successor(&configuration);
    new.said(WAITING, |_| true).await;
    old.signal("QUIT");
    new.said(TOOK_OVER, |_| true).await;
    // Later than a shutdown would have closed it.
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    let answer = kept.get("/after").await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    old.request_line("/after").await;
    assert_eq!(old.ended().await.0.code(), Some(0));
    assert_eq!(get(new.address(), "/new").await.status, 200);
    new.request_line("/new").await;
}

#[tokio::test]
async fn a_successor_that_fails_leaves_the_running_proxy_serving() {
    let (origin, files) = (origin(), tempfile::tempdir().expect("a directory"));
    let configuration = upgradable(&embedded(&[origin.address()]), files.path());
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;

    // A configuration with a mistake: it does not even wait, so SIGQUIT finds nobody.
    let broken = Process::successor(&(configuration.clone() + "  mistake: 1\n"));
    assert_eq!(broken.ended().await.0.code(), Some(1));
    proxy.signal("QUIT");
    proxy
        .said(
            "SIGQUIT refused: there is no successor to hand over to; serving on",
            |_| true,
        )
        .await;

    // One that wants another port, and one that is killed while it looks for backends.
    let elsewhere = configuration.replacen("listen: 127.0.0.1:0", "listen: 127.0.0.1:1", 1);
    let dead_end = configuration.replace(&origin.address().to_string(), "127.0.0.1:1");
    for (number, (configuration, kill)) in [(elsewhere, false), (dead_end, true)].into_iter().enumerate() {
        let successor = Process::successor(&configuration);
        successor.said(WAITING, |_| true).await;
        proxy.signal(if kill { "TERM" } else { "QUIT" });
        if kill {
            successor.said("waiting for the first backends", |_| true).await;
            successor.signal("KILL");
        } else {
            let line = successor.said("can't start", |_| true).await;
            let error = line["error"].as_str().expect("words");
            assert!(error.contains("an upgrade can't change it"), "{error}");
        }
        successor.ended().await;
        eventually("the running proxy says so", async || {
            proxy.lines("the successor did not get to serve; serving on").len() == number + 1
        })
        .await;
        assert_eq!(get(proxy.address(), "/").await.status, 200);
        assert_eq!(get(proxy.admin(), "/readyz").await.status, 200);
    }
    proxy.signal("TERM");
    assert_eq!(proxy.ended().await.0.code(), Some(0), "and it can still be stopped");
}

#[tokio::test]
async fn a_directory_that_others_can_enter_is_no_place_to_hand_over() {
    use std::os::unix::fs::PermissionsExt;

    let (origin, files) = (origin(), tempfile::tempdir().expect("a directory"));
    let configuration = upgradable(&embedded(&[origin.address()]), files.path());
    let private = files.path().join("private");
    std::fs::create_dir(&private).expect("made");
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let successor = Process::successor(&configuration);
    assert_eq!(successor.ended().await.0.code(), Some(1));
    let line = successor.said("can't start", |_| true).await;
    assert!(
        line["error"].as_str().is_some_and(|error| error.contains("mode 0700")),
        "{line}"
    );
}

//! The last good set, saved for a start without the registry.

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{Load, Process, Redis, embedded, eventually, get, origin, with_redis};

/// `configuration` with the set kept in `file`.
fn saving(configuration: &str, file: &Path) -> String {
    let state_file = format!("discovery: {{interval: 100ms, state_file: {}}}", file.display());
    configuration.replace("discovery: {interval: 100ms}", &state_file)
}

#[tokio::test]
async fn a_saved_set_does_not_serve_while_the_registry_answers() {
    let (redis, files) = (Redis::start().await, tempfile::tempdir().expect("a directory"));
    let (origin, stranger, file) = (origin(), origin(), files.path().join("backends"));
    redis
        .command(&format!("SADD gopher_backends http://{}", origin.address()))
        .await;
    let saved = format!("gopherproxy backends, version 1\nhttp://{0} {0}\n", stranger.address());
    // A machine that is too slow for the first read gets another chance.
    for _ in 0..5 {
        let before = stranger.requests();
        std::fs::write(&file, &saved).expect("written");
        let proxy = Process::proxy(&saving(&with_redis(&redis), &file)).await;
        eventually("it answers", async || get(proxy.address(), "/").await.status == 200).await;
        let load = Load::start(proxy.address(), "/", 500);
        eventually("traffic flows", async || load.answered() > 100).await;
        load.lost_none().await;
        let from_file = proxy
            .lines("starting with the backends that an earlier process saved")
            .len();
        if from_file == 0 {
            assert_eq!(stranger.requests(), before);
            return;
        }
    }
    panic!("the saved set was taken five times, though Redis was there");
}

#[tokio::test]
async fn what_somebody_planted_for_a_state_file_is_neither_waited_for_nor_written_through() {
    let (origin, files) = (origin(), tempfile::tempdir().expect("a directory"));
    let (file, victim) = (files.path().join("backends"), files.path().join("victim"));
    std::fs::write(&victim, "precious").expect("written");
    let configuration = saving(&embedded(&[origin.address()]), &file);
    for planted in ["fifo", "link", "others", "long"] {
        let _ = std::fs::remove_file(&file);
        match planted {
            "fifo" => mknodat(CWD, &file, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a FIFO"),
            "link" => symlink(&victim, &file).expect("a link"),
            "others" => {
                std::fs::write(
                    &file,
                    "gopherproxy backends, version 1\nhttp://127.0.0.1:9 127.0.0.1:9\n",
                )
                .expect("written");
                rustix::fs::chmod(&file, Mode::from_raw_mode(0o666)).expect("it is ours");
            }
            _ => std::fs::write(&file, "x".repeat(6 << 20)).expect("written"),
        }
        let proxy = Process::proxy(&configuration).await;
        let line = proxy.said("can't use the saved set of backends", |_| true).await;
        assert!(line.to_string().len() < 1_000, "{planted}");
        proxy.active_backends(1).await;
        eventually("a good one takes its place", async || {
            let there = std::fs::symlink_metadata(&file);
            there.is_ok_and(|there| there.is_file())
                && std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&origin.address().to_string()))
        })
        .await;
        proxy.reaches("gopherproxy_state_file_errors_total", 1.0).await;
        assert_eq!(std::fs::read_to_string(&victim).expect("it is there"), "precious");
    }
}

#[tokio::test]
async fn a_state_file_that_cannot_be_written_is_said_at_the_start() {
    let (origin, files) = (origin(), tempfile::tempdir().expect("a directory"));
    let file = files.path().join("missing").join("backends");
    let proxy = Process::proxy(&saving(&embedded(&[origin.address()]), &file)).await;
    let message = "can't save the set of backends; a start without the registry will have none, or an old one";
    let line = proxy
        .said(message, |line| line["file"] == *file.display().to_string())
        .await;
    let error = line["error"].as_str().expect("words");
    assert!(
        error.contains("write to its directory, or set discovery.state_file to none"),
        "{line}"
    );
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    eventually("each failure is counted", async || {
        proxy.metric("gopherproxy_state_file_errors_total").await > 2.0
    })
    .await;
    proxy.said(message, |_| true).await;
    assert_eq!(proxy.lines(message).len(), 1);
    std::fs::create_dir(file.parent().expect("it has one")).expect("created");
    proxy.said("the set of backends is saved again", |_| true).await;
    assert!(file.exists());
}

#[tokio::test]
async fn a_backend_that_is_drained_stays_so_after_a_start_without_the_registry_or_its_weights() {
    let (redis, files) = (Redis::start().await, tempfile::tempdir().expect("a directory"));
    let [origin, drained] = [origin(), origin()];
    let file = files.path().join("backends");
    for address in [origin.address(), drained.address()] {
        redis.command(&format!("SADD gopher_backends http://{address}")).await;
    }
    let field = format!("http://{}", drained.address());
    redis
        .command(&format!("HSET {{gopher_backends}}:meta {field} drain"))
        .await;
    let configuration = saving(&with_redis(&redis), &file);
    let first = Process::proxy(&configuration).await;
    eventually("it is saved", async || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains(" drain"))
    })
    .await;
    first.signal("TERM");
    first.ended().await;

    redis.command("DEL {gopher_backends}:meta").await;
    redis.command("SET {gopher_backends}:meta nonsense").await;
    for registry in ["without weights", "gone"] {
        if registry == "gone" {
            redis.kill();
        }
        let next = Process::proxy(&configuration).await;
        next.active_backends(2).await;
        let before = drained.requests();
        for _ in 0..4 {
            assert_eq!(get(next.address(), "/").await.origin(), origin.address(), "{registry}");
        }
        assert_eq!(drained.requests(), before, "{registry}");
        next.signal("TERM");
        next.ended().await;
    }
}

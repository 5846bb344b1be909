//! A handover in which somebody is stopped, dies, is asked to end, or is not alone.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chassis::handover::{Successor, Waiting};
use tempfile::TempDir;

use crate::support::{Connection, Load, Process, UNLIMITED, embedded, eventually, free_port, get, origin, origin_at};
use crate::upgrade::{TOOK_OVER, WAITING, upgradable};

/// How long a signal may take to be heard, on a machine that is busy. If it had to wait for the end of a handover, it would be 5 s or more.
const HEARD: Duration = Duration::from_secs(3);
/// A shutdown without requests, from the closing of the port on.
const DRAIN: Duration = Duration::from_secs(1);

const HANDED_OVER: &str = "the successor serves; requests in flight may finish here";
const SERVES_ON: &str = "the successor did not get to serve; serving on";

/// A proxy that can be upgraded, with what a successor needs.
struct Running {
    proxy: Process,
    configuration: String,
    files: TempDir,
    origin: origin::Origin,
}

impl Running {
    async fn start() -> Self {
        let (origin, files) = (origin(), tempfile::tempdir().expect("a directory"));
        let configuration = upgradable(&embedded(&[origin.address()]), files.path());
        let proxy = Process::proxy(&configuration).await;
        proxy.active_backends(1).await;
        Self {
            proxy,
            configuration,
            files,
            origin,
        }
    }

    fn upgrade_socket(&self) -> PathBuf {
        upgrade_socket(self.files.path())
    }

    /// A successor that this test plays.
    fn waiting(&self) -> Waiting {
        Waiting::at(&self.upgrade_socket()).expect("a place to wait")
    }

    async fn answers(&self) {
        assert_eq!(get(self.proxy.address(), "/").await.status, 200);
    }
}

fn upgrade_socket(directory: &Path) -> PathBuf {
    directory.join("private/upgrade.sock")
}

async fn ended_soon(process: &Process) {
    let (status, took) = process.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < HEARD + DRAIN, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_may_serve_and_is_stopped_gets_the_ports_when_it_wakes() {
    let running = Running::start().await;
    let waiting = running.waiting();
    let load = Load::start(running.proxy.address(), "/", 200);
    running.proxy.signal("QUIT");
    let (sockets, predecessor) = waiting.receive(Duration::from_secs(20)).await.expect("the sockets");
    let taken = predecessor.take_over(std::future::ready(Ok(()))).await.expect("GO");
    // Longer than anything else here takes: the running process serves all the while, and says why.
    running
        .proxy
        .said_somehow("the successor may serve and does not yet: is it stopped?", |_| true)
        .await;
    let before = load.answered();
    eventually("it serves", async || load.answered() > before + 100).await;
    assert_eq!(running.proxy.lines(HANDED_OVER).len(), 0);
    load.lost_none().await;
    taken.serving();
    running.proxy.said(HANDED_OVER, |_| true).await;
    assert_eq!(running.proxy.ended().await.0.code(), Some(0), "and leaves");
    drop(sockets);
}

#[tokio::test]
async fn a_running_proxy_that_is_stopped_and_wakes_to_a_dead_successor_serves_on() {
    let running = Running::start().await;
    let successor = Process::successor(&running.configuration);
    successor.said(WAITING, |_| true).await;
    running.proxy.signal("QUIT");
    successor.said("starting", |_| true).await;
    running.proxy.signal("STOP");
    // It gets ready and waits for an answer.
    successor.said("first backends discovered", |_| true).await;
    successor.signal("KILL");
    successor.ended().await;
    running.proxy.signal("CONT");
    running.proxy.said(SERVES_ON, |_| true).await;
    running.answers().await;
}

#[tokio::test]
async fn a_running_proxy_that_dies_before_it_answers_is_replaced() {
    let (files, address) = (
        tempfile::tempdir().expect("a directory"),
        ([127, 0, 0, 1], free_port()).into(),
    );
    let configuration = upgradable(&embedded(&[address]), files.path());
    let proxy = Process::proxy(&configuration).await;
    let client_port = proxy.address();
    let successor = Process::successor(&configuration);
    successor.said(WAITING, |_| true).await;
    proxy.signal("TERM");
    successor.said("waiting for the first backends", |_| true).await;
    proxy.signal("KILL");
    proxy.ended().await;
    // The port was never closed: who connects now is answered once there are backends.
    let early = tokio::spawn(async move { get(client_port, "/").await.status });
    let _origin = origin_at(address);
    successor
        .said(
            "the running proxy died during the handover; serving in its place",
            |_| true,
        )
        .await;
    assert_eq!(early.await.expect("an answer"), 200);
    successor.signal("TERM");
    assert_eq!(successor.ended().await.0.code(), Some(0));
}

#[tokio::test]
async fn signals_are_heard_during_a_handover() {
    for (signal, gets_go) in [("TERM", false), ("INT", false), ("TERM", true), ("INT", true)] {
        let running = Running::start().await;
        let waiting = running.waiting();
        running.proxy.signal("TERM");
        let (sockets, predecessor) = waiting.receive(Duration::from_secs(20)).await.expect("the sockets");
        // SIGQUIT asks for what is being done, and a reload is done.
        running.proxy.signal("QUIT");
        running.proxy.signal("HUP");
        running.proxy.said("configuration reloaded", |_| true).await;
        let silent = if gets_go {
            Ok(predecessor.take_over(std::future::ready(Ok(()))).await.expect("GO"))
        } else {
            Err(predecessor)
        };
        running.proxy.signal(signal);
        ended_soon(&running.proxy).await;
        let called_off = running.proxy.lines("the handover is called off").len();
        let handed_over = running.proxy.lines(HANDED_OVER).len();
        match silent {
            // The ports are the successor's, and it may take its time.
            Ok(_taken) => assert_eq!((called_off, handed_over), (0, 1)),
            Err(predecessor) => {
                assert_eq!((called_off, handed_over), (1, 0));
                let sent_away = predecessor.take_over(std::future::ready(Ok(()))).await;
                assert_eq!(
                    sent_away.expect_err("it must not serve"),
                    "the running process has called it off"
                );
            }
        }
        drop(sockets);
    }
}

#[tokio::test]
async fn a_successor_whose_queue_is_full_holds_nobody_up() {
    let running = Running::start().await;
    let path = running.upgrade_socket();
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(path.parent().expect("it has one"), private).expect("it is ours");
    let _stopped = UnixListener::bind(&path).expect("bound");
    let mut queue = Vec::new();
    while let Ok(connection) = Successor::waiting_at(&path).await {
        queue.push(connection);
    }
    running.proxy.signal("QUIT");
    let line = running
        .proxy
        .said("no handover to what waits at upgrade_sock", |_| true)
        .await;
    assert!(
        line["error"]
            .as_str()
            .is_some_and(|error| error.contains("its queue is full")),
        "{line}"
    );
    running.answers().await;
    running.proxy.signal("TERM");
    ended_soon(&running.proxy).await;
}

#[tokio::test]
async fn a_reload_that_takes_long_holds_up_no_signal() {
    let origin = origin();
    let good = embedded(&[origin.address()]);
    for hard in ["a FIFO", "200,000 brackets"] {
        let proxy = Process::proxy(&good).await;
        if hard == "a FIFO" {
            proxy.reconfigure_as_fifo();
        } else {
            proxy.reconfigure(&"[".repeat(200_000));
        }
        proxy.signal("HUP");
        proxy.signal("HUP");
        proxy.signal("TERM");
        ended_soon(&proxy).await;
    }
}

#[tokio::test]
async fn a_successor_that_waits_or_looks_for_backends_leaves_calmly_when_it_is_asked_to() {
    let running = Running::start().await;
    for signal in ["INT", "TERM"] {
        let successor = Process::successor(&running.configuration);
        successor.said(WAITING, |_| true).await;
        assert!(running.upgrade_socket().exists());
        successor.signal(signal);
        ended_soon(&successor).await;
        let beginning = "leaving without having taken over";
        successor
            .said_somehow(beginning, |line| line["signal"] == format!("SIG{signal}"))
            .await;
        assert!(!running.upgrade_socket().exists());
    }

    let dead_end = running
        .configuration
        .replace(&running.origin.address().to_string(), "127.0.0.1:1");
    for (number, signal) in ["INT", "TERM"].into_iter().enumerate() {
        let successor = Process::successor(&dead_end);
        successor.said(WAITING, |_| true).await;
        running.proxy.signal("TERM");
        successor.said("waiting for the first backends", |_| true).await;
        successor.signal("QUIT");
        successor
            .said("SIGQUIT refused: this process does not serve yet", |_| true)
            .await;
        successor.signal(signal);
        ended_soon(&successor).await;
        eventually("the running one serves on", async || {
            running.proxy.lines(SERVES_ON).len() == number + 1
        })
        .await;
        running.answers().await;
    }
}

#[tokio::test]
async fn one_successor_waits_at_a_time_and_removes_nothing_of_another() {
    let running = Running::start().await;
    let first = Process::successor(&running.configuration);
    first.said(WAITING, |_| true).await;
    let second = Process::successor(&running.configuration);
    let line = second.said("can't start", |_| true).await;
    let error = line["error"].as_str().expect("words");
    let named = format!("another successor (pid {}) waits at ", first.pid());
    assert!(error.starts_with(&named), "{error}");
    assert_eq!(second.ended().await.0.code(), Some(1));
    running.proxy.signal("QUIT");
    first.said(TOOK_OVER, |_| true).await;
    assert_eq!(running.proxy.ended().await.0.code(), Some(0));

    // One that was killed leaves its socket behind, which is no hindrance.
    let killed = Process::successor(&running.configuration);
    killed.said(WAITING, |_| true).await;
    killed.signal("KILL");
    killed.ended().await;
    let path = running.upgrade_socket();
    assert!(
        std::fs::symlink_metadata(&path)
            .expect("it is there")
            .file_type()
            .is_socket()
    );
    let next = Process::successor(&running.configuration);
    next.said(WAITING, |_| true).await;
    next.signal("INT");
    next.ended().await;

    std::fs::write(&path, "somebody's").expect("written");
    let refused = Process::successor(&running.configuration);
    let line = refused.said("can't start", |_| true).await;
    let error = line["error"].as_str().expect("words");
    assert!(error.contains(path.to_str().expect("text")), "{error}");
    assert!(error.contains("a regular file is there and is left alone"), "{error}");
    refused.ended().await;
    assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "somebody's");
}

#[tokio::test]
async fn a_client_over_its_limit_stays_over_it_through_an_upgrade() {
    let (origin, files) = (origin(), tempfile::tempdir().expect("a directory"));
    let limited = |limit: &str| upgradable(&embedded(&[origin.address()]).replace(UNLIMITED, limit), files.path());
    // A token every 20 minutes: no pause of the machine gives one back unseen.
    let configuration = limited("  limit: {burst: 3, per_second: 0.0008}\n");
    let statuses = async |address, client: [u8; 4]| {
        let mut statuses = Vec::new();
        for _ in 0..4 {
            let mut connection = Connection::open_from(address, client.into()).await;
            statuses.push(connection.get("/").await.status);
        }
        statuses
    };
    let mut proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let address = proxy.address();
    let (greedy, modest) = ([127, 0, 0, 21], [127, 0, 0, 22]);
    assert_eq!(statuses(address, greedy).await, [200, 200, 200, 429]);
    let mut once = Connection::open_from(address, modest.into()).await;
    assert_eq!(once.get("/").await.status, 200);
    drop(once);
    for _ in 0..2 {
        let successor = upgraded(&proxy, &configuration).await;
        proxy = successor;
        assert_eq!(statuses(address, greedy).await, [429; 4]);
    }
    let line = proxy.said(TOOK_OVER, |_| true).await;
    assert_eq!(line["throttled_clients"], 2);
    assert_eq!(statuses(address, modest).await, [200, 200, 429, 429]);
    assert_eq!(statuses(address, [127, 0, 0, 23]).await, [200, 200, 200, 429]);

    // With another limit an old bucket means nothing.
    let proxy = upgraded(&proxy, &limited("  limit: {burst: 4, per_second: 0.0008}\n")).await;
    assert_eq!(statuses(address, greedy).await, [200; 4]);
    drop(proxy);
}

#[tokio::test]
async fn a_client_over_the_limit_of_a_route_stays_over_it_through_an_upgrade() {
    let (origin, files) = (origin(), tempfile::tempdir().expect("a directory"));
    let with = |route: &str, burst: u32| {
        let routes = format!(
            "  routes:\n    {route}: {{paths: [/login], pool: default, limit: {{burst: {burst}, per_second: 0.0008}}}}\n    \
             other: {{pool: default, limit: {{burst: 1, per_second: 0.0008}}}}\n"
        );
        upgradable(&(embedded(&[origin.address()]) + &routes), files.path())
    };
    let mut proxy = Process::proxy(&with("login", 2)).await;
    proxy.active_backends(1).await;
    let address = proxy.address();
    let statuses = async || {
        let mut client = Connection::open(address).await;
        let mut statuses = Vec::new();
        for path in ["/login", "/login", "/login", "/", "/"] {
            statuses.push(client.get(path).await.status);
        }
        statuses
    };
    assert_eq!(statuses().await, [200, 200, 429, 200, 429]);
    for (route, burst, login) in [("login", 2, [429; 3]), ("login", 3, [200; 3]), ("sign-in", 3, [200; 3])] {
        proxy = upgraded(&proxy, &with(route, burst)).await;
        assert_eq!(statuses().await, [&login[..], &[429, 429]].concat(), "{route}, {burst}");
    }
}

async fn upgraded(proxy: &Process, configuration: &str) -> Process {
    let successor = Process::successor(configuration);
    successor.said(WAITING, |_| true).await;
    proxy.signal("QUIT");
    successor.said(TOOK_OVER, |_| true).await;
    assert_eq!(proxy.ended().await.0.code(), Some(0));
    successor
}

mod random;

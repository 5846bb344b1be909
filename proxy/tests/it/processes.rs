//! What the tests start never outlives them, and can be started as a user of no privileges.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::support::{Process, child, embedded, eventually, get, origin};

/// Whether the process runs: one that has ended may still wait for its parent to ask how.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

/// The test starts itself in another process, and kills that.
#[tokio::test]
async fn what_the_tests_start_dies_with_them_even_when_they_are_killed() {
    const STARTS: &str = "GOPHERPROXY_TEST_STARTS_A_PROCESS";
    if std::env::var_os(STARTS).is_some() {
        // In a thread that ends, which is not the end of what it has started.
        let sleep = || {
            let mut command = child::command("sleep");
            command.arg("60").stdout(Stdio::null()).stderr(Stdio::null());
            child::start(command)
        };
        let sleep = std::thread::spawn(sleep).join().expect("it starts");
        writeln!(std::io::stdout(), "started {}", sleep.id()).expect("somebody reads it");
        std::future::pending::<()>().await;
    }
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    let name = "processes::what_the_tests_start_dies_with_them_even_when_they_are_killed";
    command.args(["--exact", name, "--nocapture"]).env(STARTS, "1");
    let mut tests = command.stdout(Stdio::piped()).spawn().expect("this test starts");
    let lines = BufReader::new(tests.stdout.take().expect("it is piped")).lines();
    let started = |line: String| line.rsplit_once("started ")?.1.parse().ok();
    let sleep: u32 = lines.map_while(Result::ok).find_map(started).expect("its process id");
    // It outlives the thread that asked for it.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(runs(sleep));
    tests.kill().expect("it runs");
    tests.wait().expect("it has ended");
    eventually("its child has ended", async || !runs(sleep)).await;
}

#[tokio::test]
async fn a_proxy_of_no_privileges_serves() {
    let origin = origin();
    let proxy = Process::unprivileged_proxy(&embedded(&[origin.address()])).await;
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("it runs");
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    assert_eq!(value("CapEff:"), Some("0000000000000000"), "{status}");
    assert_eq!(value("NoNewPrivs:"), Some("1"), "{status}");
}

#[tokio::test]
async fn a_proxy_of_no_privileges_hands_over_to_another() {
    let (origin, directory) = (origin(), child::unprivileged_directory());
    let socket = directory.path().join("upgrade.sock");
    let configuration = format!("upgrade_sock: {}\n{}", socket.display(), embedded(&[origin.address()]));
    let proxy = Process::unprivileged_proxy(&configuration).await;
    proxy.active_backends(1).await;
    let successor = Process::unprivileged_successor(&configuration);
    successor
        .said_somehow("waiting for the running proxy to hand over", |_| true)
        .await;
    proxy.signal("QUIT");
    successor.said("took over from the running proxy", |_| true).await;
    assert_eq!(get(successor.address(), "/").await.status, 200);
}

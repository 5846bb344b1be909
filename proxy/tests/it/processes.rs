//! What the tests start never outlives them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::support::{child, eventually};

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

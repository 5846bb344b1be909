//! The script behind `make run`, and the one that installs what tests need.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Started, child, eventually, free_port, get};

fn in_workspace(words: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut command = child::command(words[0]);
    command
        .args(&words[1..])
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The demo on free ports: the proxy's, the admin's, and those of three origins.
fn demo(ports: [u16; 5]) -> Demo {
    let targets = ports[2..]
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect::<Vec<_>>()
        .join(",");
    let binaries = Path::new(env!("CARGO_BIN_EXE_gopherproxy"))
        .parent()
        .expect("a directory");
    // As from a terminal: tests in the background ignore SIGINT, and a shell that was started so can't catch it.
    let mut command = in_workspace(&["env", "--default-signal=INT", "make", "run", "CARGO=true"]);
    // A terminal sends SIGINT to the whole group.
    command.process_group(0);
    command.env("BIN", binaries).env("SENTINEL_TARGETS", targets);
    command
        .env("PROXY_PORT", ports[0].to_string())
        .env("METRICS_PORT", ports[1].to_string());
    Demo(child::start(command))
}

/// A running `make run`, in a process group of its own. Dropping it kills all of it.
struct Demo(Started);

impl Demo {
    /// Sends a signal to make itself, or, for SIGINT, to the group.
    fn signal(&self, name: &str) {
        let send = if name == "INT" {
            child::signal_group
        } else {
            child::signal
        };
        send(self.0.id(), name);
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("our child").is_some()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Once make has ended, its number may be another's.
        if !self.has_ended() {
            child::signal_group(self.0.id(), "KILL");
        }
    }
}

#[tokio::test]
async fn it_answers_says_what_to_try_and_leaves_nothing_behind() {
    for name in ["TERM", "INT"] {
        let ports = std::array::from_fn(|_| free_port());
        let mut demo = demo(ports);
        let mut said = BufReader::new(demo.0.stdout.take().expect("it is piped"));
        let mut line = String::new();
        while !line.contains("Try it:") {
            line.clear();
            assert!(
                said.read_line(&mut line).expect("text") > 0,
                "it ended without saying what to try"
            );
        }
        assert!(
            line.contains(&format!("curl -i http://localhost:{}/", ports[0])),
            "{line}"
        );
        let proxy = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        eventually("three origins answer", async || get(proxy, "/").await.status == 200).await;
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));

        demo.signal(name);
        eventually("it ends", async || demo.has_ended()).await;
        for port in ports {
            eventually(&format!("port {port} is free"), async || {
                TcpListener::bind(("127.0.0.1", port)).is_ok()
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_owner_and_everything_ends() {
    for taken in [0, 1, 3] {
        let ports: [u16; 5] = std::array::from_fn(|_| free_port());
        let _owner = chassis::listener::bind(([0, 0, 0, 0], ports[taken]).into()).expect("it was free");
        let mut demo = demo(ports);
        eventually("it ends", async || demo.has_ended()).await;
        assert!(!demo.0.wait().expect("it has ended").success());
        let mut said = String::new();
        demo.0
            .stdout
            .take()
            .expect("it is piped")
            .read_to_string(&mut said)
            .expect("text");
        let owner = format!("port {} is in use by", ports[taken]);
        let pid = format!("(pid {})", std::process::id());
        assert!(said.contains(&owner) && said.contains(&pid), "{said}");
        for (index, port) in ports.into_iter().enumerate().filter(|(index, _)| *index != taken) {
            eventually(&format!("port {index} is free"), async || {
                TcpListener::bind(("127.0.0.1", port)).is_ok()
            })
            .await;
        }
    }
}

#[test]
fn where_it_does_not_know_how_to_install_it_says_what_to_install() {
    let empty = tempfile::tempdir().expect("a directory");
    let sh = Command::new("sh")
        .args(["-c", "command -v sh"])
        .output()
        .expect("sh is there")
        .stdout;
    let sh = String::from_utf8(sh).expect("a path");
    let mut tools = in_workspace(&[sh.trim(), "loadtest/tools.sh"]);
    let output = tools
        .arg("redis-server")
        .env("PATH", empty.path())
        .output()
        .expect("sh runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Install redis-server (Redis 6 or later)"), "{said}");
}

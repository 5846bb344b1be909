//! The script behind `make run`, and the one that installs what tests need.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::support::{Process, Started, child, eventually, free_port, get, origin};

/// These words as a command, in the checkout, with nothing of the tests' own output.
fn in_workspace(mut command: Command, words: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    command
        .args(words)
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// As from a terminal: tests in the background ignore SIGINT, and a shell that was started so can't catch it.
const MAKE: [&str; 5] = ["--default-signal=INT", "make", "run", "CARGO=true", "NEEDS=true"];

/// The demo on free ports: the proxy's, the admin's, and those of three origins.
fn demo(ports: [u16; 5]) -> Demo {
    // What a terminal sends goes to the whole group.
    let mut command = in_workspace(child::command("env"), &MAKE);
    command.process_group(0);
    on_ports(&mut command, ports);
    Demo(child::start(command))
}

fn on_ports(command: &mut Command, ports: [u16; 5]) {
    let origins = ports[2..].iter().map(|port| format!("127.0.0.1:{port}"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_gopherproxy"))
        .parent()
        .expect("a directory");
    command
        .env("BIN", binaries)
        .env("DEMO_ORIGINS", origins.collect::<Vec<_>>().join(","))
        .env("PROXY_PORT", ports[0].to_string())
        .env("METRICS_PORT", ports[1].to_string());
}

/// A running `make run`, in a process group of its own. Dropping it ends all of it.
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

    /// Waits until it has said what to try, and returns all it said until then; that line is the last.
    fn ready(said: &mut impl BufRead) -> String {
        let mut all = String::new();
        while !all.contains("Try it:") {
            let read = said.read_line(&mut all).expect("text");
            assert!(read > 0, "it ended without saying what to try");
        }
        all
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        child::kill_group(self.0.id());
    }
}

/// Waits until nobody has any of the ports.
async fn are_free(ports: &[u16]) {
    for port in ports {
        eventually(&format!("port {port} is free"), async || {
            TcpListener::bind(("127.0.0.1", *port)).is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn it_answers_says_what_to_try_and_leaves_nothing_behind() {
    for name in ["TERM", "INT", "KILL"] {
        let ports = std::array::from_fn(|_| free_port());
        let mut demo = demo(ports);
        let mut said = BufReader::new(demo.0.stdout.take().expect("it is piped"));
        let start = Demo::ready(&mut said);
        assert!(!start.contains("WARN"), "a healthy start warns of nothing: {start}");
        let line = start.lines().last().unwrap_or_default();
        assert!(
            line.contains(&format!("curl -i http://localhost:{}/", ports[0])),
            "{line}"
        );
        let proxy = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        assert_eq!(get(proxy, "/").await.status, 200, "what it says is ready answers");
        let rest = std::thread::spawn(move || {
            let mut rest = String::new();
            said.read_to_string(&mut rest).expect("text");
            rest
        });

        demo.signal(name);
        eventually("it ends", async || demo.has_ended()).await;
        are_free(&ports).await;
        let rest = rest.join().expect("it has ended");
        assert!(!rest.contains("second signal"), "{rest}");
        assert_eq!(rest.ends_with("Stopped.\n"), name == "INT", "{rest}");
        let mut errors = String::new();
        let stderr = demo.0.stderr.as_mut().expect("it is piped");
        stderr.read_to_string(&mut errors).expect("text");
        assert!(name == "TERM" || errors.is_empty(), "{errors}");
    }
}

/// On a terminal Ctrl-C is how one ends it, so it is no error, not even make's.
#[tokio::test]
async fn ctrl_c_ends_it_in_peace() {
    let ports = std::array::from_fn(|_| free_port());
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("it is ours");
    unlockpt(&terminal).expect("it is ours");
    let name = ptsname(&terminal, Vec::new()).expect("it has a name");
    let other_end = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(name.to_str().expect("a path"))
        .expect("it opens");
    let words = [&["--ctty", "--wait", "env"], &MAKE[..]].concat();
    let mut command = in_workspace(child::command("setsid"), &words);
    let end = || Stdio::from(other_end.try_clone().expect("a descriptor"));
    command.stdin(end()).stdout(end()).stderr(end());
    on_ports(&mut command, ports);
    let mut demo = child::start(command);
    drop(other_end);

    let mut terminal = File::from(terminal);
    let mut said = BufReader::new(terminal.try_clone().expect("a descriptor"));
    Demo::ready(&mut said);
    terminal.write_all(b"\x03").expect("a key");
    // A terminal whose other end is closed gives an error, and not an end.
    let rest: Vec<String> = said.lines().map_while(Result::ok).collect();
    assert_eq!(demo.wait().expect("our child").code(), Some(0), "{rest:#?}");
    assert!(rest.iter().any(|line| line.trim() == "Stopped."), "{rest:#?}");
    let unrest = ["WARN", "ERROR", "Error"];
    assert!(
        !rest.iter().any(|line| unrest.iter().any(|word| line.contains(word))),
        "{rest:#?}"
    );
    are_free(&ports).await;
}

#[tokio::test]
async fn over_an_application_of_your_own_it_starts_no_origin() {
    let (application, ports) = (origin(), [free_port(), free_port()]);
    let targets = format!("TARGETS={}", application.address());
    let mut command = in_workspace(child::command("env"), &[&MAKE[..], &[&targets]].concat());
    let unused = std::array::from_fn(|_| free_port());
    on_ports(&mut command, unused);
    command.process_group(0);
    command
        .env("PROXY_PORT", ports[0].to_string())
        .env("METRICS_PORT", ports[1].to_string());
    let mut demo = Demo(child::start(command));
    let mut said = BufReader::new(demo.0.stdout.take().expect("it is piped"));
    Demo::ready(&mut said);
    let answer = get(SocketAddr::from(([127, 0, 0, 1], ports[0])), "/").await;
    assert_eq!(
        answer.text(),
        format!("hello from {}\n", application.address()),
        "the application answers"
    );
    are_free(&unused).await;
    demo.signal("INT");
    eventually("it ends", async || demo.has_ended()).await;
    are_free(&ports).await;
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
        let others: Vec<u16> = ports.into_iter().filter(|port| *port != ports[taken]).collect();
        are_free(&others).await;
    }
}

#[test]
fn where_it_does_not_know_how_to_install_it_says_what_to_install() {
    let empty = tempfile::tempdir().expect("a directory");
    let mut tools = in_workspace(Command::new(child::tool("sh")), &["loadtest/tools.sh", "no-such-tool"]);
    let output = tools.env("PATH", empty.path()).output().expect("sh runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Install no-such-tool (Redis 6 or later)"), "{said}");
}

/// What `needs.sh` says of this need where the PATH has nothing but these programs, each a script.
fn needs(need: &str, programs: &[(&str, &str)]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, script) in programs {
        // By a process of its own: a file that this one has open for writing can't be run by what another test starts just then.
        let written = Command::new("sh")
            .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod 755 "$1""#, "sh"])
            .args([directory.path().join(name).as_os_str(), script.as_ref()])
            .status();
        assert!(written.expect("sh runs").success());
    }
    std::os::unix::fs::symlink(child::tool("sed"), directory.path().join("sed")).expect("it is ours");
    let mut command = in_workspace(Command::new(child::tool("sh")), &["loadtest/needs.sh", need]);
    let command = command.env_remove("RUSTC").env_remove("CARGO").env_remove("CC");
    let output = command.env("PATH", directory.path()).output().expect("sh runs");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn what_is_missing_or_too_old_is_said_before_anything_is_built() {
    let (cargo, cc) = (("cargo", ""), ("cc", ""));
    for (version, enough) in [
        ("1.65.0 (897e37553 2022-11-02) (built from a source tarball)", false),
        ("1.94.1 (aaaaaaaaa 2026-03-01)", false),
        ("1.95.0 (59807616e 2026-04-14)", true),
        ("1.103.0-nightly (59807616e 2026-12-14)", true),
        ("2.0.0 (59807616e 2026-12-14)", true),
    ] {
        let rustc = format!("echo 'rustc {version}'");
        let (code, said) = needs("rust", &[cargo, cc, ("rustc", &rustc)]);
        assert_eq!(code, Some(i32::from(!enough)), "{version}: {said}");
        let number = version.split(' ').next().expect("a number");
        let refused = format!("needs Rust 1.95 or later; found {number}. Install it with rustup");
        assert!(enough || said.starts_with(&refused), "{said}");
    }
    for (need, programs, missing) in [
        ("rust", &[cc][..], "needs Rust 1.95 or later; found no cargo"),
        ("rust", &[cargo, ("rustc", "echo rustc 1.95.0")], "needs a C compiler"),
        ("docker", &[], "needs Docker with its compose plugin; found no docker"),
        ("docker", &[("docker", "exit 1")], "needs Docker's compose plugin"),
        ("python", &[], "needs Python 3"),
        ("venv", &[("python3", "exit 1")], "needs Python's venv module"),
        ("c++", &[], "needs a C++ compiler"),
        ("node", &[], "needs Node 20 or later"),
    ] {
        let (code, said) = needs(need, programs);
        assert_eq!(code, Some(1), "{need}");
        assert!(said.starts_with(missing) && said.contains("nstall"), "{said}");
    }
}

/// The block of docs/upgrades.md that an operator pastes, with the ports of a test, the binaries built for tests, and origins that already
/// run.
#[tokio::test]
async fn the_documented_upgrade_can_be_pasted() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/upgrades.md"))
        .expect("it is there");
    let block = page
        .split("```sh\n")
        .find(|block| block.contains("-u &"))
        .and_then(|block| block.split("```").next())
        .expect("the page has it");
    let (application, ports) = (origin(), [free_port(), free_port()]);
    let files = tempfile::tempdir().expect("a directory");
    let directory = files.path().to_str().expect("a path");
    let binaries = Process::binary("gopherproxy");
    let binaries = binaries.parent().and_then(Path::to_str).expect("a path");
    let block = block
        .replace("make build", ":")
        .replace("make mock-backends", ":")
        .replace("target/release", binaries)
        .replace("$PWD/target", directory)
        .replace("target/upgrade.yaml", &format!("{directory}/upgrade.yaml"));
    let embedded = include_str!("../../../conf/embedded.yaml");
    std::fs::create_dir(files.path().join("conf")).expect("a directory");
    std::fs::write(files.path().join("conf/embedded.yaml"), embedded).expect("written");
    let mut command = in_workspace(child::command("sh"), &["-c", &format!("{block}\nwait")]);
    command
        .current_dir(files.path())
        .process_group(0)
        .env("SENTINEL_TARGETS", application.address().to_string())
        .env("PROXY_PORT", ports[0].to_string())
        .env("METRICS_PORT", ports[1].to_string());
    let mut shell = Demo(child::start(command));
    let said = BufReader::new(shell.0.stdout.take().expect("it is piped"));
    let mut lines = said.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("took over from the running proxy")));
    let answer = get(SocketAddr::from(([127, 0, 0, 1], ports[0])), "/").await;
    assert_eq!(answer.status, 200);
    // The successor has outlived the shell's knowledge of it, and must not outlive the test.
    drop(shell);
    are_free(&ports).await;
}

#[test]
fn an_installation_runs_and_keeps_the_configuration_that_is_there() {
    let files = tempfile::tempdir().expect("a directory");
    let at = |path: &str| files.path().join(path);
    let install = || {
        let binaries = Process::binary("sentinel");
        let binaries = binaries.parent().expect("a directory").display().to_string();
        let arguments = [
            "install".to_owned(),
            format!("BIN={binaries}"),
            format!("DESTDIR={}", files.path().display()),
            "PREFIX=/opt/proxy".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = in_workspace(Command::new("make"), &arguments)
            .output()
            .expect("make runs");
        assert!(output.status.success(), "{output:?}");
    };
    install();
    let configuration = at("etc/gopherproxy/gopherproxy.yaml");
    let mut proxy = Command::new(at("opt/proxy/bin/gopherproxy"));
    let checked = proxy.arg("-t").arg("-c").arg(&configuration).env_clear().output();
    assert!(checked.expect("it runs").status.success());
    assert!(at("opt/proxy/bin/sentinel").exists());
    let unit = std::fs::read_to_string(at("opt/proxy/lib/systemd/system/gopherproxy.service")).expect("it is there");
    let start = "ExecStart=/opt/proxy/bin/gopherproxy --conf /etc/gopherproxy/gopherproxy.yaml\n";
    assert!(unit.contains(start) && !unit.contains("/usr/local"), "{unit}");
    std::fs::write(&configuration, "# mine\n").expect("written");
    install();
    assert_eq!(
        std::fs::read_to_string(&configuration).expect("it is there"),
        "# mine\n"
    );
}

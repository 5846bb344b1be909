//! A binary of this project in a process of its own, and what it says.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, PipeWriter};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{LIMIT, Started, child, eventually, forwarder, get, origin_listener};

/// The name of a process's configuration in its directory.
const CONFIGURATION: &str = "gopherproxy.yaml";

fn proxy_binary() -> PathBuf {
    env!("CARGO_BIN_EXE_gopherproxy").into()
}

/// A running process. Dropping it kills it.
pub struct Process {
    child: Mutex<Started>,
    /// The process's own end of the pipe that is its standard output.
    stdout: PipeWriter,
    lines: Arc<Mutex<Vec<String>>>,
    /// Nobody reads the pipe.
    stuck: Arc<AtomicBool>,
    files: TempDir,
}

impl Process {
    /// A proxy with this configuration, listening on all its ports.
    pub async fn proxy(configuration: &str) -> Self {
        Self::proxy_with(configuration, &[]).await
    }

    /// A proxy with this configuration and these variables.
    pub async fn proxy_with(configuration: &str, variables: &[(&str, &str)]) -> Self {
        let proxy = Self::start(proxy_binary(), Some(configuration), variables);
        proxy.listens("proxy").await;
        proxy.listens("admin").await;
        if configuration.contains("\n  tls:") {
            proxy.listens("proxy tls").await;
        }
        proxy
    }

    /// A sentinel with these variables, its admin port a free one, listening there.
    pub async fn sentinel(variables: &[(&str, &str)]) -> Self {
        let variables = [&[("SENTINEL_METRICS_PORT", "0")], variables].concat();
        let sentinel = Self::start(Self::binary("sentinel"), None, &variables);
        sentinel.said("listening", |line| line["service"] == "admin").await;
        sentinel
    }

    /// Another binary of the workspace lies beside the proxy's.
    pub fn binary(name: &str) -> PathBuf {
        let binary = proxy_binary().with_file_name(name);
        assert!(binary.exists(), "build the workspace first: cargo build --workspace");
        binary
    }

    /// A proxy that waits for the running one with this configuration to hand over.
    pub fn successor(configuration: &str) -> Self {
        Self::start_with(proxy_binary(), Some(configuration), &[], &["-u"])
    }

    /// A proxy that only checks this configuration.
    pub fn check(configuration: &str) -> Self {
        Self::start_with(proxy_binary(), Some(configuration), &[], &["-t"])
    }

    /// Writes another configuration where the process has its own.
    pub fn reconfigure(&self, configuration: &str) {
        std::fs::write(self.files.path().join(CONFIGURATION), configuration).expect("the configuration is written");
    }

    /// Puts a FIFO that nobody writes to where the process has its configuration.
    pub fn reconfigure_as_fifo(&self) {
        let path = self.files.path().join(CONFIGURATION);
        std::fs::remove_file(&path).expect("it is there");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .expect("made");
    }

    /// Starts `binary` with nothing of this process's environment but FORWARDER, and `variables`.
    pub fn start(binary: PathBuf, configuration: Option<&str>, variables: &[(&str, &str)]) -> Self {
        Self::start_with(binary, configuration, variables, &[])
    }

    /// The same with these arguments.
    pub fn start_with(
        binary: PathBuf,
        configuration: Option<&str>,
        variables: &[(&str, &str)],
        arguments: &[&str],
    ) -> Self {
        let files = tempfile::tempdir().expect("a directory for the configuration");
        let mut command = child::command(binary);
        command.args(arguments);
        if let Some(configuration) = configuration {
            let path = files.path().join(CONFIGURATION);
            std::fs::write(&path, configuration).expect("the configuration is written");
            command.arg("-c").arg(path);
        }
        command
            .env_clear()
            .envs(forwarder::variable())
            .envs(origin_listener::variable(files.path()))
            .envs(variables.iter().copied());
        command.stdin(Stdio::null());
        let (out, stdout) = std::io::pipe().expect("a pipe");
        command.stdout(stdout.try_clone().expect("a descriptor"));
        let child = child::start(command);
        let (lines, stuck) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (heard, stops) = (Arc::clone(&lines), Arc::clone(&stuck));
        std::thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                heard.lock().expect("no test panics with it").push(line);
                while stops.load(Ordering::Relaxed) {
                    std::thread::park_timeout(Duration::from_millis(5));
                }
            }
        });
        Self {
            child: Mutex::new(child),
            stdout,
            lines,
            stuck,
            files,
        }
    }

    /// Makes standard output non-blocking, as whoever reads it can do.
    pub fn unblock_stdout(&self) {
        rustix::io::ioctl_fionbio(&self.stdout, true).expect("it is a pipe");
    }

    /// Reads standard output no more, or again.
    pub fn stop_reading(&self, stop: bool) {
        self.stuck.store(stop, Ordering::Relaxed);
    }

    /// All that the process has said so far, as it came.
    pub fn text(&self) -> String {
        self.lines.lock().expect("no test panics with it").join("\n")
    }

    async fn listens(&self, service: &str) {
        self.said("listening", |line| line["service"] == service).await;
    }

    /// Every line so far, each of which must be a JSON object.
    pub fn log(&self) -> Vec<Value> {
        let lines = self.lines.lock().expect("no test panics with it");
        lines.iter().map(|line| parse(line)).collect()
    }

    /// The lines so far with this message.
    pub fn lines(&self, message: &str) -> Vec<Value> {
        // Only those are parsed that can be meant, for there may be hundreds of thousands.
        let text = Value::from(message).to_string();
        let lines = self.lines.lock().expect("no test panics with it");
        let meant = lines.iter().filter(|line| line.contains(&text));
        meant
            .map(|line| parse(line))
            .filter(|line| line["msg"] == message)
            .collect()
    }

    /// How long each line so far is, in bytes.
    pub fn line_lengths(&self) -> Vec<usize> {
        let lines = self.lines.lock().expect("no test panics with it");
        lines.iter().map(String::len).collect()
    }

    /// Waits for a line with this message that `fits`, and returns it.
    pub async fn said(&self, message: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(found) = self.lines(message).into_iter().find(&fits) {
                return found;
            }
            assert!(Instant::now() < end, "no line {message:?} in {:#?}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for a line whose message begins so and that `fits`.
    pub async fn said_somehow(&self, beginning: &str, fits: impl Fn(&Value) -> bool) {
        let begins = |line: &Value| {
            line["msg"]
                .as_str()
                .is_some_and(|message| message.starts_with(beginning))
        };
        eventually(beginning, async || {
            self.log().iter().any(|line| begins(line) && fits(line))
        })
        .await;
    }

    /// The access log's line of a request with this path.
    pub async fn request_line(&self, path: &str) -> Value {
        self.said("request", |line| line["path"] == path).await
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.listening("proxy")
    }

    /// Where clients connect with TLS.
    pub fn tls_address(&self) -> SocketAddr {
        self.listening("proxy tls")
    }

    /// Where Prometheus connects.
    pub fn admin(&self) -> SocketAddr {
        self.listening("admin")
    }

    fn listening(&self, service: &str) -> SocketAddr {
        let line = self
            .lines("listening")
            .into_iter()
            .find(|line| line["service"] == service);
        let address: SocketAddr = line
            .and_then(|line| line["address"].as_str()?.parse().ok())
            .expect("it listens");
        if address.ip().is_unspecified() {
            return SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
        }
        address
    }

    /// Every sample of `/metrics`, by its name and labels as Prometheus writes them.
    pub async fn metrics(&self) -> BTreeMap<String, f64> {
        let response = get(self.admin(), "/metrics").await;
        assert_eq!(response.status, 200);
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        let text = response.text();
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(sample)
            .collect()
    }

    /// One sample of `/metrics`.
    pub async fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics().await;
        *metrics.get(name).unwrap_or_else(|| panic!("no {name} in {metrics:#?}"))
    }

    /// Waits until a sample has this value: a request is counted after its client has the answer.
    pub async fn reaches(&self, name: &str, value: f64) {
        eventually(&format!("{name} is {value}"), async || {
            self.metrics().await.get(name) == Some(&value)
        })
        .await;
    }

    /// Waits until so many backends get traffic.
    pub async fn active_backends(&self, count: usize) {
        self.reaches("gopherproxy_active_backends", count as f64).await;
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        child::signal(self.pid(), name);
    }

    pub fn pid(&self) -> u32 {
        self.child.lock().expect("no test panics with it").id()
    }

    pub fn has_ended(&self) -> bool {
        let mut child = self.child.lock().expect("no test panics with it");
        child.try_wait().expect("it is our child").is_some()
    }

    /// Waits until the process has ended by itself; returns how, and how long that took.
    pub async fn ended(&self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let mut status = None;
        eventually("the process ends", async || {
            status = self
                .child
                .lock()
                .expect("no test panics with it")
                .try_wait()
                .expect("it is our child");
            status.is_some()
        })
        .await;
        assert!(start.elapsed() < LIMIT);
        (status.expect("it has ended"), start.elapsed())
    }
}

fn parse(line: &str) -> Value {
    match serde_json::from_str(line) {
        Ok(Value::Object(line)) => Value::Object(line),
        other => panic!("not a JSON object: {line:?}: {other:?}"),
    }
}

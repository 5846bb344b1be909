//! A redis-server of a test's own.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Mutex;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{Started, child, eventually, free_port};

/// An address that no client has as its own: on 127.0.0.1 the port may be some connection's by the time the server starts.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);

/// A running redis-server, empty at first. Dropping it kills it.
pub struct Redis {
    port: u16,
    /// What its command line has beside the usual.
    arguments: Vec<String>,
    server: Mutex<Option<Started>>,
    files: TempDir,
}

impl Redis {
    pub async fn start() -> Self {
        let redis = Self::stopped();
        redis.go().await;
        redis
    }

    /// A redis-server with more on its command line, and `files` where it runs.
    pub async fn with(arguments: &[&str], files: &[(&str, &str)]) -> Self {
        let mut redis = Self::stopped();
        redis.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        for (name, content) in files {
            std::fs::write(redis.files.path().join(name), content).expect("a file for the server");
        }
        redis.go().await;
        redis
    }

    /// A redis-server that is not running yet, so that nothing listens on its port.
    pub fn stopped() -> Self {
        Self {
            port: free_port(),
            arguments: Vec::new(),
            server: Mutex::new(None),
            files: tempfile::tempdir().expect("a directory for the server"),
        }
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((ADDRESS, self.port))
    }

    /// Starts the server, as empty as it was when it first started, and waits until it answers.
    pub async fn go(&self) {
        let mut command = child::command(child::tool("redis-server"));
        command
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                &ADDRESS.to_string(),
                "--save",
                "",
            ])
            .args(&self.arguments)
            .current_dir(self.files.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let server = child::start(command);
        *self.server.lock().expect("no test panics with it") = Some(server);
        eventually("redis-server answers", async || self.try_command("PING").await.is_ok()).await;
    }

    /// Kills the server.
    pub fn kill(&self) {
        let mut server = self.server.lock().expect("no test panics with it");
        drop(server.take());
    }

    /// Sends a signal by its name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let server = self.server.lock().expect("no test panics with it");
        child::signal(server.as_ref().expect("it runs").id(), name);
    }

    /// Runs an inline command, in which words can be quoted, and returns the lines of its reply.
    pub async fn command(&self, command: &str) -> Vec<String> {
        self.try_command(command).await.expect("redis-server answers")
    }

    /// The numbers of the connections that clients have, in order, but for the one that asks.
    pub async fn connections(&self) -> Vec<u64> {
        let list = self.command("CLIENT LIST TYPE normal").await.concat();
        let others = list.lines().filter(|line| !line.contains("cmd=client"));
        let id = |line: &str| {
            line.split(' ')
                .find_map(|field| field.strip_prefix("id=")?.parse().ok())
        };
        let mut connections: Vec<u64> = others.filter_map(id).collect();
        connections.sort_unstable();
        connections
    }

    /// The members of the set, in order.
    pub async fn members(&self) -> Vec<String> {
        let mut members = self.command("SMEMBERS gopher_backends").await;
        members.sort();
        members
    }

    /// The same; `None` when the server does not run.
    pub async fn try_members(&self) -> Option<Vec<String>> {
        self.try_command("SMEMBERS gopher_backends").await.ok()
    }

    /// Runs a command of these words, which may be as long as they like and are taken as they are.
    pub async fn command_of(&self, words: &[&str]) -> Vec<String> {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.ask(&text).await.expect("redis-server answers")
    }

    async fn try_command(&self, command: &str) -> std::io::Result<Vec<String>> {
        self.ask(&format!("{command}\r\n")).await
    }

    async fn ask(&self, command: &str) -> std::io::Result<Vec<String>> {
        let mut stream = BufReader::new(TcpStream::connect(self.address()).await?);
        stream.write_all(command.as_bytes()).await?;
        let mut lines = Vec::new();
        let mut left = 1;
        while left > 0 {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            left -= 1;
            let (kind, rest) = line.trim_end().split_at(1);
            match kind {
                "*" => left += rest.parse::<usize>().expect("a count"),
                "$" => {
                    let mut bytes = vec![0; rest.parse::<usize>().expect("a length") + 2];
                    stream.read_exact(&mut bytes).await?;
                    lines.push(String::from_utf8_lossy(&bytes[..bytes.len() - 2]).into_owned());
                }
                "-" => return Err(std::io::Error::other(rest.to_owned())),
                _ => lines.push(rest.to_owned()),
            }
        }
        Ok(lines)
    }
}

/// An address that leads to a Redis, as a name does: a switch leads new connections elsewhere and leaves the others alone.
pub struct Forwarder {
    pub address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    task: JoinHandle<()>,
}

impl Forwarder {
    pub async fn to(redis: &Redis) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let target = watch::Sender::new(redis.address());
        let current = target.subscribe();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let to = *current.borrow();
                connections.spawn(async move {
                    let mut server = TcpStream::connect(to).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { address, target, task }
    }

    pub fn switch(&self, redis: &Redis) {
        self.target.send_replace(redis.address());
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

//! Mixed traffic and a fault after the other, drawn at random: nothing is lost, nothing grows, and everything is counted.
//!
//! `make soak` runs it for half an hour (`SOAK_SECONDS`), CI for three minutes, `make test` for some seconds. The faults are drawn
//! by a seed that is printed; `SOAK_SEED` draws the same again. After each third of the time a reload changes how requests are forwarded,
//! and in the last one there are calls of gRPC too.

#![allow(
    clippy::print_stdout,
    reason = "whoever runs it for half an hour wants to see what it does"
)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::registry_faults::with_hanging_look_ups;
use crate::support::tls::{Authority, Pair, shown, with_tls};
use crate::support::traffic::{Exchange, GET, HOST, Streams};
use crate::support::{
    Connection, Load, Process, RawOrigin, Redis, eventually, free_port, get, origin_process, resident_kib, with_redis,
};
use crate::unprivileged::restarts_lose_nothing;
use crate::upgrade::upgradable;

/// How much more memory the proxy may have at the end than when the traffic began, whatever happened in between.
const GROWTH_KIB: usize = 48 << 10;

/// How requests are forwarded, in words and as lines of the configuration: in each third of the time another way.
const STAGES: [(&str, &str); 3] = [
    ("the proxy forwards over HTTP/1.1", "  forwarder: direct\n"),
    ("Pingora forwards over HTTP/1.1", "  forwarder: pingora\n"),
    (
        "Pingora forwards over HTTP/2",
        "  forwarder: pingora\n  upstream: {protocol: h2c}\n",
    ),
];

/// A call of gRPC. Nobody knows whether one was done whose origin was killed, so it may be UNAVAILABLE.
const CALL: Exchange = Exchange {
    method: "POST",
    path: "/soak.Echo/Call",
    fields: &[("content-type", "application/grpc"), ("te", "trailers")],
    body: b"\0\0\0\0\x05words",
    check: |answer| {
        let trailers = answer.trailers.as_ref();
        let status = trailers.and_then(|trailers| trailers.get("grpc-status")?.to_str().ok());
        match (status, answer.header("grpc-status")) {
            (Some("0"), None) if answer.body == CALL.body => Ok(true),
            (None, Some("14")) => Ok(false),
            _ => Err(format!("a call: {answer:?}")),
        }
    },
};

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Everything that can be harmed.
struct Stack {
    redis: Redis,
    addresses: Vec<SocketAddr>,
    origins: Vec<Process>,
    sentinel: Process,
    proxy: Process,
    configuration: String,
    authority: Authority,
    certificates: PathBuf,
    /// Requests that processes which have left have counted as processed, and the lines they wrote of requests.
    left: (u64, u64),
}

const FAULTS: &[&str] = &[
    "an origin is killed",
    "Redis is killed",
    "Redis hangs",
    "Redis closes idle connections",
    "the set is flushed",
    "Redis has no memory left for writes",
    "the sentinel is killed",
    "an upgrade by SIGTERM",
    "an upgrade by SIGQUIT",
    "a paused successor",
    "SIGQUIT without a successor",
    "a reload",
    "a reload of a bad file",
    "slow and garbled clients",
    "a broken backend in the set",
    "no descriptor left",
    "a log reader that is non-blocking and stuck",
    "a certificate is renewed",
    "a certificate comes with another's key",
    "names that hang",
    "unprivileged restarts",
];

impl Stack {
    async fn start(files: &std::path::Path) -> Self {
        let redis = Redis::start().await;
        let addresses: Vec<SocketAddr> = (0..3).map(|_| ([127, 0, 0, 9], free_port()).into()).collect();
        let origins = addresses.iter().map(|address| origin_process(*address)).collect();
        let sentinel = Self::sentinel(&redis, &addresses).await;
        let (authority, certificates) = (Authority::new(), files.join("certificates"));
        std::fs::create_dir(&certificates).expect("made");
        authority.issue(&[HOST]).write(&certificates, "a");
        let plain = upgradable(&with_redis(&redis), files);
        let port = format!("    listen: 127.0.0.1:{}", free_port());
        let tls = with_tls(&plain, &certificates, "").replace("    listen: 127.0.0.1:0", &port);
        let configuration = tls + STAGES[0].1;
        let proxy = Process::proxy(&configuration).await;
        proxy.active_backends(3).await;
        Self {
            redis,
            addresses,
            origins,
            sentinel,
            proxy,
            configuration,
            authority,
            certificates,
            left: (0, 0),
        }
    }

    async fn sentinel(redis: &Redis, addresses: &[SocketAddr]) -> Process {
        let targets = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        Process::sentinel(&[
            ("REDIS_URL", &redis.address().to_string()),
            ("SENTINEL_TARGETS", &targets),
            ("SENTINEL_INTERVAL", "100ms"),
        ])
        .await
    }

    /// Does harm for a moment and makes it good; returns when all is as it was.
    async fn suffer(&mut self, fault: &str, random: &mut fastrand::Rng) {
        let moment = Duration::from_millis(random.u64(100..1500));
        match fault {
            "an origin is killed" => {
                let victim = random.usize(..3);
                self.origins[victim].signal("KILL");
                self.origins[victim].ended().await;
                tokio::time::sleep(moment).await;
                self.origins[victim] = origin_process(self.addresses[victim]);
            }
            "Redis is killed" => {
                self.redis.kill();
                tokio::time::sleep(moment).await;
                self.redis.go().await;
            }
            "Redis hangs" => {
                self.redis.signal("STOP");
                tokio::time::sleep(moment).await;
                self.redis.signal("CONT");
            }
            "Redis closes idle connections" => {
                let end = Instant::now() + moment;
                while Instant::now() < end {
                    self.redis.command("CLIENT KILL TYPE normal SKIPME yes").await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            "the set is flushed" => drop(self.redis.command("FLUSHALL").await),
            "Redis has no memory left for writes" => {
                self.redis.command("CONFIG SET maxmemory 1").await;
                tokio::time::sleep(moment).await;
                self.redis.command("CONFIG SET maxmemory 0").await;
            }
            "the sentinel is killed" => {
                self.sentinel.signal("KILL");
                self.sentinel.ended().await;
                tokio::time::sleep(moment).await;
                self.sentinel = Self::sentinel(&self.redis, &self.addresses).await;
            }
            "an upgrade by SIGTERM" => self.upgrade("TERM", async |_| {}).await,
            "an upgrade by SIGQUIT" => self.upgrade("QUIT", async |_| {}).await,
            "a paused successor" => {
                let after = Duration::from_millis(random.u64(0..400));
                let pause = async |successor: &Process| {
                    tokio::time::sleep(after).await;
                    successor.signal("STOP");
                    tokio::time::sleep(moment).await;
                    successor.signal("CONT");
                };
                self.upgrade("QUIT", pause).await;
            }
            "SIGQUIT without a successor" => self.proxy.signal("QUIT"),
            "a reload" => self.proxy.signal("HUP"),
            "a reload of a bad file" => {
                self.proxy.reconfigure("nonsense: [");
                self.reload("configuration not reloaded; the old one stays").await;
                self.proxy.reconfigure(&self.configuration);
            }
            "a certificate is renewed" => {
                let renewed = self.authority.issue(&[HOST]);
                renewed.write(&self.certificates, "a");
                self.reload("configuration reloaded").await;
                let client = self.authority.client();
                assert_eq!(shown(&client.open(self.proxy.tls_address(), HOST).await), renewed.der());
            }
            "a certificate comes with another's key" => {
                let [one, other] = [(); 2].map(|()| self.authority.issue(&[HOST]));
                let mixed = Pair {
                    key: other.key,
                    ..one.clone()
                };
                mixed.write(&self.certificates, "a");
                self.reload("configuration not reloaded; the old one stays").await;
                tokio::time::sleep(moment).await;
                one.write(&self.certificates, "a");
                self.reload("configuration reloaded").await;
            }
            "slow and garbled clients" => {
                let mut clients = Vec::new();
                for number in 0..100 {
                    let to = [self.proxy.address(), self.proxy.tls_address()][number / 4 % 2];
                    let mut client = Connection::open_from(to, [127, 0, 0, 66].into()).await;
                    let bytes: &[u8] = match number % 4 {
                        0 => b"GET /slow HTTP/1.1\r\nHost: a\r\nX:",
                        1 => b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx",
                        2 => b"\x16\x03\x01\r\n\r\n",
                        _ => b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                    };
                    let _ = client.try_send(bytes).await;
                    clients.push(client);
                }
                tokio::time::sleep(moment).await;
            }
            "a broken backend in the set" => {
                let broken = RawOrigin::start(|mut peer| async move { drop(peer.request().await) }).await;
                let member = format!("gopher_backends http://{}", broken.address);
                self.redis.command(&format!("SADD {member}")).await;
                tokio::time::sleep(moment).await;
                self.redis.command(&format!("SREM {member}")).await;
            }
            "no descriptor left" => {
                let pid = self.proxy.pid().to_string();
                let limit = |limit: &str| {
                    let set = std::process::Command::new("prlimit")
                        .args(["--pid", &pid, &format!("--nofile={limit}:")])
                        .status();
                    assert!(set.expect("prlimit is part of every Linux").success());
                };
                // Room for those that come and go, and for nothing that lasts.
                let open = self.descriptors() + 40;
                limit(&open.to_string());
                tokio::time::sleep(moment).await;
                limit("4096");
            }
            // It stays non-blocking, and no line may be lost: the test counts them.
            "a log reader that is non-blocking and stuck" => {
                self.proxy.unblock_stdout();
                self.proxy.stop_reading(true);
                tokio::time::sleep(moment).await;
                self.proxy.stop_reading(false);
            }
            "names that hang" => {
                let hung = (0..6).map(|number| format!("hung{number}.test:80"));
                let targets = hung.chain(self.addresses.iter().map(ToString::to_string));
                let variables = [
                    ("REDIS_URL", self.redis.address().to_string()),
                    ("SENTINEL_TARGETS", targets.collect::<Vec<_>>().join(",")),
                    ("SENTINEL_INTERVAL", "100ms".into()),
                    ("SENTINEL_ID", "hanging".into()),
                    ("SENTINEL_METRICS_PORT", "0".into()),
                ];
                let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
                let hanging = with_hanging_look_ups([127, 0, 0, 78].into(), &variables).await;
                tokio::time::sleep(moment).await;
                if let Some(hanging) = hanging {
                    let up = "gopherproxy_sentinel_targets{state=\"up\"}";
                    hanging.sentinel.reaches(up, 3.0).await;
                }
            }
            "unprivileged restarts" => restarts_lose_nothing(&with_redis(&self.redis), 2).await,
            other => panic!("{other} is no fault"),
        }
        eventually(&format!("all is well after {fault}"), async || {
            get(self.proxy.admin(), "/readyz").await.text() == "ready\n" && self.redis.members().await.len() == 3
        })
        .await;
        self.proxy.active_backends(3).await;
    }

    /// An upgrade whose successor is disturbed on the way, and takes over all the same.
    async fn upgrade(&mut self, signal: &str, disturb: impl AsyncFnOnce(&Process)) {
        let successor = Process::successor(&self.configuration);
        successor
            .said(
                "waiting for the running proxy to hand over: send it SIGQUIT or SIGTERM",
                |_| true,
            )
            .await;
        self.proxy.signal(signal);
        disturb(&successor).await;
        successor.said("took over from the running proxy", |_| true).await;
        let old = std::mem::replace(&mut self.proxy, successor);
        old.ended().await;
        let end = old.said("drained; leaving", |_| true).await;
        self.left.0 += end["processed"].as_u64().expect("a number");
        self.left.1 += requests_of_load(&old);
    }

    /// Goes on in the way of another stage, without a moment's rest.
    async fn begin(&mut self, stage: usize) {
        self.configuration = self.configuration.replace(STAGES[stage - 1].1, STAGES[stage].1);
        self.proxy.reconfigure(&self.configuration);
        self.reload("configuration reloaded").await;
    }

    /// Reloads the configuration, and waits until the proxy says that once more.
    async fn reload(&self, says: &str) {
        let before = self.proxy.lines(says).len();
        self.proxy.signal("HUP");
        eventually(says, async || self.proxy.lines(says).len() > before).await;
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.proxy.pid()))
            .expect("it is ours")
            .count()
    }
}

/// How many lines of answered requests a process has written, and each of all its lines is checked on the way.
fn requests_of_load(proxy: &Process) -> u64 {
    let answered = |line: &&serde_json::Value| {
        let status = (&line["status"], line["grpc_status"].as_u64().unwrap_or(0));
        line["msg"] == "request" && line["backend"].is_string() && status == (&200.into(), 0)
    };
    proxy.log().iter().filter(answered).count() as u64
}

/// POSTs, one after the other: an answer of 502 may be, for nobody knows whether it was done; two of one may not.
fn posts(to: SocketAddr, stop: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let mut answered = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut connection = Connection::open(to).await;
            let answer = connection
                .try_request("POST", "/upload", "", "four")
                .await
                .expect("an answer");
            match answer.status {
                200 => answered += 1,
                502 => {}
                status => panic!("{status}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        answered
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_fault_after_the_other_loses_nothing_and_leaves_nothing_behind() {
    let length = Duration::from_secs(variable("SOAK_SECONDS").unwrap_or(10));
    let seed = variable("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    println!("SOAK_SEED={seed} SOAK_SECONDS={}", length.as_secs());

    let files = tempfile::tempdir().expect("a directory");
    let mut stack = Stack::start(files.path()).await;
    let address = stack.proxy.address();
    let stop = Arc::new(AtomicBool::new(false));
    let load = Load::start(address, "/delay/2", 300);
    let posts = posts(address, &stop);
    let (tls, client) = (stack.proxy.tls_address(), stack.authority.client());
    let over_tls = Load::over_tls(tls, &client, "/delay/2", 60);
    let streams = Streams::start(tls, &client, GET);
    let mut calls = None;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (memory, descriptors) = (resident_kib(&stack.proxy), stack.descriptors());

    // In a short run the faults come faster, so that each has its chance.
    let between = (length / 90).clamp(Duration::from_millis(100), Duration::from_secs(20));
    let start = Instant::now();
    let mut faults = 0;
    let mut stage = 0;
    let mut order = Vec::new();
    // However long a fault takes, each stage has one.
    while start.elapsed() < length || stage + 1 < STAGES.len() {
        let passed = start.elapsed().div_duration_f64(length) * STAGES.len() as f64;
        if stage + 1 < STAGES.len() && passed > (stage + 1) as f64 {
            stage += 1;
            println!("{:5.0} s: {}", start.elapsed().as_secs_f64(), STAGES[stage].0);
            stack.begin(stage).await;
            // Each stage has every fault before one comes again.
            order.clear();
            if stage + 1 == STAGES.len() {
                calls = Some(Streams::start(tls, &client, CALL));
            }
        }
        if order.is_empty() {
            order = FAULTS.to_vec();
            random.shuffle(&mut order);
        }
        let fault = order.pop().expect("it was filled");
        println!("{:5.0} s: {fault}", start.elapsed().as_secs_f64());
        stack.suffer(fault, &mut random).await;
        faults += 1;
        tokio::time::sleep(between).await;
    }
    stop.store(true, Ordering::Relaxed);
    let posted = posts.await.expect("POSTs are answered");
    let calls = calls.expect("there was a last stage");
    eventually("calls are answered", async || calls.answered() > 0).await;
    let called = calls.lost_none().await;
    let answered = load.lost_none().await + over_tls.lost_none().await + streams.lost_none().await + posted + called;

    stack.proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    let processed = stack.proxy.metric("gopherproxy_processed_requests_total").await;
    eventually("each answered request has its line", async || {
        stack.left.1 + requests_of_load(&stack.proxy) == answered
    })
    .await;
    let (memory_after, descriptors_after) = (resident_kib(&stack.proxy), stack.descriptors());
    println!(
        "{faults} faults, {answered} requests answered, {called} of them calls, and none lost; memory {memory} KiB, then {memory_after}; descriptors \
         {descriptors}, then {descriptors_after}"
    );
    assert_eq!(stack.left.0 as f64 + processed, answered as f64, "and is counted");
    assert!(memory_after < memory + GROWTH_KIB, "{memory} KiB, then {memory_after}");
    assert!(
        descriptors_after <= descriptors + 64,
        "{descriptors}, then {descriptors_after}"
    );
}

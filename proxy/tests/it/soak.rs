//! Mixed traffic and a fault after the other, drawn at random: nothing is lost, nothing grows, and everything is counted.
//!
//! `make soak` runs it for half an hour (`SOAK_SECONDS`), CI for three minutes, `make test` for some seconds. The faults are drawn
//! by a seed that is printed; `SOAK_SEED` draws the same again. Half way a reload changes the forwarder.

#![allow(
    clippy::print_stdout,
    reason = "whoever runs it for half an hour wants to see what it does"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::registry_faults::with_hanging_look_ups;
use crate::support::{
    Connection, Load, Process, RawOrigin, Redis, eventually, free_port, get, origin_process, resident_kib, with_redis,
};
use crate::unprivileged::restarts_lose_nothing;

/// How much more memory the proxy may have at the end than when the traffic began, whatever happened in between.
const GROWTH_KIB: usize = 48 << 10;

/// Who forwards, as lines of the configuration: before and after half of the time.
const FIRST: &str = "  forwarder: direct\n";
const SECOND: &str = "  forwarder: pingora\n";

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
    "names that hang",
    "unprivileged restarts",
];

impl Stack {
    async fn start(files: &std::path::Path) -> Self {
        let redis = Redis::start().await;
        let addresses: Vec<SocketAddr> = (0..3).map(|_| ([127, 0, 0, 9], free_port()).into()).collect();
        let origins = addresses.iter().map(|address| origin_process(*address)).collect();
        let sentinel = Self::sentinel(&redis, &addresses).await;
        let configuration = format!(
            "upgrade_sock: {}/private/upgrade.sock\n{}{FIRST}",
            files.display(),
            with_redis(&redis)
        );
        let proxy = Process::proxy(&configuration).await;
        proxy.active_backends(3).await;
        Self {
            redis,
            addresses,
            origins,
            sentinel,
            proxy,
            configuration,
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
                let refused = self.proxy.lines("configuration not reloaded; the old one stays").len();
                self.proxy.reconfigure("nonsense: [");
                self.proxy.signal("HUP");
                eventually("it is refused", async || {
                    self.proxy.lines("configuration not reloaded; the old one stays").len() > refused
                })
                .await;
                self.proxy.reconfigure(&self.configuration);
            }
            "slow and garbled clients" => {
                let mut clients = Vec::new();
                for number in 0..100 {
                    let mut client = Connection::open_from(self.proxy.address(), [127, 0, 0, 66].into()).await;
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

    /// Goes on with the other forwarder, without a moment's rest.
    async fn change_forwarder(&mut self) {
        self.configuration = self.configuration.replace(FIRST, SECOND);
        let reloaded = self.proxy.lines("configuration reloaded").len();
        self.proxy.reconfigure(&self.configuration);
        self.proxy.signal("HUP");
        eventually("it is reloaded", async || {
            self.proxy.lines("configuration reloaded").len() > reloaded
        })
        .await;
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.proxy.pid()))
            .expect("it is ours")
            .count()
    }
}

/// How many lines of answered requests a process has written, and each of all its lines is checked on the way.
fn requests_of_load(proxy: &Process) -> u64 {
    let answered =
        |line: &&serde_json::Value| line["msg"] == "request" && line["backend"].is_string() && line["status"] == 200;
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
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (memory, descriptors) = (resident_kib(&stack.proxy), stack.descriptors());

    // In a short run the faults come faster, so that each has its chance.
    let between = (length / 90).clamp(Duration::from_millis(100), Duration::from_secs(20));
    let start = Instant::now();
    let mut faults = 0;
    let mut changed = false;
    let mut order = Vec::new();
    while start.elapsed() < length {
        if !changed && start.elapsed() > length / 2 {
            println!("{:5.0} s: Pingora forwards", start.elapsed().as_secs_f64());
            stack.change_forwarder().await;
            // Each half has every fault before one comes again.
            order.clear();
            changed = true;
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
    let answered = load.lost_none().await + posted;

    stack.proxy.reaches("gopherproxy_inflight_requests", 0.0).await;
    let processed = stack.proxy.metric("gopherproxy_processed_requests_total").await;
    eventually("each answered request has its line", async || {
        stack.left.1 + requests_of_load(&stack.proxy) == answered
    })
    .await;
    let (memory_after, descriptors_after) = (resident_kib(&stack.proxy), stack.descriptors());
    println!(
        "{faults} faults, {answered} requests answered and none lost; memory {memory} KiB, then {memory_after}; descriptors \
         {descriptors}, then {descriptors_after}"
    );
    assert_eq!(stack.left.0 as f64 + processed, answered as f64, "and is counted");
    assert!(memory_after < memory + GROWTH_KIB, "{memory} KiB, then {memory_after}");
    assert!(
        descriptors_after <= descriptors + 64,
        "{descriptors}, then {descriptors_after}"
    );
}

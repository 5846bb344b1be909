//! Stops, restarts and upgrades of a proxy without any privilege, under clients that open a connection for each request: none that
//! was connected is reset or left without an answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::support::unprivileged::{Unprivileged, listening_at};
use crate::support::{Connection, Process, embedded, eventually, free_port, origin, thorough};

const CLIENTS: usize = 48;
/// To a client that is far away. Its kernel finishes the handshake by itself after 200 ms.
const ROUND_TRIP: Duration = Duration::from_millis(120);

/// Clients with a connection for each request, who come back when they are refused. A quarter of them is far away.
struct Clients {
    all: Vec<JoinHandle<Vec<String>>>,
    answered: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
}

impl Clients {
    fn start(to: SocketAddr) -> Self {
        let (answered, end) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let client = |number| {
            let far = number % 4 == 0;
            let (answered, end) = (Arc::clone(&answered), Arc::clone(&end));
            tokio::spawn(async move {
                let mut lost = Vec::new();
                while !end.load(Ordering::Relaxed) {
                    let opened = if far {
                        Connection::try_open_from_afar(to).await
                    } else {
                        Connection::try_open(to, [127, 0, 0, 1].into()).await
                    };
                    let Ok(mut connection) = opened else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    };
                    if far {
                        tokio::time::sleep(ROUND_TRIP).await;
                    }
                    match connection.try_request("GET", "/delay/3", "", "").await {
                        Ok(response) if response.status == 200 => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        // It has just started, and has not found its backends yet.
                        Ok(response) if response.status == 503 => {}
                        Ok(response) => lost.push(format!("status {}", response.status)),
                        Err(problem) => lost.push(problem.to_string()),
                    }
                }
                lost
            })
        };
        Self {
            all: (0..CLIENTS).map(client).collect(),
            answered,
            end,
        }
    }

    /// Waits until they have got so many more answers.
    async fn get(&self, more: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("traffic flows", async || {
            self.answered.load(Ordering::Relaxed) >= before + more
        })
        .await;
    }

    /// Ends them; none may have lost anything.
    async fn lost_none(self) {
        self.end.store(true, Ordering::Relaxed);
        let mut lost = Vec::new();
        for client in self.all {
            lost.extend(client.await.expect("a client does not panic"));
        }
        let answered = self.answered.load(Ordering::Relaxed);
        assert_eq!(lost, [""; 0], "{} lost besides {answered} answers", lost.len());
    }
}

/// Addresses that no client has, or a client of a port that is closed could be connected with itself.
fn addresses() -> [SocketAddr; 2] {
    [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 9], port)))
}

async fn stop(proxy: &Process) {
    proxy.signal("TERM");
    assert_eq!(proxy.ended().await.0.code(), Some(0));
    proxy.said("drained; leaving", |_| true).await;
    let loud: Vec<_> = proxy.log().into_iter().filter(|line| line["level"] != "INFO").collect();
    assert!(loud.is_empty(), "{loud:#?}");
}

/// Starts and stops a proxy with this configuration, on addresses of its own, so many times under clients, who may lose nothing.
pub async fn restarts_lose_nothing(configuration: &str, times: usize) {
    let user = Unprivileged::new();
    let [address, admin] = addresses();
    let configuration = listening_at(configuration, address, admin);
    let clients = Clients::start(address);
    for _ in 0..times {
        let proxy = user.proxy(&configuration).await;
        clients.get(200).await;
        stop(&proxy).await;
    }
    clients.lost_none().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_clients_with_new_connections_reset_none() {
    let origin = origin();
    restarts_lose_nothing(&embedded(&[origin.address()]), thorough(8, 100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_and_the_end_of_its_successor_reset_none() {
    let (user, origin) = (Unprivileged::new(), origin());
    let [address, admin] = addresses();
    let configuration = listening_at(&embedded(&[origin.address()]), address, admin);
    let clients = Clients::start(address);
    for upgrades in thorough(vec![2], (0..20).map(|round| round % 4).collect()) {
        let mut proxy = user.proxy(&configuration).await;
        for _ in 0..upgrades {
            clients.get(100).await;
            let successor = user.start(&configuration, &["-u"]);
            successor.said_somehow("waiting for the running proxy", |_| true).await;
            proxy.signal("QUIT");
            successor.said("took over from the running proxy", |_| true).await;
            assert_eq!(proxy.ended().await.0.code(), Some(0));
            proxy = successor;
        }
        clients.get(100).await;
        stop(&proxy).await;
    }
    clients.lost_none().await;
}

#[tokio::test]
async fn a_privileged_port_is_refused_with_the_ways_to_allow_it() {
    let (user, origin) = (Unprivileged::new(), origin());
    // The lowest that may be bound; containers often allow all.
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").expect("Linux has it");
    let allowed: u16 = setting.trim().parse().expect("a number");
    let [_, admin] = addresses();
    let privileged = SocketAddr::from(([127, 0, 0, 9], 1));
    let proxy = user.start(&listening_at(&embedded(&[origin.address()]), privileged, admin), &[]);
    if allowed <= privileged.port() {
        proxy.said("listening", |line| line["service"] == "proxy").await;
        return;
    }
    assert_eq!(proxy.ended().await.0.code(), Some(1));
    let line = proxy.said("can't start", |_| true).await;
    let error = line["error"].as_str().expect("words");
    for way_out in [
        "can't listen on 127.0.0.9:1: Permission denied",
        "/gopherproxy`, or AmbientCapabilities=CAP_NET_BIND_SERVICE",
        "sudo sysctl net.ipv4.ip_unprivileged_port_start=1`",
        "choose another port",
    ] {
        assert!(error.contains(way_out), "{error}");
    }
}

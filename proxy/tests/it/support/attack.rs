//! An attack on a proxy, within bounds: what it costs the proxy, and whether others are served meanwhile.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::http2::Http2;
use super::{Connection, LIMIT, Process, RawOrigin, resident_kib};

/// What the others ask for, which every origin here answers.
const OTHERS: &str = "/others";

/// An origin that answers the others, and nobody else.
pub async fn silent_origin() -> RawOrigin {
    RawOrigin::start(|mut peer| async move {
        while let Some(head) = peer.head().await {
            if !head.starts_with(&format!("GET {OTHERS} ")) {
                std::future::pending::<()>().await;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await
}

/// How many requests of attackers the origin has received.
pub fn reached(origin: &RawOrigin) -> usize {
    let requests = origin.requests();
    let others = format!("GET {OTHERS} ");
    requests.iter().filter(|head| !head.starts_with(&others)).count()
}

/// By how much the proxy's memory may grow, at any time of an attack.
const MOST_KIB: usize = 16 << 10;

/// How long the proxy may run on processors because of one: builds without optimisation take a tenth of it at most.
const MOST_TIME: Duration = Duration::from_secs(1);

/// Runs an `attack`, while two clients, one of each protocol, get answers one after the other.
///
/// # Panics
/// When it costs more than it may, or when others are not served: during the attack and behind it.
pub async fn withstands<T>(proxy: &Process, name: &str, attack: impl Future<Output = T>) -> T {
    let mut http1 = Connection::open(proxy.address()).await;
    let mut http2 = Http2::open(proxy.address()).await;
    let mut others = async || {
        let answers = async { (http1.get(OTHERS).await.status, http2.get(OTHERS).await.status) };
        let answers = timeout(LIMIT, answers).await.expect("others are answered");
        assert_eq!(answers, (200, 200), "{name}");
    };
    others().await;
    let (memory, cpu) = (resident_kib(proxy), cpu_time(proxy));
    let mut most = memory;
    let mut attack = pin!(attack);
    let result = loop {
        let meanwhile = async {
            others().await;
            sleep(Duration::from_millis(5)).await;
        };
        let result = tokio::select! {
            result = &mut attack => Some(result),
            () = meanwhile => None,
        };
        most = most.max(resident_kib(proxy));
        if let Some(result) = result {
            break result;
        }
    };
    let cpu = cpu_time(proxy).saturating_sub(cpu);
    let mut behind = Http2::open(proxy.address()).await;
    assert_eq!(behind.get(OTHERS).await.status, 200, "{name}");
    let grown = most.saturating_sub(memory);
    assert!(grown < MOST_KIB && cpu < MOST_TIME, "{name}: {grown} KiB, {cpu:?}");
    result
}

/// How long a process has run on a processor.
fn cpu_time(process: &Process) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).expect("it runs");
    // The name in brackets may have spaces; behind it are the third field and the others.
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .expect("fields")
        .split_ascii_whitespace()
        .collect();
    let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("a number");
    // In hundredths of a second, whatever the kernel's own clock is.
    Duration::from_millis(10 * (ticks(14) + ticks(15)))
}

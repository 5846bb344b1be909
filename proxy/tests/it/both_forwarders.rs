//! Both forwarders against one model: what a client and an origin see does not depend on who forwards.
//!
//! A proxy with each forwarder gets the same random requests, and its origin gives the same random answers. What the direct
//! forwarder makes of them is compared with what is expected, and what Pingora makes of them with that, but for [`KNOWN`]. The
//! seed is in the message of a failure; `FORWARDERS_SEED` draws the same again.

mod exchange;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use exchange::{Answer, Exchange};
use wire::{Seen, Wire};

use crate::support::{LIMIT, OriginListener, Process, embedded, eventually, thorough};

/// What Pingora is known to do otherwise, and what makes that of both alike.
type Difference = (&'static str, fn(&mut Vec<Seen>));

/// All of them.
const KNOWN: [Difference; 3] = [
    ("Pingora reads and writes no trailers in HTTP/1.1", |all| {
        for seen in all {
            seen.trailers.clear();
            seen.fields.retain(|(name, _)| name != "trailer");
        }
    }),
    (
        "Pingora keeps fields in a map, so that those of one name come together, where the first of them was",
        |all| {
            for seen in all {
                seen.fields.sort_by(|one, other| one.0.cmp(&other.0));
            }
        },
    ),
    (
        "Pingora does not tell half a head on a kept connection from none, and sends an idempotent request again",
        |all| {
            all.dedup_by(|one, other| one == other && !one.line.starts_with("POST") && one.line.ends_with("HTTP/1.1"))
        },
    ),
];

/// What came of each request at the origin, by its number: once for each time that it was sent.
type AtOrigin = Arc<Mutex<BTreeMap<usize, Vec<Seen>>>>;

struct Origin {
    address: SocketAddr,
    seen: AtOrigin,
    accepting: JoinHandle<()>,
}

impl Origin {
    async fn start(exchanges: Arc<Vec<Exchange>>) -> Self {
        let mut listener = OriginListener::bind().await;
        let address = listener.address;
        let seen = AtOrigin::default();
        let shared = Arc::clone(&seen);
        let accepting = tokio::spawn(async move {
            while let Some(stream) = listener.accept().await {
                let (exchanges, seen) = (Arc::clone(&exchanges), Arc::clone(&shared));
                tokio::spawn(async move {
                    let mut wire = Wire::new(stream);
                    while let Ok(true) = serve(&mut wire, &exchanges, &seen).await {}
                });
            }
        });
        Self {
            address,
            seen,
            accepting,
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Answers one request. Returns whether another may follow.
async fn serve(wire: &mut Wire, exchanges: &[Exchange], at_origin: &AtOrigin) -> io::Result<bool> {
    let mut seen = wire.head().await?;
    let number = seen
        .line
        .split(['/', '?'])
        .nth(1)
        .and_then(|number| number.parse().ok());
    let number: usize = number.expect("a number");
    let exchange = &exchanges[number];
    if exchange.answer != Answer::Early {
        if exchange.expects {
            wire.send(&[b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()]).await;
        }
        wire.body(&mut seen, true).await?;
    }
    let seen = seen.comparable();
    at_origin
        .lock()
        .expect("no test panics with it")
        .entry(number)
        .or_default()
        .push(seen);
    wire.send(&exchange.answers()).await;
    if exchange.closes {
        let _ = wire.stream.shutdown().await;
        // Closing on what is still coming would destroy what the proxy has not read.
        while wire.more().await.is_ok() {}
    }
    Ok(!exchange.closes)
}

/// What the client of one connection sees: of each request the interim responses and the response, as far as it gets.
async fn client(to: SocketAddr, exchanges: &[Exchange], first: usize) -> Vec<Vec<Seen>> {
    let mut wire = Wire::new(TcpStream::connect(to).await.expect("a connection"));
    let (mut all, mut sent) = (Vec::new(), 0);
    for (index, exchange) in exchanges.iter().enumerate() {
        // Those that need not wait for this response.
        while sent <= index || exchanges[sent - 1].pipelined && sent < exchanges.len() {
            let exchange = &exchanges[sent];
            let mut parts = vec![exchange.head(first + sent)];
            if !exchange.expects {
                parts.extend(exchange.body.wire());
            }
            wire.send(&parts).await;
            sent += 1;
        }
        let mut responses: Vec<Seen> = Vec::new();
        let mut waits = exchange.expects;
        loop {
            let Ok(mut seen) = wire.head().await else {
                all.push(responses);
                return all;
            };
            let status = seen.status();
            if status >= 200 && (exchange.has_response_body() || status != exchange.status) {
                let ends = wire.body(&mut seen, false).await.is_ok();
                // A client of HTTP/1.0 that got no length can't know.
                let unknown = exchange.old && seen.values("content-length").is_empty();
                seen.broken = !ends || (unknown && exchange.answer == Answer::Broken);
            }
            responses.push(seen.comparable());
            if status == 100 && std::mem::take(&mut waits) {
                wire.send(&exchange.body.wire()).await;
            }
            if status >= 200 {
                break;
            }
        }
        let last = responses.last().expect("it has ended");
        let closes = last.broken
            || last
                .values("connection")
                .iter()
                .any(|options| options.contains("close"));
        all.push(responses);
        if closes {
            assert!(wire.more().await.is_err(), "it is kept, and was to be closed");
            return all;
        }
    }
    all
}

/// Checks what the direct forwarder has made of an exchange.
fn check(exchange: &Exchange, client: &[Seen], origin: &[Seen]) {
    let (last, interim) = client.split_last().expect("a response");
    let statuses: Vec<u16> = interim.iter().map(Seen::status).collect();
    let mut expected = if exchange.old {
        Vec::new()
    } else {
        exchange.interim.clone()
    };
    if exchange.expects && exchange.answer != Answer::Early {
        expected.insert(0, 100);
    }
    assert_eq!(statuses, expected);
    for request in origin {
        let line = format!("{} /", exchange.method);
        assert!(request.line.starts_with(&line) && request.line.ends_with("?q=1 HTTP/1.1"));
        if exchange.answer != Answer::Early {
            assert_eq!(request.body, exchange.body.data());
            assert_eq!(request.trailers, exchange.body.trailers());
        }
    }
    if exchange.answer == Answer::Broken && last.status() == 502 {
        return;
    }
    assert!(!origin.is_empty());
    let idempotent = exchange.method != "POST";
    assert!(idempotent || origin.len() == 1, "sent {} times", origin.len());
    assert_eq!(last.line, format!("HTTP/1.1 {} {}", exchange.status, exchange.reason));
    if exchange.answer == Answer::Broken {
        assert!(last.broken);
        return;
    }
    if exchange.has_response_body() {
        assert_eq!(last.body, exchange.response.data());
        let chunked = last.values("transfer-encoding") == ["chunked"];
        assert_eq!(
            last.trailers,
            if chunked {
                exchange.response.trailers()
            } else {
                Vec::new()
            }
        );
    }
    let connection = if exchange.is_kept() { "keep-alive" } else { "close" };
    assert_eq!(last.values("connection"), [connection]);
}

#[tokio::test]
async fn what_a_client_and_an_origin_see_does_not_depend_on_who_forwards() {
    let seed = std::env::var("FORWARDERS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = Rng::with_seed(seed);
    let connections: Vec<usize> = (0..thorough(60, 3_000)).map(|_| random.usize(1..5)).collect();
    let exchanges: Vec<_> = (0..connections.iter().sum())
        .map(|_| Exchange::random(&mut random))
        .collect();
    let exchanges = Arc::new(exchanges);
    let mut sides = Vec::new();
    for forwarder in ["direct", "pingora"] {
        let origin = Origin::start(Arc::clone(&exchanges)).await;
        // No failure ejects the only backend.
        let configuration = embedded(&[origin.address]) + "  upstream: {ejection: {failures: 1000}}\n";
        let proxy = Process::proxy_with(&configuration, &[("FORWARDER", forwarder)]).await;
        proxy.active_backends(1).await;
        sides.push((proxy, origin));
    }
    let [(direct, direct_origin), (pingora, pingora_origin)] = &sides[..] else {
        unreachable!("there are two")
    };
    let mut first = 0;
    let mut answered = Vec::new();
    for count in connections {
        let these = &exchanges[first..first + count];
        let (by_direct, by_pingora) = timeout(LIMIT / 3, async {
            tokio::join!(
                client(direct.address(), these, first),
                client(pingora.address(), these, first)
            )
        })
        .await
        .unwrap_or_else(|_| {
            panic!(
                "seed {seed}: never ended: {first} {these:#?} {:#?} {:#?}",
                direct.lines("request").last(),
                pingora.lines("request").last()
            )
        });
        for (index, exchange) in these.iter().enumerate() {
            let number = first + index;
            let at = |origin: &Origin| {
                let seen = origin.seen.lock().expect("no test panics with it");
                seen.get(&number).cloned().unwrap_or_default()
            };
            let (at_direct, at_pingora) = (at(direct_origin), at(pingora_origin));
            let what = format!(
                "seed {seed}, request {number}: {exchange:#?} DEBUG {:#?} {:#?}",
                pingora.lines("request").last(),
                exchanges[number.saturating_sub(3)..number]
                    .iter()
                    .map(|e| (e.method, e.status, e.answer, e.closes, e.expects, &e.body, &e.response))
                    .collect::<Vec<_>>()
            );
            if let Some(seen) = by_direct.get(index) {
                let checked = std::panic::catch_unwind(|| check(exchange, seen, &at_direct));
                assert!(
                    checked.is_ok(),
                    "{what}\nthe client: {seen:#?}\nthe origin: {at_direct:#?}"
                );
                answered.push(number);
            }
            assert_eq!(
                alike(by_direct.get(index)),
                alike(by_pingora.get(index)),
                "{what}\nthe client, by both"
            );
            assert_eq!(
                alike(Some(&at_direct)),
                alike(Some(&at_pingora)),
                "{what}\nthe origin, of both"
            );
        }
        first += count;
    }
    let (by_direct, by_pingora) = (log(direct, &answered).await, log(pingora, &answered).await);
    for number in answered {
        let exchange = &exchanges[number];
        let mut lines = [&by_direct, &by_pingora].map(|lines| lines[&format!("/{number}")].clone());
        if exchange.answer == Answer::Broken {
            lines.iter_mut().for_each(|line| line[2].clear());
        }
        assert_eq!(
            lines[0], lines[1],
            "seed {seed}, the log of request {number}: {exchange:#?}"
        );
    }
    eventually("nothing is left", async || {
        direct.metric("gopherproxy_inflight_requests").await == 0.0
            && pingora.metric("gopherproxy_inflight_requests").await == 0.0
    })
    .await;
}

/// The status, the reason and the bytes in the log, by path, once all of `answered` are there.
async fn log(proxy: &Process, answered: &[usize]) -> BTreeMap<String, [String; 3]> {
    let mut lines = BTreeMap::new();
    eventually("every request has its line", async || {
        let all = proxy.lines("request").into_iter();
        lines = all
            .map(|line| {
                let path = line["path"].as_str().expect("a path").to_owned();
                (path, ["status", "reason", "bytes"].map(|key| line[key].to_string()))
            })
            .collect();
        answered.iter().all(|number| lines.contains_key(&format!("/{number}")))
    })
    .await;
    lines
}

/// What was seen, but for the [`KNOWN`] differences.
fn alike(seen: Option<&Vec<Seen>>) -> Option<Vec<Seen>> {
    let mut seen = seen?.clone();
    KNOWN.iter().for_each(|(_, forget)| forget(&mut seen));
    Some(seen)
}

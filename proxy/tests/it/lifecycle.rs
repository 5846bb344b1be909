//! Starting, and leaving without losing anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{Connection, Process, embedded, eventually, free_port, get, origin, proxy_over, thorough};

#[tokio::test]
async fn an_idle_proxy_leaves_within_a_second_and_closes_idle_connections() {
    for signal in ["TERM", "INT"] {
        let (proxy, _origins) = proxy_over(1).await;
        let mut idle = Connection::open(proxy.address()).await;
        assert_eq!(idle.get("/").await.status, 200);
        proxy.signal(signal);
        let (status, took) = proxy.ended().await;
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(idle.rest().await, b"");
        proxy.said("drained; leaving", |_| true).await;
    }
}

#[tokio::test]
async fn requests_in_flight_finish_while_new_connections_are_refused_and_readyz_says_why() {
    let (proxy, origins) = proxy_over(1).await;
    let (address, admin) = (proxy.address(), proxy.admin());
    let slow = tokio::spawn(async move { get(address, "/delay/2000").await });
    eventually("it is under way", async || origins[0].requests() == 1).await;
    let mut idle = Connection::open(address).await;
    proxy.signal("TERM");
    eventually("readyz says why", async || {
        let response = get(admin, "/readyz").await;
        (response.status, response.text().as_str()) == (503, "shutting down\n")
    })
    .await;
    eventually("new connections are refused", async || {
        Connection::try_open(address, [127, 0, 0, 1].into()).await.is_err()
    })
    .await;
    assert_eq!(get(admin, "/healthz").await.status, 200);
    proxy.reaches("gopherproxy_inflight_requests", 1.0).await;
    assert_eq!(idle.rest().await, b"");

    let slow = slow.await.expect("it ends");
    assert_eq!((slow.status, slow.header("connection")), (200, Some("close")));
    let (status, took) = proxy.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_client_that_has_just_connected_is_answered() {
    let (proxy, _origins) = proxy_over(1).await;
    let address = proxy.address();
    let mut new = Connection::open(address).await;
    proxy.signal("TERM");
    eventually("new connections are refused", async || {
        Connection::try_open(address, [127, 0, 0, 1].into()).await.is_err()
    })
    .await;
    // Its first packet was lost on the way, and is sent again.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let answer = new.get("/").await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(proxy.ended().await.0.code(), Some(0));
    proxy.said("drained; leaving", |_| true).await;
}

#[tokio::test]
async fn a_second_signal_ends_it_now() {
    let (proxy, origins) = proxy_over(1).await;
    let address = proxy.address();
    tokio::spawn(async move {
        drop(
            Connection::open(address)
                .await
                .try_request("GET", "/delay/60000", "", "")
                .await,
        )
    });
    eventually("it is under way", async || origins[0].requests() == 1).await;
    proxy.signal("TERM");
    proxy
        .said("shutting down; requests in flight may finish", |line| {
            line["in_flight"] == 1
        })
        .await;
    proxy.signal("INT");
    let (status, took) = proxy.ended().await;
    assert_eq!(status.code(), Some(130));
    assert!(took < Duration::from_secs(2), "{took:?}");
    proxy.said("second signal; leaving now", |_| true).await;
}

#[tokio::test]
async fn what_takes_longer_than_the_drain_timeout_is_cut() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + "  drain_timeout: 500ms\n")).await;
    proxy.active_backends(1).await;
    let address = proxy.address();
    tokio::spawn(async move {
        drop(
            Connection::open(address)
                .await
                .try_request("GET", "/delay/60000", "", "")
                .await,
        )
    });
    eventually("it is under way", async || origin.requests() == 1).await;
    proxy.signal("TERM");
    let (status, took) = proxy.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(3), "{took:?}");
    proxy
        .said("drain timeout; leaving with requests unanswered", |line| {
            line["in_flight"] == 1
        })
        .await;
}

#[tokio::test]
async fn sigquit_without_a_successor_is_refused() {
    let (proxy, _origins) = proxy_over(1).await;
    proxy.signal("QUIT");
    proxy
        .said(
            "SIGQUIT refused: there is no successor to hand over to; serving on",
            |_| true,
        )
        .await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
}

/// What one client saw until the proxy was gone.
#[derive(Debug, Default)]
struct Seen {
    answered: u32,
    /// Requests that were sent and got no whole answer.
    lost: Vec<String>,
}

/// Sends requests one after the other, on kept connections, as any HTTP client does: a connection on which the answer
/// said "close" is not used again, and one that was closed before it took the request is replaced.
///
/// With `keep` false every request has a connection of its own.
async fn client(address: SocketAddr, keep: bool) -> Seen {
    let mut seen = Seen::default();
    loop {
        let Ok(mut connection) = Connection::try_open(address, [127, 0, 0, 1].into()).await else {
            return seen;
        };
        let mut kept = false;
        loop {
            match connection.try_request("GET", "/delay/3", "", "").await {
                Ok(response) if response.status == 200 => {
                    seen.answered += 1;
                    if !keep || response.header("connection") == Some("close") {
                        break;
                    }
                }
                Ok(response) => seen.lost.push(format!("status {}", response.status)),
                // The connection was idle, and the proxy closed it: nothing was taken, so nothing was lost.
                Err(_) if kept => break,
                Err(error) => {
                    seen.lost.push(error.to_string());
                    break;
                }
            }
            kept = true;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_traffic_loses_no_request() {
    let (proxy, origins) = proxy_over(3).await;
    let address = proxy.address();
    let clients: Vec<_> = (0..20)
        .map(|number| tokio::spawn(client(address, number % 2 == 0)))
        .collect();
    eventually("traffic flows", async || {
        origins.iter().map(origin::Origin::requests).sum::<u64>() > 500
    })
    .await;
    proxy.signal("TERM");
    let (status, _) = proxy.ended().await;
    assert_eq!(status.code(), Some(0));
    let mut answered = 0;
    for client in clients {
        let seen = client.await.expect("it ends");
        assert_eq!(seen.lost, [""; 0], "after {} answers", seen.answered);
        answered += seen.answered;
    }
    let logged = proxy.lines("request");
    assert_eq!(logged.len(), answered as usize, "every answer has its line");
    assert!(logged.iter().all(|line| line["status"] == 200));
    proxy.said("drained; leaving", |_| true).await;
}

#[tokio::test]
async fn a_taken_port_ends_it_with_the_port_and_its_owner() {
    let (first, origins) = proxy_over(1).await;
    for key in ["listen", "admin_listen"] {
        let taken = if key == "listen" {
            first.address()
        } else {
            first.admin()
        };
        let configuration =
            embedded(&[origins[0].address()]).replace(&format!("  {key}: 127.0.0.1:0"), &format!("  {key}: {taken}"));
        let second = Process::start(env!("CARGO_BIN_EXE_gopherproxy").into(), Some(&configuration), &[]);
        let (status, _) = second.ended().await;
        assert_eq!(status.code(), Some(1));
        let line = second.said("can't start", |_| true).await;
        let error = line["error"].as_str().expect("the error's words");
        let owner = format!("port {} is in use by gopherproxy (pid {})", taken.port(), first.pid());
        assert!(error.contains(&owner), "{error}");
        assert_eq!(second.lines("starting").len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_follows_readyz_loses_nothing_through_restarts() {
    let origin = origin();
    // An address that no client has, or a client of a port that is closed could be connected with itself.
    let [address, admin] = [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 9], port)));
    let configuration = embedded(&[origin.address()])
        .replacen("127.0.0.1:0", &address.to_string(), 1)
        .replacen("127.0.0.1:0", &admin.to_string(), 1)
        + "  lame_duck: 400ms\n";
    let (cycles, requests) = thorough((3, 1_500), (50, 100_000));

    let (ready, follow) = tokio::sync::watch::channel(false);
    let following = tokio::spawn(async move {
        loop {
            let now = match Connection::try_open(admin, [127, 0, 0, 1].into()).await {
                Ok(mut connection) => connection
                    .try_request("GET", "/readyz", "", "")
                    .await
                    .is_ok_and(|answer| answer.status == 200),
                Err(_) => false,
            };
            ready.send_replace(now);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let answered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..10)
        .map(|number| {
            let (mut follow, answered) = (follow.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                while answered.load(Ordering::Relaxed) < requests {
                    follow.wait_for(|ready| *ready).await.expect("it is followed");
                    let mut connection = Connection::open(address).await;
                    while *follow.borrow() && answered.load(Ordering::Relaxed) < requests {
                        assert_eq!(connection.get("/").await.status, 200);
                        answered.fetch_add(1, Ordering::Relaxed);
                        if number % 2 == 0 {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for cycle in 1..=cycles {
        let proxy = Process::proxy(&configuration).await;
        eventually("its share is answered", async || {
            answered.load(Ordering::Relaxed) >= requests * cycle / cycles
        })
        .await;
        if cycle == cycles {
            for client in clients {
                client.await.expect("it lost nothing");
            }
            break;
        }
        proxy.signal("TERM");
        eventually("readyz says no at once", async || {
            get(admin, "/readyz").await.text() == "shutting down\n"
        })
        .await;
        assert_eq!(get(address, "/").await.status, 200, "requests are still taken");
        assert_eq!(proxy.ended().await.0.code(), Some(0));
    }
    following.abort();
}

//! How a pool chooses: by requests in flight, by cookie, and by what the registry says of a member.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::support::http2::{CLEARTEXT, Http2, get as http2_get};
use crate::support::http2_origin::Http2Origin;
use crate::support::tls::{Authority, with_tls};
use crate::support::{
    Connection, Load, Process, RawOrigin, Redis, embedded, eventually, origin, origin_at, with_redis,
};

/// The default pool with these keys.
fn pool(keys: &str) -> String {
    format!("  pools: {{default: {{{keys}}}}}\n")
}

/// A proxy with these keys of its pool over members that are in Redis.
async fn proxy_with(redis: &Redis, members: &[SocketAddr], more: &str) -> Process {
    for member in members {
        redis.command(&format!("SADD gopher_backends http://{member}")).await;
    }
    let proxy = Process::proxy(&(with_redis(redis) + more)).await;
    proxy.active_backends(members.len()).await;
    proxy
}

/// Says in the companion hash of the set what `member` is.
async fn say(redis: &Redis, member: SocketAddr, meta: &str) {
    let field = format!("http://{member}");
    redis
        .command_of(&["HSET", "{gopher_backends}:meta", &field, meta])
        .await;
}

/// Whose answers `count` requests get, one after the other.
async fn answers(proxy: &Process, lines: &str, count: usize) -> Vec<SocketAddr> {
    let mut client = Connection::open(proxy.address()).await;
    let mut answers = Vec::new();
    for _ in 0..count {
        let response = client.request("GET", "/", lines, "").await;
        assert_eq!(response.status, 200);
        answers.push(response.origin());
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_is_drained_and_weighed_under_load_and_no_request_is_lost() {
    let (redis, origins) = (Redis::start().await, [origin(), origin(), origin()]);
    let addresses = origins.each_ref().map(|origin| origin.address());
    let proxy = proxy_with(&redis, &addresses, "").await;
    let shares = async |expected: [usize; 3]| {
        let count = expected.iter().sum();
        eventually(&format!("shares of {expected:?}"), async || {
            let answers = answers(&proxy, "", count).await;
            addresses.map(|one| answers.iter().filter(|answer| **answer == one).count()) == expected
        })
        .await;
    };
    shares([4, 4, 4]).await;
    say(&redis, addresses[0], "weight=4").await;
    say(&redis, addresses[1], "weight=2").await;
    shares([8, 4, 2]).await;

    let load = Load::start(proxy.address(), "/", 300);
    say(&redis, addresses[0], "weight=4 drain").await;
    let mut before = 0;
    eventually("the drained one gets no more requests", async || {
        let now = origins[0].requests();
        let answered = load.answered();
        eventually("some more answers", async || load.answered() > answered + 30).await;
        std::mem::replace(&mut before, now) == origins[0].requests()
    })
    .await;
    say(&redis, addresses[1], "weight=0").await;
    say(&redis, addresses[2], "backup").await;
    let answered = load.answered();
    eventually("some more answers", async || load.answered() > answered + 100).await;
    redis.command("DEL {gopher_backends}:meta").await;
    let drained = origins[0].requests();
    eventually("it gets requests again", async || origins[0].requests() > drained + 10).await;
    assert!(load.lost_none().await > 100);
    shares([4, 4, 4]).await;
}

#[tokio::test]
async fn a_client_with_a_cookie_finds_its_backend_after_a_restart_and_at_another_proxy() {
    let (redis, origins) = (Redis::start().await, [origin(), origin(), origin(), origin()]);
    let addresses = origins.each_ref().map(|origin| origin.address());
    let sticky = pool("sticky: {cookie: backend}");
    let proxy = proxy_with(&redis, &addresses, &sticky).await;
    let first = Connection::open(proxy.address()).await.get("/").await;
    let set = first.header("set-cookie").expect("a cookie").to_owned();
    let (cookie, attributes) = set.split_once("; ").expect("attributes");
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
    assert!(
        cookie.starts_with("backend=") && !cookie.contains("127.0.0.1"),
        "{cookie}"
    );
    // The application may have a cookie of its own beside it.
    let lines = format!("Cookie: a=b; {cookie}; c=d\r\n");
    let stays = async |proxy: &Process| {
        assert_eq!(answers(proxy, &lines, 8).await, [first.origin(); 8]);
        let again = Connection::open(proxy.address())
            .await
            .request("GET", "/", &lines, "")
            .await;
        assert_eq!(again.header("set-cookie"), None, "it has it already");
    };
    stays(&proxy).await;
    let others: HashSet<_> = answers(&proxy, "", 8).await.into_iter().collect();
    assert_eq!(others.len(), 4, "clients without one take turns");

    let other = proxy_with(&redis, &addresses, &sticky).await;
    stays(&other).await;
    drop(proxy);
    stays(&proxy_with(&redis, &addresses, &sticky).await).await;

    // Who is there stays while its backend is drained, and nobody else comes.
    say(&redis, first.origin(), "drain").await;
    eventually("new clients go elsewhere", async || {
        let answers = answers(&other, "", 8).await;
        !answers.contains(&first.origin())
    })
    .await;
    stays(&other).await;
    // When it is gone, the client moves once and gets another cookie.
    redis
        .command(&format!("SREM gopher_backends http://{}", first.origin()))
        .await;
    other.active_backends(3).await;
    let moved = Connection::open(other.address())
        .await
        .request("GET", "/", &lines, "")
        .await;
    let set = moved.header("set-cookie").expect("another cookie").to_owned();
    let lines = format!("Cookie: {}\r\n", set.split(';').next().expect("a cookie"));
    assert_eq!(answers(&other, &lines, 6).await, [moved.origin(); 6]);
}

#[tokio::test]
async fn the_cookie_comes_over_every_protocol_and_beside_the_origins_own() {
    let response = "HTTP/1.1 200 OK\r\nSet-Cookie: own=1\r\nContent-Length: 2\r\n\r\nok";
    let origin = RawOrigin::answering(response).await;
    let (authority, files) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    authority.issue(&["test"]).write(files.path(), "test");
    let configuration = embedded(&[origin.address]) + &pool("sticky: {cookie: at}");
    let proxy = Process::proxy(&with_tls(&configuration, files.path(), "")).await;
    proxy.active_backends(1).await;
    let cookies = |answer: &http::HeaderMap| {
        let all = answer.get_all("set-cookie").iter();
        all.map(|value| value.to_str().expect("ASCII").to_owned())
            .collect::<Vec<_>>()
    };
    let mut client = authority.client().open_http2(proxy.tls_address(), "test").await;
    let answer = client.get("/").await;
    let set = cookies(&answer.headers);
    assert!(set.len() == 2 && set[0] == "own=1", "{set:?}");
    assert!(
        set[1].starts_with("at=") && set[1].ends_with("; SameSite=Lax; Secure"),
        "{set:?}"
    );
    let cookie = set[1].split(';').next().expect("a cookie");
    let mut asked = http2_get("/again");
    asked.headers_mut().append("cookie", "a=b".parse().expect("a value"));
    asked.headers_mut().append("cookie", cookie.parse().expect("a value"));
    let answer = client.send(asked, b"").await.expect("an answer");
    assert_eq!(cookies(&answer.headers), ["own=1"]);
    // The origin sees it, as any other.
    assert!(origin.requests()[1].contains(cookie), "{:?}", origin.requests());

    let mut client = Connection::open(proxy.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert_eq!(head.matches("\r\nSet-Cookie: ").count(), 2, "{head}");
    assert!(
        head.contains("\r\nSet-Cookie: at=") && !head.contains("Secure"),
        "{head}"
    );
    // What the proxy answers itself has none.
    drop(origin);
    proxy.active_backends(0).await;
    let refused = Connection::open(proxy.address()).await.get("/").await;
    assert_eq!((refused.status, refused.header("set-cookie")), (503, None));
}

#[tokio::test]
async fn the_cookie_comes_from_an_origin_of_http2_too() {
    let origin = Http2Origin::plain().await;
    let more = pool("sticky: {cookie: at}, balance: least_requests, protocol: h2c");
    let proxy = Process::proxy(&(embedded(&[origin.address]) + CLEARTEXT + &more)).await;
    proxy.active_backends(1).await;
    let answer = Http2::open(proxy.address()).await.get("/").await;
    let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
    assert!(answer.status == 200 && cookie.starts_with("at="), "{cookie}");
    let lines = format!("Cookie: {}\r\n", cookie.split(';').next().expect("a cookie"));
    let again = Connection::open(proxy.address())
        .await
        .request("GET", "/", &lines, "")
        .await;
    assert_eq!((again.status, again.header("set-cookie")), (200, None));
}

/// An origin that takes its time for each answer.
async fn origin_that_takes(time: Duration) -> RawOrigin {
    RawOrigin::start(move |mut peer| async move {
        while peer.request().await.is_some() {
            tokio::time::sleep(time).await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_four_backends_that_is_ten_times_slower_gets_fewer_requests() {
    const REQUESTS: usize = 400;
    let mut origins = vec![origin_that_takes(Duration::from_millis(300)).await];
    for _ in 0..3 {
        origins.push(origin_that_takes(Duration::from_millis(30)).await);
    }
    let addresses: Vec<_> = origins.iter().map(|origin| origin.address).collect();
    let proxy = Process::proxy(&(embedded(&addresses) + &pool("balance: least_requests"))).await;
    proxy.active_backends(4).await;
    let address = proxy.address();
    let clients = (0..16).map(|_| {
        tokio::spawn(async move {
            let mut client = Connection::open(address).await;
            for _ in 0..REQUESTS / 16 {
                assert_eq!(client.get("/").await.status, 200);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("each is answered");
    }
    let counts: Vec<_> = origins.iter().map(|origin| origin.requests().len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), REQUESTS);
    // Round robin would give it 100.
    assert!(counts[0] < REQUESTS / 8, "{counts:?}");
}

/// Nothing else is in flight, so that the time alone decides.
#[tokio::test]
async fn a_backend_that_took_long_to_answer_is_not_asked_again_soon() {
    let slow = origin_that_takes(Duration::from_secs(1)).await;
    let fast = origin_that_takes(Duration::from_millis(2)).await;
    let proxy = Process::proxy(&(embedded(&[slow.address, fast.address]) + &pool("balance: least_requests"))).await;
    proxy.active_backends(2).await;
    let mut client = Connection::open(proxy.address()).await;
    let mut asked = 0;
    while slow.requests().is_empty() || fast.requests().is_empty() {
        assert_eq!(client.get("/").await.status, 200);
        asked += 1;
        assert!(asked < 100, "each is as likely as the other");
    }
    let before = slow.requests().len();
    for _ in 0..30 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!(slow.requests().len(), before);
}

#[tokio::test]
async fn when_each_backend_has_as_many_requests_as_it_may_the_next_gets_503_and_then_none_does() {
    let origin = RawOrigin::start(|mut peer| async move {
        let head = peer.head().await.unwrap_or_default();
        if head.starts_with("GET /tunnel ") {
            peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .await;
            peer.until("bye").await;
        } else if head.starts_with("GET /slow ") {
            std::future::pending().await
        } else {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                .await;
        }
    })
    .await;
    let proxy = Process::proxy(&(embedded(&[origin.address]) + CLEARTEXT + &pool("max_inflight: 1"))).await;
    proxy.active_backends(1).await;
    let is_free = async || {
        eventually("the place is free again", async || {
            Connection::open(proxy.address()).await.get("/free").await.status == 200
        })
        .await;
    };
    is_free().await;
    let slow = "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n";
    let upgrade = "GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    for (path, asked) in [("/while-slow", slow), ("/while-tunnel", upgrade)] {
        let mut client = Connection::open(proxy.address()).await;
        let before = origin.requests().len();
        client.send(asked).await;
        eventually("it is in flight", async || origin.requests().len() > before).await;
        let mut other = Connection::open(proxy.address()).await;
        let refused = other.get(path).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(refused.text().contains("busy"), "{}", refused.text());
        assert_eq!(refused.header("connection"), Some("keep-alive"));
        assert_eq!(Http2::open(proxy.address()).await.get(path).await.status, 503);
        assert_eq!(proxy.request_line(path).await["reason"], "backends_busy");
        assert_eq!(proxy.request_line(path).await["status"], 503);
        drop(client);
        is_free().await;
    }
    let refused = "gopherproxy_rejections_total{reason=\"backends_busy\"}";
    // Those that asked whether the place was free yet, too.
    eventually("each is counted", async || proxy.metric(refused).await >= 4.0).await;
    // A client that leaves in the middle of its stream gives its place back, too.
    let mut client = Http2::open(proxy.address()).await;
    let before = origin.requests().len();
    let waiting = tokio::spawn(async move { client.send(http2_get("/slow"), b"").await.map(|_| ()) });
    eventually("it is in flight", async || origin.requests().len() > before).await;
    waiting.abort();
    is_free().await;
}

#[tokio::test]
async fn a_retry_goes_to_a_backend_that_has_a_place_and_by_any_algorithm() {
    for balance in ["round_robin", "least_requests", "hash:client"] {
        let (redis, alive, dying) = (Redis::start().await, origin(), origin());
        let members = [alive.address(), dying.address()];
        let more = pool(&format!("balance: '{balance}', max_inflight: 5")) + "  upstream: {ejection: {max_share: 0}}\n";
        for member in members {
            redis.command(&format!("SADD gopher_backends http://{member}")).await;
        }
        let configuration = with_redis(&redis).replace("health: {interval: 100ms}", "health: {interval: 1h}");
        let proxy = Process::proxy(&(configuration + &more)).await;
        proxy.active_backends(2).await;
        dying.stop().await;
        for _ in 0..10 {
            let mut client = Connection::open(proxy.address()).await;
            let response = client.request("POST", "/echo", "", "body").await;
            assert_eq!((response.status, response.text().as_str()), (200, "body"), "{balance}");
        }
        assert_eq!(alive.requests(), 10, "{balance}");
    }
}

#[tokio::test]
async fn a_backend_that_comes_back_gets_little_at_first_and_a_reload_ends_that() {
    let (redis, steady, returning) = (Redis::start().await, origin(), origin());
    let members = [steady.address(), returning.address()];
    let proxy = proxy_with(&redis, &members, &pool("slow_start: 1h")).await;
    let share = async |count: usize| {
        let answers = answers(&proxy, "", count).await;
        answers.iter().filter(|one| **one == members[1]).count()
    };
    assert_eq!(share(22).await, 11, "at the start of the proxy nobody is new");
    returning.stop().await;
    proxy.active_backends(1).await;
    let _returned = origin_at(members[1]);
    proxy.active_backends(2).await;
    assert_eq!(share(22).await, 2);
    proxy.reconfigure(&with_redis(&redis));
    proxy.signal("HUP");
    eventually("it gets its whole share", async || share(22).await == 11).await;
}

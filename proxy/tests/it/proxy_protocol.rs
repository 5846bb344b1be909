//! Balancers that name their clients: the PROXY protocol.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::support::{Connection, Process, RawOrigin, embedded, eventually, origin, proxy_to};

/// Where the balancers of these tests connect from.
const BALANCERS: &str = "  proxy_protocol: [127.0.0.8/31]\n";
const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 8));
const REFUSED: &str = "gopherproxy_rejections_total{reason=\"bad_proxy_header\"}";

/// A header of version 2 that names `client`, with something behind the addresses.
fn v2(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().expect("an address");
    let (family, addresses) = match client.ip() {
        IpAddr::V4(address) => (0x11, [&address.octets()[..], &[198, 51, 100, 1]].concat()),
        IpAddr::V6(address) => (0x21, [&address.octets()[..], &[1; 16]].concat()),
    };
    let ports = [client.port().to_be_bytes(), 80u16.to_be_bytes()].concat();
    header(0x21, family, &[&addresses[..], &ports, &[0x04, 0, 2, 9, 9]].concat())
}

fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("a short one").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &length, rest].concat()
}

fn v1(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().expect("an address");
    let (family, to) = match client {
        SocketAddr::V4(_) => ("TCP4", "198.51.100.1"),
        SocketAddr::V6(_) => ("TCP6", "2001:db8::2"),
    };
    format!("PROXY {family} {} {to} {} 80\r\n", client.ip(), client.port()).into_bytes()
}

async fn balancer(proxy: &Process, header: impl AsRef<[u8]>) -> Connection {
    let mut connection = Connection::open_from(proxy.address(), BALANCER).await;
    connection.send(header).await;
    connection
}

#[tokio::test]
async fn the_client_that_a_balancer_names_is_the_peer_everywhere() {
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let more = format!("{BALANCERS}  trusted_proxies: [192.0.2.9]\n");
    let proxy = proxy_to(&origin, &more).await;
    let local = header(0x20, 0x11, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2]);
    for (number, (header, peer, client)) in [
        (v1("192.0.2.1:4711"), "192.0.2.1:4711", "192.0.2.1"),
        (v1("[2001:db8::1]:4711"), "[2001:db8::1]:4711", "2001:db8::1"),
        (v2("192.0.2.1:4712"), "192.0.2.1:4712", "192.0.2.1"),
        (v2("[2001:db8::1]:4712"), "[2001:db8::1]:4712", "2001:db8::1"),
        (v2("[::ffff:192.0.2.1]:1"), "192.0.2.1:1", "192.0.2.1"),
        (v1("192.0.2.9:1"), "192.0.2.9:1", "203.0.113.7"),
        (v2("192.0.2.9:2"), "192.0.2.9:2", "203.0.113.7"),
        (b"PROXY UNKNOWN 1 2 3 4\r\n".to_vec(), "127.0.0.8", "127.0.0.8"),
        (local, "127.0.0.8", "127.0.0.8"),
        (header(0x21, 0x31, &[0; 216]), "127.0.0.8", "127.0.0.8"),
    ]
    .into_iter()
    .enumerate()
    {
        let request = |which: &str| {
            format!("GET /{number}/{which} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n").into_bytes()
        };
        // All in one piece, and the next on the same connection.
        let mut connection = balancer(&proxy, [header, request("first")].concat()).await;
        assert_eq!(connection.response().await.status, 200);
        connection.send(request("second")).await;
        assert_eq!(connection.response().await.status, 200);
        for which in ["first", "second"] {
            let line = proxy.request_line(&format!("/{number}/{which}")).await;
            assert_eq!(line["client"], client, "{line}");
            let remote = line["remote_addr"].as_str().expect("it has one");
            assert!(remote.starts_with(peer), "{remote}, not {peer}");
        }
        let sent = origin.requests().pop().expect("it got one").to_lowercase();
        let address = peer
            .parse::<SocketAddr>()
            .map_or(peer.to_owned(), |peer| peer.ip().to_string());
        let forwarded = match client {
            "203.0.113.7" => format!("x-forwarded-for: {client}, {address}\r\n"),
            _ => format!("x-forwarded-for: {address}\r\n"),
        };
        assert!(sent.contains(&forwarded), "no {forwarded:?} in {sent}");
    }
}

#[tokio::test]
async fn a_header_in_pieces_is_read_to_its_end_and_no_further() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + BALANCERS)).await;
    proxy.active_backends(1).await;
    for header in [v1("192.0.2.1:4711"), v2("192.0.2.1:4711")] {
        let mut connection = balancer(&proxy, b"").await;
        for byte in &header {
            connection.send([*byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(connection.get("/").await.status, 200);
    }
}

#[tokio::test]
async fn a_balancer_without_a_header_is_cut_and_reported() {
    let origin = origin();
    let more = format!("{BALANCERS}  client: {{head_timeout: 300ms}}\n");
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + &more)).await;
    proxy.active_backends(1).await;
    let mut refused = 0.0;
    for (bytes, error) in [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), "does not begin with"),
        (b"\x16\x03\x01\x02\x00".to_vec(), "does not begin with"),
        (b"PROXY TCP4 192.0.2.1 x 1 2\r\n".to_vec(), "is not a family"),
        (
            [b"PROXY UNKNOWN ".to_vec(), vec![b'a'; 200]].concat(),
            "longer than 107",
        ),
        (header(0x11, 0x11, &[0; 12]), "version"),
        (header(0x22, 0x11, &[0; 12]), "command"),
        (header(0x21, 0x44, &[0; 12]), "family"),
        (header(0x21, 0x11, &[0; 11]), "too short"),
        (header(0x21, 0x11, &[0; 5000]), "longer than 4 KiB"),
        (b"PROXY TCP4 192".to_vec(), "takes longer than client.head_timeout"),
        (b"".to_vec(), "takes longer than client.head_timeout"),
    ] {
        let mut connection = balancer(&proxy, &bytes).await;
        assert_eq!(connection.rest().await, b"", "nothing is answered to {bytes:?}");
        let line = proxy
            .said("request", |line| {
                line["error"].as_str().is_some_and(|text| text.contains(error))
            })
            .await;
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&400.into(), &"bad_proxy_header".into())
        );
        assert_eq!((&line["client"], &line["method"]), (&"127.0.0.8".into(), &"-".into()));
        refused += 1.0;
        proxy.reaches(REFUSED, refused).await;
    }
    let mut cut = balancer(&proxy, b"PROXY TCP4 192").await;
    cut.finish().await;
    assert_eq!(cut.rest().await, b"");
    proxy.reaches(REFUSED, refused + 1.0).await;
    // A balancer that only looks whether the port is open is fine.
    drop(balancer(&proxy, b"").await);
    proxy.reaches("gopherproxy_connections", 0.0).await;
    assert_eq!(proxy.metric(REFUSED).await, refused + 1.0);
    eventually("one line for each", async || proxy.lines("request").len() == 12).await;
}

#[tokio::test]
async fn a_header_from_anybody_else_is_no_request() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + BALANCERS)).await;
    proxy.active_backends(1).await;
    for header in [
        v1("192.0.2.1:4711"),
        v2("192.0.2.1:4711"),
        b"PROXY UNKNOWN\r\n".to_vec(),
    ] {
        let before = proxy.lines("request").len();
        let mut connection = Connection::open(proxy.address()).await;
        connection
            .send([&header[..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat())
            .await;
        let answer = connection.response().await;
        assert_eq!((answer.status, answer.header("connection")), (400, Some("close")));
        eventually("its line", async || proxy.lines("request").len() == before + 1).await;
        let line = proxy.lines("request").pop().expect("it is there");
        assert_eq!(line["client"], "127.0.0.1", "it is not believed");
        let error = line["error"].as_str().expect("the rule");
        assert!(error.contains("not in proxy_protocol"), "{error}");
    }
    assert_eq!(Connection::open(proxy.address()).await.get("/").await.status, 200);
}

#[tokio::test]
async fn limits_of_clients_count_whom_the_balancer_names_and_the_limit_of_all_counts_connections() {
    let origin = origin();
    let more = format!(
        "{BALANCERS}  client: {{max_connections: 5, max_connections_per_client: 2}}\n  limit: {{burst: 3, per_second: 0.001}}\n"
    );
    let configuration = embedded(&[origin.address()]).replace(crate::support::UNLIMITED, "") + &more;
    let proxy = Process::proxy(&configuration).await;
    proxy.active_backends(1).await;
    let mut open = Vec::new();
    for (client, status) in [(1, 200), (1, 200), (1, 503), (2, 200), (2, 200), (2, 503)] {
        let mut connection = balancer(&proxy, v2(&format!("192.0.2.{client}:1"))).await;
        assert_eq!(connection.get("/").await.status, status, "{client}");
        if status == 200 {
            open.push(connection);
        }
    }
    // A connection has its place among all before it names anybody.
    let mut silent = balancer(&proxy, b"PROXY ").await;
    proxy.reaches("gopherproxy_connections", 5.0).await;
    assert_eq!(balancer(&proxy, v2("192.0.2.3:1")).await.response().await.status, 503);
    silent.send(&v1("192.0.2.3:1")["PROXY ".len()..]).await;
    assert_eq!(silent.get("/").await.status, 200);
    // Each client has a bucket.
    assert_eq!(open[0].get("/").await.status, 200);
    assert_eq!(open[1].get("/").await.status, 429);
    assert_eq!(open[2].get("/").await.status, 200);
}

#[tokio::test]
async fn balancers_change_by_a_reload_and_a_wrong_network_is_a_mistake() {
    let origin = origin();
    let before = embedded(&[origin.address()]);
    let proxy = Process::proxy(&before).await;
    proxy.active_backends(1).await;
    let request = [&v1("192.0.2.1:4711")[..], b"GET /named HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    assert_eq!(balancer(&proxy, &request).await.response().await.status, 400);
    proxy.reconfigure(&(before.clone() + "  proxy_protocol: [127.0.0.8/33]\n"));
    proxy.signal("HUP");
    let refused = proxy
        .said("configuration not reloaded; the old one stays", |_| true)
        .await;
    let error = refused["error"].as_str().expect("why");
    assert!(
        error.contains("proxy_protocol") && error.contains("127.0.0.8/33"),
        "{error}"
    );
    proxy.reconfigure(&(before + BALANCERS));
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    assert_eq!(balancer(&proxy, &request).await.response().await.status, 200);
    assert_eq!(proxy.request_line("/named").await["client"], "192.0.2.1");
}

#[tokio::test]
async fn a_connection_whose_header_is_under_way_is_served_during_the_drain() {
    let origin = origin();
    let proxy = Process::proxy(&(embedded(&[origin.address()]) + BALANCERS)).await;
    proxy.active_backends(1).await;
    let mut connection = balancer(&proxy, b"PROXY ").await;
    proxy.reaches("gopherproxy_connections", 1.0).await;
    proxy.signal("TERM");
    eventually("the port is closed", async || {
        Connection::try_open(proxy.address(), BALANCER).await.is_err()
    })
    .await;
    let rest = v1("192.0.2.1:4711");
    connection.send(&rest["PROXY ".len()..]).await;
    assert_eq!(connection.get("/").await.status, 200);
    drop(connection);
    assert!(proxy.ended().await.0.success());
}

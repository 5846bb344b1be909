//! Targets, which pass as they come unless they could be read in two ways.

use tokio::io::AsyncReadExt;

use crate::support::{Connection, Process, RawOrigin, embedded, forwarder};

/// An origin that answers each request with the target that it received, escaped.
async fn origin() -> RawOrigin {
    RawOrigin::start(|mut peer| async move {
        let mut received = Vec::new();
        while peer.stream.read_buf(&mut received).await.is_ok_and(|read| read > 0) {
            if received.ends_with(b"\r\n\r\n") {
                let target = received.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
                let target = target.escape_ascii().to_string();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", target.len());
                peer.send(head + &target).await;
                received.clear();
            }
        }
    })
    .await
}

/// Sends a request with each target, and compares what the origin receives.
async fn all_pass(proxy: &Process, targets: &[Vec<u8>]) {
    let mut client = Connection::open(proxy.address()).await;
    for target in targets {
        client
            .send([b"GET ", &target[..], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat())
            .await;
        let answer = client.response().await;
        let expected = (200, target.escape_ascii().to_string());
        assert_eq!((answer.status, answer.text()), expected);
    }
}

#[tokio::test]
async fn every_byte_that_cannot_end_a_target_passes_unchanged() {
    if forwarder::skips("targets::every_byte_that_cannot_end_a_target_passes_unchanged") {
        return;
    }
    let origin = origin().await;
    let proxy = Process::proxy(&embedded(&[origin.address])).await;
    proxy.active_backends(1).await;
    let visible = (b'!'..=b'~').filter(|byte| *byte != b'#');
    let mut targets: Vec<_> = visible
        .flat_map(|byte| [[b"/in", &[byte][..]].concat(), [b"/?in=", &[byte][..], b"x"].concat()])
        .collect();
    let whole = r#"/api/v1/query?query=up{job="x"} /?q=<b> /a`b /<b> /"{|}^`?"{|}^` //[x]?[y]=\z"#;
    targets.extend(whole.split(' ').map(|target| target.as_bytes().to_vec()));
    all_pass(&proxy, &targets).await;
    proxy.request_line("/a`b").await;
    proxy.request_line("/\"{|}^`").await;
}

#[tokio::test]
async fn bytes_that_are_no_text_pass_where_the_configuration_says_so() {
    let origin = origin().await;
    let raw = embedded(&[origin.address]) + "  client: {raw_targets: true}\n";
    let proxy = Process::proxy(&raw).await;
    proxy.active_backends(1).await;
    let mut targets: Vec<_> = (0x80..=u8::MAX)
        .flat_map(|byte| [[b"/", &[byte][..]].concat(), [b"/in?a=b", &[byte][..], b"c"].concat()])
        .collect();
    targets.push(b"/log\xe4\x80\"\\?secret".to_vec());
    targets.push("/\u{e4}".into());
    all_pass(&proxy, &targets).await;
    // What is no text is replaced in the log, and the rest of the line is what it is.
    let line = proxy.request_line("/log\u{fffd}\"\\").await;
    assert_eq!(line["status"], 200);
    assert!(!format!("{:?}", proxy.log()).contains("secret"));

    // The other rules hold there too.
    for (target, rule) in [
        (&b"/\xe4#f"[..], "the target has a fragment"),
        (b"/\xe4\r\xe4", "a CR stands without an LF behind it"),
        (
            b"http://a\xe4/",
            "the target names no host, or one with more than a name and a port",
        ),
    ] {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send([b"GET ", target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat())
            .await;
        assert_eq!(client.response().await.status, 400, "{}", target.escape_ascii());
        proxy.said("request", |line| line["error"] == rule).await;
    }
}

#[tokio::test]
async fn a_refused_target_is_logged_and_says_which_key_lets_it_in() {
    let origin = origin().await;
    let proxy = Process::proxy(&embedded(&[origin.address])).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    client.send(b"GET /caf\xe9?secret HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.status, 400);
    let line = proxy.request_line("/caf\u{fffd}").await;
    assert_eq!(line["error"], "the target is not UTF-8, and client.raw_targets is off");
}

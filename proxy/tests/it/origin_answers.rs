//! What becomes of an origin's answer: it is passed on as it is, or it is cut, and what has more than one reading never looks whole.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::support::{Connection, RawOrigin, forwarder, get, proxy_to};

#[tokio::test]
async fn the_fields_of_an_answer_keep_their_order_their_case_and_their_values() {
    if forwarder::skips("origin_answers::the_fields_of_an_answer_keep_their_order_their_case_and_their_values") {
        return;
    }
    const FIELDS: [&str; 10] = [
        "X-Second: 2",
        "date: Thu, 01 Jan 1998 00:00:00 GMT",
        "Age: 7",
        "x-first: 1",
        "SET-cookie: a=b",
        "server: origin",
        "X-Second:  two  words",
        "Set-Cookie: c=d",
        "ETag: W/\"\u{e4}\"",
        "Content-Length: 2",
    ];
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let fields = if request.contains(" /undated ") {
                FIELDS[9].to_owned()
            } else {
                FIELDS.join("\r\n")
            };
            peer.send(format!("HTTP/1.1 299 All  \"Well\"\r\n{fields}\r\n\r\nok"))
                .await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    for version in ["1.1", "1.0"] {
        client
            .send(format!(
                "GET / HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"
            ))
            .await;
        let head = client.until("\r\n\r\n").await;
        assert_eq!(client.bytes(2).await, b"ok");
        let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
        assert_eq!(lines.remove(0), "HTTP/1.1 299 All  \"Well\"", "{version}");
        // What is said of the connection is the proxy's.
        lines.retain(|line| !line.to_lowercase().starts_with("connection:"));
        let one_space = |lines: &[&str]| lines.join("\n").replace(":  ", ": ");
        assert_eq!(one_space(&lines), one_space(&FIELDS), "{version}");
    }
    let mut client = Connection::open(proxy.address()).await;
    let undated = client.get("/undated").await;
    assert!(
        undated.header("date").is_some_and(|date| date.ends_with(" GMT")),
        "{undated:?}"
    );
}

#[tokio::test]
async fn an_upgrade_that_is_required_is_named_in_connection_too() {
    let origin = RawOrigin::answering(
        "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await.to_lowercase();
    assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    // As RFC 9110, section 7.8, has it.
    let named = |line: &str| line.starts_with("connection:") && line.contains("upgrade");
    assert!(head.lines().any(named), "{head}");
}

#[tokio::test]
async fn a_chunked_answer_with_two_readings_is_cut() {
    if forwarder::skips("origin_answers::a_chunked_answer_with_two_readings_is_cut") {
        return;
    }
    let long = format!("2;{}\r\nok\r\n0\r\n\r\n", "x".repeat(20 << 10));
    // Behind a good chunk.
    let rows = [
        ("an empty size", "\r\nok\r\n0\r\n\r\n"),
        ("an empty size at the end", "\r\n\r\n"),
        ("an empty size with an extension", ";x\r\n\r\n"),
        ("a size with a plus", "+2\r\nok\r\n0\r\n\r\n"),
        ("a size with a minus", "-2\r\nok\r\n0\r\n\r\n"),
        ("a size with 0x", "0x2\r\nok\r\n0\r\n\r\n"),
        ("an underscore in a size", "0_2\r\nok\r\n0\r\n\r\n"),
        ("a letter behind a size", "2g\r\nok\r\n0\r\n\r\n"),
        ("two sizes", "2 2\r\nok\r\n0\r\n\r\n"),
        ("a space before a size", " 2\r\nok\r\n0\r\n\r\n"),
        ("a tab before the last size", "2\r\nok\r\n\t0\r\n\r\n"),
        ("a NUL behind a size", "2\0\r\nok\r\n0\r\n\r\n"),
        ("a size of 65 bits", "10000000000000002\r\nok\r\n0\r\n\r\n"),
        ("a size of many zeros", "00000000000000000000002\r\nok\r\n0\r\n\r\n"),
        ("a last size of many zeros", "2\r\nok\r\n0000000000000000000000\r\n\r\n"),
        ("LF behind a size", "2\nok\r\n0\r\n\r\n"),
        ("CR behind a size", "2\rok\r\n0\r\n\r\n"),
        ("two CRs behind a size", "2\r\r\nok\r\n0\r\n\r\n"),
        ("LF in an extension", "2;a\nb\r\nok\r\n0\r\n\r\n"),
        ("LF at the end of an extension", "2;a\nok\r\n0\r\n\r\n"),
        ("CR in an extension", "2;a\rb\r\nok\r\n0\r\n\r\n"),
        ("a NUL in an extension", "2;a\0\r\nok\r\n0\r\n\r\n"),
        ("a long extension", &long),
        ("LF behind a chunk", "2\r\nok\n0\r\n\r\n"),
        ("more bytes than the size", "2\r\nokay\r\n0\r\n\r\n"),
        ("LF behind the last size", "2\r\nok\r\n0\n\r\n"),
        ("LF for the empty line", "2\r\nok\r\n0\r\n\n"),
        ("LF in a trailer", "2\r\nok\r\n0\r\nX: y\nZ: y\r\n\r\n"),
        ("CR in a trailer", "2\r\nok\r\n0\r\nX: y\rZ: y\r\n\r\n"),
        ("a NUL in a trailer", "2\r\nok\r\n0\r\nX: \0\r\n\r\n"),
        ("a fold of a trailer", "2\r\nok\r\n0\r\nX: y\r\n z\r\n\r\n"),
        ("a space before the colon of a trailer", "2\r\nok\r\n0\r\nX : y\r\n\r\n"),
        ("a trailer without a colon", "2\r\nok\r\n0\r\nX\r\n\r\n"),
        (
            "a response where trailers are",
            "2\r\nok\r\n0\r\nHTTP/1.1 200 OK\r\n\r\n",
        ),
    ];
    let answers = rows.map(|(_, chunks)| chunks.to_owned());
    let origin = RawOrigin::start(move |mut peer| {
        let answers = answers.clone();
        async move {
            while let Some(request) = peer.request().await {
                let number = request
                    .split([' ', '-'])
                    .nth(2)
                    .and_then(|number| number.parse::<usize>().ok());
                let Some(number) = number else {
                    return peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
                };
                peer.send(format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n{}",
                    answers[number]
                ))
                .await;
            }
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut wrong = Vec::new();
    for (number, (name, _)) in rows.iter().enumerate() {
        let path = format!("/row-{number}");
        for version in ["1.1", "1.0"] {
            let mut client = Connection::open(proxy.address()).await;
            client
                .send(format!("GET {path}-{version} HTTP/{version}\r\nHost: a\r\n\r\n"))
                .await;
            let all = timeout(Duration::from_secs(5), client.rest()).await;
            let Ok(all) = all else {
                wrong.push(format!("{name}: the connection stays"));
                continue;
            };
            let all = String::from_utf8_lossy(&all).into_owned();
            // To a client of HTTP/1.0 a cut answer looks like a whole one that is shorter.
            if version == "1.1" && all.ends_with("0\r\n\r\n") {
                wrong.push(format!("{name}: it looks whole: {}", all.escape_debug()));
            }
            let line = proxy.request_line(&format!("{path}-{version}")).await;
            if line["reason"] != "backend_failed" || !line["error"].is_string() {
                wrong.push(format!("{name}: {line}"));
            }
        }
        if get(proxy.address(), "/next").await.text() != "good" {
            wrong.push(format!("{name}: the next client sees something of it"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn two_fields_that_both_say_chunked_say_it_once_and_other_codings_are_502() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let lines = match request.split([' ', '/']).nth(2).expect("a path") {
                "two" => "Transfer-Encoding: chunked\r\nTransfer-Encoding: Chunked",
                "gzip" => "Transfer-Encoding: gzip, chunked",
                "two-of-gzip" => "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
                "last" => "Transfer-Encoding: chunked, gzip",
                _ => "Transfer-Encoding: chunked",
            };
            peer.send(format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n2\r\nok\r\n0\r\n\r\n"))
                .await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    for path in ["/two", "/two", "/one"] {
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{path}");
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"), "{path}");
    }
    assert_eq!(origin.connections(), 1);
    for path in ["/gzip", "/two-of-gzip", "/last"] {
        assert_eq!(get(proxy.address(), path).await.status, 502, "{path}");
    }
}

/// Reads the trailers behind the last chunk.
async fn trailers(client: &mut Connection) -> Vec<String> {
    let mut trailers = Vec::new();
    loop {
        let line = client.until("\r\n").await;
        if line == "\r\n" {
            return trailers;
        }
        trailers.push(line.trim_end().to_lowercase());
    }
}

#[tokio::test]
async fn trailers_of_an_answer_pass_to_whom_they_can_be_sent() {
    if forwarder::skips("origin_answers::trailers_of_an_answer_pass_to_whom_they_can_be_sent") {
        return;
    }
    let origin = RawOrigin::answering(
        "HTTP/1.1 200 OK\r\nTrailer: X-Checksum, Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nok\r\n0\r\nX-Checksum: 1\r\nContent-Length: 50\r\nTransfer-Encoding: gzip\r\nHost: evil\r\n\
         Set-Cookie: a=b\r\nConnection: close\r\nX-Checksum: 2\r\n\r\n",
    )
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    for _ in 0..2 {
        client
            .send("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
            .await;
        let head = client.head().await;
        assert!(
            head.header("trailer")
                .is_some_and(|trailer| trailer.contains("X-Checksum")),
            "{head:?}"
        );
        assert_eq!(client.chunk().await, b"ok");
        assert_eq!(client.chunk().await, b"");
        assert_eq!(trailers(&mut client).await, ["x-checksum: 1", "x-checksum: 2"]);
    }
    // HTTP/1.0 has no place for them.
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let old = client.response().await;
    assert_eq!((old.header("trailer"), old.text().as_str()), (None, "ok"));
    // HEAD has none, and its answer may announce what GET has.
    let mut client = Connection::open(proxy.address()).await;
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
}

#[tokio::test]
async fn trailers_of_a_request_pass_to_the_origin() {
    if forwarder::skips("origin_answers::trailers_of_a_request_pass_to_the_origin") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(head) = peer.head().await {
            let body = peer.until("0\r\n").await.expect("the last chunk");
            let mut trailers = String::new();
            while !trailers.ends_with("\r\n\r\n") && trailers != "\r\n" {
                trailers += &peer.until("\r\n").await.expect("a trailer or the end");
            }
            let seen = format!("{head}{body}{trailers}").to_lowercase();
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}",
                seen.len()
            ))
            .await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "").await;
    let mut client = Connection::open(proxy.address()).await;
    for _ in 0..2 {
        client
            .send(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Checksum\r\n\r\n4\r\nwiki\r\n0\r\n\
                 X-Checksum: 1\r\nContent-Length: 50\r\nTransfer-Encoding: gzip\r\nHost: evil\r\nX-Forwarded-For: 6.6.6.6\r\n\
                 Authorization: evil\r\nX_Real_IP: 6.6.6.6\r\nX-Checksum: 2\r\n\r\n",
            )
            .await;
        let seen = client.response().await.text();
        assert!(seen.contains("\r\ntrailer: x-checksum\r\n"), "{seen}");
        assert!(seen.ends_with("\r\nx-checksum: 1\r\nx-checksum: 2\r\n\r\n"), "{seen}");
    }
}

#[tokio::test]
async fn interim_answers_without_end_are_no_answer() {
    if forwarder::skips("origin_answers::interim_answers_without_end_are_no_answer") {
        return;
    }
    let origin = RawOrigin::start(|mut peer| async move {
        peer.request().await;
        while peer.stream.writable().await.is_ok() {
            if peer
                .stream
                .try_write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
                .is_err()
            {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "  upstream: {read_timeout: 1s}\n").await;
    let mut client = Connection::open(proxy.address()).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let end = async {
        loop {
            let answer = client.response().await;
            if answer.status != 103 {
                return answer.status;
            }
        }
    };
    let status = timeout(Duration::from_secs(10), end).await;
    assert_eq!(status.expect("they end"), 504);
    assert_eq!(proxy.request_line("/").await["reason"], "backend_timeout");
}

#[tokio::test]
async fn an_origin_that_is_silent_to_a_handshake_has_the_time_of_a_request() {
    let origin = RawOrigin::start(|mut peer| async move {
        let request = peer.request().await.expect("a handshake");
        if request.contains(" /stops ") {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        }
        let _ = peer.stream.read(&mut [0]).await;
    })
    .await;
    let proxy = proxy_to(&origin, "  upstream: {read_timeout: 500ms}\n").await;
    for (path, status) in [("/silent", 504), ("/stops", 200)] {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            ))
            .await;
        let head = timeout(Duration::from_secs(10), client.head()).await;
        assert_eq!(head.expect("in time").status, status, "{path}");
        let line = timeout(Duration::from_secs(10), proxy.request_line(path)).await;
        let line = line.expect("in time");
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&status.into(), &"backend_timeout".into()),
            "{line}"
        );
    }
}

#[tokio::test]
async fn interim_responses_do_not_keep_a_client_waiting_for_longer_than_silence() {
    let origin = RawOrigin::start(|mut peer| async move {
        peer.request().await;
        while peer.stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let proxy = proxy_to(&origin, "  upstream: {read_timeout: 1s}\n").await;
    let mut client = Connection::open(proxy.address()).await;
    client
        .send("POST /for-ever HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        .await;
    let mut statuses = vec![client.response().await.status];
    while statuses.last() == Some(&102) {
        statuses.push(client.response().await.status);
    }
    assert_eq!((statuses.first(), statuses.last()), (Some(&102), Some(&504)));
    let line = proxy.request_line("/for-ever").await;
    assert_eq!(line["reason"], "backend_timeout", "{line}");
}

//! Which responses are compressed, by their heads.

use super::*;

/// A response that is not compressed: its lines, those of the request, and whether the client is told that it depends on what it accepts.
type Left = (&'static str, &'static [(&'static str, &'static str)], bool);

const LEFT: [Left; 16] = [
    // The client.
    ("Content-Type: text/plain", &[], true),
    ("Content-Type: text/plain", &[("accept-encoding", "br")], true),
    ("Content-Type: text/plain", &[("accept-encoding", "gzip;q=0")], true),
    (
        "Content-Type: text/plain",
        &[("accept-encoding", "identity, gzip;q=0.5")],
        true,
    ),
    (
        "Content-Type: text/plain",
        &[("accept-encoding", "gzip"), ("cache-control", "no-transform")],
        false,
    ),
    // The type.
    ("Content-Type: image/png", &[("accept-encoding", "gzip")], false),
    ("Content-Type: application/zip", &[("accept-encoding", "gzip")], false),
    ("Content-Type: application/grpc", &[("accept-encoding", "gzip")], false),
    ("X-Type: none", &[("accept-encoding", "gzip")], false),
    // It is compressed, or must not be.
    (
        "Content-Type: text/plain\r\nContent-Encoding: br",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nContent-Encoding: gzip",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nCache-Control: max-age=3, No-Transform",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nContent-Range: bytes 0-1999/5000",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nContent-Digest: sha-256=:abc:",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nTrailer: X-Sum, repr-digest",
        &[("accept-encoding", "gzip")],
        false,
    ),
    (
        "Content-Type: text/plain\r\nContent-Type: text/html",
        &[("accept-encoding", "gzip")],
        false,
    ),
];

#[tokio::test]
async fn a_response_that_must_stay_as_it_is_does() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let (lines, _, _) = LEFT[number(&request)];
            let body = text(2000);
            let head = format!("HTTP/1.1 200 OK\r\n{lines}\r\nETag: \"abc\"\r\nContent-Length: 2000\r\n\r\n");
            peer.send([head.as_bytes(), &body].concat()).await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    for (number, (lines, fields, varies)) in LEFT.into_iter().enumerate() {
        for got in ask(&proxy, "GET", &format!("/{number}"), fields).await {
            let case = format!("{lines} {fields:?} {:?}", got.fields);
            assert!(got.body == text(2000), "{case}");
            assert_eq!(got.value("content-length"), Some("2000"), "{case}");
            assert_eq!(got.value("etag"), Some("\"abc\""), "{case}");
            assert_eq!(got.value("vary"), varies.then_some("Accept-Encoding"), "{case}");
        }
    }
}

#[tokio::test]
async fn responses_without_a_whole_body_stay_as_they_are() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let status = number(&request);
            let length = if matches!(status, 204 | 304) {
                ""
            } else {
                "Content-Length: 2000\r\n"
            };
            let body = if request.starts_with("HEAD") || length.is_empty() {
                vec![]
            } else {
                text(2000)
            };
            let head = format!("HTTP/1.1 {status} Status\r\n{TEXT}{length}\r\n");
            peer.send([head.as_bytes(), &body].concat()).await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    for (method, status) in [("GET", 206), ("GET", 204), ("GET", 304), ("HEAD", 206)] {
        let fields = [("accept-encoding", "gzip"), ("range", "bytes=0-1999")];
        for got in ask(&proxy, method, &format!("/{status}"), &fields).await {
            let case = format!("{method} {:?}", got.fields);
            assert_eq!(got.status, status, "{case}");
            assert_eq!(got.value("content-encoding"), None, "{case}");
            assert_eq!(got.value("etag"), Some("\"abc\""), "{case}");
            let length = if (method, status) == ("GET", 206) { 2000 } else { 0 };
            assert_eq!(got.body.len(), length, "{case}");
        }
    }
    // The others are, whatever their status.
    for status in [404, 500] {
        for got in ask(&proxy, "GET", &format!("/{status}"), &[("accept-encoding", "gzip")]).await {
            assert_eq!((got.status, got.value("content-encoding")), (status, Some("gzip")));
            assert!(decoded("gzip", &got.body) == (text(2000), true));
        }
    }
}

#[tokio::test]
async fn what_the_route_changes_counts_as_the_clients_get_it() {
    let origin = RawOrigin::start(|mut peer| async move {
        while peer.request().await.is_some() {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-transform\r\n\
                        Vary: Origin, accept-ENCODING\r\nETag: W/\"weak\"\r\nContent-Encoding: identity\r\n\
                        Content-Length: 2000\r\n\r\n";
            peer.send([head.as_bytes(), &text(2000)].concat()).await;
        }
    })
    .await;
    let routes = "  routes:
    off: {paths: [/off], compress: false}
    taken: {paths: [/taken], compress: true, response_headers: {remove: [Cache-Control]}}
    set: {paths: [/set], compress: true, response_headers: {set: {Cache-Control: no-cache, ETag: '\"own\"', Vary: Cookie}}}
    odd: {paths: [/odd], compress: true, response_headers: {set: {Cache-Control: no-cache, ETag: own}}}
    type: {paths: [/type], compress: true, response_headers: {set: {Cache-Control: no-cache, Content-Type: image/png}}}
    coded: {paths: [/coded], compress: true, response_headers: {set: {Cache-Control: no-cache, Content-Encoding: br}}}
";
    let proxy = proxy_to(&origin, &format!("{CLEARTEXT}{routes}")).await;
    for (path, coding, etag, vary) in [
        ("/off", "identity", Some("W/\"weak\""), &["Origin, accept-ENCODING"][..]),
        ("/taken", "zstd", Some("W/\"weak\""), &["Origin, accept-ENCODING"]),
        ("/set", "zstd", Some("W/\"own\""), &["Cookie", "Accept-Encoding"]),
        ("/odd", "zstd", None, &["Origin, accept-ENCODING"]),
        ("/type", "identity", Some("W/\"weak\""), &["Origin, accept-ENCODING"]),
        ("/coded", "br", Some("W/\"weak\""), &["Origin, accept-ENCODING"]),
    ] {
        for got in ask(&proxy, "GET", path, &[("accept-encoding", "gzip, zstd")]).await {
            let case = format!("{path} {:?}", got.fields);
            assert_eq!(got.value("content-encoding"), Some(coding), "{case}");
            assert_eq!(got.value("etag"), etag, "{case}");
            assert_eq!(got.values("vary"), vary, "{case}");
            if coding == "zstd" {
                assert!(decoded("zstd", &got.body) == (text(2000), true), "{case}");
            }
        }
    }
}

/// So that what a client learns by HEAD, the length above all, is what GET would get.
#[tokio::test]
async fn a_response_to_head_has_the_fields_of_one_to_get() {
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let path = request.split(' ').nth(1).unwrap_or_default();
            let (framing, body) = match path {
                "/chunked" => ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n".to_owned()),
                "/short" => ("Content-Length: 1000", "x".repeat(1000)),
                "/image" => ("Content-Length: 1024\r\nContent-Type: image/png", "x".repeat(1024)),
                _ => ("Content-Length: 1024", "x".repeat(1024)),
            };
            let media = if path == "/image" { "" } else { TEXT };
            let body = if request.starts_with("HEAD") { "" } else { &body };
            peer.send(format!("HTTP/1.1 200 OK\r\n{media}{framing}\r\n\r\n{body}"))
                .await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    for path in ["/long", "/short", "/chunked", "/image"] {
        for accepts in ["gzip", "br"] {
            let fields = [("accept-encoding", accepts)];
            let head = ask(&proxy, "HEAD", path, &fields).await;
            let get = ask(&proxy, "GET", path, &fields).await;
            for (head, get) in head.into_iter().zip(get) {
                assert!(head.body.is_empty());
                for name in ["content-length", "content-encoding", "etag", "vary", "accept-ranges"] {
                    assert_eq!(head.value(name), get.value(name), "{path} {accepts} {name}");
                }
            }
        }
    }
    // The connections are in order, and a HEAD has not taken an encoder's memory along.
    for got in ask(&proxy, "GET", "/long", &[("accept-encoding", "gzip")]).await {
        assert_eq!(decoded("gzip", &got.body), ("x".repeat(1024).into_bytes(), true));
    }
}

/// A 304 has the tag that the client got with the compressed response, so that its cache knows which of its responses is meant; and the
/// tags that the proxy gives out find the origin's.
#[tokio::test]
async fn a_304_has_the_tag_of_the_response_that_the_client_has() {
    // An origin that compares as RFC 9110 says (section 13.1.2): weakly.
    let origin = RawOrigin::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let asks = request.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("if-none-match").then_some(value)
            });
            let vary = if request.contains(" /varies") {
                "Vary: Origin, Accept-Encoding\r\n"
            } else {
                ""
            };
            if asks.is_some_and(|tags| tags.contains("\"abc\"")) {
                peer.send(format!("HTTP/1.1 304 Not Modified\r\nETag: \"abc\"\r\n{vary}\r\n"))
                    .await;
                continue;
            }
            let media = if request.contains(" /image") {
                "image/png"
            } else {
                "text/plain"
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nETag: \"abc\"\r\n{vary}Content-Length: 2000\r\n\r\n"
            );
            let body = if request.starts_with("HEAD") {
                vec![]
            } else {
                text(2000)
            };
            peer.send([head.as_bytes(), &body].concat()).await;
        }
    })
    .await;
    let proxy = compressing(&origin).await;
    for (path, accepts) in [
        ("/text", "gzip"),
        ("/text", "br"),
        ("/image", "zstd"),
        ("/varies", "zstd"),
    ] {
        for version in [0, 1] {
            let got = &ask(&proxy, "GET", path, &[("accept-encoding", accepts)]).await[version];
            let tag = got.value("etag").expect("a tag");
            let case = format!("{path} {accepts} {:?}", got.fields);
            assert_eq!(tag.starts_with("W/"), path != "/image" && accepts != "br", "{case}");
            for (method, tags) in [
                ("GET", tag.to_owned()),
                ("HEAD", tag.to_owned()),
                ("GET", format!("\"x\", {tag}")),
            ] {
                let fields = [("accept-encoding", accepts), ("if-none-match", &*tags)];
                let again = &ask(&proxy, method, path, &fields).await[version];
                assert_eq!((again.status, again.body.len()), (304, 0), "{case}");
                assert_eq!(again.value("etag"), Some(tag), "{case}");
                assert_eq!(again.value("content-encoding"), None, "{case}");
                if tag.starts_with("W/") {
                    assert_eq!(again.value("vary"), got.value("vary"), "{case}");
                }
            }
        }
    }
    // A client that accepts no coding must not be told to use a compressed response.
    for tags in ["W/\"abc\"", "\"abc\""] {
        for got in ask(&proxy, "GET", "/text", &[("if-none-match", tags)]).await {
            assert_eq!((got.status, got.value("etag")), (304, Some("\"abc\"")), "{tags}");
        }
    }
    // One that has it as it was, from another cache, may go on with that.
    for got in ask(
        &proxy,
        "GET",
        "/text",
        &[("accept-encoding", "gzip"), ("if-none-match", "\"abc\"")],
    )
    .await
    {
        assert_eq!((got.status, got.value("etag")), (304, Some("\"abc\"")));
    }
}

//! Heads over HTTP/2 that one reader takes for something else than another: refused, and nothing of them reaches the origin.
//!
//! What `h2` refuses itself resets the stream, or ends the connection. All else is answered as over HTTP/1.1.

use crate::support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, Outcome, block, frame, head, headers,
    http2_proxy_with,
};
use crate::support::{Connection, Process, StrictOrigin};

const PROTOCOL_ERROR: u32 = 1;

/// What is sent behind the settings, what becomes of stream 1, and what the log says of it, if it comes so far.
struct Row {
    name: &'static str,
    sent: Vec<u8>,
    outcome: Outcome,
    logged: Option<&'static str>,
}

/// A request of these fields without a body.
fn request(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    headers(1, END_STREAM, &block(fields))
}

/// A GET with these fields behind the usual pseudo-header fields.
fn with(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    headers(1, END_STREAM, &[head("GET", "/"), block(fields)].concat())
}

/// A GET of this path.
fn path(path: &[u8]) -> Vec<u8> {
    request(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"test"),
    ])
}

fn authority(authority: &[u8]) -> Vec<u8> {
    request(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", authority),
    ])
}

fn answered(name: &'static str, sent: Vec<u8>, status: u16, rule: &'static str) -> Row {
    Row {
        name,
        sent,
        outcome: Outcome::Status(status),
        logged: Some(rule),
    }
}

fn reset(name: &'static str, sent: Vec<u8>) -> Row {
    Row {
        name,
        sent,
        outcome: Outcome::Reset(PROTOCOL_ERROR),
        logged: None,
    }
}

fn ends(name: &'static str, sent: Vec<u8>, error: u32) -> Row {
    Row {
        name,
        sent,
        outcome: Outcome::GoAway(error),
        logged: None,
    }
}

fn answered_here() -> Vec<Row> {
    let many: Vec<_> = (0..101).map(|number| (format!("x-{number}"), "v")).collect();
    let many: Vec<(&[u8], &[u8])> = many
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    let long = vec![b'x'; 33_000];
    let not_a_name = "Host is not a name with an optional port";
    let white = "a value has white space around it";
    let get: [(&[u8], &[u8]); 3] = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")];
    vec![
        answered("a value with a space behind it", with(&[(b"x-a", b"b ")]), 400, white),
        answered("a value with a tab before it", with(&[(b"x-a", b"\tb")]), 400, white),
        answered("a value of a space", with(&[(b"x-a", b" ")]), 400, white),
        answered("a path of *", path(b"*"), 400, "* is a target of OPTIONS alone"),
        answered(
            "a path that begins with a query",
            path(b"?a"),
            400,
            "the target is neither a path nor an http:// or https:// URL",
        ),
        answered("a list for an authority", authority(b"a,b"), 400, not_a_name),
        answered("a port too large", authority(b"a:99999"), 400, not_a_name),
        answered("a user in an authority", authority(b"user@test"), 400, not_a_name),
        answered("a user and a password", authority(b"user:secret@test"), 400, not_a_name),
        answered(
            "a scheme that is neither",
            request(&[
                (b":method", b"GET"),
                (b":scheme", b"ftp"),
                (b":path", b"/"),
                (b":authority", b"test"),
            ]),
            400,
            "the scheme is neither http nor https",
        ),
        answered("no host at all", request(&get), 400, "no Host field"),
        answered(
            "two hosts",
            request(&[&get[..], &[(b"host", b"a"), (b"host", b"a")]].concat()),
            400,
            "two Host fields",
        ),
        answered(
            "a host that is none",
            request(&[&get[..], &[(b"host", b"a/b")]].concat()),
            400,
            not_a_name,
        ),
        answered(
            "another host than the authority",
            with(&[(b"host", b"other")]),
            400,
            "Host and :authority name different hosts",
        ),
        answered(
            "one that agrees and one that doesn't",
            with(&[(b"host", b"test"), (b"host", b"other")]),
            400,
            "Host and :authority name different hosts",
        ),
        answered(
            "TRACE",
            request(&[
                (b":method", b"TRACE"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", b"test"),
            ]),
            405,
            "CONNECT and TRACE are not proxied",
        ),
        answered(
            "CONNECT",
            request(&[(b":method", b"CONNECT"), (b":authority", b"test:80")]),
            405,
            "CONNECT and TRACE are not proxied",
        ),
        answered(
            "a protocol that is not allowed",
            request(&[
                (b":method", b"CONNECT"),
                (b":protocol", b"connect-udp"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", b"test"),
            ]),
            501,
            ":protocol is none of client.upgrades",
        ),
        answered(
            "too many fields",
            with(&many),
            431,
            "it has more fields than client.max_fields",
        ),
        answered(
            "too long a field",
            with_long(&long),
            431,
            "the head is longer than client.max_head",
        ),
        answered(
            "too long a path",
            split(&block(&[
                (&b":method"[..], &b"GET"[..]),
                (b":scheme", b"http"),
                (b":path", &[&b"/"[..], &long].concat()),
                (b":authority", b"t"),
            ])),
            414,
            "the target is longer than client.max_head",
        ),
    ]
}

/// A GET with a field so long that its head takes several frames.
fn with_long(value: &[u8]) -> Vec<u8> {
    split(&[head("GET", "/"), block(&[(&b"x-long"[..], value)])].concat())
}

/// A head in as many frames as it takes.
fn split(block: &[u8]) -> Vec<u8> {
    let mut pieces = block.chunks(16_384).peekable();
    let first = pieces.next().expect("it is not empty");
    let mut frames = frame(HEADERS, END_STREAM, 1, first);
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        frames.extend(frame(CONTINUATION, flags, 1, piece));
    }
    frames
}

fn refused_by_h2() -> Vec<Row> {
    let post = |length: &[u8], body: &[u8]| {
        let fields: [(&[u8], &[u8]); 1] = [(b"content-length", length)];
        let head = headers(1, 0, &[head("POST", "/"), block(&fields)].concat());
        [head, frame(DATA, END_STREAM, 1, body)].concat()
    };
    let pseudo = |fields: &[(&[u8], &[u8])]| request(fields);
    let get: [(&[u8], &[u8]); 4] = [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"test"),
    ];
    // A GET with another value in one of those.
    let instead = |which: usize, value: &[u8]| {
        let mut fields = get;
        fields[which].1 = value;
        request(&fields)
    };
    vec![
        reset("Transfer-Encoding", with(&[(b"transfer-encoding", b"chunked")])),
        reset("Connection", with(&[(b"connection", b"close")])),
        reset("Keep-Alive", with(&[(b"keep-alive", b"5")])),
        reset("Proxy-Connection", with(&[(b"proxy-connection", b"close")])),
        reset("Upgrade", with(&[(b"upgrade", b"websocket")])),
        reset("TE other than trailers", with(&[(b"te", b"gzip")])),
        reset("TE with another", with(&[(b"te", b"trailers, chunked")])),
        reset(
            "Transfer-Encoding: identity",
            with(&[(b"transfer-encoding", b"identity")]),
        ),
        reset(
            "Transfer-Encoding and a length",
            with(&[(b"content-length", b"0"), (b"transfer-encoding", b"chunked")]),
        ),
        ends(
            "Transfer-Encoding in upper case",
            with(&[(b"Transfer-Encoding", b"chunked")]),
            PROTOCOL_ERROR,
        ),
        ends(
            "Transfer-Encoding with a space",
            with(&[(b"transfer-encoding ", b"chunked")]),
            PROTOCOL_ERROR,
        ),
        ends(
            "Transfer-Encoding with a colon",
            with(&[(b"transfer-encoding:", b"chunked")]),
            PROTOCOL_ERROR,
        ),
        ends(
            "Transfer-Encoding behind LF",
            with(&[(b"x\ntransfer-encoding", b"chunked")]),
            PROTOCOL_ERROR,
        ),
        ends(
            "Transfer-Encoding behind CR",
            with(&[(b"x-a", b"b\rtransfer-encoding: chunked")]),
            PROTOCOL_ERROR,
        ),
        reset("a length and no body", with(&[(b"content-length", b"3")])),
        reset("an empty path", path(b"")),
        reset("an absolute path", path(b"http://other/")),
        reset("a space in a path", path(b"/a HTTP/1.1")),
        reset("a line in a path", path(b"/a\r\nx: y")),
        reset("a pseudo-header field twice", pseudo(&[&get[..], &get[2..3]].concat())),
        reset(
            "one behind others",
            pseudo(&[&get[..2], &[(b"x-a", b"b")], &get[2..]].concat()),
        ),
        ends(
            "one that there isn't",
            pseudo(&[&get[..], &[(b":foo", b"b")]].concat()),
            PROTOCOL_ERROR,
        ),
        reset(
            "one of a response",
            pseudo(&[&get[..], &[(b":status", b"200")]].concat()),
        ),
        reset("no method", pseudo(&get[1..])),
        reset("no scheme", pseudo(&[&get[..1], &get[2..]].concat())),
        reset("no path", pseudo(&[&get[..2], &get[3..]].concat())),
        ends(
            "a request in a method",
            instead(0, b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET"),
            PROTOCOL_ERROR,
        ),
        ends("a space in a method", instead(0, b"GET /smuggled"), PROTOCOL_ERROR),
        reset("a URL in a scheme", instead(1, b"http://other/?")),
        reset("a line in a scheme", instead(1, b"http\r\nx: y")),
        reset(
            "a request in a path",
            path(b"/ HTTP/1.1\r\nhost: a\r\n\r\nGET /smuggled"),
        ),
        reset("a line in an authority", authority(b"test\r\nx: y")),
        reset("a space in an authority", authority(b"test x")),
        reset("a path in an authority", authority(b"test/x")),
        ends("an upper-case name", with(&[(b"X-A", b"b")]), PROTOCOL_ERROR),
        reset("a length of words", post(b"five", b"abc")),
        reset("a length with a sign", post(b"+3", b"abc")),
        reset("a list of lengths", post(b"3, 3", b"abc")),
        ends("a name with a space", with(&[(b"x a", b"b")]), PROTOCOL_ERROR),
        ends("a name with a line", with(&[(b"x\r\na", b"b")]), PROTOCOL_ERROR),
        ends("a value with a line", with(&[(b"x-a", b"b\r\nx: y")]), PROTOCOL_ERROR),
        ends("a value with LF", with(&[(b"x-a", b"b\nx: y")]), PROTOCOL_ERROR),
        ends("a value with NUL", with(&[(b"x-a", b"b\0")]), PROTOCOL_ERROR),
        ends(
            "an index that there isn't",
            headers(1, END_STREAM, &[0xfe]),
            PROTOCOL_ERROR,
        ),
        ends(
            "an even stream",
            headers(2, END_STREAM, &head("GET", "/")),
            PROTOCOL_ERROR,
        ),
        ends(
            "data of a stream that there isn't",
            frame(DATA, 0, 1, b"abc"),
            PROTOCOL_ERROR,
        ),
        ends(
            "a head that another frame interrupts",
            [frame(HEADERS, END_STREAM, 1, &head("GET", "/")), frame(DATA, 0, 1, b"")].concat(),
            PROTOCOL_ERROR,
        ),
        ends(
            "the rest of a head that there isn't",
            frame(CONTINUATION, END_HEADERS, 1, &head("GET", "/")),
            PROTOCOL_ERROR,
        ),
    ]
}

async fn check(proxy: &Process, origin: &StrictOrigin, rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for row in rows {
        let mut client = Frames::open(proxy.address(), &[]).await;
        let before = proxy.lines("request").len();
        client.send(&row.sent).await;
        let outcome = client.outcome(1).await;
        if outcome != row.outcome {
            wrong.push(format!("{}: {outcome:?}, not {:?}", row.name, row.outcome));
            continue;
        }
        if let Some(rule) = row.logged {
            let logged = |line: &serde_json::Value| line["error"] == rule;
            crate::support::eventually(row.name, async || proxy.lines("request").len() > before).await;
            if !proxy.lines("request").last().is_some_and(logged) {
                wrong.push(format!("{}: {:?}", row.name, proxy.lines("request").last()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(origin.summaries(), Vec::<String>::new());
    // The proxy serves on.
    assert_eq!(Connection::open(proxy.address()).await.get("/").await.status, 200);
    assert_eq!(origin.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_head_that_could_be_read_in_two_ways_is_answered_as_over_http1() {
    let origin = StrictOrigin::start().await;
    let proxy = http2_proxy_with(origin.address, crate::support::http2::CLEARTEXT).await;
    check(&proxy, &origin, answered_here()).await;
}

#[tokio::test]
async fn a_head_that_breaks_the_protocol_ends_its_stream_or_its_connection() {
    let origin = StrictOrigin::start().await;
    let proxy = http2_proxy_with(origin.address, crate::support::http2::CLEARTEXT).await;
    check(&proxy, &origin, refused_by_h2()).await;
}

//! Requests that one reader ends where another does not.
//!
//! Every row is sent with a probe behind it, and looked at from both sides: what the client is answered, and what a strict
//! origin has received. A part of a body that was taken for a request, or of a request for a body, shows on one of them.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::support::{Connection, Process, RawOrigin, StrictOrigin, embedded, eventually, forwarder};

/// What a client sends, and what must come of it.
struct Row {
    name: &'static str,
    raw: Vec<u8>,
    /// The answers, in order.
    statuses: Vec<u16>,
    /// The requests that the origin receives, in order, each with its body.
    received: Vec<String>,
    /// Whether the connection is kept, so that what comes behind is answered too.
    kept: bool,
}

/// A request that is answered, and the connection closed, before anything of it reaches the origin.
fn refused(name: &'static str, raw: impl Into<Vec<u8>>, status: u16) -> Row {
    Row {
        name,
        raw: raw.into(),
        statuses: vec![status],
        received: Vec::new(),
        kept: false,
    }
}

/// A request that the origin receives and answers, after which the connection is kept.
fn taken(name: &'static str, raw: impl Into<Vec<u8>>, received: impl Into<String>) -> Row {
    Row {
        name,
        raw: raw.into(),
        statuses: vec![200],
        received: vec![received.into()],
        kept: true,
    }
}

fn all_refused<const N: usize>(rows: [(&'static str, &[u8]); N], whole: impl Fn(&[u8]) -> Vec<u8>) -> Vec<Row> {
    rows.map(|(name, part)| refused(name, whole(part), 400)).into()
}

fn all_taken<const N: usize>(
    rows: [(&'static str, &[u8]); N],
    whole: impl Fn(&[u8]) -> Vec<u8>,
    received: &str,
) -> Vec<Row> {
    rows.map(|(name, part)| taken(name, whole(part), received)).into()
}

/// A request with this request line.
fn with_line(line: &[u8]) -> Vec<u8> {
    [line, b"\r\nHost: a\r\n\r\n"].concat()
}

/// A request with these fields and no other.
fn with_fields(fields: &[u8]) -> Vec<u8> {
    [b"POST /in HTTP/1.1\r\n", fields, b"\r\n\r\n"].concat()
}

/// A request with these fields, and behind it a body for those who look for one: five bytes, or no chunk.
fn with_framing(fields: &[u8]) -> Vec<u8> {
    [b"POST /in HTTP/1.1\r\nHost: a\r\n", fields, b"\r\n\r\n0\r\n\r\n"].concat()
}

/// A request with this chunked body.
fn with_chunks(body: &[u8]) -> Vec<u8> {
    [&with_fields(b"Host: a\r\nTransfer-Encoding: chunked")[..], body].concat()
}

/// A proxy over a strict origin, and what went otherwise than the rows say.
struct Bench {
    origin: StrictOrigin,
    proxy: Process,
    /// How many requests the origin has received with the rows so far.
    seen: usize,
    wrong: Vec<String>,
}

impl Bench {
    async fn start() -> Self {
        let origin = StrictOrigin::start().await;
        let proxy = Process::proxy(&embedded(&[origin.address])).await;
        proxy.active_backends(1).await;
        Self {
            origin,
            proxy,
            seen: 0,
            wrong: Vec::new(),
        }
    }

    /// Sends a row on a connection of its own, in two pieces if `cut` is inside it, and looks at what comes of it.
    async fn check(&mut self, number: usize, row: &Row, cut: usize) {
        let kept = row.kept;
        let mut statuses = row.statuses.clone();
        let mut received = row.received.clone();
        if kept {
            statuses.push(200);
            received.push(format!("GET /probe-{number} "));
        }
        let probe = format!("GET /probe-{number} HTTP/1.1\r\nHost: a\r\n\r\n");
        let bytes = [&row.raw, probe.as_bytes()].concat();
        let mut client = Connection::open(self.proxy.address()).await;
        client.send(&bytes[..cut]).await;
        if cut > 0 {
            // Long enough, mostly, for the proxy to see the pieces apart; it must make no difference.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // A client that was refused is not listened to for ever.
        let _ = client.try_send(&bytes[cut..]).await;

        let mut answers = Vec::new();
        while answers.len() < statuses.len() {
            match client.try_response(false).await {
                Ok(answer) => answers.push(answer),
                Err(_) => break,
            }
        }
        let came: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        let passed_on = answers.iter().filter(|answer| answer.status == 200);
        let bodies: Vec<String> = passed_on.map(|answer| answer.text()).collect();
        let connection = answers.last().and_then(|answer| answer.header("connection"));
        if (&came, &bodies) != (&statuses, &received) {
            self.note(row, cut, &format!("{came:?} {bodies:?}, not {statuses:?} {received:?}"));
        } else if connection != Some(if kept { "keep-alive" } else { "close" }) {
            self.note(row, cut, &format!("Connection is {connection:?}"));
        } else if kept {
            let summary = format!("GET /kept-{number} ");
            let next = client.try_request("GET", &format!("/kept-{number}"), "", "").await;
            if next.as_ref().map(|answer| answer.text()).ok().as_ref() != Some(&summary) {
                self.note(row, cut, &format!("the next request is answered {next:?}"));
            }
            received.push(summary);
        } else {
            let rest = client.rest().await;
            if !rest.is_empty() {
                self.note(row, cut, &format!("one more answer: {}", rest.escape_ascii()));
            }
        }

        let came = self.origin.summaries().split_off(self.seen);
        if came != received {
            self.note(row, cut, &format!("the origin has received {came:?}, not {received:?}"));
        }
        self.seen += came.len();
    }

    fn note(&mut self, row: &Row, cut: usize, what: &str) {
        self.wrong.push(format!("{}, cut at {cut}: {what}", row.name));
    }

    /// Tells of everything that went wrong, all at once.
    fn end(mut self) {
        self.wrong.extend(self.origin.violations());
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

async fn check(rows: Vec<Row>) {
    let mut bench = Bench::start().await;
    for (number, row) in rows.iter().enumerate() {
        bench.check(number, row, 0).await;
    }
    assert_eq!(bench.origin.cut(), 0, "no request broke off");
    bench.end();
}

#[tokio::test]
async fn a_request_line_means_one_thing_or_is_refused() {
    if forwarder::skips("smuggling::a_request_line_means_one_thing_or_is_refused") {
        return;
    }
    let mut rows = all_refused(
        [
            ("no version", b"GET /in"),
            ("HTTP/0.9", b"GET /in HTTP/0.9"),
            ("HTTP/1.2", b"GET /in HTTP/1.2"),
            ("HTTP/2.0", b"GET /in HTTP/2.0"),
            ("half a version", b"GET /in HTTP/1"),
            ("a digit too many in the version", b"GET /in HTTP/1.10"),
            ("a version in lower case", b"GET /in http/1.1"),
            ("a space in the version", b"GET /in HTTP/ 1.1"),
            ("a space behind the version", b"GET /in HTTP/1.1 "),
            ("a word behind the version", b"GET /in HTTP/1.1 x"),
            ("two versions", b"GET /in HTTP/1.0 HTTP/1.1"),
            ("two spaces before the target", b"GET  /in HTTP/1.1"),
            ("two spaces behind the target", b"GET /in  HTTP/1.1"),
            ("tabs between the words", b"GET\t/in\tHTTP/1.1"),
            ("a space before the method", b" GET /in HTTP/1.1"),
            ("no method", b"/in HTTP/1.1"),
            ("a bracket in the method", b"G(T /in HTTP/1.1"),
            ("a NUL in the method", b"G\0T /in HTTP/1.1"),
            ("a high byte in the method", b"G\xc4T /in HTTP/1.1"),
            ("the preface of HTTP/2", b"PRI * HTTP/2.0"),
            ("a target without a slash", b"GET in HTTP/1.1"),
            ("a target that begins with a backslash", b"GET \\in HTTP/1.1"),
            ("a target that is a query", b"GET ?in HTTP/1.1"),
            ("a space in the target", b"GET /i n HTTP/1.1"),
            ("a NUL in the target", b"GET /i\0n HTTP/1.1"),
            ("a DEL in the target", b"GET /i\x7fn HTTP/1.1"),
            ("a control byte in the target", b"GET /i\x01n HTTP/1.1"),
            ("a CR in the target", b"GET /i\rn HTTP/1.1"),
            ("a high byte that is no UTF-8 in the target", b"GET /i\xffn HTTP/1.1"),
            ("a fragment", b"GET /in#f HTTP/1.1"),
            ("https", b"GET https://a/in HTTP/1.1"),
            ("ftp", b"GET ftp://a/in HTTP/1.1"),
            ("a scheme without an authority", b"GET http:/in HTTP/1.1"),
            ("an empty authority", b"GET http:///in HTTP/1.1"),
            ("another host than Host", b"GET http://b/in HTTP/1.1"),
            ("another port than Host", b"GET http://a:81/in HTTP/1.1"),
            ("a user in the target", b"GET http://u:p@a/in HTTP/1.1"),
            ("a backslash in the authority", b"GET http://a\\b/in HTTP/1.1"),
            ("authority-form", b"GET a:80 HTTP/1.1"),
            ("asterisk-form of GET", b"GET * HTTP/1.1"),
            ("asterisk-form of PRI", b"PRI * HTTP/1.1"),
        ],
        with_line,
    );
    rows.push(refused("CONNECT of a path", with_line(b"CONNECT /in HTTP/1.1"), 405));
    rows.push(refused("CONNECT", with_line(b"CONNECT a:443 HTTP/1.1"), 405));
    let long = [b"GET /", &[b'a'; 40_000][..], b" HTTP/1.1"].concat();
    rows.push(refused("a target longer than a head may be", with_line(&long), 414));
    rows.push(refused("TRACE", with_line(b"TRACE /in HTTP/1.1"), 405));
    let good: [(&str, &[u8]); 13] = [
        ("a method in lower case", b"get /in HTTP/1.1"),
        ("a method that nobody knows", b"M!#$%&'*+-.^_`|~ /in HTTP/1.1"),
        ("two slashes", b"GET //b/in HTTP/1.1"),
        ("dots", b"GET /../in/./%2e%2e HTTP/1.1"),
        ("encoded bytes", b"GET /%00%0d%0a%20 HTTP/1.1"),
        ("a backslash in the path", b"GET /i\\n HTTP/1.1"),
        ("what no URI has but ends nothing", b"GET /\"{|}^?`{|}^ HTTP/1.1"),
        ("angle brackets in the target", b"GET /<in> HTTP/1.1"),
        ("a backtick in the path", b"GET /`in` HTTP/1.1"),
        ("a quote in the query", b"GET /?\"in\" HTTP/1.1"),
        ("raw UTF-8", b"GET /\xc3\xa4 HTTP/1.1"),
        ("a URL in the query", b"GET /?to=http://b/ HTTP/1.1"),
        ("asterisk-form", b"OPTIONS * HTTP/1.1"),
    ];
    // They arrive as they were.
    let received = |line| String::from_utf8_lossy(line).replace("HTTP/1.1", "");
    rows.extend(good.map(|(name, line)| taken(name, with_line(line), received(line))));
    // Absolute-form is for proxies; the origin gets origin-form.
    let absolute: [(&str, &[u8], &str); 8] = [
        ("absolute-form", b"GET http://a/in?b=http://c", "GET /in?b=http://c "),
        ("absolute-form without a path", b"GET http://a", "GET / "),
        ("absolute-form of a query", b"GET http://a?in", "GET /?in "),
        ("a scheme in upper case", b"GET HTTP://a/in", "GET /in "),
        ("Host in another case", b"GET http://A/in", "GET /in "),
        ("the default port", b"GET http://a:80/in", "GET /in "),
        ("absolute-form of OPTIONS", b"OPTIONS http://a", "OPTIONS * "),
        ("absolute-form of OPTIONS of a path", b"OPTIONS http://a/", "OPTIONS / "),
    ];
    rows.extend(
        absolute.map(|(name, line, received)| taken(name, with_line(&[line, b" HTTP/1.1"].concat()), received)),
    );
    check(rows).await;
}

#[tokio::test]
async fn a_request_names_one_host_or_is_refused() {
    let mut rows = all_refused(
        [
            ("no Host", b"X: b"),
            ("two Hosts", b"Host: a\r\nHost: b"),
            ("the same Host twice", b"Host: a\r\nX: b\r\nhost: a"),
            ("an empty Host", b"Host:"),
            ("a Host of spaces", b"Host: \t "),
            ("a user in Host", b"Host: u@a"),
            ("a user and a password in Host", b"Host: u:p@a"),
            ("a path in Host", b"Host: a/b"),
            ("a query in Host", b"Host: a?b"),
            ("a fragment in Host", b"Host: a#b"),
            ("a backslash in Host", b"Host: a\\b"),
            ("a URL in Host", b"Host: http://a"),
            ("a space in Host", b"Host: a b"),
            ("a list in Host", b"Host: a, b"),
            ("a list without spaces in Host", b"Host: a,b"),
            ("a semicolon in Host", b"Host: a;b"),
            ("an encoded byte in Host", b"Host: a%00b"),
            ("a high byte in Host", b"Host: a\xff"),
            ("UTF-8 in Host", b"Host: \xc3\xa4"),
            ("a port that is no number", b"Host: a:b"),
            ("a port with a sign", b"Host: a:+80"),
            ("a port that is too high", b"Host: a:65536"),
            ("two ports", b"Host: a:80:90"),
            ("a port of no host", b"Host: :80"),
            ("IPv6 without brackets", b"Host: ::1"),
            ("half a bracket", b"Host: [::1"),
            ("empty brackets", b"Host: []"),
            ("brackets around a name", b"Host: [a]"),
            ("a name before brackets", b"Host: a[::1]"),
            ("a name behind brackets", b"Host: [::1]a"),
        ],
        with_fields,
    );
    rows.extend(all_taken(
        [
            ("a name with a port", b"Host: a-b_c.example.:8080"),
            ("an empty port", b"Host: a:"),
            ("IPv4", b"Host: 127.0.0.1:80"),
            ("IPv6", b"Host: [::ffff:127.0.0.1]:80"),
            ("padding around a host", b"Host:\t a \t"),
        ],
        with_fields,
        "POST /in ",
    ));
    check(rows).await;
}

#[tokio::test]
async fn a_field_is_a_name_a_colon_and_a_value_on_one_line_or_is_refused() {
    let mut rows = all_refused(
        [
            ("a space before the colon", b"Transfer-Encoding : chunked"),
            ("a tab before the colon", b"Transfer-Encoding\t: chunked"),
            ("a vertical tab before the colon", b"Transfer-Encoding\x0b: chunked"),
            ("a NUL before the colon", b"Transfer-Encoding\0: chunked"),
            ("no colon", b"Transfer-Encoding chunked"),
            ("no name", b": chunked"),
            ("a space in the name", b"Transfer Encoding: chunked"),
            ("a high byte in the name", b"\xefTransfer-Encoding: chunked"),
            ("a bracket in the name", b"X(Y: b"),
            ("an at sign in the name", b"X@Y: b"),
            ("a quote in the name", b"\"X\": b"),
            ("a slash in the name", b"X/Y: b"),
            ("a DEL in the name", b"X\x7fY: b"),
            ("a NUL in the value", b"X: b\0c"),
            ("a DEL in the value", b"X: b\x7fc"),
            ("a backspace in the value", b"X: b\x08c"),
            ("an escape in the value", b"X: b\x1bc"),
            ("a vertical tab in the value", b"X: b\x0bc"),
            ("a CR in the value", b"X: b\rY: c"),
            ("two CRs at the end of a field", b"X: b\r\r\nY: c"),
            ("an LF at the end of a field", b"X: b\nY: c"),
            ("a field that is folded with a space", b"X: b\r\n c"),
            ("a field that is folded with a tab", b"X: b\r\n\tc"),
            ("a fold with nothing on it", b"X: b\r\n \r\nY: c"),
            ("a folded length", b"Content-Length:\r\n 5"),
            ("a folded encoding", b"Transfer-Encoding:\r\n chunked"),
            ("a field behind a space", b" Content-Length: 5"),
        ],
        with_framing,
    );
    rows.extend(all_refused(
        [
            ("a fold of the request line", b" X: b\r\nHost: a"),
            ("a space before the first field", b" Host: a"),
            ("a tab before the first field", b"\tHost: a"),
            ("a fold of Host", b"Host:\r\n a"),
        ],
        with_fields,
    ));
    rows.extend(all_refused(
        [
            ("LF for CRLF", b"GET /in HTTP/1.1\nHost: a\n\n"),
            ("LF behind the request line", b"GET /in HTTP/1.1\nHost: a\r\n\r\n"),
            ("LF behind the last field", b"GET /in HTTP/1.1\r\nHost: a\n\r\n"),
            ("LF for the empty line", b"GET /in HTTP/1.1\r\nHost: a\r\n\n"),
            ("CR for the empty line", b"GET /in HTTP/1.1\r\nHost: a\r\n\r"),
            ("CR behind the request line", b"GET /in HTTP/1.1\rHost: a\r\n\r\n"),
            ("CR for CRLF", b"GET /in HTTP/1.1\rHost: a\r\r"),
            (
                "two CRs behind the request line",
                b"GET /in HTTP/1.1\r\r\nHost: a\r\n\r\n",
            ),
            ("LF before the request line", b"\nGET /in HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("CR before the request line", b"\rGET /in HTTP/1.1\r\nHost: a\r\n\r\n"),
            (
                "a space before an empty line",
                b" \r\nGET /in HTTP/1.1\r\nHost: a\r\n\r\n",
            ),
        ],
        <[u8]>::to_vec,
    ));
    rows.extend(all_taken(
        [
            ("an empty value", b"Host: a\r\nX:"),
            ("tabs and high bytes in a value", b"Host: a\r\nX: \tb\t\xff c"),
            ("every byte of a name", b"Host: a\r\n!#$%&'*+-.^_`|~09Zz: b"),
            ("an underscore makes another field", b"Host: a\r\nContent_Length: 5"),
            ("a colon in a value", b"Host: a\r\nX: Content-Length: 5"),
        ],
        with_fields,
        "POST /in ",
    ));
    let after = |count: usize| ["\r\n".repeat(count).as_bytes(), &with_line(b"GET /in HTTP/1.1")].concat();
    rows.push(taken("an empty line before a request", after(1), "GET /in "));
    rows.push(taken("some empty lines before a request", after(3), "GET /in "));
    rows.push(taken(
        "thousands of empty lines before a request",
        after(50_000),
        "GET /in ",
    ));
    check(rows).await;
}

#[tokio::test]
async fn a_body_has_one_length_or_its_request_is_refused() {
    let mut rows = all_refused(
        [
            (
                "a length and chunks",
                b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            ),
            (
                "chunks and a length",
                b"Transfer-Encoding: chunked\r\nContent-Length: 5",
            ),
            (
                "no length and chunks",
                b"Content-Length: 0\r\nTransfer-Encoding: chunked",
            ),
            ("both in any case", b"tRANSFER-eNCODING: cHUNKED\r\nCONTENT-LENGTH: 5"),
            ("a length and no encoding", b"Content-Length: 5\r\nTransfer-Encoding: x"),
            ("the same length twice", b"Content-Length: 5\r\nContent-Length: 5"),
            ("two lengths", b"Content-Length: 5\r\nContent-Length: 0"),
            ("a length and an empty one", b"Content-Length: 5\r\nContent-Length:"),
            ("a list of a length", b"Content-Length: 5, 5"),
            ("a list of two lengths", b"Content-Length: 5,0"),
            ("a list that ends in a comma", b"Content-Length: 5,"),
            ("a length with a plus", b"Content-Length: +5"),
            ("a length with a minus", b"Content-Length: -5"),
            ("a length in hexadecimal", b"Content-Length: 0x5"),
            ("a length with a zero before it", b"Content-Length: 05"),
            ("a length with a fraction", b"Content-Length: 5.0"),
            ("a length with an exponent", b"Content-Length: 5e0"),
            ("a length with an underscore", b"Content-Length: 0_5"),
            ("two numbers in a length", b"Content-Length: 0 5"),
            ("a length with a parameter", b"Content-Length: 5;x"),
            ("a quoted length", b"Content-Length: \"5\""),
            ("a length in other digits", b"Content-Length: \xd9\xa5"),
            ("a length of words", b"Content-Length: five"),
            ("an empty length", b"Content-Length:"),
            ("a length behind a vertical tab", b"Content-Length: \x0b5"),
            ("a length of more than 64 bits", b"Content-Length: 18446744073709551621"),
            (
                "a length of many digits",
                b"Content-Length: 99999999999999999999999999999999999999999",
            ),
            ("chunked before another", b"Transfer-Encoding: chunked, gzip"),
            ("chunked twice in a list", b"Transfer-Encoding: chunked, chunked"),
            (
                "chunked in two fields",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            ),
            (
                "chunked in the second field",
                b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            ),
            (
                "chunked in the first field",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            ),
            (
                "chunked and an empty field",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding:",
            ),
            ("a comma behind chunked", b"Transfer-Encoding: chunked,"),
            ("a comma before chunked", b"Transfer-Encoding: ,chunked"),
            ("chunked with a parameter", b"Transfer-Encoding: chunked;q=1"),
            ("chunked in quotes", b"Transfer-Encoding: \"chunked\""),
            ("a space in chunked", b"Transfer-Encoding: chun ked"),
            ("a vertical tab before chunked", b"Transfer-Encoding: \x0bchunked"),
            ("a form feed behind chunked", b"Transfer-Encoding: chunked\x0c"),
            ("a NUL behind chunked", b"Transfer-Encoding: chunked\0"),
            ("a no-break space before chunked", b"Transfer-Encoding: \xa0chunked"),
            ("an empty encoding", b"Transfer-Encoding:"),
        ],
        with_framing,
    );
    let unknown: [(&str, &[u8]); 5] = [
        ("an encoding that is not chunked", b"Transfer-Encoding: gzip"),
        ("identity", b"Transfer-Encoding: identity"),
        ("chunked behind another", b"Transfer-Encoding: gzip, chunked"),
        ("a letter before chunked", b"Transfer-Encoding: xchunked"),
        ("a letter behind chunked", b"Transfer-Encoding: chunkedx"),
    ];
    rows.extend(unknown.map(|(name, fields)| refused(name, with_framing(fields), 501)));
    rows.extend(all_refused(
        [
            ("chunks in HTTP/1.0", b"Transfer-Encoding: chunked"),
            (
                "chunks in HTTP/1.0 that is kept",
                b"Connection: keep-alive\r\nTransfer-Encoding: chunked",
            ),
            (
                "a length and chunks in HTTP/1.0",
                b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            ),
        ],
        |fields| [b"POST /in HTTP/1.0\r\nHost: a\r\n", fields, b"\r\n\r\n0\r\n\r\n"].concat(),
    ));
    let (length, padded) = (b"Content-Length: 5", b"Content-Length:\t 5 \t");
    rows.extend(all_taken(
        [("a length", length), ("a length with padding around it", padded)],
        with_framing,
        r"POST /in 0\r\n\r\n",
    ));
    rows.extend(all_taken(
        [
            ("chunks", b"Transfer-Encoding: chunked"),
            ("chunks in any case with tabs", b"tRANSFER-eNCODING:\tcHUNKED\t"),
        ],
        with_framing,
        "POST /in ",
    ));
    rows.extend(all_taken(
        [
            ("no length is no body", b"Host: a"),
            ("a length of nothing", b"Host: a\r\nContent-Length: 0"),
        ],
        with_fields,
        "POST /in ",
    ));
    let get = "GET /in HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /";
    rows.push(taken("a GET with a body", get, "GET /in GET /"));
    check(rows).await;
}

#[tokio::test]
async fn a_chunked_body_ends_in_one_place_or_is_refused() {
    let long = [b"4;", &[b'x'; 300][..], b"\r\nwiki\r\n0\r\n\r\n"].concat();
    let mut rows = all_refused(
        [
            ("an empty size", b"\r\n\r\n"),
            ("an empty size with an extension", b";x\r\n\r\n"),
            ("a size with a minus", b"-4\r\nwiki\r\n0\r\n\r\n"),
            ("a size with a plus", b"+4\r\nwiki\r\n0\r\n\r\n"),
            ("a size with 0x", b"0x4\r\nwiki\r\n0\r\n\r\n"),
            ("a size that is no number", b"g\r\nwiki\r\n0\r\n\r\n"),
            ("a letter behind a size", b"4g\r\nwiki\r\n0\r\n\r\n"),
            ("an underscore in a size", b"0_4\r\nwiki\r\n0\r\n\r\n"),
            ("a comma in a size", b"4,4\r\nwiki\r\n0\r\n\r\n"),
            ("a quoted size", b"\"4\"\r\nwiki\r\n0\r\n\r\n"),
            ("a space before a size", b" 4\r\nwiki\r\n0\r\n\r\n"),
            ("a tab before a size", b"\t4\r\nwiki\r\n0\r\n\r\n"),
            ("two sizes", b"4 4\r\nwiki\r\n0\r\n\r\n"),
            ("a word behind a size", b"4 x\r\nwiki\r\n0\r\n\r\n"),
            ("a NUL behind a size", b"4\0\r\nwiki\r\n0\r\n\r\n"),
            ("a size of 65 bits", b"10000000000000004\r\nwiki\r\n0\r\n\r\n"),
            ("a size of 64 bits", b"ffffffffffffffff\r\nwiki\r\n0\r\n\r\n"),
            (
                "a size of zeros",
                b"00000000000000000000000000000004\r\nwiki\r\n0\r\n\r\n",
            ),
            ("LF behind a size", b"4\nwiki\r\n0\r\n\r\n"),
            ("CR behind a size", b"4\rwiki\r\n0\r\n\r\n"),
            ("two CRs behind a size", b"4\r\r\nwiki\r\n0\r\n\r\n"),
            ("LF in an extension", b"4;a\nb\r\nwiki\r\n0\r\n\r\n"),
            ("LF at the end of an extension", b"4;a\nwiki\r\n0\r\n\r\n"),
            ("CR in an extension", b"4;a\rb\r\nwiki\r\n0\r\n\r\n"),
            ("CRLF in a quoted extension", b"4;a=\"\r\n\"\r\nwiki\r\n0\r\n\r\n"),
            ("a NUL in an extension", b"4;a\0\r\nwiki\r\n0\r\n\r\n"),
            ("a long extension", &long),
            ("no CRLF behind a chunk", b"4\r\nwiki0\r\n\r\n"),
            ("LF behind a chunk", b"4\r\nwiki\n0\r\n\r\n"),
            ("CR behind a chunk", b"4\r\nwiki\r0\r\n\r\n"),
            ("more bytes than the size", b"4\r\nwikipedia\r\n0\r\n\r\n"),
            ("fewer bytes than the size", b"4\r\nwik\r\n0\r\n\r\n"),
            ("LF for the last lines", b"0\n\n"),
            ("LF behind the last size", b"0\n\r\n"),
            ("LF for the empty line", b"0\r\n\n"),
            ("CR for the empty line", b"0\r\n\rX"),
            ("LF in a trailer", b"0\r\nX: y\nZ: y\r\n\r\n"),
            ("CR in a trailer", b"0\r\nX: y\rZ: y\r\n\r\n"),
            ("a NUL in a trailer", b"0\r\nX\0: y\r\n\r\n"),
            ("a fold of a trailer", b"0\r\nX: y\r\n z\r\n\r\n"),
            ("a space before a trailer", b"0\r\n X: y\r\n\r\n"),
            ("a space before the colon of a trailer", b"0\r\nX : y\r\n\r\n"),
            ("a trailer without a colon", b"0\r\nX\r\n\r\n"),
            ("a trailer without a name", b"0\r\n: y\r\n\r\n"),
            ("a request where trailers are", b"0\r\nGET /evil HTTP/1.1\r\n\r\n"),
        ],
        with_chunks,
    );
    rows.extend(all_taken(
        [
            ("one chunk", b"4\r\nwiki\r\n0\r\n\r\n"),
            ("two chunks", b"2\r\nwi\r\n2\r\nki\r\n0\r\n\r\n"),
            ("zeros before a size", b"004\r\nwiki\r\n000\r\n\r\n"),
            ("extensions, which end here", b"4;a=b;c\r\nwiki\r\n0;d\r\n\r\n"),
            ("a quoted extension", b"4;a=\"b; c\"\r\nwiki\r\n0\r\n\r\n"),
            ("spaces around an extension", b"4 ; a\t\r\nwiki\r\n0\r\n\r\n"),
            (
                "a request in an extension",
                b"4;GET /evil HTTP/1.1\r\nwiki\r\n0\r\n\r\n",
            ),
            ("a trailer, which may go on", b"4\r\nwiki\r\n0\r\nX: y\r\n\r\n"),
            ("a length in a trailer", b"4\r\nwiki\r\n0\r\nContent-Length: 50\r\n\r\n"),
            (
                "an encoding in a trailer",
                b"4\r\nwiki\r\n0\r\nTransfer-Encoding: x\r\n\r\n",
            ),
            ("a host in a trailer", b"4\r\nwiki\r\n0\r\nHost: b\r\n\r\n"),
        ],
        with_chunks,
        "POST /in wiki",
    ));
    let digits = with_chunks(b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n");
    rows.push(taken("sizes in any case", digits, "POST /in 01234567890123456789"));
    let request = with_chunks(b"14\r\nGET /evil HTTP/1.1\r\n\r\n0\r\n\r\n");
    rows.push(taken(
        "a request in a chunk",
        request,
        r"POST /in GET /evil HTTP/1.1\r\n",
    ));
    let end = with_chunks(b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n");
    rows.push(taken("the end of a body in a chunk", end, r"POST /in \r\n0\r\n\r\n"));
    check(rows).await;
}

/// The fields of a request without a body, and the connection behind it.
fn with_connection(fields: &[u8]) -> Vec<u8> {
    [b"GET /in HTTP/1.1\r\nHost: a\r\n", fields, b"\r\n\r\n"].concat()
}

#[tokio::test]
async fn a_connection_field_rules_the_connection_and_nothing_else() {
    let mut rows = all_refused(
        [
            ("Host", b"Connection: Host"),
            ("Host behind close", b"Connection: close,hOST"),
            ("X-Forwarded-For", b"Connection: X-Forwarded-For"),
            (
                "X-Forwarded-For in a second field",
                b"Connection: close\r\nConnection: x-forwarded-for",
            ),
            ("X-Forwarded-Host", b"Connection: X-Forwarded-Host"),
            ("X-Forwarded-Proto", b"Connection: X-Forwarded-Proto"),
            ("a quoted name", b"Connection: \"Host\""),
            ("two words", b"Connection: keep-alive close"),
            ("a pseudo-header", b"Connection: :authority"),
            ("a high byte", b"Connection: close\xff"),
        ],
        with_connection,
    );
    // With a body it is an ordinary request, and without the option in `Connection` too.
    rows.push(taken(
        "WebSocket and a length",
        with_framing(b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5"),
        r"POST /in 0\r\n\r\n",
    ));
    rows.push(taken(
        "WebSocket and chunks",
        with_framing(b"Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked"),
        "POST /in ",
    ));
    rows.extend(all_taken(
        [
            ("WebSocket that Connection does not name", b"Upgrade: websocket"),
            ("an empty list", b"Connection: , ,"),
            ("Keep-Alive", b"Connection: keep-alive\r\nKeep-Alive: timeout=1"),
            ("Proxy-Connection, which is nobody's", b"Proxy-Connection: close"),
            ("TE and Trailer", b"Connection: TE\r\nTE: trailers\r\nTrailer: Host"),
            (
                "h2c",
                b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA",
            ),
            ("h2c and then WebSocket", b"Upgrade: h2c\r\nUpgrade: websocket"),
            (
                "a list of protocols that may not be switched to",
                b"Connection: Upgrade\r\nUpgrade: websocket/13, h2c",
            ),
        ],
        with_connection,
        "GET /in ",
    ));
    let length = b"Connection: Content-Length\r\nContent-Length: 5";
    rows.extend(all_taken(
        [("Content-Length", length)],
        with_framing,
        r"POST /in 0\r\n\r\n",
    ));
    let chunks = b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked";
    rows.extend(all_taken([("Transfer-Encoding", chunks)], with_framing, "POST /in "));
    let closing: [(&str, &[u8]); 5] = [
        ("close", b"GET /in HTTP/1.1\r\nHost: a\r\nConnection: close"),
        ("close in a list", b"GET /in HTTP/1.1\r\nHost: a\r\nConnection: X,Close"),
        (
            "close in a second field",
            b"GET /in HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: close",
        ),
        ("HTTP/1.0", b"GET /in HTTP/1.0\r\nHost: a"),
        (
            "WebSocket in HTTP/1.0",
            b"GET /in HTTP/1.0\r\nHost: a\r\nUpgrade: websocket",
        ),
    ];
    rows.extend(closing.map(|(name, head)| Row {
        kept: false,
        ..taken(name, [head, b"\r\n\r\n"].concat(), "GET /in ")
    }));
    let old = "GET /in HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
    rows.push(taken("keep-alive of HTTP/1.0", old, "GET /in "));
    check(rows).await;
}

/// Several requests in one: their bytes, the answers, and those that the origin receives.
fn pipelined() -> Vec<Row> {
    let get = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nwiki";
    let chunks =
        "POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4;x=\"y\"\r\nwiki\r\n0\r\nX: y\r\n\r\n";
    let row = |name, parts: &[&str], statuses: &[u16], received: &[&str]| Row {
        name,
        raw: parts.concat().into(),
        statuses: statuses.into(),
        received: received.iter().map(ToString::to_string).collect(),
        kept: statuses.iter().all(|status| *status < 400),
    };
    let both = "POST /4 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let folded = "GET /4 HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n";
    let lines = "POST /4 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\nwiki\r\n0\r\n\r\n";
    vec![
        row(
            "three good ones",
            &[get, length, chunks],
            &[200, 200, 200],
            &["GET /1 ", "POST /2 wiki", "POST /3 wiki"],
        ),
        row(
            "empty lines between good ones",
            &[chunks, "\r\n", length, "\r\n\r\n", get],
            &[200, 200, 200],
            &["POST /3 wiki", "POST /2 wiki", "GET /1 "],
        ),
        row(
            "a good one and a length with chunks",
            &[length, both],
            &[200, 400],
            &["POST /2 wiki"],
        ),
        row(
            "a good one and a fold",
            &[chunks, folded],
            &[200, 400],
            &["POST /3 wiki"],
        ),
        row("a good one and a bad chunk", &[get, lines], &[200, 400], &["GET /1 "]),
        row("a bad one and good ones", &[both, get, length], &[400], &[]),
        row(
            "a good one and CONNECT",
            &[get, "CONNECT /4 HTTP/1.1\r\nHost: a\r\n\r\n"],
            &[200, 405],
            &["GET /1 "],
        ),
    ]
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_up_to_the_first_that_is_refused() {
    check(pipelined()).await;
}

#[tokio::test]
async fn a_client_that_expects_to_be_asked_may_send_its_body_at_once() {
    let expecting = |version: &str, fields: &str, body: &str| {
        format!("POST /in {version}\r\nHost: a\r\nExpect: 100-continue\r\n{fields}\r\n\r\n{body}")
    };
    let length = "Content-Length: 4";
    let chunks = "Transfer-Encoding: chunked";
    let asked = [
        ("a length", expecting("HTTP/1.1", length, "wiki"), "POST /in wiki"),
        (
            "chunks",
            expecting("HTTP/1.1", chunks, "4\r\nwiki\r\n0\r\n\r\n"),
            "POST /in wiki",
        ),
        ("no body", expecting("HTTP/1.1", "X: y", ""), "POST /in "),
    ];
    let mut rows: Vec<Row> = asked
        .map(|(name, raw, received)| Row {
            statuses: vec![100, 200],
            ..taken(name, raw, received)
        })
        .into();
    let nominated = expecting("HTTP/1.1", "Connection: Expect\r\nContent-Length: 4", "wiki");
    rows.push(taken("nobody is asked what ends here", nominated, "POST /in wiki"));
    rows.push(Row {
        kept: false,
        ..taken("HTTP/1.0", expecting("HTTP/1.0", length, "wiki"), "POST /in wiki")
    });
    rows.push(refused(
        "both",
        expecting("HTTP/1.1", &format!("{length}\r\n{chunks}"), "wiki"),
        400,
    ));
    check(rows).await;
}

#[tokio::test]
async fn where_a_packet_ends_makes_no_difference() {
    let mut bench = Bench::start().await;
    for row in &pipelined()[..5] {
        for cut in (1..row.raw.len()).step_by(2) {
            bench.check(cut, row, cut).await;
        }
    }
    bench.end();
}

#[tokio::test]
async fn a_request_that_breaks_off_is_no_request() {
    let mut bench = Bench::start().await;
    let heads: [Vec<u8>; 3] = [
        b"GET /in HTTP/1.1\r\nHo".to_vec(),
        b"GET /in HTTP/1.1\r\nHost: a\r\n".to_vec(),
        b"GET /in HTTP/1.1\r\nHost: a\r\n\r".to_vec(),
    ];
    let bodies: [Vec<u8>; 7] = [
        [
            &with_fields(b"Host: a\r\nContent-Length: 100")[..],
            &with_line(b"GET /evil HTTP/1.1"),
        ]
        .concat(),
        with_fields(b"Host: a\r\nContent-Length: 5"),
        with_chunks(b""),
        with_chunks(b"4"),
        with_chunks(b"4\r\nwi"),
        with_chunks(b"4\r\nwiki\r\n"),
        with_chunks(b"4\r\nwiki\r\n0\r\n"),
    ];
    for bytes in heads.iter().chain(&bodies) {
        let mut client = Connection::open(bench.proxy.address()).await;
        client.send(bytes).await;
        client.finish().await;
        assert_eq!(client.rest().await, b"", "{}", bytes.escape_ascii());
    }
    // Trailers that don't end, and a chunk that ends wrongly, when the request is already on its way.
    let broken: [(&[u8], Vec<u8>); 2] = [
        (b"4\r\nwiki\r\n0\r\n", b"X: y\r\n".repeat(10_000)),
        (
            b"4\r\nwiki\r\n",
            [b"4\r\nwikipedia\r\n0\r\n\r\n", &with_line(b"GET /evil HTTP/1.1")[..]].concat(),
        ),
    ];
    for (number, (first, then)) in broken.iter().enumerate() {
        let mut client = Connection::open(bench.proxy.address()).await;
        client.send(with_chunks(first)).await;
        eventually("the origin reads it", async || {
            bench.origin.begun() == bodies.len() + number + 1
        })
        .await;
        client.send(then).await;
        let answer = client.response().await;
        assert_eq!((answer.status, answer.header("connection")), (400, Some("close")));
        assert_eq!(client.rest().await, b"");
    }
    let expected = bodies.len() + broken.len();
    eventually("the origin sees them break off", async || {
        bench.origin.cut() == expected
    })
    .await;
    // A connection on which half a request was sent is used no more.
    bench
        .check(0, &taken("a good one", with_line(b"GET /in HTTP/1.1"), "GET /in "), 0)
        .await;
    bench.end();
}

#[tokio::test]
async fn what_comes_behind_an_upgrade_is_part_of_it_or_is_not_answered() {
    let upgrade = "GET /in HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let evil = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n";
    // The origin does not switch. Whether the rest was meant as WebSocket or as a request, nobody knows.
    let origin = StrictOrigin::start().await;
    let proxy = Process::proxy(&embedded(&[origin.address])).await;
    proxy.active_backends(1).await;
    for fields in ["", "Upgrade: h2c\r\n"] {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(upgrade.replace("\r\n\r\n", "\r\n") + fields + "\r\n" + evil)
            .await;
        assert_eq!(client.response().await.text(), "GET /in ");
        assert_eq!(client.rest().await, b"");
    }
    assert_eq!(
        (origin.summaries(), origin.violations()),
        (vec!["GET /in ".to_owned(); 2], vec![])
    );

    // The origin switches: all that comes is the tunnel's.
    let origin = RawOrigin::start(move |mut peer| async move {
        peer.request().await;
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        let mut bytes = vec![0; 2 * evil.len()];
        if peer.stream.read_exact(&mut bytes).await.is_ok() {
            peer.send(bytes).await;
        }
    })
    .await;
    let proxy = Process::proxy(&embedded(&[origin.address])).await;
    proxy.active_backends(1).await;
    for fields in ["", "Upgrade: h2c\r\n"] {
        let mut client = Connection::open(proxy.address()).await;
        client
            .send(upgrade.replace("\r\n\r\n", "\r\n") + fields + "\r\n" + evil)
            .await;
        assert_eq!(client.response().await.status, 101);
        client.send(evil).await;
        assert_eq!(client.rest().await, evil.repeat(2).as_bytes());
    }
    assert!(origin.requests().iter().all(|request| request.starts_with("GET /in ")));
}

#[tokio::test]
async fn a_client_can_neither_forge_nor_delete_what_the_proxy_says_of_it() {
    let origin = StrictOrigin::start().await;
    let proxy = Process::proxy(&embedded(&[origin.address])).await;
    proxy.active_backends(1).await;
    let claims = "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: 6.6.6.6, 127.0.0.1\r\nX-Forwarded-Proto: evil\r\n\
                  X-FORWARDED-HOST: evil\r\nX-Forwarded-Port: 666\r\nX-Forwarded-Server: evil\r\nX-Forwarded-Ssl: evil\r\n\
                  Forwarded: for=6.6.6.6;host=evil\r\nforwarded: by=evil\r\nX-Real-IP: 6.6.6.6\r\nx-real-ip: 6.6.6.6\r\n\
                  X-Request-Id: evil\r\nX-REQUEST-ID: evil\r\n";
    let nominated = "Connection: X-Request-Id, Via, X-Real-IP, Forwarded\r\n";
    for lines in ["", claims, nominated, &(claims.to_owned() + nominated)] {
        let answer = Connection::open(proxy.address())
            .await
            .request("GET", "/", lines, "")
            .await;
        assert_eq!(answer.status, 200, "{lines}");
    }
    let requests = origin.requests();
    assert_eq!(requests.len(), 4);
    for request in &requests {
        assert_eq!(request.values("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(request.values("x-forwarded-proto"), ["http"]);
        assert_eq!(request.values("x-forwarded-host"), ["test"]);
        assert_eq!(request.values("via"), ["1.1 gopherproxy"]);
        let [id] = request.values("x-request-id")[..] else {
            panic!("not one X-Request-Id: {request:?}");
        };
        assert_eq!(id.len(), 32, "{id}");
        assert_eq!(request.headers.len(), 6, "{request:?}");
    }
    assert_eq!(origin.violations(), [""; 0]);

    // Via tells the whole way, so that loops show; who comes last is the proxy.
    let via = "Via: 1.0 evil\r\nVia: 1.1 gopherproxy\r\n";
    Connection::open(proxy.address())
        .await
        .request("GET", "/via", via, "")
        .await;
    let request = origin.requests().pop().expect("the last");
    assert_eq!(
        request.values("via"),
        ["1.0 evil", "1.1 gopherproxy", "1.1 gopherproxy"]
    );
}

use std::sync::LazyLock;

use super::*;
use crate::http1::target::Origin;

static RULES: LazyLock<Rules> = LazyLock::new(Rules::default);

fn check(head: &str) -> Result<Body, Rejection> {
    let bytes = head.as_bytes();
    assert_eq!(length(bytes, 0), Some(bytes.len()), "{head:?}");
    parse(bytes, &mut scratch(), &RULES)
        .map(|head| head.body)
        .map_err(|violation| violation.rejection)
}

#[test]
fn a_head_ends_at_its_empty_line_however_it_arrives() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody\r\n\r\n";
    for scanned in 0..27 {
        assert_eq!(length(&bytes[..scanned], scanned.saturating_sub(1)), None, "{scanned}");
        assert_eq!(length(bytes, scanned), Some(27), "{scanned}");
    }
    assert_eq!(length(b"GET / HTTP/1.1\n\nrest", 0), Some(16));
}

#[test]
fn heads_that_mean_one_thing_are_taken() {
    for (head, body) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Body::Length(0)),
        ("GET / HTTP/1.0\r\n\r\n", Body::Length(0)),
        ("OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", Body::Length(0)),
        ("GET / HTTP/1.1\r\nHost: a-b_c.d.:\r\n\r\n", Body::Length(0)),
        ("GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", Body::Length(0)),
        ("GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n", Body::Length(0)),
        (
            "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 42\r\n\r\n",
            Body::Length(42),
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
            Body::Chunked,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            Body::Upgrade,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            Body::Length(0),
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nUpgrade: h2c\r\nConnection: x, Upgrade\r\n\r\n",
            Body::Upgrade,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
            Body::Upgrade,
        ),
        // Without the option in `Connection`, or with a body, it is an ordinary request.
        (
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
            Body::Length(0),
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n",
            Body::Length(1),
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n",
            Body::Chunked,
        ),
        (
            "GET HTTP://Shop.Example:80/b HTTP/1.1\r\nHost: shop.example\r\n\r\n",
            Body::Length(0),
        ),
        ("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", Body::Length(0)),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n\r\n",
            Body::Length(0),
        ),
    ] {
        assert_eq!(check(head), Ok(body), "{head:?}");
    }
}

#[test]
fn heads_that_could_mean_two_things_are_refused() {
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a[::1]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
        "GET /#f HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\u{1} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a<b> HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a?b HTTP/1.1\r\nHost: a:8080\r\n\r\n",
        "GET http://a:180/ HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "GET http://u:p@a/ HTTP/1.0\r\n\r\n",
        "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 01\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip,, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, HOST\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: a,b,c,d,e\r\nConnection: f,g,h,i,j\r\n\r\n",
    ] {
        assert_eq!(check(head), Err(Rejection::BadRequest), "{head:?}");
    }
    for line in ["CONNECT /", "CONNECT a:443", "TRACE /"] {
        let head = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(check(&head), Err(Rejection::MethodNotAllowed));
    }
    for codings in ["gzip", "gzip, chunked", "gzip , x,CHUNKED"] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {codings}\r\n\r\n");
        assert_eq!(check(&head), Err(Rejection::NotImplemented), "{codings}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(MAX_TARGET));
    assert_eq!(check(&long), Err(Rejection::UriTooLong));
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X: y\r\n".repeat(RULES.max_fields)
    );
    assert_eq!(check(&many), Err(Rejection::HeadTooLarge));
}

#[test]
fn connections_are_kept_or_not_and_fields_end_here_as_the_client_says() {
    let with = |version: &str, connection: &str| {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}X: y\r\n\r\n");
        let mut scratch = scratch();
        let head = parse(text.as_bytes(), &mut scratch, &RULES).unwrap();
        (head.keeps, head.nominates("x"))
    };
    assert_eq!(with("1.1", ""), (true, false));
    assert_eq!(with("1.1", "Connection: Keep-Alive\r\n"), (true, false));
    assert_eq!(with("1.1", "Connection: X\r\nConnection: ,Close\r\n"), (false, true));
    assert_eq!(with("1.1", "Connection: keep-alive, close\r\n"), (false, false));
    assert_eq!(with("1.1", "Connection: upgrade , x\r\n"), (true, true));
    assert_eq!(with("1.0", ""), (false, false));
    assert_eq!(with("1.0", "Connection: keep-alive\r\n"), (true, false));
}

#[test]
fn the_line_of_a_broken_request_is_guessed_for_the_log() {
    for (bytes, method, target) in [
        (&b"GET /a?b HTTP/1.1\r\nHost"[..], "GET", "/a?b"),
        (b"GET /\xe4\xff HTTP/1.1\r\n", "GET", "/\u{fffd}\u{fffd}"),
        (b"\x16\x03\x01\xff", "-", "-"),
        (b"", "-", "-"),
        (b"  / HTTP/1.1", "-", "-"),
        (b"GET\r\n", "GET", "-"),
        (b"GET  / HTTP/1.1\r\n", "GET", "-"),
        (b"GET /a\r\n", "GET", "/a"),
        (b"GET /a", "GET", "/a"),
        (b"OPTIONS * HTTP/1.1\r\n", "OPTIONS", "*"),
        (b"VERSION-CONTROL /a HTTP/1.1\r\n", "VERSION-CONTROL", "/a"),
    ] {
        let target = target.into();
        assert_eq!(RequestLine::guess(bytes), RequestLine { method, target });
    }
}

#[test]
fn nothing_that_may_be_a_secret_is_taken_for_a_request_line() {
    for (bytes, method, target) in [
        (&b"Cookie: sid=SECRET\r\n\r\n"[..], "-", "-"),
        (b"Cookie: /SECRET\r\n\r\n", "-", "-"),
        (b"Authorization: Bearer\tSECRET\r\n\r\n", "-", "-"),
        (b"&password: SECRET x\r\n\r\n", "-", "-"),
        (b"password /SECRET x\r\n\r\n", "-", "-"),
        (b"SECRET\r\n\r\n", "-", "-"),
        (b"SECRET SECRET\r\n\r\n", "-", "-"),
        (b"ABCDEFGHIJKLMNOPQRSTU /\r\n\r\n", "-", "-"),
        (b"\x16\x03\x01\x02\0\x01 /SECRET", "-", "-"),
        (b"GET user:SECRET@h HTTP/1.1\r\n", "GET", "-"),
        (b"GET ftp://user:SECRET@h/ HTTP/1.1\r\n", "GET", "-"),
        (b"GET http://user:SECRET@h/a?b HTTP/1.1\r\n", "GET", "/a?b"),
        (b"GET HTTPS://user:SECRET@h HTTP/1.1\r\n", "GET", "/"),
        (b"GET http://user:S/CRET@h/ HTTP/1.1\r\n", "GET", "-"),
        (b"GET http://user@h#SECRET HTTP/1.1\r\n", "GET", "/"),
        (b"GET /x#SECRET HTTP/1.1\r\n", "GET", "/x"),
        (b"GET *SECRET HTTP/1.1\r\n", "GET", "-"),
        (b"GET /x\tSECRET HTTP/1.1\r\n", "GET", "/x"),
        (b"GET\r\n/SECRET: x\r\n", "GET", "-"),
        (b"GET\n/SECRET: x\r\n", "GET", "-"),
    ] {
        let target = target.into();
        assert_eq!(RequestLine::guess(bytes), RequestLine { method, target });
    }
}

#[test]
fn the_rule_that_a_head_breaks_is_named() {
    let check = |head: &[u8], rule: &str| {
        let error = parse(head, &mut scratch(), &RULES).expect_err(rule);
        assert_eq!(error.rule, rule, "{}", head.escape_ascii());
    };
    for (line, rule) in [
        (
            &b"hello"[..],
            "the request line is not a method, a target and a version",
        ),
        (
            b"GET /a b HTTP/1.1",
            "the request line is not a method, a target and a version",
        ),
        (
            b"GET / HTTP/1.1 ",
            "the request line is not a method, a target and a version",
        ),
        (b"G(T / HTTP/1.1", "the method has a byte that no method may have"),
        (b"GET /\x01 HTTP/1.1", "the target has a byte that no target may have"),
        (
            b"GET /\xe4 HTTP/1.1",
            "the target is not UTF-8, and client.raw_targets is off",
        ),
        (b"GET / HTTP/2.0", "the version is not HTTP/1.0 or HTTP/1.1"),
        (b"GET / HTTP/1.1\r", "a CR stands without an LF behind it"),
        (b"GET / HTTP/1.1\n", "a line ends with LF alone"),
        (
            b"GET a HTTP/1.1",
            "the target is neither a path nor an http:// or https:// URL",
        ),
        (b"GET /#f HTTP/1.1", "the target has a fragment"),
        (b"GET * HTTP/1.1", "* is a target of OPTIONS alone"),
        (
            b"GET http://u@a/ HTTP/1.1",
            "the target names no host, or one with more than a name and a port",
        ),
        (b"GET http://b/ HTTP/1.1", "Host and the target name different hosts"),
        (b"TRACE / HTTP/1.1", "CONNECT and TRACE are not proxied"),
    ] {
        check(&[line, b"\r\nHost: a\r\n\r\n"].concat(), rule);
    }
    for (fields, rule) in [
        ("X: y", "no Host field"),
        ("Host: a\r\nHost: a", "two Host fields"),
        ("Host: a b", "Host is not a name with an optional port"),
        ("Host: a\nX: y", "a line ends with LF alone"),
        ("Host: a\r\n b", "a field continues on the next line"),
        (
            "Host: a\r\nX : y",
            "the name of a field has a byte that no name may have",
        ),
        ("Host: a\r\nX: \0", "the value of a field has a control character"),
        ("Host: a\r\nContent-Length: +1", "Content-Length is not a plain number"),
        (
            "Host: a\r\nContent-Length: 1\r\nContent-Length: 1",
            "two Content-Length fields",
        ),
        (
            "Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding together with Content-Length",
        ),
        (
            "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "two Transfer-Encoding fields",
        ),
        (
            "Host: a\r\nTransfer-Encoding: chunked, gzip",
            "Transfer-Encoding is not a list of codings with chunked at its end",
        ),
        (
            "Host: a\r\nTransfer-Encoding: gzip",
            "Transfer-Encoding names a coding other than chunked",
        ),
        (
            "Host: a\r\nConnection: Host",
            "Connection names a field that is not the connection's",
        ),
        ("Host: a\r\nConnection: a b", "Connection is not a list of names"),
        (
            "Host: a\r\nConnection: a,b,c,d,e,f,g,h,i,j",
            "Connection has more than 9 options",
        ),
    ] {
        check(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes(), rule);
    }
    check(
        b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding in HTTP/1.0",
    );
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(RULES.max_fields + 1));
    check(many.as_bytes(), "it has more fields than client.max_fields");
}

#[test]
fn a_target_passes_as_it_came_unless_it_could_end_before_its_end() {
    let target = |target: &[u8], rules: &Rules| {
        let text = [b"GET ", target, b" HTTP/1.1\r\nHost: a\r\nX: \xe4 b\r\n\r\n"].concat();
        let mut scratch = scratch();
        let head = parse(&text, &mut scratch, rules).ok()?;
        assert_eq!((head.method, head.version), ("GET", Version::Http11));
        assert_eq!(head.values("x").collect::<Vec<_>>(), [b"\xe4 b"]);
        let named = Origin {
            scheme: head.scheme.unwrap_or(Scheme::Http),
            authority: head.host.unwrap(),
        };
        assert!(is_same_host(named, b"a"));
        Some((head.target.to_vec(), head.path.to_vec()))
    };
    let raw = Rules {
        raw_targets: true,
        ..RULES.clone()
    };
    for byte in 0..=u8::MAX {
        let passes = matches!(byte, b'!'..=b'~') && byte != b'#';
        for (before, after) in [("/", ""), ("/a", "b"), ("/?", ""), ("/a?b=", "c")] {
            let one = [before.as_bytes(), &[byte], after.as_bytes()].concat();
            let whole = |passes: bool| passes.then(|| (one.clone(), one.clone()));
            assert_eq!(target(&one, &RULES), whole(passes), "{byte:#x}");
            assert_eq!(target(&one, &raw), whole(passes || byte >= 0x80), "{byte:#x}");
            for origin in [&b"http://A:80"[..], b"HTTPS://A:443"] {
                let absolute = [origin, &one[..]].concat();
                let whole = |passes: bool| passes.then(|| (absolute.clone(), one.clone()));
                assert_eq!(target(&absolute, &RULES), whole(passes), "{byte:#x}");
                assert_eq!(target(&absolute, &raw), whole(passes || byte >= 0x80), "{byte:#x}");
            }
        }
        // No byte of a target hides another host from the reader.
        let host = [b"http://a", &[byte][..], b"/"].concat();
        let passes = matches!(byte, b'/' | b'?' | b':');
        assert_eq!(target(&host, &raw).is_some(), passes, "{byte:#x}");
    }
    for bad in [
        &b"/\xe4 \xe4"[..],
        b"/\xe4\r\xe4",
        b"/\xe4#",
        b"\xe4",
        b"*\xe4",
        b"http://a\xe4/",
        b"http://a:443/",
        b"https://a:80/",
        b"ftp://a/",
        b"/\xe4\n",
    ] {
        assert_eq!(target(bad, &raw), None, "{}", bad.escape_ascii());
    }
    let queries = r#"/api/v1/query?query=up{job="x"} /a`b /<b> /?q=<b> /?[a]=\b|^ //"{}" /a?b?c"#;
    for query in queries.split(' ') {
        assert_eq!(target(query.as_bytes(), &RULES).unwrap().0, query.as_bytes());
    }
    let utf8 = "/\u{e4}?\u{1f600}".as_bytes();
    for rules in [&*RULES, &raw] {
        assert_eq!(target(utf8, rules).unwrap().0, utf8);
    }
}

#[test]
fn a_connection_switches_to_the_first_allowed_protocol_that_it_names() {
    let rules = Rules {
        upgrades: vec!["WebSocket".into(), "irc/6.9".into()],
        ..Rules::default()
    };
    let none = Rules {
        upgrades: Vec::new(),
        ..Rules::default()
    };
    let upgrade = |version: &str, fields: &str, rules: &Rules| {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n\r\n");
        let mut scratch = scratch();
        let head = parse(text.as_bytes(), &mut scratch, rules).unwrap();
        assert_eq!(head.upgrade.is_some(), head.body == Body::Upgrade, "{fields}");
        head.upgrade
            .map(|protocol| String::from_utf8(protocol.to_vec()).unwrap())
    };
    for (fields, protocol) in [
        ("Upgrade: websocket", Some("websocket")),
        ("Upgrade: WEBSOCKET", Some("WEBSOCKET")),
        ("Upgrade: IRC/6.9", Some("IRC/6.9")),
        ("Upgrade: h2c,, irc/6.9 ,websocket", Some("irc/6.9")),
        ("Upgrade: h2c\r\nUpgrade: x, websocket", Some("websocket")),
        ("Upgrade: websocket\r\nUpgrade: irc/6.9", Some("websocket")),
        ("Upgrade: websocket\r\nContent-Length: 0", Some("websocket")),
        ("Upgrade: irc", None),
        ("Upgrade: irc/7", None),
        ("Upgrade: websocket/13", None),
        ("Upgrade: \"websocket\"", None),
        ("Upgrade: websocket x", None),
        ("Upgrade:", None),
        ("Upgrade: websocket\r\nContent-Length: 1", None),
        ("Upgrade: websocket\r\nTransfer-Encoding: chunked", None),
    ] {
        let named = format!("Connection: x, upgrade\r\n{fields}");
        assert_eq!(upgrade("1.1", &named, &rules).as_deref(), protocol, "{fields}");
        assert_eq!(upgrade("1.1", fields, &rules), None, "{fields}");
        assert_eq!(upgrade("1.1", &named, &none), None, "{fields}");
        if !fields.contains("Transfer-Encoding") {
            assert_eq!(upgrade("1.0", &named, &rules), None, "{fields}");
        }
    }
}

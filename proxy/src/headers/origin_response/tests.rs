mod refused;

use super::*;
use crate::config::Shape;

use Framing::{Chunked, Close, Length, None as Bodiless};

const HEAD: bool = true;
const GET: bool = false;

/// To a client of HTTP/1.1 that stays, and can be passed trailers.
const MODERN: Delivery<'static> = Delivery {
    keeps: true,
    old: false,
    trailers: true,
    hsts: None,
    cookie: None,
    edits: None,
};

const OLD: Delivery<'static> = Delivery {
    keeps: true,
    old: true,
    trailers: false,
    hsts: None,
    cookie: None,
    edits: None,
};

/// A response head with these lines after the status line, without their last CRLF.
fn head_of(status: &str, lines: &str) -> String {
    let end = if lines.is_empty() { "" } else { "\r\n" };
    format!("HTTP/1.1 {status}\r\n{lines}{end}\r\n")
}

/// What `then` makes of a head, whether it is read from bytes or from fields.
fn read<T: PartialEq + std::fmt::Debug>(
    text: &[u8],
    to_head: bool,
    then: impl Fn(ResponseHead<'_>) -> T,
) -> Result<T, &'static str> {
    let mut room = head::room();
    let (head, length) = parse(text, &mut room, to_head)?.expect("a whole head");
    assert_eq!(length, text.len(), "{}", text.escape_ascii());
    let minor = u8::from(text.trim_ascii_start().starts_with(b"HTTP/1.1"));
    let fields = ResponseHead::from_fields(head.status, minor, head.reason, head.fields, to_head);
    let read = then(head);
    assert_eq!(fields.map(then).as_ref(), Ok(&read), "{}", text.escape_ascii());
    Ok(read)
}

/// The head that a client gets, and the framing of its body.
fn written(text: &str, to_head: bool, delivery: Delivery<'_>) -> (String, Framing) {
    let write = |head: ResponseHead<'_>| {
        let mut out = BytesMut::from("before");
        let framing = head.write(&delivery, &mut out);
        let text = String::from_utf8(out.split_off("before".len()).into()).unwrap();
        (text, framing)
    };
    read(text.as_bytes(), to_head, write).unwrap()
}

#[test]
fn the_framing_is_what_rfc_9112_says_and_a_doubt_about_it_costs_the_connection() {
    for (status, lines, to_head, framing, reusable) in [
        ("200 OK", "Content-Length: 2", GET, Length(2), true),
        ("200 OK", "Content-Length: 0", GET, Length(0), true),
        ("200 OK", "content-LENGTH:\t2 ", GET, Length(2), true),
        ("200 OK", "Content-Length: 2\r\nContent-Length: 2", GET, Length(2), true),
        ("200 OK", "Content-Length: 2, 2", GET, Length(2), true),
        ("200 OK", "Content-Length: 02", GET, Length(2), true),
        (
            "200 OK",
            "Content-Length: 18446744073709551615",
            GET,
            Length(u64::MAX),
            true,
        ),
        ("200 OK", "Transfer-Encoding: chunked", GET, Chunked, true),
        ("200 OK", "transfer-encoding: CHUNKED", GET, Chunked, true),
        (
            "200 OK",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            GET,
            Chunked,
            true,
        ),
        (
            "200 OK",
            "Content-Length: 2\r\nTransfer-Encoding: chunked",
            GET,
            Chunked,
            true,
        ),
        (
            "200 OK",
            "Transfer-Encoding: chunked\r\nContent-Length: +2",
            GET,
            Chunked,
            false,
        ),
        ("200 OK", "", GET, Close, false),
        ("200 OK", "Connection: keep-alive", GET, Close, false),
        ("404 Not Found", "Content-Length: 2", GET, Length(2), true),
        ("999 Odd", "Content-Length: 2", GET, Length(2), true),
        // The connection.
        (
            "200 OK",
            "Connection: close\r\nContent-Length: 2",
            GET,
            Length(2),
            false,
        ),
        (
            "200 OK",
            "Connection: X, , Close\r\nContent-Length: 2",
            GET,
            Length(2),
            false,
        ),
        (
            "200 OK",
            "Connection: X\r\nConnection: close\r\nContent-Length: 2",
            GET,
            Length(2),
            false,
        ),
        (
            "200 OK",
            "Connection: keep-alive, close\r\nContent-Length: 2",
            GET,
            Length(2),
            false,
        ),
        (
            "200 OK",
            "Connection: X close\r\nContent-Length: 2",
            GET,
            Length(2),
            false,
        ),
        ("200 OK", "Connection:\r\nContent-Length: 2", GET, Length(2), true),
        // There is no body.
        ("200 OK", "Content-Length: 2", HEAD, Bodiless, false),
        ("200 OK", "Content-Length: 0", HEAD, Bodiless, false),
        ("200 OK", "Transfer-Encoding: chunked", HEAD, Bodiless, false),
        ("200 OK", "", HEAD, Bodiless, false),
        ("204 No Content", "", GET, Bodiless, true),
        ("204 No Content", "Content-Length: 0", GET, Bodiless, true),
        ("204 No Content", "Content-Length: 2", GET, Bodiless, false),
        ("204 No Content", "Content-Length: +2", GET, Bodiless, false),
        ("204 No Content", "Transfer-Encoding: chunked", GET, Bodiless, false),
        ("204 No Content", "Transfer-Encoding: gzip", GET, Bodiless, false),
        ("204 No Content", "Connection: close", GET, Bodiless, false),
        ("204 No Content", "", HEAD, Bodiless, false),
        ("304 Not Modified", "", GET, Bodiless, true),
        ("304 Not Modified", "Content-Length: 44", GET, Bodiless, false),
        ("304 Not Modified", "Transfer-Encoding: chunked", GET, Bodiless, false),
        ("100 Continue", "", GET, Bodiless, true),
        ("103 Early Hints", "Content-Length: 2", GET, Bodiless, false),
        ("101 Switching Protocols", "Upgrade: websocket", GET, Bodiless, false),
        ("205 Reset Content", "Content-Length: 2", GET, Length(2), true),
    ] {
        let found = read(head_of(status, lines).as_bytes(), to_head, |head| {
            (head.framing, head.reusable)
        });
        assert_eq!(found, Ok((framing, reusable)), "{status}: {lines:?}, HEAD: {to_head}");
    }
    for (lines, framing, reusable) in [
        ("Content-Length: 2\r\n", Length(2), false),
        ("Content-Length: 2\r\nConnection: Keep-Alive\r\n", Length(2), true),
        (
            "Content-Length: 2\r\nConnection: keep-alive, close\r\n",
            Length(2),
            false,
        ),
        ("", Close, false),
        ("Connection: keep-alive\r\n", Close, false),
    ] {
        let head = format!("HTTP/1.0 200 OK\r\n{lines}\r\n");
        let found = read(head.as_bytes(), GET, |head| (head.framing, head.reusable));
        assert_eq!(found, Ok((framing, reusable)), "HTTP/1.0: {lines:?}");
    }
}

#[test]
fn the_client_gets_the_origins_fields_in_their_order_and_one_framing() {
    for (status, lines, to_head, expected, framing) in [
        (
            "200 Alles klar",
            "x-Odd: 1\r\nDate: then\r\nX-ODD: 2\r\nContent-Length: 2\r\nAge: 5\r\nSet-Cookie: a\r\nSet-Cookie: b",
            GET,
            "x-Odd: 1\r\nDate: then\r\nX-ODD: 2\r\nContent-Length: 2\r\nAge: 5\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
             Connection: keep-alive\r\n",
            Length(2),
        ),
        (
            "200 OK",
            "Connection: X-Hop, close, Content-Length\r\nX-Hop: 1\r\nConnection: ,x-hop-2\r\nX-HOP-2: 2\r\nx-hop: 3\r\n\
             Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nTE: x\r\nUpgrade: h2c\r\nContent-Length: 2\r\nDate: d",
            GET,
            "Content-Length: 2\r\nDate: d\r\nConnection: keep-alive\r\n",
            Length(2),
        ),
        (
            "200 OK",
            "Content-Length: 2\r\nDate: d\r\nContent-Length: 02, 2\r\nA: b",
            GET,
            "Date: d\r\nA: b\r\nContent-Length: 2\r\nConnection: keep-alive\r\n",
            Length(2),
        ),
        (
            "200 OK",
            "Transfer-Encoding: Chunked\r\nDate: d\r\nContent-Length: 2\r\nTransfer-Encoding: chunked",
            GET,
            "Date: d\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n",
            Chunked,
        ),
        (
            "200 OK",
            "Date: d",
            GET,
            "Date: d\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n",
            Chunked,
        ),
        (
            "200 OK",
            "Date: d\r\nContent-Length: 2",
            HEAD,
            "Date: d\r\nContent-Length: 2\r\nConnection: keep-alive\r\n",
            Bodiless,
        ),
        (
            "304 Not Modified",
            "ETag: e\r\nContent-Length: 044\r\nDate: d",
            GET,
            "ETag: e\r\nDate: d\r\nContent-Length: 44\r\nConnection: keep-alive\r\n",
            Bodiless,
        ),
        (
            "200 OK",
            "Date: d\r\nTransfer-Encoding: chunked",
            HEAD,
            "Date: d\r\nConnection: keep-alive\r\n",
            Bodiless,
        ),
        (
            "204 No Content",
            "Content-Length: 2\r\nDate: d\r\nTransfer-Encoding: gzip",
            GET,
            "Date: d\r\nConnection: keep-alive\r\n",
            Bodiless,
        ),
        (
            "103 Early Hints",
            "Link: </a>\r\nContent-Length: 2",
            GET,
            "Link: </a>\r\n",
            Bodiless,
        ),
        ("100 ", "", GET, "", Bodiless),
        (
            "101 Switching Protocols",
            "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\nSec-WebSocket-Accept: x",
            GET,
            "Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\nConnection: upgrade\r\n",
            Bodiless,
        ),
        (
            "426 Upgrade Required",
            "Upgrade: websocket\r\nDate: d\r\nContent-Length: 2",
            GET,
            "Upgrade: websocket\r\nDate: d\r\nContent-Length: 2\r\nConnection: upgrade, keep-alive\r\n",
            Length(2),
        ),
        (
            "426 Upgrade Required",
            "Date: d\r\nContent-Length: 2",
            GET,
            "Date: d\r\nContent-Length: 2\r\nConnection: keep-alive\r\n",
            Length(2),
        ),
    ] {
        let expected = format!("HTTP/1.1 {status}\r\n{expected}\r\n");
        let found = written(&head_of(status, lines), to_head, MODERN);
        assert_eq!(found, (expected, framing), "{status}: {lines:?}");
    }
}

#[test]
fn the_connection_is_kept_or_not_as_the_client_and_the_framing_allow() {
    let length = head_of("200 OK", "Date: d\r\nContent-Length: 2");
    let close = head_of("200 OK", "Date: d");
    let chunked = head_of("200 OK", "Date: d\r\nTransfer-Encoding: chunked");
    let required = head_of("426 Upgrade Required", "Date: d\r\nUpgrade: h2c\r\nContent-Length: 2");
    let ends = |keeps: bool, delivery: Delivery<'static>| Delivery { keeps, ..delivery };
    for (head, delivery, framing, connection) in [
        (&length, MODERN, Length(2), "keep-alive"),
        (&length, ends(false, MODERN), Length(2), "close"),
        (&length, OLD, Length(2), "keep-alive"),
        (&length, ends(false, OLD), Length(2), "close"),
        (&close, MODERN, Chunked, "keep-alive"),
        (&close, ends(false, MODERN), Chunked, "close"),
        (&close, OLD, Close, "close"),
        (&chunked, ends(false, MODERN), Chunked, "close"),
        (&chunked, OLD, Close, "close"),
        (&required, ends(false, OLD), Length(2), "upgrade, close"),
    ] {
        let (written, found) = written(head, GET, delivery);
        assert_eq!(found, framing, "{head:?} {delivery:?}");
        assert!(
            written.ends_with(&format!("\r\nConnection: {connection}\r\n\r\n")),
            "{written}"
        );
        assert_eq!(written.contains("chunked"), framing == Chunked, "{written}");
    }
}

#[test]
fn trailers_are_announced_if_they_can_be_passed_on() {
    let announces = |lines: &str, delivery: Delivery<'_>| {
        let lines = format!("Date: d\r\nTrailer: a\r\n{lines}X: y\r\nTrailer: b");
        written(&head_of("200 OK", &lines), GET, delivery)
            .0
            .contains("Trailer: a\r\n")
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    assert!(announces(chunked, MODERN));
    assert!(!announces(
        chunked,
        Delivery {
            trailers: false,
            ..MODERN
        }
    ));
    assert!(!announces(chunked, Delivery { trailers: true, ..OLD }));
    assert!(!announces(
        "Transfer-Encoding: chunked\r\nConnection: trailer\r\n",
        MODERN
    ));
    assert!(!announces("Content-Length: 2\r\n", MODERN));
    assert!(
        !announces("", MODERN),
        "nothing can be behind a body that ends with the connection"
    );
}

#[test]
fn a_date_is_added_where_the_origin_gives_none() {
    let dates = |status: &str, lines: &str| {
        let (written, _) = written(&head_of(status, lines), GET, MODERN);
        let dates = written.split("\r\n").filter_map(|line| line.strip_prefix("Date: "));
        dates.map(str::to_owned).collect::<Vec<_>>()
    };
    let now = String::from_utf8(HttpDate::now().as_bytes().into()).unwrap();
    let [date] = &dates("200 OK", "Content-Length: 2")[..] else {
        panic!("one date")
    };
    // A second may have passed.
    assert_eq!((date.len(), &date[4..16]), (now.len(), &now[4..16]));
    assert_eq!(dates("304 Not Modified", "Connection: date\r\ndate: then").len(), 1);
    assert_eq!(dates("200 OK", "Date: then"), ["then"]);
    assert_eq!(dates("103 Early Hints", ""), [""; 0]);
    assert_eq!(dates("101 Switching Protocols", "Upgrade: x"), [""; 0]);
}

#[test]
fn what_is_odd_and_has_one_reading_is_passed_on() {
    for (head, expected) in [
        ("\r\n\r\nHTTP/1.1 200 OK\r\n", "200 OK\r\n"),
        ("HTTP/1.1 200\r\n", "200 \r\n"),
        ("HTTP/1.1 200 \r\n", "200 \r\n"),
        ("HTTP/1.1 200 \u{dc}ber\tgut \r\n", "200 \u{dc}ber\tgut \r\n"),
        ("HTTP/1.1 299 ?\r\nX: \u{ff}\ty\r\n", "299 ?\r\nX: \u{ff}\ty\r\n"),
        (
            "HTTP/1.1 200 OK\r\nX:\r\nY: \r\nX: z\r\n",
            "200 OK\r\nX:\r\nY: \r\nX: z\r\n",
        ),
    ] {
        let text = format!("{head}Date: d\r\nContent-Length: 2\r\n\r\n");
        let mut room = head::room();
        let (head, _) = parse(text.as_bytes(), &mut room, GET).unwrap().unwrap();
        let mut out = BytesMut::new();
        head.write(&MODERN, &mut out);
        let expected = format!("HTTP/1.1 {expected}Date: d\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(str::from_utf8(&out), Ok(&*expected));
    }
}

#[test]
fn a_head_is_the_same_in_whatever_pieces_it_arrives() {
    let text = head_of("200 OK", "Date: d\r\nConnection: close\r\nContent-Length: 2\r\nX:  y") + "ok";
    let length = text.len() - 2;
    for end in 0..=text.len() {
        let mut room = head::room();
        let read = parse(&text.as_bytes()[..end], &mut room, GET).unwrap();
        assert_eq!(
            read.map(|(_, length)| length),
            (end >= length).then_some(length),
            "{end}"
        );
    }
}

#[test]
fn heads_have_limits() {
    let long = |length: usize| head_of("200 OK", &format!("X: {}", "y".repeat(length - 24)));
    let parsed = |text: &str| parse(text.as_bytes(), &mut head::room(), GET).map(|read| read.map(|(_, length)| length));
    let longer = Err("the head is longer than 64 KiB");
    assert_eq!(parsed(&long(MAX_HEAD)), Ok(Some(MAX_HEAD)));
    assert_eq!(parsed(&long(MAX_HEAD + 1)), longer);
    assert_eq!(parsed(&long(2 * MAX_HEAD)[..MAX_HEAD - 1]), Ok(None));
    assert_eq!(parsed(&long(2 * MAX_HEAD)[..MAX_HEAD]), longer);
    assert_eq!(parsed(&"\r\n".repeat(MAX_HEAD)), longer);

    let many = |count: usize| head_of("200 OK", vec!["Te: y"; count].join("\r\n").as_str());
    assert_eq!(parsed(&many(240)), Ok(Some(many(240).len())));
    assert_eq!(written(&many(239), GET, MODERN).0.matches("Te:").count(), 0);
    assert_eq!(parsed(&many(241)), Err("there are more than 240 fields"));

    let nominated = |count: usize| head_of("200 OK", &format!("Connection: close, {}", "x,".repeat(count)));
    assert!(parsed(&nominated(32)).is_ok());
    assert_eq!(parsed(&nominated(33)), Err("Connection names more than 32 fields"));
}

#[test]
fn only_fields_that_could_be_read_become_a_head() {
    let field = |name, value| [httparse::Header { name, value }];
    let made =
        |reason, fields: &[httparse::Header<'_>]| ResponseHead::from_fields(200, 1, reason, fields, GET).map(drop);
    assert_eq!(made(b"", &field("X", b"y\xff\t")), Ok(()));
    for (reason, fields, why) in [
        (&b"O\rK"[..], field("X", b"y"), "the reason has a control character"),
        (b"O\nK", field("X", b"y"), "the reason has a control character"),
        (b"", field("", b"y"), "the name of a field is not a token"),
        (b"", field("X:", b"y"), "the name of a field is not a token"),
        (b"", field("X\r\n", b"y"), "the name of a field is not a token"),
        (
            b"",
            field("X", b"y\r\nSet-Cookie: z"),
            "a field has a control character",
        ),
        (b"", field("X", b"y\0"), "a field has a control character"),
    ] {
        assert_eq!(made(reason, &fields), Err(why));
    }
    let many = [httparse::Header { name: "X", value: b"y" }; 241];
    assert_eq!(made(b"", &many[..240]), Ok(()));
    assert_eq!(made(b"", &many), Err("there are more than 240 fields"));
    for status in [0, 99, 1000, u16::MAX] {
        assert!(ResponseHead::from_fields(status, 1, b"", &[], GET).is_err(), "{status}");
    }
}

#[test]
fn a_switch_names_its_protocol() {
    let upgrade = |status: &str, lines: &str| {
        let protocol = |head: ResponseHead<'_>| head.upgrade().map(<[u8]>::to_vec);
        read(head_of(status, lines).as_bytes(), GET, protocol).unwrap()
    };
    let switch = "101 Switching Protocols";
    assert_eq!(
        upgrade(switch, "Connection: upgrade\r\nUpgrade: websocket"),
        Some(b"websocket".into())
    );
    assert_eq!(upgrade(switch, "Upgrade: websocket\r\nUpgrade: h2c"), None);
    assert_eq!(upgrade(switch, ""), None);
    assert_eq!(upgrade("426 Upgrade Required", "Upgrade: websocket"), None);
}

#[test]
fn strict_transport_security_is_added_unless_the_origin_has_its_own() {
    let secure = Delivery {
        hsts: Some(31_536_000),
        ..MODERN
    };
    let field = "Strict-Transport-Security: max-age=31536000\r\n";
    for (lines, added) in [
        ("Content-Length: 0", true),
        ("Content-Length: 0\r\nstrict-transport-security: max-age=0", false),
    ] {
        let text = head_of("200 OK", lines);
        let mut room = head::room();
        let (head, _) = parse(text.as_bytes(), &mut room, GET).unwrap().unwrap();
        let written = |delivery| {
            let mut out = BytesMut::new();
            head.write(delivery, &mut out);
            String::from_utf8(out.to_vec()).unwrap()
        };
        assert_eq!(written(&secure).contains(field), added, "{lines}");
        assert!(!written(&MODERN).contains(field));
    }
}

#[test]
fn a_route_sets_adds_and_removes_fields_of_final_responses_over_both_protocols() {
    let keys = "response_headers: {set: {X-Frame-Options: DENY, Strict-Transport-Security: max-age=1}, add: {Set-Cookie: 'c=1'}, remove: [server]}";
    let shape = Shape::of(keys).unwrap();
    let edits = &shape.response_headers;
    let lines = b"X-Frame-Options: DENY\r\nStrict-Transport-Security: max-age=1\r\nSet-Cookie: c=1\r\n";
    let delivery = Delivery {
        hsts: Some(2),
        edits: Some(Edited { edits, lines }),
        ..MODERN
    };
    let origin = "Server: x\r\nX-FRAME-OPTIONS: ALLOWALL\r\nContent-Length: 0\r\nSet-Cookie: a=b\r\nServers: y";
    for (status, edited) in [("200 OK", true), ("404 Not Found", true), ("103 Early Hints", false)] {
        let text = head_of(status, origin);
        let mut room = head::room();
        let (head, _) = parse(text.as_bytes(), &mut room, GET).unwrap().unwrap();
        let mut out = BytesMut::new();
        head.write(&delivery, &mut out);
        let http1 = String::from_utf8(out.to_vec()).unwrap().to_lowercase();
        let http1: Vec<_> = http1.lines().filter_map(|line| line.split_once(": ")).collect();
        let http2 = head.to_http2(&delivery);
        for (name, expected) in [
            ("server", if edited { &[][..] } else { &["x"] }),
            ("x-frame-options", if edited { &["deny"] } else { &["allowall"] }),
            ("set-cookie", if edited { &["a=b", "c=1"] } else { &["a=b"] }),
            (
                "strict-transport-security",
                if edited { &["max-age=1"] } else { &["max-age=2"] },
            ),
            ("servers", &["y"]),
        ] {
            let named = http1.iter().filter(|(key, _)| *key == name);
            assert_eq!(
                named.map(|(_, value)| *value).collect::<Vec<_>>(),
                expected,
                "{status} {name}"
            );
            let values = http2.headers().get_all(name).iter();
            let values: Vec<_> = values.map(|value| value.to_str().unwrap().to_lowercase()).collect();
            assert_eq!(values, expected, "{status} {name}");
        }
    }
}

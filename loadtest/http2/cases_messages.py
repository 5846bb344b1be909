"""Requests and responses: RFC 9113, section 8, and RFC 8441."""

from hyperframe import frame as frames

from case import Case
from cases_frames import END_STREAM, HEADERS, SLOW
from cases_streams import TOO_LATE
from client import (
    PROTOCOL_ERROR,
    Client,
    block,
    continuation,
    data,
    get,
    headers,
    post,
    raw,
    request,
)
from expect import Answered, ConnectionFails, Meets, StreamFails, require

# What h2 lets pass of a malformed request is answered by the proxy, as section 8.1.1 allows.
MALFORMED = StreamFails(PROTOCOL_ERROR)
# A name or a value that can't be one in HTTP is an error of the stream, says the RFC. h2 ends the connection, as section 5.4.1 allows.
NO_FIELD = ConnectionFails(PROTOCOL_ERROR)
METHOD, SCHEME, PATH, AUTHORITY = (":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "localhost")


def of(*fields) -> list:
    """A request without a body that has these fields and no others."""
    return [headers(1, block(*fields), "END_STREAM")]


def fields(*more) -> list:
    """A GET with these fields behind its pseudo-header fields. `/headers` sends back what the origin gets."""
    return [get(1, "/headers", *more)]


def trailers(*of_them, ends: bool = True):
    return headers(1, block(*of_them), *(["END_STREAM"] if ends else []))


def is_well_formed(client: Client) -> None:
    """What every response has to be (sections 8.2 and 8.3.2)."""
    head, body, _ = client.response(1)
    names = [name for name, _ in head.fields]
    require(names[0] == ":status" and sum(name.startswith(":") for name in names) == 1, names)
    require(all(name == name.lower() for name in names), names)
    wrong = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te"} & set(names)
    require(not wrong, wrong)
    length = head.field("content-length")
    require(length is None or int(length) == len(body), f"{length} announced, {len(body)} bytes sent")
    require(head.field("date") is not None, "no date")


def without_body(status: int):
    def judge(client: Client) -> None:
        head, body, _ = client.response(1)
        require(head.status == status and not body, f"{head}, {len(body)} bytes")

    return Meets(f"{status} without a body", judge)


WELL_FORMED = Meets("a well-formed response", is_well_formed)

EXCHANGES = [
    Case("8.1", "GET", [get(1)], WELL_FORMED),
    Case("8.1", "GET of a response without a length", [get(1, "/chunked/3")], WELL_FORMED),
    Case("8.1", "GET that is refused by the proxy", [get(1, "/", ("x-a", " b"))], WELL_FORMED),
    Case("8.1", "HEAD", [headers(1, request("HEAD", "/bytes/100"), "END_STREAM")], without_body(200)),
    Case("8.1", "a status without a body", [get(1, "/status/204")], without_body(204)),
    Case("8.1", "another", [get(1, "/status/304")], without_body(304)),
    Case("8.1", "a status of three digits that nobody has defined", [get(1, "/status/599")], Answered(599)),
    Case("8.1", "POST", [post(1, "/echo"), data(1, b"body", "END_STREAM")], Answered(body=b"body")),
    Case("8.1", "POST with a length", [post(1, "/echo", ("content-length", "4")), data(1, b"body", "END_STREAM")], Answered(body=b"body")),
    Case("8.1", "POST without a body", [headers(1, request("POST", "/echo"), "END_STREAM")], Answered(body=b"")),
    Case("8.1", "POST with trailers", [post(1, "/echo"), data(1, b"body"), trailers(("x-sum", "1"))], Answered(body=b"body")),
    Case("8.1", "trailers without data before them", [post(1, "/echo"), trailers(("x-sum", "1"))], Answered(body=b"")),
    Case(
        "8.1",
        "trailers that go on in CONTINUATION",
        [post(1, "/echo"), data(1), raw(HEADERS, END_STREAM, 1, block(("x-a", "b"))), continuation(1, block(("x-b", "c")), "END_HEADERS")],
        Answered(body=b"body"),
    ),
    Case("8.1", "trailers without a field", [post(1, "/echo"), data(1), trailers()], Answered(body=b"body")),
    Case("8.1", "a second head without an end", [post(1), data(1), trailers(("x-a", "b"), ends=False)], MALFORMED),
    Case("8.1", "data behind trailers", [post(1, SLOW), trailers(("x-a", "b")), data(1)], TOO_LATE),
    Case("8.1", "a method that nobody knows", [headers(1, request("BREW"), "END_STREAM")], Answered()),
    Case("8.1", "methods have their case", [headers(1, request("get", "/headers"), "END_STREAM")], Answered(contains=b"get /headers")),
    Case("8.1", "a request that is answered before its body has come", [post(1, "/", ("content-length", "9999999999999"))], Answered()),
    Case("8.1", "a request that is refused before its body has come", [post(1, "/", ("x-a", " b"))], Answered(400)),
]

NAMES = [
    Case("8.2.1", f"a name with {name}", fields((written, b"b")), NO_FIELD)
    for name, written in [
        ("an upper-case letter", b"X-A"),
        ("a space", b"x a"),
        ("CR", b"x\ra"),
        ("LF", b"x\na"),
        ("NUL", b"x\0a"),
        ("a tab", b"x\ta"),
        ("DEL", b"x\x7fa"),
        ("a byte above 0x7f", b"x\xe4a"),
        ("a colon inside", b"x:a"),
        ("no byte", b""),
        ("a slash", b"x/a"),
        ("brackets", b"x(a)"),
    ]
]
VALUES = [
    *(
        Case("8.2.1", f"a value with {name}", fields((b"x-a", written)), NO_FIELD)
        for name, written in [
            ("CR", b"a\rb"),
            ("LF", b"a\nb"),
            ("CR and LF", b"a\r\nx: y"),
            ("NUL", b"a\0b"),
            ("DEL", b"a\x7fb"),
            ("a backspace", b"a\x08b"),
        ]
    ),
    # h2 lets these pass, and the proxy answers.
    Case("8.2.1", "a name with quotes", fields((b'"x"', b"b")), Answered(400)),
    *(
        Case("8.2.1", f"a value with {name}", fields((b"x-a", written)), Answered(400))
        for name, written in [
            ("a space before it", b" a"),
            ("a space behind it", b"a "),
            ("a tab before it", b"\ta"),
            ("a tab behind it", b"a\t"),
            ("nothing but a space", b" "),
        ]
    ),
    Case("8.2.1", "a value of no bytes", fields((b"x-a", b"")), Answered(contains=b"x-a:")),
    Case("8.2.1", "a value with a tab, spaces and commas inside", fields((b"x-a", b"a\tb  c,d")), Answered(contains=b"a\tb  c,d")),
    Case("8.2.1", "a value with bytes above 0x7f", fields((b"x-a", b"\xc3\xa4")), Answered(contains=b"\xc3\xa4")),
    Case(
        "8.2.1", "a name with every byte that it may have", fields((b"a!#$%&'*+-.^_`|~9", b"b")), Answered(contains=b"a!#$%&'*+-.^_`|~9: b")
    ),
]

CONNECTION = [
    *(
        Case("8.2.2", f"{name}: {value}", fields((name, value)), MALFORMED)
        for name, value in [
            ("connection", "keep-alive"),
            ("connection", "x-a"),
            ("proxy-connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "identity"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("te", "trailers, deflate"),
        ]
    ),
    Case(
        "8.2.2",
        "transfer-encoding with a body",
        [post(1, "/", ("transfer-encoding", "chunked")), data(1, b"0\r\n\r\n", "END_STREAM")],
        MALFORMED,
    ),
    Case("8.2.2", "te: trailers", fields(("te", "trailers")), Answered(contains=b"GET /headers", lacks=b"te: ")),
    Case("8.2.2", "http2-settings is a field like any other", fields(("http2-settings", "AAMAAABkAAQAAP__")), Answered()),
    Case(
        "8.2.3",
        "cookies in several fields",
        fields(("cookie", "a=b"), ("x-a", "b"), ("cookie", "c=d"), ("cookie", "e=f")),
        Answered(contains=b"cookie: a=b; c=d; e=f"),
    ),
]

PSEUDO = [
    Case("8.3", "one that there isn't", of(METHOD, SCHEME, PATH, AUTHORITY, (":foo", "b")), NO_FIELD),
    Case("8.3", "one of a response", of(METHOD, SCHEME, PATH, AUTHORITY, (":status", "200")), MALFORMED),
    Case("8.3", "one behind other fields", of(METHOD, SCHEME, ("x-a", "b"), PATH, AUTHORITY), MALFORMED),
    Case("8.3", "another behind other fields", of(METHOD, SCHEME, PATH, ("x-a", "b"), AUTHORITY), MALFORMED),
    Case("8.3", "one in trailers, behind another field", [post(1, SLOW), data(1), trailers(("x-a", "b"), (":method", "GET"))], MALFORMED),
    # Malformed, says the RFC, but h2 drops such a field and says nothing. The origin gets none of it.
    Case(
        "8.3",
        "one in trailers, before other fields",
        [post(1, "/echo"), data(1), trailers((":method", "GET"), ("x-a", "b"))],
        Answered(body=b"body"),
    ),
    Case("8.3", "one of a response in trailers", [post(1, "/echo"), data(1), trailers((":status", "200"))], Answered(body=b"body")),
    Case("8.3", "one that there isn't in trailers", [post(1, SLOW), data(1), trailers((":foo", "b"))], NO_FIELD),
    Case("8.3", "any order", of(AUTHORITY, PATH, SCHEME, METHOD), Answered()),
    *(
        Case("8.3.1", f"no {missing[0]}", of(*(one for one in (METHOD, SCHEME, PATH, AUTHORITY) if one != missing)), MALFORMED)
        for missing in (METHOD, SCHEME, PATH)
    ),
    *(
        Case("8.3.1", f"two of {twice[0]}", of(METHOD, SCHEME, PATH, AUTHORITY, twice), MALFORMED)
        for twice in (METHOD, SCHEME, PATH, AUTHORITY)
    ),
    *(
        Case(
            "8.3.1",
            f"a {name} of nothing",
            of(*((one, "" if one == name else value) for one, value in (METHOD, SCHEME, PATH, AUTHORITY))),
            expected,
        )
        for name, expected in [(":method", NO_FIELD), (":scheme", Answered(400)), (":path", MALFORMED)]
    ),
    *(
        Case("8.3.1", f"a path {name}", of(METHOD, SCHEME, (":path", written), AUTHORITY), expected)
        for name, written, expected in [
            ("without a slash", "a", MALFORMED),
            ("that is a URL", "http://b/", MALFORMED),
            ("with a space", "/a b", MALFORMED),
            ("with CR and LF", "/a\r\nx: y", MALFORMED),
            ("with NUL", "/a\0", MALFORMED),
            ("of * without OPTIONS", "*", Answered(400)),
            ("that begins with a query", "?a", Answered(400)),
            ("with a query", "/?a=b", Answered()),
            ("with two slashes", "//a", Answered()),
        ]
    ),
    Case("8.3.1", "a path of * with OPTIONS", of((":method", "OPTIONS"), SCHEME, (":path", "*"), AUTHORITY), Answered()),
    Case("8.3.1", "a method that is no token", of((":method", "G T"), SCHEME, PATH, AUTHORITY), NO_FIELD),
    Case("8.3.1", "a scheme that the proxy doesn't know", of(METHOD, (":scheme", "ftp"), PATH, AUTHORITY), Answered(400)),
    Case("8.3.1", "an authority with a user", of(METHOD, SCHEME, PATH, (":authority", "user@localhost")), Answered(400)),
    Case("8.3.1", "an authority that is a list", of(METHOD, SCHEME, PATH, (":authority", "a,b")), Answered(400)),
    Case("8.3.1", "an authority with a path", of(METHOD, SCHEME, PATH, (":authority", "a/b")), MALFORMED),
    Case("8.3.1", "neither authority nor host", of(METHOD, SCHEME, PATH), Answered(400)),
    Case(
        "8.3.1",
        "host in the place of authority",
        of(METHOD, SCHEME, (":path", "/headers"), ("host", "localhost")),
        Answered(contains=b"host: localhost"),
    ),
    Case("8.3.1", "host beside the same authority", fields(("host", "localhost")), Answered(contains=b"host: localhost")),
    Case("8.3.1", "host beside another authority", fields(("host", "other")), Answered(400)),
    Case("8.3.1", "two of host", of(METHOD, SCHEME, PATH, ("host", "localhost"), ("host", "localhost")), Answered(400)),
]


def with_length(length: str, *pieces: bytes) -> list:
    """A POST of this length with a frame for each piece."""
    *others, last = pieces
    return [post(1, SLOW, ("content-length", length)), *(data(1, piece) for piece in others), data(1, last, "END_STREAM")]


LENGTHS = [
    *(
        Case("8.1.1", f"a length {name}", steps, MALFORMED)
        for name, steps in [
            ("above the data", with_length("5", b"body")),
            ("below the data", with_length("3", b"body")),
            ("above the data of several frames", with_length("9", b"body", b"body")),
            ("below the data of several frames", with_length("5", b"body", b"body")),
            ("of 0 with data", with_length("0", b"body")),
            ("of words", with_length("four", b"body")),
            ("with a sign", with_length("+4", b"body")),
            ("below 0", with_length("-4", b"body")),
            ("that is a list", with_length("4, 4", b"body")),
            ("in hexadecimal", with_length("0x4", b"body")),
            ("that no number has room for", with_length("9" * 40, b"body")),
            ("without data", [headers(1, request("POST", SLOW, ("content-length", "4")), "END_STREAM")]),
            ("above the data, before trailers", [post(1, SLOW, ("content-length", "5")), data(1), trailers(("x-a", "b"))]),
            ("given twice, differently", [post(1, SLOW, ("content-length", "4"), ("content-length", "5")), data(1, b"body", "END_STREAM")]),
        ]
    ),
    Case(
        "8.1.1",
        "padding is no data",
        [post(1, "/echo", ("content-length", "4")), data(1, b"body", "END_STREAM", "PADDED", pad_length=9)],
        Answered(body=b"body"),
    ),
    Case(
        "8.1.1",
        "the length of a response to HEAD is that of GET",
        [headers(1, request("HEAD", "/bytes/100"), "END_STREAM")],
        Meets("a length of 100", lambda client: require(client.head_of(1).field("content-length") == "100", "another")),
    ),
]

CONNECT = [
    Case("8.5", "a tunnel, which the proxy doesn't have", of((":method", "CONNECT"), (":authority", "localhost:80")), Answered(405)),
    Case("8.5", "a path", of((":method", "CONNECT"), (":authority", "localhost:80"), PATH), MALFORMED),
    Case("8.5", "a scheme", of((":method", "CONNECT"), (":authority", "localhost:80"), SCHEME), MALFORMED),
    Case("8.5", "no authority", of((":method", "CONNECT")), Answered(405)),
    Case(
        "8441 3",
        "it is offered",
        [],
        Meets("ENABLE_CONNECT_PROTOCOL of 1", lambda client: require(client.theirs.get(8) == 1, client.theirs)),
    ),
    Case(
        "8441 4",
        "a WebSocket",
        [
            headers(1, block((":method", "CONNECT"), (":protocol", "websocket"), SCHEME, (":path", "/upgrade"), AUTHORITY)),
            lambda client: client.head_of(1),
            data(1, b"frames"),
        ],
        Meets(
            "every byte echoed",
            lambda client: require(client.until(lambda event: isinstance(event, frames.DataFrame)).data == b"frames", "another"),
        ),
    ),
    Case("8441 4", ":protocol without a path", of((":method", "CONNECT"), (":protocol", "websocket"), SCHEME, AUTHORITY), MALFORMED),
    Case("8441 4", ":protocol without a scheme", of((":method", "CONNECT"), (":protocol", "websocket"), PATH, AUTHORITY), MALFORMED),
    Case("8441 4", ":protocol with another method", of(METHOD, (":protocol", "websocket"), SCHEME, PATH, AUTHORITY), MALFORMED),
    Case(
        "8441 4",
        "a protocol that the proxy doesn't know",
        of((":method", "CONNECT"), (":protocol", "connect-udp"), SCHEME, PATH, AUTHORITY),
        Answered(501),
    ),
]

LIMITS = [
    Case(
        "10.5.1",
        "a head above MAX_HEADER_LIST_SIZE",
        [raw(HEADERS, END_STREAM, 1, request()), *[continuation(1, block(("x-a", "b" * 16000)))] * 4, continuation(1, b"", "END_HEADERS")],
        Meets("431", lambda client: require(client.head_of(1).status == 431, "another")),
    ),
    Case(
        "10.5.1",
        "a head that the proxy still reads, and refuses",
        [raw(HEADERS, END_STREAM, 1, request()), *[continuation(1, block(("x-a", "b" * 12000)))] * 3, continuation(1, b"", "END_HEADERS")],
        Answered(431),
    ),
    Case("10.5", "more fields than the proxy takes", [get(1, "/", *((f"x-{number}", "v") for number in range(101)))], Answered(431)),
]

CASES = [*EXCHANGES, *NAMES, *VALUES, *CONNECTION, *PSEUDO, *LENGTHS, *CONNECT, *LIMITS]

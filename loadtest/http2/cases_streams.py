"""Streams and their states, errors and extensions: RFC 9113, section 5."""

from hyperframe import frame as frames

from case import Case, ends, has_reset
from cases_frames import END_HEADERS, END_STREAM, HEADERS, SLOW, UNKNOWN
from client import (
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    Client,
    Closed,
    block,
    continuation,
    data,
    describe,
    get,
    headers,
    is_reset,
    ping,
    post,
    priority,
    raw,
    request,
    rst,
    window,
)
from expect import Answered, ConnectionFails, Either, Meets, StreamFails, Works, require

# What comes of a frame behind the end of a stream depends on how much h2 still knows of that. Section 5.1 has an error of the connection,
# if the end was the client's own word, and otherwise one of the stream.
TOO_LATE = Either(StreamFails(STREAM_CLOSED), ConnectionFails(STREAM_CLOSED, PROTOCOL_ERROR))
TRAILERS = headers(1, block(("x-a", "b")), "END_STREAM")

IDLE = [
    Case("5.1", "idle: DATA", [data(1)], ConnectionFails(PROTOCOL_ERROR)),
    Case("5.1", "idle: RST_STREAM", [rst(1)], ConnectionFails(PROTOCOL_ERROR)),
    Case("5.1", "idle: WINDOW_UPDATE", [window(1, 1)], ConnectionFails(PROTOCOL_ERROR)),
    Case("5.1", "idle: CONTINUATION", [continuation(1, request(), "END_HEADERS")], ConnectionFails(PROTOCOL_ERROR)),
    Case("5.1", "idle: PRIORITY", [priority(1)], Works()),
    Case("5.1", "idle: an unknown frame", [raw(UNKNOWN, 0, 1, bytes(8))], Works()),
]

OPEN = [
    Case(
        "5.1",
        "open: every frame that it may have",
        [post(1), priority(1), window(1, 1), raw(UNKNOWN, 0, 1), data(1, b"body", "END_STREAM")],
        Answered(contains=b"4"),
    ),
    Case("5.1", "open: RST_STREAM", [post(1), rst(1)], Works()),
]

# The client has sent its end, and waits for a response.
HALF_CLOSED = [
    Case("5.1", "half-closed (remote): DATA", [get(1, SLOW), data(1)], TOO_LATE),
    Case("5.1", "half-closed (remote): HEADERS", [get(1, SLOW), get(1)], TOO_LATE),
    Case("5.1", "half-closed (remote): trailers", [get(1, SLOW), TRAILERS], TOO_LATE),
    Case("5.1", "half-closed (remote): CONTINUATION", [get(1, SLOW), continuation(1, b"", "END_HEADERS")], ConnectionFails(PROTOCOL_ERROR)),
    Case("5.1", "half-closed (remote): WINDOW_UPDATE", [get(1, SLOW), window(1, 1)], Works()),
    Case("5.1", "half-closed (remote): PRIORITY", [get(1, SLOW), priority(1)], Works()),
    Case("5.1", "half-closed (remote): RST_STREAM", [get(1, SLOW), rst(1)], Works()),
    Case("5.1", "half-closed (remote): an unknown frame", [get(1, SLOW), raw(UNKNOWN, 0, 1)], Works()),
]

# Both have sent their ends.
CLOSED = [
    Case("5.1", "closed: DATA", [get(1), ends(), data(1)], TOO_LATE),
    Case("5.1", "closed: HEADERS", [get(1), ends(), get(1)], TOO_LATE),
    Case("5.1", "closed: CONTINUATION", [get(1), ends(), continuation(1, b"", "END_HEADERS")], ConnectionFails(PROTOCOL_ERROR)),
    Case("5.1", "closed: WINDOW_UPDATE", [get(1), ends(), window(1, 1)], Works()),
    Case("5.1", "closed: PRIORITY", [get(1), ends(), priority(1)], Works()),
    Case("5.1", "closed: RST_STREAM", [get(1), ends(), rst(1)], Works()),
    Case("5.1", "closed: an unknown frame", [get(1), ends(), raw(UNKNOWN, 0, 1)], Works()),
]

# The client has reset it.
RESET = [
    Case("5.1", "reset by the client: DATA", [post(1), rst(1), data(1)], TOO_LATE),
    Case("5.1", "reset by the client: HEADERS", [post(1), rst(1), get(1)], TOO_LATE),
    Case(
        "5.1", "reset by the client: CONTINUATION", [post(1), rst(1), continuation(1, b"", "END_HEADERS")], ConnectionFails(PROTOCOL_ERROR)
    ),
    Case("5.1", "reset by the client: WINDOW_UPDATE", [post(1), rst(1), window(1, 1)], Works()),
    Case("5.1", "reset by the client: PRIORITY", [post(1), rst(1), priority(1)], Works()),
    Case("5.1", "reset by the client: RST_STREAM", [post(1), rst(1), rst(1)], Works()),
]

# The proxy has reset it, which the client may not know yet: what was on its way is dropped.
MALFORMED = headers(1, request("POST", "/", ("connection", "close")))
REFUSED = [
    Case("5.1", "reset by the proxy: DATA that was on its way", [MALFORMED, has_reset(), data(1)], Works(lambda event: is_reset(event, 1))),
    Case(
        "5.1",
        "reset by the proxy: trailers that were on their way",
        [MALFORMED, has_reset(), TRAILERS],
        Works(lambda event: is_reset(event, 1)),
    ),
    Case("5.1", "reset by the proxy: WINDOW_UPDATE that was on its way", [MALFORMED, has_reset(), window(1, 1)], Works()),
    Case("5.1", "reset by the proxy: RST_STREAM that was on its way", [MALFORMED, has_reset(), rst(1)], Works()),
]

IDENTIFIERS = [
    Case("5.1.1", "an even one", [get(2)], ConnectionFails(PROTOCOL_ERROR)),
    Case("5.1.1", "a lower one than before", [get(5), ends(5), get(3)], ConnectionFails(PROTOCOL_ERROR, STREAM_CLOSED)),
    Case("5.1.1", "data of one that was skipped, and is closed", [get(5), ends(5), data(3)], StreamFails(STREAM_CLOSED, stream=3)),
    Case("5.1.1", "some are skipped", [get(1), get(77), get(1001)], Answered(stream=1001)),
    Case(
        "5.1.1",
        "the highest",
        [raw(HEADERS, END_STREAM | END_HEADERS, 2**31 - 1, request())],
        Meets("a response", lambda client: require(client.response(2**31 - 1)[0].status == 200, "none")),
    ),
    Case(
        "5.1.1",
        "one behind the highest",
        [raw(HEADERS, END_STREAM | END_HEADERS, 2**31 - 1, request()), get(1)],
        ConnectionFails(PROTOCOL_ERROR, STREAM_CLOSED),
    ),
]


def one_too_many(client: Client) -> None:
    """Of 101 streams one is refused. Another that ends makes room."""
    client.send(*(get(stream, SLOW) for stream in range(1, 203, 2)))
    refused = client.until(lambda event: isinstance(event, frames.RstStreamFrame))
    require(refused.stream_id == 201 and refused.error_code in (REFUSED_STREAM, PROTOCOL_ERROR), describe(refused))
    client.send(rst(1), get(203))
    require(client.response(203)[0].status == 200, "no response")


def at_a_time(client: Client) -> None:
    """A stream that waits doesn't hold up others; responses come in whatever order they are there."""
    client.send(get(1, "/delay/300"), get(3), get(5, "/bytes/100000"), get(7, "/delay/50"))
    client.send(window(0, 1 << 20), window(5, 1 << 20))
    order = []
    while len(order) < 4:
        event = client.receive()
        if "END_STREAM" in getattr(event, "flags", []):
            order.append(event.stream_id)
    require(order[-1] == 1, order)


CONCURRENCY = [
    Case("5.1.2", "one more than MAX_CONCURRENT_STREAMS", [], Meets("REFUSED_STREAM, and room once another has ended", one_too_many)),
    Case("5.1.2", "many, one after the other", [step for stream in range(1, 301, 2) for step in (get(stream), ends(stream))], Works()),
    Case("5", "several at a time", [], Meets("none waits for another", at_a_time)),
    Case(
        "5.2",
        "a stream whose window is closed holds up no other",
        [get(1, "/bytes/100"), get(3, "/bytes/100"), window(3, 100)],
        Meets("a whole response on 3", lambda client: require(len(client.response(3)[1]) == 100, "less")),
        own={4: 0},
    ),
]


def last_stream(client: Client) -> None:
    """The last stream in GOAWAY is the highest that may have had an effect."""
    client.response(1)
    client.send(get(5), raw(6, 0, 0, bytes(7)))
    goaway = client.until(lambda event: isinstance(event, frames.GoAwayFrame))
    require(goaway.error_code in (PROTOCOL_ERROR, 6) and goaway.last_stream_id == 5, describe(goaway))
    client.until(lambda event: isinstance(event, Closed))


def deaf(client: Client) -> None:
    """Behind an error of the connection no request is heard."""
    client.send(raw(6, 0, 1, bytes(8)), get(1), ping())
    event = client.until(lambda event: not isinstance(event, frames.WindowUpdateFrame))
    require(isinstance(event, frames.GoAwayFrame) and event.last_stream_id == 0, describe(event))
    event = client.until(lambda event: not isinstance(event, frames.GoAwayFrame))
    require(isinstance(event, Closed), describe(event))


def no_reset_is_answered(client: Client) -> None:
    """An endpoint must not send RST_STREAM for RST_STREAM, or two would go on for ever (section 5.4.2)."""
    client.send(get(1, SLOW), rst(1), rst(1), ping())
    event = client.until(lambda event: isinstance(event, frames.RstStreamFrame | frames.PingFrame))
    require(isinstance(event, frames.PingFrame), describe(event))


ERRORS = [
    Case("5.4.1", "the last stream", [get(1)], Meets("GOAWAY with the highest that was accepted", last_stream)),
    Case("5.4.1", "requests behind an error", [], Meets("GOAWAY, the end, and nothing else", deaf)),
    Case("5.4.2", "RST_STREAM", [], Meets("no RST_STREAM in return", no_reset_is_answered)),
    Case(
        "5.4.2",
        "an error of one stream while others are open",
        [get(1, "/delay/200"), headers(3, request("GET", "/", ("te", "gzip")), "END_STREAM"), has_reset(3)],
        Answered(),
    ),
    Case(
        "5.4.2",
        "an error after others were answered",
        [get(1), ends(), headers(3, request("GET", "/", ("te", "gzip")), "END_STREAM")],
        StreamFails(PROTOCOL_ERROR, stream=3),
    ),
]

EXTENSIONS = [
    Case("5.5", "an unknown frame of no stream", [raw(UNKNOWN, 0xFF, 0, b"whatever")], Works()),
    Case(
        "5.5",
        "an unknown frame between a head and its data",
        [post(1), raw(UNKNOWN, 0, 1, bytes(100)), data(1, b"body", "END_STREAM")],
        Answered(contains=b"4"),
    ),
    Case("5.5", "every type that nobody has defined", [raw(kind, 0, 0, bytes(4)) for kind in range(0xA, 0x100)], Works()),
    Case(
        "7540 5.3",
        "priorities of streams that will never be",
        [priority(stream, stream + 2, exclusive=True) for stream in range(3, 43, 2)],
        Works(),
    ),
    Case("9218 7.1", "PRIORITY_UPDATE", [raw(0x10, 0, 0, bytes([0, 0, 0, 1]) + b"u=1"), get(1)], Answered()),
    Case("8336 2", "ORIGIN, to a server", [raw(0xC, 0, 0, b"\0\x0chttps://a.com")], Works()),
    Case("7838 4", "ALTSVC, to a server", [raw(0xA, 0, 0, b"\0\x01ah3")], Works()),
]

CASES = [*IDLE, *OPEN, *HALF_CLOSED, *CLOSED, *RESET, *REFUSED, *IDENTIFIERS, *CONCURRENCY, *ERRORS, *EXTENSIONS]

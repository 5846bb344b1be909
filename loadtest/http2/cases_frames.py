"""The beginning of a connection, and each kind of frame: RFC 9113, sections 3, 4, 6 and 7."""

from dataclasses import replace

from hyperframe import frame as frames

from case import Case, uploads
from client import (
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    INITIAL_WINDOW_SIZE,
    LARGEST_WINDOW,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PREFACE,
    PROTOCOL_ERROR,
    Client,
    Closed,
    block,
    continuation,
    data,
    describe,
    get,
    headers,
    ping,
    post,
    priority,
    raw,
    request,
    rst,
    settings,
    window,
)
from expect import Answered, ConnectionFails, Either, Ends, Meets, StreamFails, Works, require

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ALL_FLAGS, ACK, END_STREAM, END_HEADERS, PADDED, PRIORITIZED = 0xFF, 1, 1, 4, 8, 0x20
UNKNOWN = 0x16
# An answer that does not come while a case is run, so that its stream is half-closed (remote).
SLOW = "/delay/60000"
# h2 has one code for whatever it can't parse, where the RFC has FRAME_SIZE_ERROR. It ends the connection, as section 5.4.1 demands; a code
# changes nothing else (section 7).
UNPARSED = ConnectionFails(PROTOCOL_ERROR, FRAME_SIZE_ERROR)
# A field section begins that doesn't end.
BEGUN = headers(1, request(), "END_STREAM")
BEGUN.flags.discard("END_HEADERS")


def setting(identifier: int, value: int) -> bytes:
    return raw(SETTINGS, 0, 0, identifier.to_bytes(2, "big") + value.to_bytes(4, "big"))


def in_bytes(client: Client) -> None:
    client.unacknowledged.append({})
    for byte in PREFACE + frames.SettingsFrame(0).serialize():
        client.send(bytes([byte]))


def first_settings(client: Client) -> None:
    event = client.receive()
    require(isinstance(event, frames.SettingsFrame) and "ACK" not in event.flags, describe(event))
    own = event.settings
    require(own.get(2, 0) == 0, f"ENABLE_PUSH {own.get(2)}")
    require(own.get(INITIAL_WINDOW_SIZE, 65535) <= LARGEST_WINDOW, f"INITIAL_WINDOW_SIZE {own.get(INITIAL_WINDOW_SIZE)}")
    require(16384 <= own.get(MAX_FRAME_SIZE, 16384) < 2**24, f"MAX_FRAME_SIZE {own.get(MAX_FRAME_SIZE)}")
    require(own.get(MAX_CONCURRENT_STREAMS) == 100, f"MAX_CONCURRENT_STREAMS {own.get(MAX_CONCURRENT_STREAMS)}")
    require(own.get(MAX_HEADER_LIST_SIZE, 0) >= 32768, f"MAX_HEADER_LIST_SIZE {own.get(MAX_HEADER_LIST_SIZE)}")
    Works()(client)


STARTING = [
    Case(
        "3.4",
        "the preface and empty SETTINGS",
        [PREFACE, settings()],
        Meets("SETTINGS first, within their bounds", first_settings),
        own=None,
    ),
    Case("3.4", "a byte at a time", [in_bytes], Works(), own=None),
    Case("3.4", "a request behind it, before anything was received", [PREFACE, settings(), get(1)], Answered(), own=None),
    Case("3.4", "an invalid preface", [b"INVALID CONNECTION PREFACE\r\n\r\n"], Ends(), own=None),
    Case("3.4", "a preface that goes wrong at its last byte", [PREFACE[:-1] + b"X", settings(), get(1)], Ends(), own=None),
    Case("3.4", "no SETTINGS behind it", [PREFACE, get(1)], Ends(), own=None),
    Case("3.4", "PING behind it, and then SETTINGS", [PREFACE, ping(), settings()], Ends(), own=None),
    Case(
        "3.4",
        "an acknowledgement behind it, in the place of SETTINGS",
        [PREFACE, raw(SETTINGS, ACK, 0)],
        ConnectionFails(PROTOCOL_ERROR),
        own=None,
    ),
]

FRAMES = [
    Case("4.1", "a frame of an unknown type", [raw(UNKNOWN, 0, 0, bytes(8))], Works()),
    Case(
        "4.1",
        "PING with flags that it doesn't have",
        [raw(PING, ALL_FLAGS - ACK, 0, bytes(8))],
        Meets("an acknowledgement", lambda client: client.until(lambda event: isinstance(event, frames.PingFrame))),
    ),
    Case("4.1", "HEADERS with flags that it doesn't have", [raw(HEADERS, 0xD2 | END_STREAM | END_HEADERS, 1, request())], Answered()),
    Case("4.1", "DATA with flags that it doesn't have", [post(1), raw(DATA, 0xF6 | END_STREAM, 1, b"body")], Answered(contains=b"4")),
    Case(
        "4.1",
        "PING whose reserved bit is set",
        [raw(PING, 0, 1 << 31, bytes(8))],
        Meets("an acknowledgement", lambda client: client.until(lambda event: isinstance(event, frames.PingFrame))),
    ),
    Case("4.1", "HEADERS whose reserved bit is set", [raw(HEADERS, END_STREAM | END_HEADERS, 1 << 31 | 1, request())], Answered()),
    Case("4.2", "DATA of 2^14 bytes", [post(1), data(1, bytes(16384), "END_STREAM")], Answered(contains=b"16384")),
    Case("4.2", "DATA of a byte more", [post(1), raw(DATA, 0, 1, bytes(16385))], ConnectionFails(FRAME_SIZE_ERROR)),
    Case("4.2", "HEADERS of a byte more", [raw(HEADERS, END_STREAM | END_HEADERS, 1, bytes(16385))], ConnectionFails(FRAME_SIZE_ERROR)),
    Case("4.2", "CONTINUATION of a byte more", [BEGUN, raw(CONTINUATION, END_HEADERS, 1, bytes(16385))], ConnectionFails(FRAME_SIZE_ERROR)),
    Case("4.2", "SETTINGS of more than 2^14 bytes", [raw(SETTINGS, 0, 0, bytes(16386))], ConnectionFails(FRAME_SIZE_ERROR)),
    Case("4.2", "a frame of an unknown type of a byte more", [raw(UNKNOWN, 0, 0, bytes(16385))], ConnectionFails(FRAME_SIZE_ERROR)),
    Case("4.2", "no frame of the proxy's is larger than 2^14 bytes", [get(1, "/bytes/60000")], Answered()),
    Case("4.2", "nor than MAX_FRAME_SIZE allows", [get(1, "/bytes/60000")], Answered(), own={MAX_FRAME_SIZE: 20000}),
]

# RFC 9113, section 4.3 and 6.10: nothing comes between the frames of a field section.
INTERRUPTED = [
    Case("4.3", f"{name} inside a field section", [BEGUN, between], ConnectionFails(PROTOCOL_ERROR))
    for name, between in [
        ("DATA", data(1)),
        ("HEADERS of the same stream", get(1)),
        ("HEADERS of another stream", get(3)),
        ("PRIORITY", priority(1)),
        ("RST_STREAM", rst(1)),
        ("SETTINGS", settings()),
        ("PUSH_PROMISE", raw(PUSH_PROMISE, END_HEADERS, 1, bytes([0, 0, 0, 2]) + request())),
        ("PING", ping()),
        ("GOAWAY", raw(GOAWAY, 0, 0, bytes(8))),
        ("WINDOW_UPDATE", window(0, 1)),
        ("CONTINUATION of another stream", continuation(3, b"", "END_HEADERS")),
        ("a frame of an unknown type", raw(UNKNOWN, 0, 1, bytes(8))),
    ]
]

DATA_FRAMES = [
    Case("6.1", "several frames", [post(1), data(1, b"a"), data(1, b"bc"), data(1, b"def", "END_STREAM")], Answered(contains=b"6")),
    Case("6.1", "padding", [post(1, "/echo"), data(1, b"body", "END_STREAM", "PADDED", pad_length=200)], Answered(body=b"body")),
    Case("6.1", "padding of no bytes", [post(1, "/echo"), data(1, b"body", "END_STREAM", "PADDED")], Answered(body=b"body")),
    Case("6.1", "padding alone", [post(1, "/echo"), raw(DATA, PADDED | END_STREAM, 1, bytes([255]) + bytes(255))], Answered(body=b"")),
    Case("6.1", "an end without data", [post(1, "/echo"), data(1, b"body"), data(1, b"", "END_STREAM")], Answered(body=b"body")),
    Case("6.1", "stream 0", [raw(DATA, END_STREAM, 0, b"body")], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.1", "padding as long as the frame", [post(1), raw(DATA, PADDED | END_STREAM, 1, b"\x05body")], ConnectionFails(PROTOCOL_ERROR)),
    Case(
        "6.1", "padding longer than the frame", [post(1), raw(DATA, PADDED | END_STREAM, 1, b"\xffbody")], ConnectionFails(PROTOCOL_ERROR)
    ),
    Case("6.1", "padding without its length", [post(1), raw(DATA, PADDED | END_STREAM, 1)], UNPARSED),
]

HEADERS_FRAMES = [
    Case("6.2", "padding", [headers(1, request(), "END_STREAM", "PADDED", pad_length=100)], Answered()),
    Case(
        "6.2", "a priority", [headers(1, request(), "END_STREAM", "PRIORITY", depends_on=11, stream_weight=255, exclusive=True)], Answered()
    ),
    Case(
        "6.2",
        "padding and a priority",
        [headers(1, request(), "END_STREAM", "PADDED", "PRIORITY", pad_length=9, stream_weight=1)],
        Answered(),
    ),
    Case("6.2", "stream 0", [raw(HEADERS, END_STREAM | END_HEADERS, 0, request())], ConnectionFails(PROTOCOL_ERROR)),
    Case(
        "6.2",
        "padding longer than the frame",
        [raw(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, b"\xff" + request())],
        ConnectionFails(PROTOCOL_ERROR),
    ),
    Case("6.2", "padding without its length", [raw(HEADERS, END_STREAM | END_HEADERS | PADDED, 1)], UNPARSED),
    Case("6.2", "half a priority", [raw(HEADERS, END_STREAM | END_HEADERS | PRIORITIZED, 1, b"\0\0\0")], UNPARSED),
    Case("6.2", "no field at all", [raw(HEADERS, END_STREAM | END_HEADERS, 1)], StreamFails(PROTOCOL_ERROR)),
]

PRIORITY_FRAMES = [
    Case("6.3", "a weight of 1", [get(1, SLOW), priority(1, weight=0)], Works()),
    Case("6.3", "a weight of 256", [get(1, SLOW), priority(1, weight=255)], Works()),
    Case("6.3", "depending on another stream alone", [get(1, SLOW), get(3, SLOW), priority(3, 1, exclusive=True)], Works()),
    Case("6.3", "a stream that is idle, and one below it afterwards", [priority(7, 1), get(1)], Answered()),
    Case("6.3", "stream 0", [raw(PRIORITY, 0, 0, bytes(5))], ConnectionFails(PROTOCOL_ERROR)),
    # An error of the stream, says the RFC; h2 ends the connection, as section 5.4.1 allows.
    Case("6.3", "too short", [get(1, SLOW), raw(PRIORITY, 0, 1, bytes(4))], UNPARSED),
    Case("6.3", "too long", [get(1, SLOW), raw(PRIORITY, 0, 1, bytes(6))], UNPARSED),
    Case(
        "7540 5.3.1",
        "in HEADERS, on the own stream",
        [headers(1, request(), "END_STREAM", "PRIORITY", depends_on=1)],
        StreamFails(PROTOCOL_ERROR),
    ),
    Case("7540 5.3.1", "on the own stream", [get(1, SLOW), priority(1, 1)], StreamFails(PROTOCOL_ERROR)),
]

RST_STREAM_FRAMES = [
    Case("6.4", "a request that is under way", [get(1, SLOW), rst(1)], Works()),
    Case("6.4", "an upload that is under way", [post(1), data(1), rst(1)], Works()),
    Case("6.4", "stream 0", [raw(RST_STREAM, 0, 0, bytes(4))], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.4", "an idle stream", [rst(1)], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.4", "too short", [get(1, SLOW), raw(RST_STREAM, 0, 1, bytes(3))], UNPARSED),
    Case("6.4", "too long", [get(1, SLOW), raw(RST_STREAM, 0, 1, bytes(5))], UNPARSED),
    Case("7", "a code that nobody knows", [get(1, SLOW), rst(1, 0xFF)], Works()),
]


def settings_in_order(client: Client) -> None:
    """Each is acknowledged, in the order in which they came; the last value holds."""
    values = (1, 0, 3)
    for value in values:
        client.send(settings(INITIAL_WINDOW_SIZE=value))
    for _ in values:
        client.until(lambda event: isinstance(event, frames.SettingsFrame) and "ACK" in event.flags)
    client.send(get(1))
    require(client.head_of(1).status == 200, "no response")
    sent = client.until(lambda event: isinstance(event, frames.DataFrame))
    require(len(sent.data) == 3, describe(sent))


SETTINGS_FRAMES = [
    Case("6.5", "an acknowledgement with a payload", [raw(SETTINGS, ACK, 0, bytes(6))], UNPARSED),
    Case("6.5", "a stream", [raw(SETTINGS, 0, 1)], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.5", "a length that is no multiple of 6", [raw(SETTINGS, 0, 0, bytes(3))], UNPARSED),
    Case("6.5.2", "ENABLE_PUSH of 2", [setting(2, 2)], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.5.2", "INITIAL_WINDOW_SIZE of 2^31", [setting(4, 1 << 31)], ConnectionFails(FLOW_CONTROL_ERROR, PROTOCOL_ERROR)),
    Case("6.5.2", "INITIAL_WINDOW_SIZE of 2^31 - 1", [setting(4, LARGEST_WINDOW)], Works()),
    Case("6.5.2", "MAX_FRAME_SIZE below 2^14", [setting(5, 16383)], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.5.2", "MAX_FRAME_SIZE of 2^24", [setting(5, 1 << 24)], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.5.2", "MAX_FRAME_SIZE of 2^24 - 1", [setting(5, (1 << 24) - 1)], Works()),
    Case("6.5.2", "an identifier that nobody knows", [setting(0xFF, 1)], Works()),
    Case("6.5.2", "an identifier of 0", [setting(0, 1)], Works()),
    Case("6.5.2", "MAX_CONCURRENT_STREAMS of 0, which is of no matter to whoever opens none", [setting(3, 0)], Works()),
    Case("6.5.2", "MAX_HEADER_LIST_SIZE of 0, which is advice", [setting(6, 0)], Works()),
    Case("6.5.3", "one after the other", [], Meets("each acknowledged, and the last value in force", settings_in_order)),
    Case(
        "6.5.3",
        "a value twice in one frame: the last holds",
        [setting(4, 0)[:3].replace(b"\x06", b"\x0c") + setting(4, 0)[3:] + setting(4, 2)[9:], get(1)],
        Meets(
            "DATA of 2 bytes",
            lambda client: require(
                len(client.until(lambda event: isinstance(event, frames.DataFrame) and event.data).data) == 2, "another size"
            ),
        ),
        own={INITIAL_WINDOW_SIZE: 9},
    ),
    Case("8441 3", "ENABLE_CONNECT_PROTOCOL of 1, to a server", [setting(8, 1)], Works()),
]

PUSH_PROMISE_FRAMES = [
    Case(
        "6.6",
        "from a client",
        [post(1), raw(PUSH_PROMISE, END_HEADERS, 1, bytes([0, 0, 0, 2]) + request())],
        ConnectionFails(PROTOCOL_ERROR),
    ),
    Case("6.6", "on stream 0", [raw(PUSH_PROMISE, END_HEADERS, 0, bytes([0, 0, 0, 2]) + request())], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.6", "on an idle stream", [raw(PUSH_PROMISE, END_HEADERS, 1, bytes([0, 0, 0, 2]) + request())], ConnectionFails(PROTOCOL_ERROR)),
]


def pings_in_order(client: Client) -> None:
    sent = [bytes([number]) * 8 for number in range(9)]
    client.send(*(ping(payload) for payload in sent))
    came = [client.until(lambda event: isinstance(event, frames.PingFrame)).opaque_data for _ in sent]
    require(came == sent, came)


PING_FRAMES = [
    Case("6.7", "several", [], Meets("acknowledgements with the same payloads", pings_in_order)),
    # That of the next PING is the first to come.
    Case("6.7", "an acknowledgement that nobody waits for", [raw(PING, ACK, 0, b"nobody's")], Works()),
    Case("6.7", "a stream", [raw(PING, 0, 1, bytes(8))], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.7", "too short", [raw(PING, 0, 0, bytes(6))], UNPARSED),
    Case("6.7", "too long", [raw(PING, 0, 0, bytes(9))], UNPARSED),
]


def answered_and_ended(client: Client) -> None:
    """Streams that are open when the client says goodbye are answered. Then the proxy ends the connection."""
    require(client.response(1)[0].status == 200, "no response")
    client.until(lambda event: isinstance(event, Closed))


GOAWAY_FRAMES = [
    Case("6.8", "a stream", [raw(GOAWAY, 0, 1, bytes(8))], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.8", "too short", [raw(GOAWAY, 0, 0, bytes(7))], UNPARSED),
    Case(
        "6.8",
        "while a stream is open",
        [get(1, "/delay/50"), raw(GOAWAY, 0, 0, bytes(8))],
        Meets("its response, and then the end", answered_and_ended),
    ),
    Case(
        "6.8",
        "with debug data",
        [get(1, "/delay/50"), raw(GOAWAY, 0, 0, bytes(8) + b"good bye")],
        Meets("the response, and then the end", answered_and_ended),
    ),
    Case(
        "7",
        "a code that nobody knows",
        [get(1, "/delay/50"), raw(GOAWAY, 0, 0, bytes(4) + b"\0\0\0\xff")],
        Meets("the response, and then the end", answered_and_ended),
    ),
]


def sent_of(client: Client, *sizes: int) -> None:
    """DATA on stream 1 comes in these sizes, and then the client is asked for more window."""
    for size in sizes:
        sent = client.until(lambda event: isinstance(event, frames.DataFrame) and event.data)
        require(len(sent.data) == size, describe(sent))
    # Nothing follows while the window is closed: the acknowledgement comes first.
    client.send(ping())
    event = client.receive()
    require(isinstance(event, frames.PingFrame), describe(event))


def negative_window(client: Client) -> None:
    """A window that has become negative opens when it's above 0 again, and not before (section 6.9.2)."""
    client.send(get(1, "/bytes/100"))
    sent_of(client, 10)
    client.send(settings(INITIAL_WINDOW_SIZE=4))
    client.until(lambda event: isinstance(event, frames.SettingsFrame) and "ACK" in event.flags)
    # Now it's 4 - 10 = -6.
    client.send(window(1, 6))
    sent_of(client)
    client.send(window(1, 2))
    sent_of(client, 2)


def grows_by_settings(client: Client) -> None:
    client.send(get(1, "/bytes/100"))
    require(client.head_of(1).status == 200, "no response")
    client.send(settings(INITIAL_WINDOW_SIZE=7))
    sent_of(client, 7)


def window_of_connection(client: Client) -> None:
    """The connection's window holds beside those of the streams, and isn't changed by settings."""
    client.send(get(1, "/bytes/100000"))
    received = 0
    while received < 65535:
        received += len(client.until(lambda event: isinstance(event, frames.DataFrame)).data)
    client.send(get(3, "/bytes/10"), ping())
    client.until(lambda event: isinstance(event, frames.PingFrame))
    client.send(settings(INITIAL_WINDOW_SIZE=2 << 20), window(0, 34465 + 10))
    while received < 100010:
        received += len(client.until(lambda event: isinstance(event, frames.DataFrame)).data)


def reads_nothing(stream: int) -> frames.Frame:
    """A request to switch to another protocol, which the origin doesn't answer for now: until then its data is not read."""
    return headers(
        stream, block((":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", SLOW), (":authority", "localhost"))
    )


WINDOW_UPDATE_FRAMES = [
    Case("6.9", "the connection", [window(0, 1)], Works()),
    Case("6.9", "a stream", [get(1, SLOW), window(1, 1)], Works()),
    Case("6.9", "by 0, the connection", [raw(WINDOW_UPDATE, 0, 0, bytes(4))], ConnectionFails(PROTOCOL_ERROR)),
    # An error of the stream, says the RFC; h2 ends the connection, as section 5.4.1 allows.
    Case("6.9", "by 0, a stream", [get(1, SLOW), raw(WINDOW_UPDATE, 0, 1, bytes(4))], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.9", "by 0, with the reserved bit", [raw(WINDOW_UPDATE, 0, 0, b"\x80\0\0\0")], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.9", "the reserved bit is of no matter", [raw(WINDOW_UPDATE, 0, 0, b"\x80\0\0\x01")], Works()),
    Case("6.9", "too short", [raw(WINDOW_UPDATE, 0, 0, bytes(3))], UNPARSED),
    Case("6.9", "too long", [raw(WINDOW_UPDATE, 0, 0, bytes(5))], UNPARSED),
    Case(
        "6.9.1",
        "a window of 1 byte",
        [get(1)],
        Meets("DATA of 1 byte and no more", lambda client: sent_of(client, 1)),
        own={INITIAL_WINDOW_SIZE: 1},
    ),
    Case(
        "6.9.1",
        "a window that opens by 1 byte",
        [get(1), window(1, 1)],
        Meets("DATA of 1 byte and no more", lambda client: sent_of(client, 1)),
        own={INITIAL_WINDOW_SIZE: 0},
    ),
    Case(
        "6.9.1",
        "the connection's window is beside those of streams",
        [],
        Meets("no more than it has room for", window_of_connection),
        own={INITIAL_WINDOW_SIZE: 1 << 20},
    ),
    Case(
        "6.9.1",
        "a response without a body needs no window",
        [headers(1, request("HEAD"), "END_STREAM")],
        Meets("its head, with the end", lambda client: require(client.head_of(1).ends, "more")),
        own={INITIAL_WINDOW_SIZE: 0},
    ),
    Case(
        "6.9.1",
        "the connection's window above 2^31 - 1",
        [window(0, LARGEST_WINDOW), window(0, LARGEST_WINDOW)],
        ConnectionFails(FLOW_CONTROL_ERROR),
    ),
    Case("6.9.1", "a stream's window above 2^31 - 1", [get(1, SLOW), window(1, LARGEST_WINDOW)], StreamFails(FLOW_CONTROL_ERROR)),
    Case(
        "6.9.1",
        "more than a stream's window has room for",
        [reads_nothing(1), *[data(1, bytes(16384))] * 17],
        Either(StreamFails(FLOW_CONTROL_ERROR), ConnectionFails(FLOW_CONTROL_ERROR)),
    ),
    Case(
        "6.9.1",
        "more than the connection's has room for",
        [*(frame for stream in range(1, 11, 2) for frame in [reads_nothing(stream), *[data(stream, bytes(16384))] * 15])],
        ConnectionFails(FLOW_CONTROL_ERROR),
    ),
    Case(
        "6.9.1",
        "padding takes room as well",
        [reads_nothing(1), *[data(1, b"", "PADDED", pad_length=255)] * 1025],
        Either(StreamFails(FLOW_CONTROL_ERROR), ConnectionFails(FLOW_CONTROL_ERROR, 11)),
    ),
    Case("6.9.1", "an upload of 2 MiB in the windows that the proxy opens", [post(1), uploads(2 << 20)], Answered(contains=b"2097152")),
    Case(
        "6.9.2",
        "INITIAL_WINDOW_SIZE that opens windows",
        [],
        Meets("DATA of 7 bytes and no more", grows_by_settings),
        own={INITIAL_WINDOW_SIZE: 0},
    ),
    Case(
        "6.9.2",
        "INITIAL_WINDOW_SIZE that makes a window negative",
        [],
        Meets("no DATA before it's above 0", negative_window),
        own={INITIAL_WINDOW_SIZE: 10},
    ),
    Case(
        "6.9.2",
        "INITIAL_WINDOW_SIZE that makes a window too large",
        [get(1, SLOW), window(1, LARGEST_WINDOW - 65535), settings(INITIAL_WINDOW_SIZE=65536)],
        ConnectionFails(FLOW_CONTROL_ERROR),
    ),
]

PIECES = [request()[:3], request()[3:7], request()[7:]]

CONTINUATION_FRAMES = [
    Case("6.10", "one", [BEGUN, continuation(1, block(("x-a", "b")), "END_HEADERS")], Answered()),
    Case(
        "6.10",
        "several, cut anywhere",
        [raw(HEADERS, END_STREAM, 1, PIECES[0]), continuation(1, PIECES[1]), continuation(1, PIECES[2], "END_HEADERS")],
        Answered(),
    ),
    Case("6.10", "empty ones", [BEGUN, continuation(1, b""), continuation(1, b"", "END_HEADERS")], Answered()),
    Case("6.10", "all fields in it", [raw(HEADERS, END_STREAM, 1), continuation(1, request(), "END_HEADERS")], Answered()),
    Case("6.10", "behind END_HEADERS", [post(1), continuation(1, b"", "END_HEADERS")], ConnectionFails(PROTOCOL_ERROR)),
    Case(
        "6.10",
        "behind another with END_HEADERS",
        [BEGUN, continuation(1, b"", "END_HEADERS"), continuation(1, b"", "END_HEADERS")],
        ConnectionFails(PROTOCOL_ERROR),
    ),
    Case("6.10", "behind DATA", [post(1), data(1), continuation(1, b"", "END_HEADERS")], ConnectionFails(PROTOCOL_ERROR)),
    Case("6.10", "stream 0", [BEGUN, raw(CONTINUATION, END_HEADERS, 0)], ConnectionFails(PROTOCOL_ERROR)),
]


def about(kind: str, cases: list[Case]) -> list[Case]:
    """The same, each of whose names says what kind of frame it is about."""
    return [replace(case, name=f"{kind}: {case.name}") for case in cases]


CASES = [
    *STARTING,
    *FRAMES,
    *INTERRUPTED,
    *about("DATA", DATA_FRAMES),
    *about("HEADERS", HEADERS_FRAMES),
    *about("PRIORITY", PRIORITY_FRAMES),
    *about("RST_STREAM", RST_STREAM_FRAMES),
    *about("SETTINGS", SETTINGS_FRAMES),
    *about("PUSH_PROMISE", PUSH_PROMISE_FRAMES),
    *about("PING", PING_FRAMES),
    *about("GOAWAY", GOAWAY_FRAMES),
    *about("WINDOW_UPDATE", WINDOW_UPDATE_FRAMES),
    *about("CONTINUATION", CONTINUATION_FRAMES),
]

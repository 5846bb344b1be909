"""A client of HTTP/2 on which a case says every frame.

It keeps the books of the protocol for what it receives: whatever the proxy sends has to fit into the windows and the sizes that this
client has announced, and its heads have to decode. A frame that breaks a rule fails the case that it comes in.
"""

import socket
import ssl
import struct
from dataclasses import dataclass
from typing import NamedTuple

import hpack
from hyperframe import frame as frames
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import Frame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# How long the proxy may take for anything, in seconds. It's busy machines that need it.
PATIENCE = 20

ERRORS = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
]
(
    NO_ERROR,
    PROTOCOL_ERROR,
    INTERNAL_ERROR,
    FLOW_CONTROL_ERROR,
    SETTINGS_TIMEOUT,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    CANCEL,
    COMPRESSION_ERROR,
    CONNECT_ERROR,
    ENHANCE_YOUR_CALM,
    INADEQUATE_SECURITY,
    HTTP_1_1_REQUIRED,
) = range(14)

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(1, 7)
ENABLE_CONNECT_PROTOCOL = 8

LARGEST_WINDOW = 2**31 - 1


class Wrong(Exception):
    """The proxy has not done what is expected."""


class Target(NamedTuple):
    """Where the proxy listens, and over what."""

    name: str
    port: int
    tls: bool

    def connect(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.tls:
            return plain
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        secure = context.wrap_socket(plain, server_hostname="localhost")
        if secure.selected_alpn_protocol() != "h2":
            raise Wrong("the proxy doesn't speak HTTP/2 over TLS")
        return secure


@dataclass
class Head:
    """A field section that was received, in however many frames."""

    stream: int
    fields: list[tuple[str, str]]
    ends: bool

    def field(self, name: str) -> str | None:
        return next((value for own, value in self.fields if own == name), None)

    @property
    def status(self) -> int:
        return int(self.field(":status") or 0)

    def __str__(self) -> str:
        return f"HEADERS on {self.stream}: {self.field(':status') or 'trailers'}{', the end' if self.ends else ''}"


class Closed:
    """The proxy has ended the connection."""

    def __str__(self) -> str:
        return "the end of the connection"


def error(code: int) -> str:
    return ERRORS[code] if code < len(ERRORS) else hex(code)


def describe(event: "Event") -> str:
    match event:
        case frames.RstStreamFrame():
            return f"RST_STREAM {error(event.error_code)} on {event.stream_id}"
        case frames.GoAwayFrame():
            return f"GOAWAY {error(event.error_code)}, last stream {event.last_stream_id}"
        case frames.DataFrame():
            return f"DATA of {len(event.data)} bytes on {event.stream_id}{', the end' if 'END_STREAM' in event.flags else ''}"
        case frames.SettingsFrame():
            return "SETTINGS ACK" if "ACK" in event.flags else "SETTINGS"
        case frames.PingFrame():
            return "PING ACK" if "ACK" in event.flags else "PING"
        case frames.WindowUpdateFrame():
            return f"WINDOW_UPDATE of {event.window_increment} on {event.stream_id}"
        case _:
            return str(event)


Event = Frame | Head | Closed


class Client:
    """A connection."""

    def __init__(self, target: Target):
        self.target = target
        self.socket = target.connect()
        self.pending = b""
        # What was received, for whoever reads of a failure.
        self.trace: list[str] = []
        self.decoder = hpack.Decoder()
        self.head: tuple[int, bytes, bool] | None = None
        # What the proxy may still send: on the connection, and on each stream.
        self.window = 65535
        self.windows: dict[int, int] = {}
        # The settings of this client, and those that the proxy has not acknowledged yet.
        self.own = {INITIAL_WINDOW_SIZE: 65535, MAX_FRAME_SIZE: 16384, HEADER_TABLE_SIZE: 4096}
        self.unacknowledged: list[dict[int, int]] = []
        # Those of the proxy, and what this client may still send.
        self.theirs: dict[int, int] = {}
        self.room: dict[int, int] = {0: 65535}
        self.highest = 0
        # Streams that the proxy has ended.
        self.over: set[int] = set()

    def open(self, own: dict[int, int] | None = None) -> "Client":
        """Sends the preface and these settings, and waits for what the proxy answers."""
        self.send(PREFACE, frames.SettingsFrame(0, settings=own or {}))
        self.until(lambda event: isinstance(event, frames.SettingsFrame) and "ACK" in event.flags)
        return self

    def send(self, *what: bytes | Frame) -> None:
        """Sends frames, and bytes that may be none."""
        for one in what:
            frame = parsed(one) if isinstance(one, bytes) else one
            if not frame:
                continue
            self.highest = max(self.highest, frame.stream_id)
            if isinstance(frame, frames.WindowUpdateFrame) and frame.stream_id:
                self.windows[frame.stream_id] = self.windows.get(frame.stream_id, self.own[INITIAL_WINDOW_SIZE]) + frame.window_increment
            elif isinstance(frame, frames.WindowUpdateFrame):
                self.window += frame.window_increment
            elif isinstance(frame, frames.SettingsFrame) and "ACK" not in frame.flags:
                self.unacknowledged.append(frame.settings)
        try:
            self.socket.sendall(b"".join(one if isinstance(one, bytes) else one.serialize() for one in what))
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            # It has closed. What it has said before can still be read, and is what matters.
            pass

    def read(self) -> bytes:
        """What comes next; nothing at the end."""
        try:
            return self.socket.recv(65536)
        except (ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""
        except TimeoutError:
            raise Wrong(f"nothing for {PATIENCE} s") from None

    def receive(self) -> Event:
        """The next frame, or the end of the connection. SETTINGS and PINGs are answered."""
        while True:
            event = self.next()
            if event is not None:
                self.trace.append(describe(event))
                return event

    def next(self) -> Event | None:
        """One frame; `None` for one whose head goes on in the next."""
        while len(self.pending) < 9 or len(self.pending) < 9 + int.from_bytes(self.pending[:3], "big"):
            more = self.read()
            if not more:
                if self.pending:
                    raise Wrong("a frame breaks off")
                return Closed()
            self.pending += more
        frame, length = Frame.parse_frame_header(memoryview(self.pending[:9]))
        frame.parse_body(memoryview(self.pending[9 : 9 + length]))
        self.pending = self.pending[9 + length :]
        if length > self.own[MAX_FRAME_SIZE]:
            raise Wrong(f"a frame of {length} bytes")
        if not self.theirs and not isinstance(frame, frames.SettingsFrame):
            raise Wrong(f"{describe(frame)} before SETTINGS")
        return self.keep_books(frame)

    def keep_books(self, frame: Frame) -> Event | None:
        if self.head and not isinstance(frame, frames.ContinuationFrame):
            raise Wrong(f"{describe(frame)} inside a head")
        stream = frame.stream_id
        if stream in self.over and not isinstance(frame, frames.RstStreamFrame | frames.WindowUpdateFrame):
            raise Wrong(f"{describe(frame)} behind its end")
        if "END_STREAM" in frame.flags or isinstance(frame, frames.RstStreamFrame):
            self.over.add(stream)
        match frame:
            case frames.HeadersFrame() | frames.ContinuationFrame():
                if isinstance(frame, frames.ContinuationFrame) and (not self.head or self.head[0] != stream):
                    raise Wrong("CONTINUATION of no head")
                _, before, ends = self.head or (stream, b"", "END_STREAM" in frame.flags)
                self.head = (stream, before + frame.data, ends)
                if "END_HEADERS" not in frame.flags:
                    return None
                fields = self.decoder.decode(self.head[1])
                self.head = None
                return Head(stream, fields, ends)
            case frames.DataFrame():
                self.window -= frame.flow_controlled_length
                self.windows[stream] = self.windows.get(stream, self.own[INITIAL_WINDOW_SIZE]) - frame.flow_controlled_length
                if frame.flow_controlled_length and (self.window < 0 or self.windows[stream] < 0):
                    raise Wrong(f"{describe(frame)}, for which the window has no room")
            case frames.SettingsFrame() if "ACK" in frame.flags:
                self.acknowledged()
            case frames.SettingsFrame():
                self.theirs |= frame.settings
                self.send(frames.SettingsFrame(0, flags=["ACK"]))
            case frames.PingFrame() if "ACK" not in frame.flags:
                self.send(frames.PingFrame(0, frame.opaque_data, flags=["ACK"]))
            case frames.WindowUpdateFrame():
                self.room[stream] = self.room_of(stream) + frame.window_increment
                if self.room[stream] > LARGEST_WINDOW:
                    raise Wrong(f"{describe(frame)}, which makes it too large")
            case frames.PushPromiseFrame():
                raise Wrong("PUSH_PROMISE")
        return frame

    def acknowledged(self) -> None:
        """The oldest of the settings that are under way hold from here on."""
        if not self.unacknowledged:
            raise Wrong("SETTINGS ACK of nothing")
        settings = self.unacknowledged.pop(0)
        grown = settings.get(INITIAL_WINDOW_SIZE, self.own[INITIAL_WINDOW_SIZE]) - self.own[INITIAL_WINDOW_SIZE]
        self.windows = {stream: window + grown for stream, window in self.windows.items()}
        self.own |= settings
        self.decoder.max_allowed_table_size = self.own[HEADER_TABLE_SIZE]

    def room_of(self, stream: int) -> int:
        return self.room.get(stream, self.theirs.get(INITIAL_WINDOW_SIZE, 65535))

    def upload(self, stream: int, body: bytes) -> None:
        """Sends a body, as the proxy's windows allow, and its end."""
        while body:
            room = min(len(body), self.room_of(stream), self.room[0], 16384)
            if room <= 0:
                if isinstance(self.receive(), Closed):
                    raise Wrong("the connection ends during an upload")
                continue
            now, body = body[:room], body[room:]
            self.send(frames.DataFrame(stream, now, flags=[] if body else ["END_STREAM"]))
            self.room[0] -= room
            self.room[stream] = self.room_of(stream) - room

    def until(self, wanted) -> Event:
        """The first event that is wanted. There must be one before the connection ends."""
        while True:
            event = self.receive()
            if wanted(event):
                return event
            if isinstance(event, Closed):
                raise Wrong("the connection has ended")

    def head_of(self, stream: int) -> Head:
        """The next head of the stream."""
        head = self.until(lambda event: getattr(event, "stream", None) == stream or is_reset(event, stream))
        if not isinstance(head, Head):
            raise Wrong(describe(head))
        return head

    def response(self, stream: int) -> tuple[Head, bytes, Head | None]:
        """The response on the stream: its head, its body and its trailers. Interim ones are skipped."""
        head = self.head_of(stream)
        while 100 <= head.status < 200:
            head = self.head_of(stream)
        body, trailers, ends = b"", None, head.ends
        while not ends:
            event = self.until(lambda event: stream in (getattr(event, "stream", None), getattr(event, "stream_id", None)))
            match event:
                case frames.DataFrame():
                    body, ends = body + event.data, "END_STREAM" in event.flags
                case Head():
                    trailers, ends = event, event.ends
                    if not ends:
                        raise Wrong("trailers that are not the end")
                case frames.RstStreamFrame():
                    raise Wrong(describe(event))
        return head, body, trailers

    def close(self) -> None:
        self.socket.close()


def is_reset(event: Event, stream: int) -> bool:
    return isinstance(event, frames.RstStreamFrame) and event.stream_id == stream


def parsed(sent: bytes) -> Frame | None:
    """The frame that these bytes are, unless they are none, or one that breaks the protocol."""
    try:
        frame, length = Frame.parse_frame_header(memoryview(sent[:9]))
        frame.parse_body(memoryview(sent[9:]))
    except (HyperframeError, ValueError, struct.error):
        return None
    return frame if len(sent) == 9 + length else None


# What is sent.


def raw(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame as hyperframe would not make it."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(*fields: tuple[bytes | str, bytes | str]) -> bytes:
    """A field section that leaves the dynamic table as it is."""
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields], huffman=False)


def request(method: str = "GET", path: str = "/", *more: tuple[bytes | str, bytes | str]) -> bytes:
    """The field section of a request."""
    return block((":method", method), (":scheme", "http"), (":path", path), (":authority", "localhost"), *more)


def headers(stream: int, fields: bytes, *flags: str, **more) -> Frame:
    return frames.HeadersFrame(stream, fields, flags=["END_HEADERS", *flags], **more)


def get(stream: int, path: str = "/", *more: tuple[bytes | str, bytes | str]) -> Frame:
    """A whole request."""
    return headers(stream, request("GET", path, *more), "END_STREAM")


def post(stream: int, path: str = "/upload", *more: tuple[bytes | str, bytes | str]) -> Frame:
    """A request whose body follows."""
    return headers(stream, request("POST", path, *more))


def data(stream: int, body: bytes = b"body", *flags: str, **more) -> Frame:
    return frames.DataFrame(stream, body, flags=list(flags), **more)


def settings(**values: int) -> Frame:
    return frames.SettingsFrame(0, settings={globals()[name]: value for name, value in values.items()})


def ping(payload: bytes = b"are you?") -> Frame:
    return frames.PingFrame(0, payload)


def rst(stream: int, code: int = CANCEL) -> Frame:
    return frames.RstStreamFrame(stream, code)


def window(stream: int, increment: int) -> Frame:
    return frames.WindowUpdateFrame(stream, increment)


def priority(stream: int, depends_on: int = 0, weight: int = 15, exclusive: bool = False) -> Frame:
    return frames.PriorityFrame(stream, depends_on=depends_on, stream_weight=weight, exclusive=exclusive)


def continuation(stream: int, fields: bytes, *flags: str) -> Frame:
    return frames.ContinuationFrame(stream, fields, flags=list(flags))

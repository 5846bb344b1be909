"""WebSockets with the package websockets, over HTTP/1.1 and, in streams of the package h2, over HTTP/2 (RFC 8441)."""

import socket
import ssl
import threading
from http import HTTPStatus

import h2.config
import h2.connection
import h2.events
import h2.settings
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode
from websockets.protocol import CLIENT, OPEN, Protocol
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from stack import LIMIT, Proxy, Stack, expect

# What Chromium opens: it writes into the page what it used. Its clock runs ahead while nothing is fetched, so it fetches something until the
# socket has been heard.
PAGE = """<!doctype html>
<title>a page</title>
<p id="navigation"></p><p id="fetch"></p><p id="socket"></p>
<script>
const say = (where, what) => (document.getElementById(where).textContent = what);
const protocol = (entry) => (entry ? entry.nextHopProtocol : "none");
(async () => {
  say("navigation", protocol(performance.getEntriesByType("navigation")[0]));
  await (await fetch("/fetched")).text();
  say("fetch", protocol(performance.getEntriesByName(new URL("/fetched", location).href)[0]));
  const socket = new WebSocket(new URL("/socket", location).href.replace("http", "ws"));
  let heard = false;
  socket.onopen = () => socket.send("hello");
  socket.onmessage = (message) => { say("socket", message.data); socket.close(1000); };
  socket.onerror = () => say("socket", "an error");
  socket.onclose = () => (heard = true);
  for (let tries = 0; !heard && tries < 5000; tries++) await (await fetch("/waiting")).text();
})();
</script>
"""


def page(connection: ServerConnection, request):
    """Answers a request that wants no WebSocket."""
    if "Upgrade" in request.headers:
        return None
    response = connection.respond(HTTPStatus.OK, PAGE)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "text/html; charset=utf-8"
    return response


def echo(connection: ServerConnection) -> None:
    try:
        for message in connection:
            if message == "leave":
                return connection.close(4001, "as asked")
            connection.send(message)
    except ConnectionClosed:
        pass


class Origin:
    """An origin of WebSockets."""

    def __init__(self):
        self.server = serve(echo, "127.0.0.1", 0, process_request=page, max_size=None)
        self.port = self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def end(self) -> None:
        self.server.shutdown()


def over_http1(stack: Stack, proxy: Proxy) -> str:
    for to, context in [(f"wss://localhost:{proxy.tls}/", stack.client("http/1.1")), (f"ws://localhost:{proxy.plain}/", None)]:
        with connect(to, ssl=context, max_size=None, open_timeout=LIMIT) as client:
            for message in ["a word", b"bytes", "x" * 2_000_000]:
                client.send(message)
                expect(client.recv(LIMIT) == message, f"{to}: another message came back")
            expect(client.ping().wait(LIMIT), f"{to}: no pong")
            client.send("leave")
            try:
                client.recv(LIMIT)
            except ConnectionClosed as closed:
                expect((closed.rcvd.code, closed.rcvd.reason) == (4001, "as asked"), f"{to}: {closed}")
    return "compressed messages up to 2 MB, a ping, the server's reason to close; with TLS and without"


class Http2:
    """A connection of HTTP/2 over TLS, or without."""

    def __init__(self, port: int, context: ssl.SSLContext | None):
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
            expect(self.socket.selected_alpn_protocol() == "h2", "HTTP/2 was not chosen")
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.authority = f"localhost:{port}"
        self.scheme = "http" if context is None else "https"
        self.bodies: dict[int, bytes] = {}
        self.heads: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self.acknowledged = False
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def read(self) -> None:
        """Takes in what comes next."""
        data = self.socket.recv(65536)
        expect(data, "the connection was closed")
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    self.heads[event.stream_id] = dict(event.headers)
                case h2.events.DataReceived():
                    self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    self.ended.add(event.stream_id)
                case h2.events.RemoteSettingsChanged():
                    self.acknowledged = True
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    raise AssertionError(f"{event}")
        self.flush()

    def ask(self, method: str, path: str, *fields: tuple[str, str], ends: bool = True) -> int:
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", self.scheme), (":authority", self.authority), (":path", path)]
        self.h2.send_headers(stream, head + list(fields), end_stream=ends)
        self.flush()
        return stream

    def send(self, stream: int, data: bytes) -> None:
        """Sends data as the windows allow."""
        while data:
            size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data))
            if size == 0:
                self.read()
                continue
            self.h2.send_data(stream, data[:size])
            data = data[size:]
            self.flush()

    def end(self, stream: int) -> None:
        self.h2.end_stream(stream)
        self.flush()

    def answer(self, stream: int) -> tuple[str, bytes]:
        while stream not in self.ended:
            self.read()
        return self.heads[stream][":status"], self.bodies.get(stream, b"")


def both_ways(stack: Stack, proxy: Proxy) -> list[Http2]:
    return [Http2(proxy.tls, stack.client("h2")), Http2(proxy.plain, None)]


def requests_over_h2(stack: Stack, proxy: Proxy) -> str:
    for client in both_ways(stack, proxy):
        asked = [client.ask("GET", f"/bytes/{number * 500}") for number in range(80)]
        for number, stream in enumerate(asked):
            status, body = client.answer(stream)
            expect((status, len(body)) == ("200", number * 500), f"{status}, {len(body)} bytes")
        body = bytes(range(256)) * 8000
        stream = client.ask("POST", "/echo", ends=False)
        client.send(stream, body)
        client.end(stream)
        expect(client.answer(stream) == ("200", body), "another body came back")
        stream = client.ask("POST", "/upload", ("content-length", "3"), ends=False)
        client.send(stream, b"two")
        client.h2.send_headers(stream, [("x-end", "1")], end_stream=True)
        client.flush()
        expect(client.answer(stream) == ("200", b"3\n"), "an upload with trailers")
    return "80 requests at a time, 2 MB up and down, trailers; with TLS and without"


def over_http2(stack: Stack, proxy: Proxy) -> str:
    for client in both_ways(stack, proxy):
        while not client.acknowledged:
            client.read()
        offered = client.h2.remote_settings.enable_connect_protocol
        expect(offered == 1, f"SETTINGS_ENABLE_CONNECT_PROTOCOL is {offered}")
        fields = [("sec-websocket-version", "13"), ("origin", "https://localhost")]
        stream = client.ask("CONNECT", "/", (":protocol", "websocket"), *fields, ends=False)
        while stream not in client.heads:
            client.read()
        expect(client.heads[stream][":status"] == "200", f"{client.heads[stream]}")
        talk = Protocol(CLIENT, state=OPEN, max_size=None)
        heard = 0

        def hear(opcode: Opcode) -> bytes:
            nonlocal heard
            while True:
                for frame in talk.events_received():
                    if frame.opcode is opcode:
                        return bytes(frame.data)
                client.read()
                body = client.bodies.get(stream, b"")
                talk.receive_data(body[heard:])
                heard = len(body)

        def say() -> None:
            for data in talk.data_to_send():
                client.send(stream, data)

        for message in [b"a word", b"x" * 300_000]:
            talk.send_text(message)
            say()
            expect(hear(Opcode.TEXT) == message, "another message came back")
        talk.send_ping(b"are you?")
        say()
        expect(hear(Opcode.PONG) == b"are you?", "no pong")
        talk.send_text(b"leave")
        say()
        hear(Opcode.CLOSE)
        closed = talk.close_rcvd
        expect(closed and (closed.code, closed.reason) == (4001, "as asked"), f"{closed}")
        say()
        client.end(stream)
        client.answer(stream)
        # Another request on the same connection.
        expect(client.answer(client.ask("GET", "/"))[0] == "200", "the connection is of no use any more")
    return "messages, a ping and the server's reason to close in a stream; with TLS and without"

"""The rows that are no load: what an idle connection holds, how long a start takes, what the sentinel's probes cost."""

from __future__ import annotations

import selectors
import socket
import ssl
import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable

import checks
from measure import Failure, Process, accepts, free_address, running, split, until
from peers import Peer, ready
from rows import ALL, SECURE

# The names by which they are chosen.
EXTRAS = ["idle", "idle-tls", "idle-h2", "start", "sentinel"]

# So many clients share them, because a proxy may limit the connections of one.
IDLE_CLIENTS = 20
STARTS = 10
TARGETS = 5000
PROBE_INTERVAL = 2.0
PROBING = 30.0


def measure(names: list[str], peers: list[Peer], bench: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """The chosen ones, each once for each peer that they make sense for."""
    results: dict[str, Any] = {}
    for name, kind in IDLE.items():
        if name in names:
            results[name] = {peer.name: idle(peer, bench, kind) for peer in peers if peer.name in kind.peers}
            say(f"memory of an idle connection{kind.title}, KiB: " + told(results[name], "kib_each"))
    if "start" in names:
        results["start"] = {peer.name: start(peer, bench) for peer in peers}
        say("first answer after exec, ms: " + told(results["start"], "median_ms"))
    if "sentinel" in names:
        results["sentinel"] = sentinel(bench)
        say(f"sentinel: {results['sentinel']}")
    return results


def told(results: dict[str, dict[str, float]], key: str) -> str:
    return ", ".join(f"{name} {result[key]:.1f}" for name, result in results.items())


def idle(peer: Peer, bench: Any, kind: Idle) -> dict[str, float]:
    """What a keepalive connection holds between requests, each after one answered request."""
    setup = bench.setup(peer)
    address = setup.tls if kind.tls else setup.listen
    with running(peer.start(bench.binaries, setup, bench.cores.proxy)) as process:
        ready(process, setup, checks.status_of)
        # What the first requests allocate once is not the connections'.
        for _ in range(200):
            kind.answered(address, "127.1.0.1").close()
        before = process.memory_kib("VmRSS")
        connections: list[socket.socket] = []
        try:
            for number in range(kind.connections):
                connections.append(kind.answered(address, f"127.1.0.{number % IDLE_CLIENTS + 1}"))
            # Long enough for whoever gives buffers back after a moment.
            time.sleep(2)
            after = process.memory_kib("VmRSS")
            still_open(connections, peer)
        finally:
            for connection in connections:
                connection.close()
        process.check_alive()
    return {
        "connections": kind.connections,
        "before_kib": before,
        "after_kib": after,
        "kib_each": (after - before) / kind.connections,
    }


def answered(connection: socket.socket, request: bytes) -> socket.socket:
    """The connection, after the answer to this request."""
    connection.sendall(request)
    answer = b""
    while b"\n" not in answer.partition(b"hello from")[2]:
        piece = connection.recv(4096)
        if not piece:
            raise Failure(f"a connection was closed instead of answered: {answer!r}")
        answer += piece
    return connection


def get(address: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()


def over_tls(address: str, client: str, protocol: str) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    plain = socket.create_connection(split(address), 10, source_address=(client, 0))
    secure = context.wrap_socket(plain)
    if secure.selected_alpn_protocol() != protocol:
        raise Failure(f"{address} speaks {secure.selected_alpn_protocol()}, not {protocol}")
    return secure


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def answered_http1(address: str, client: str) -> socket.socket:
    plain = socket.create_connection(split(address), 10, source_address=(client, 0))
    return answered(plain, get(address))


def answered_tls(address: str, client: str) -> socket.socket:
    return answered(over_tls(address, client, "http/1.1"), get(address))


def answered_http2(address: str, client: str) -> socket.socket:
    # GET, https and / by their places in the static table of RFC 7541; the authority in words.
    fields = bytes([0x82, 0x87, 0x84, 0x41, len(address)]) + address.encode()
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(4, 1, 0)
    # END_HEADERS and END_STREAM.
    return answered(over_tls(address, client, "h2"), opening + frame(1, 5, 1, fields))


@dataclass(frozen=True)
class Idle:
    """A kind of connection that idles."""

    title: str
    answered: Callable[[str, str], socket.socket]
    connections: int
    tls: bool
    peers: frozenset[str]


IDLE = {
    "idle": Idle("", answered_http1, 5000, False, ALL),
    "idle-tls": Idle(" of TLS", answered_tls, 2000, True, SECURE),
    "idle-h2": Idle(" of HTTP/2 and TLS", answered_http2, 2000, True, SECURE),
}


def still_open(connections: list[socket.socket], peer: Peer) -> None:
    for connection in connections:
        connection.setblocking(False)
        try:
            if not connection.recv(1):
                raise Failure(f"{peer.title} closed an idle connection")
        except (BlockingIOError, ssl.SSLWantReadError):
            continue


def start(peer: Peer, bench: Any) -> dict[str, float]:
    """From exec to the first answer of 200."""
    times = []
    for _ in range(STARTS):
        setup = bench.setup(peer)
        peer.configure(setup)
        began = time.monotonic()
        with running(peer.start(bench.binaries, setup, bench.cores.proxy)) as process:
            while checks.status_of(setup.listen, "/") != 200:
                process.check_alive()
                if time.monotonic() > began + 20:
                    raise Failure(f"{peer.title} does not answer")
                time.sleep(0.0005)
            times.append((time.monotonic() - began) * 1e3)
    return {"median_ms": statistics.median(times), "least_ms": min(times), "most_ms": max(times)}


def sentinel(bench: Any) -> dict[str, float]:
    """How busy the sentinel is with many targets, and how late a probe comes.

    The targets are sockets of this program, which notes when each is connected to: a probe is late by what is more than
    the interval since the one before it.
    """
    directory = bench.run_directory / "sentinel"
    directory.mkdir(exist_ok=True)
    redis, admin = free_address(), free_address()
    targets = Targets(TARGETS)
    redis_command = ["redis-server", "--bind", "127.0.0.1", "--port", str(split(redis)[1]), "--save", ""]
    env = {
        "SENTINEL_TARGETS": ",".join(targets.addresses),
        "SENTINEL_INTERVAL": f"{PROBE_INTERVAL:g}s",
        "SENTINEL_METRICS_PORT": str(split(admin)[1]),
        "REDIS_URL": redis,
        "RUST_LOG": "warn",
    }
    try:
        with running(Process(redis_command, bench.cores.load, directory)):
            until("Redis listens", lambda: accepts(redis))
            binary = bench.binaries.ours("sentinel")
            with running(Process([binary], bench.cores.proxy, directory, directory / "sentinel.log", env)) as process:
                targets.accept_for(3 * PROBE_INTERVAL)
                process.check_alive()
                registered = members(redis)
                if registered != TARGETS:
                    raise Failure(f"{registered} of {TARGETS} targets are registered")
                targets.forget()
                before, began = process.cpu_seconds(), time.monotonic()
                targets.accept_for(PROBING)
                cpu, took = process.cpu_seconds() - before, time.monotonic() - began
                process.check_alive()
                peak = process.memory_kib("VmHWM")
    finally:
        targets.close()
    gaps = sorted(targets.gaps())
    return {
        "targets": TARGETS,
        "probes": len(gaps),
        "cores_busy": cpu / took,
        "late_p99_ms": (gaps[int(len(gaps) * 0.99)] - PROBE_INTERVAL) * 1e3,
        "late_most_ms": (gaps[-1] - PROBE_INTERVAL) * 1e3,
        "peak_kib": peak,
    }


class Targets:
    """Sockets that listen and note when they are connected to."""

    def __init__(self, count: int) -> None:
        port = split(free_address())[1]
        self.addresses = [f"127.2.{number // 250}.{number % 250 + 1}:{port}" for number in range(count)]
        self.arrivals: dict[str, list[float]] = {address: [] for address in self.addresses}
        self.selector = selectors.DefaultSelector()
        self.sockets = []
        for address in self.addresses:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(split(address))
            listener.listen(16)
            listener.setblocking(False)
            self.selector.register(listener, selectors.EVENT_READ, address)
            self.sockets.append(listener)

    def accept_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return
            for key, _ in self.selector.select(left):
                self.arrivals[key.data].append(time.monotonic())
                key.fileobj.accept()[0].close()  # type: ignore[union-attr]

    def forget(self) -> None:
        for arrivals in self.arrivals.values():
            arrivals.clear()

    def gaps(self) -> list[float]:
        """The time from each probe of a target to its next."""
        gaps = []
        for address, arrivals in self.arrivals.items():
            if len(arrivals) < 2:
                raise Failure(f"{address} was probed {len(arrivals)} times")
            gaps += [after - before for before, after in zip(arrivals, arrivals[1:])]
        return gaps

    def close(self) -> None:
        self.selector.close()
        for listener in self.sockets:
            listener.close()


def members(redis: str) -> int:
    """How many backends the registry has."""
    with socket.create_connection(split(redis), 5) as connection:
        connection.sendall(b"SCARD gopher_backends\r\n")
        return int(connection.recv(64).strip(b":\r\n"))

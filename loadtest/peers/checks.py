"""What every proxy must do before anything is measured: a fast wrong answer is worth nothing."""

from __future__ import annotations

import gzip
import http.client
import json
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Callable

from measure import Failure, Process, connections_to, running, split, until
from peers import Binaries, Peer, Setup, ready

# A client that a trusted generator tells of.
ELSEWHERE = "10.1.2.3"


def status_of(address: str, path: str = "/ready") -> int | None:
    """The status of one request; `None` where nobody answers."""
    connection = http.client.HTTPConnection(*split(address), timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Client:
    """One keepalive connection, which must stay one."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(*split(address), timeout=10)
        self.connection.connect()
        self.socket = self.connection.sock

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        self.connection.request("POST" if body else "GET", path, body=body, headers=dict(headers or {}))
        answer = self.connection.getresponse()
        got = answer.read()
        if self.connection.sock is not self.socket:
            raise Failure(f"{path}: the connection was not kept")
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, got

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> bytes:
        return self.expect(200, self.ask(path, headers=headers), path)

    def post(self, path: str, body: bytes) -> bytes:
        return self.expect(200, self.ask(path, body=body), path)

    @staticmethod
    def expect(status: int, answer: tuple[int, dict[str, str], bytes], path: str) -> bytes:
        if answer[0] != status:
            raise Failure(f"{path}: status {answer[0]}, not {status}: {answer[2][:200]!r}")
        return answer[2]

    def close(self) -> None:
        self.connection.close()


def same(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise Failure(f"{what}: got {str(got)[:200]}, not {str(expected)[:200]}")


@contextmanager
def checked(peer: Peer, binaries: Binaries, setup: Setup, core: int) -> Iterator[tuple[Process, Client]]:
    with running(peer.start(binaries, setup, core)) as process:
        ready(process, setup, status_of)
        client = Client(setup.listen)
        try:
            yield process, client
        finally:
            client.close()


def forwarded_for(client: Client, headers: Mapping[str, str] | None = None) -> list[str]:
    """What the origin is told of where the request came from."""
    lines = client.get("/headers", headers).decode().lower().splitlines()
    named = [line.partition(":")[2] for line in lines if line.startswith("x-forwarded-for:")]
    return [hop.strip() for line in named for hop in line.split(",")]


def answers_are_right(peer: Peer, binaries: Binaries, setup: Setup, core: int) -> None:
    """Statuses, bodies, turns, X-Forwarded-For, kept connections, metrics, and a line in the log for each request."""
    with checked(peer, binaries, setup, core) as (_, client):
        turns = Counter(client.get("/").decode() for _ in range(10 * len(setup.backends)))
        greetings = {f"hello from {address}\n" for address in setup.backends}
        # Traefik's turns are exact only in the long run.
        if set(turns) != greetings or any(abs(count - 10) > 1 for count in turns.values()):
            raise Failure(f"the origins have not had equal turns: {dict(turns)}")
        for size in (65_536, 1_048_576):
            same(f"a response of {size} bytes", client.get(f"/bytes/{size}") == b"x" * size, True)
        same("an upload of 1 MiB", client.post("/upload", b"x" * 1_048_576), b"1048576\n")
        if not any(connections_to(split(address)[1]) for address in setup.backends):
            raise Failure("no connection to an origin was kept")
        if "forwarded" not in peer.lacks:
            hops = forwarded_for(client)
            if len(hops) != 1 or (peer.tells_loopback and hops != ["127.0.0.1"]):
                raise Failure(f"X-Forwarded-For at the origin: {hops}")
        if "metrics" not in peer.lacks:
            # Some close the connection behind the answer.
            with urllib.request.urlopen(f"http://{setup.admin}{peer.metrics}", timeout=10) as metrics:
                same("the metrics say something", len(metrics.read()) > 50, True)
        if "log" not in peer.lacks:
            for number in range(20):
                client.get(f"/logged/{number}")
            until("a line in the log for each request", lambda: logged(setup) == set(range(20)))


def logged(setup: Setup) -> set[int]:
    """The numbers of the requests for /logged/N that the log tells of, each by a JSON object with status 200."""
    numbers = []
    for line in setup.log.read_text().splitlines():
        if "/logged/" not in line:
            continue
        entry = json.loads(line)
        if 200 not in entry.values():
            raise Failure(f"a log line without its status: {line}")
        paths = [value for value in entry.values() if isinstance(value, (str, dict)) and "/logged/" in str(value)]
        numbers.append(int(str(paths[0]).partition("/logged/")[2].split("'")[0].split()[0]))
    if len(numbers) != len(set(numbers)):
        raise Failure("a request has two lines in the log")
    return set(numbers)


def limit_is_right(peer: Peer, binaries: Binaries, setup: Setup, core: int) -> None:
    """Whoever sends too fast gets 429 and keeps the connection; others, told by a trusted generator, are served."""
    with checked(peer, binaries, setup, core) as (_, client):
        hasty = {"X-Forwarded-For": ELSEWHERE}
        statuses = [client.ask("/", headers=hasty)[0] for _ in range(40)]
        if statuses[0] != 200 or statuses[-1] != 429 or set(statuses) != {200, 429}:
            raise Failure(f"forty requests at once: {statuses}")
        same("another client", forwarded_for(client, {"X-Forwarded-For": "10.9.9.9"})[0], "10.9.9.9")


def compression_is_right(peer: Peer, binaries: Binaries, setup: Setup, core: int) -> None:
    """Text comes compressed to whoever accepts that, and is the same."""
    with checked(peer, binaries, setup, core) as (_, client):
        path = "/text/1048576"
        plain = client.get(path)
        status, fields, body = client.ask(path, headers={"Accept-Encoding": "gzip"})
        same("the status", status, 200)
        same("the coding", fields.get("content-encoding"), "gzip")
        same("the text", gzip.decompress(body) == plain, True)
        # All compress about as well, so that nobody is fast because it does not.
        share = len(body) / len(plain)
        if not 0.2 < share < 0.5:
            raise Failure(f"the text is compressed to {share:.0%}")


def check(peer: Peer, binaries: Binaries, make: Callable[..., Setup], core: int) -> None:
    """All of it.

    Raises `Failure`, with the peer's name, at the first thing that is wrong.
    """
    try:
        answers_are_right(peer, binaries, make(), core)
        if "limit" not in peer.lacks:
            limit_is_right(peer, binaries, make(limited=True, trusted=True), core)
        if peer.compress:
            compression_is_right(peer, binaries, make(compressed=True), core)
    except (Failure, OSError, http.client.HTTPException, ValueError) as problem:
        raise Failure(f"{peer.title}: {problem}") from problem

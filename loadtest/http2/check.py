"""Checks that the proxy speaks HTTP/2 as RFC 9113 and RFC 7541 say: a list of cases, with TLS and without.

`make check-http2` runs it against a proxy and an origin of its own; with ONLY=6.9, the cases whose section or name contains that. The list
has all that h2spec checks, and more. What each case sends and expects is in the modules `cases_*`.

Where the crate `h2` does otherwise than the RFC says, the case accepts that and has a comment with the reason.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases_frames
import cases_hpack
import cases_messages
import cases_streams
from case import Case
from client import Client, Target, Wrong

BIN = os.environ.get("BIN", "target/debug")
CASES: list[Case] = [*cases_frames.CASES, *cases_streams.CASES, *cases_messages.CASES, *cases_hpack.CASES]
CONFIGURATION = """
gopherproxy:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  tls: {{listen: "127.0.0.1:0", certificates: [{{cert: {directory}/crt, key: {directory}/key}}]}}
  http2: {{cleartext: true}}
  limit: off
  registry: {{kind: in-process}}
  sentinel: {{enabled: true, targets: ["127.0.0.1:{origin}"]}}
  discovery: {{interval: 1s}}
"""


class Started:
    """A process of ours, on ports that it has chosen itself; its log says which."""

    def __init__(self, log: Path, *command: str):
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def port(self, service: str) -> int:
        """Waits until it listens."""
        while True:
            # A line that is not whole yet is read the next time.
            for line in self.log.read_text().splitlines(keepends=True):
                if f'"service":"{service}"' in line and line.endswith("\n"):
                    return int(json.loads(line)["address"].rsplit(":", 1)[1])
            self.check()
            time.sleep(0.05)

    def check(self) -> None:
        """Ends everything if it has ended."""
        if self.process.poll() is not None:
            sys.exit(f"{self.process.args[0]} has ended; see {self.log}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def run(case: Case, target: Target) -> str | None:
    """What is wrong, if anything is."""
    client = None
    try:
        client = Client(target)
        case.run(client)
        return None
    except Exception as error:  # noqa: BLE001 - whatever the proxy sends, the others are still to be run
        came = str(error) if isinstance(error, Wrong) else repr(error)
        trace = "; ".join(client.trace[-8:]) if client else ""
        return f"FAILED {case.section} {case.name} ({target.name})\n  expected: {case.expected}\n  came:     {came}\n  received: {trace}"
    finally:
        if client:
            client.close()


def check(targets: list[Target], only: str) -> bool:
    cases = [case for case in CASES if only in f"{case.section} {case.name}"]
    runs = [(case, target) for target in targets for case in cases]
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        failed = [wrong for wrong in pool.map(lambda one: run(*one), runs) if wrong]
    print(*failed, sep="\n", end="\n" if failed else "")
    took = time.monotonic() - begun
    over = " and ".join(target.name for target in targets)
    print(f"{len(cases)} cases, {over}: {len(runs) - len(failed)} right, {len(failed)} wrong, in {took:.0f} s")
    return bool(cases) and not failed


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.read().decode()


def main() -> int:
    started = []

    def start(name: str, *arguments: str) -> Started:
        started.append(Started(Path(f"target/check-http2-{name}.log"), f"{BIN}/{name}", *arguments))
        return started[-1]

    with tempfile.TemporaryDirectory() as directory:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost".split()
        command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", f"{directory}/key", "-out", f"{directory}/crt"]
        subprocess.run(command, check=True, capture_output=True)
        try:
            origin = start("origin", "127.0.0.1:0").port("origin")
            configuration = Path(directory) / "proxy.yaml"
            configuration.write_text(CONFIGURATION.format(origin=origin, directory=directory))
            proxy = start("gopherproxy", "-c", str(configuration))
            admin = proxy.port("admin")
            while "gopherproxy_active_backends 1" not in get(admin, "/metrics"):
                proxy.check()
                time.sleep(0.05)
            targets = [Target("without TLS", proxy.port("proxy"), False), Target("with TLS", proxy.port("proxy tls"), True)]
            right = check(targets, os.environ.get("ONLY", ""))
            proxy.check()
            if "\ngopherproxy_panics_total 0\n" not in get(admin, "/metrics"):
                sys.exit(f"the proxy has panicked; see {proxy.log}")
            return 0 if right else 1
        finally:
            for one in reversed(started):
                one.end()


if __name__ == "__main__":
    # Whoever ends this ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

"""Checks that the proxy speaks HTTP/2 as RFC 9113 and RFC 7541 say: a list of cases, with TLS and without.

`make check-http2` runs it against a proxy and an origin of its own; with ONLY=6.9, the cases whose section or name contains that. The list
has all that h2spec checks, and more. What each case sends and expects is in the modules `cases_*`.

Where the crate `h2` does otherwise than the RFC says, the case accepts that and has a comment with the reason.
"""

import os
import signal
import socket
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
  listen: 127.0.0.1:{plain}
  admin_listen: 127.0.0.1:{admin}
  tls: {{listen: "127.0.0.1:{tls}", certificates: [{{cert: {directory}/crt, key: {directory}/key}}]}}
  http2: {{cleartext: true}}
  limit: off
  registry: {{kind: in-process}}
  sentinel: {{enabled: true, targets: ["127.0.0.1:{origin}"]}}
  discovery: {{interval: 1s}}
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


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


def main() -> int:
    plain, tls, admin, origin = free_ports(4)
    with tempfile.TemporaryDirectory() as directory:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost".split()
        command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", f"{directory}/key", "-out", f"{directory}/crt"]
        subprocess.run(command, check=True, capture_output=True)
        configuration = Path(directory) / "proxy.yaml"
        configuration.write_text(CONFIGURATION.format(plain=plain, tls=tls, admin=admin, origin=origin, directory=directory))
        log = Path("target/check-http2.log")
        with log.open("w") as output:
            started = [
                subprocess.Popen([f"{BIN}/origin", f"127.0.0.1:{origin}"], stdout=output, stderr=output, start_new_session=True),
                subprocess.Popen([f"{BIN}/gopherproxy", "-c", configuration], stdout=output, stderr=output, start_new_session=True),
            ]
        try:
            until_ready(admin, started, log)
            right = check([Target("without TLS", plain, False), Target("with TLS", tls, True)], os.environ.get("ONLY", ""))
            if started[1].poll() is not None:
                print(f"the proxy has ended; see {log}", file=sys.stderr)
                return 1
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics") as answer:
                if b"\ngopherproxy_panics_total 0\n" not in answer.read():
                    print(f"the proxy has panicked; see {log}", file=sys.stderr)
                    return 1
            return 0 if right else 1
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()


def until_ready(admin: int, started: list[subprocess.Popen], log: Path) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz"):
                return
        except OSError:
            time.sleep(0.1)
        if any(process.poll() is not None for process in started):
            sys.exit(f"the proxy or its origin has ended; see {log}")


if __name__ == "__main__":
    # Whoever ends this ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

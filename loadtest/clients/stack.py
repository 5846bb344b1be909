"""Proxies over origins, with a certificate that the proxy itself has made."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

BIN = Path(os.environ.get("BIN", "target/debug")).absolute()
# Far more than anything here takes on a slow machine, in seconds.
LIMIT = 60

CONFIGURATION = """\
threads: 2
gopherproxy:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  registry: {{kind: in-process}}
  sentinel: {{enabled: true, interval: 100ms, targets: ['{target}']}}
  discovery: {{interval: 100ms}}
  health: {{interval: 100ms}}
  limit: {{burst: 1000000, per_second: 1000000}}
  tls: {{listen: '127.0.0.1:0', certificates: ['{certificates}']}}
  http2: {{cleartext: true}}
{more}"""


def expect(condition: object, what: str) -> None:
    """What is not as it should be is the failure of a check."""
    if not condition:
        raise AssertionError(what)


def until(what: str, condition):
    """Polls until the condition is met, and returns what it returns."""
    end = time.monotonic() + LIMIT
    while not (result := condition()):
        expect(time.monotonic() < end, f"never happened: {what}")
        time.sleep(0.02)
    return result


class Process:
    """A process whose lines are kept. It ends with this one."""

    def __init__(self, files: Path, name: str, *command: object):
        self.name = name
        self.path = files / f"{name}.log"
        self.output = self.path.open("wb")
        # The kernel ends it if this one is killed.
        apart = ["setpriv", "--pdeathsig=TERM"] if shutil.which("setpriv") else []
        arguments = apart + [str(part) for part in command]
        self.process = subprocess.Popen(arguments, stdout=self.output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def lines(self) -> list[dict]:
        lines = self.path.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.output.close()


class Proxy(Process):
    """A proxy over one origin."""

    def __init__(self, stack: "Stack", name: str, target: str, more: str = ""):
        configuration = stack.files / f"{name}.yaml"
        text = CONFIGURATION.format(target=target, certificates=stack.certificates, more=more)
        configuration.write_text(text)
        super().__init__(stack.files, name, BIN / "gopherproxy", "-c", configuration)
        self.plain = self.port("proxy")
        self.tls = self.port("proxy tls")
        self.admin = self.port("admin")
        until(f"{name} is ready", self.is_ready)

    def port(self, service: str) -> int:
        def find():
            expect(self.process.poll() is None, f"{self.name} has ended: {self.path.read_text(errors='replace')}")
            lines = (line for line in self.lines() if line["msg"] == "listening" and line["service"] == service)
            return next((int(line["address"].rsplit(":", 1)[1]) for line in lines), None)

        return until(f"{self.name} listens as {service}", find)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=LIMIT) as answer:
                return answer.status == 200
        except OSError:
            return False

    def request(self, path: str) -> dict:
        """The line in the log of the request with this path."""
        lines = lambda: next((line for line in self.lines() if line["msg"] == "request" and line["path"] == path), None)
        return until(f"{path} is in the log", lines)

    def leave(self) -> str:
        """Ends it, which it must survive until then and do without a complaint."""
        expect(self.process.poll() is None, f"{self.name} has ended before it was to")
        code = self.end()
        expect(code == 0, f"{self.name} left with {code}")
        complaints = [line for line in self.lines() if line["level"] == "ERROR" or "panic" in line["msg"]]
        expect(not complaints, f"{self.name} complains: {complaints[:3]}")
        return f"{len(self.lines())} lines, none of them a complaint"


class Stack:
    """The files, the certificate, and all that was started."""

    def __init__(self, files: Path):
        self.files = files
        self.certificates = files / "certificates"
        self.started: list[Process] = []
        made = [BIN / "gopherproxy", "certificate", "--directory", self.certificates, "localhost", "127.0.0.1"]
        subprocess.run(made, check=True, capture_output=True, timeout=LIMIT)
        self.authority = self.certificates / "self-made-ca.pem"
        self.cert = self.certificates / "self-made.crt"
        self.key = self.certificates / "self-made.key"

    def proxy(self, name: str, target: str, more: str = "") -> Proxy:
        proxy = Proxy(self, name, target, more)
        self.started.append(proxy)
        return proxy

    def origin(self, port: int) -> None:
        self.started.append(Process(self.files, "origin", BIN / "origin", f"127.0.0.1:{port}"))

    def client(self, *protocols: str) -> ssl.SSLContext:
        """What a client speaks TLS with that trusts the certificate, and nothing else."""
        context = ssl.create_default_context(cafile=self.authority)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    def end(self) -> None:
        for process in reversed(self.started):
            process.end()


def run(*command: object, **more) -> str:
    """What a command writes to both its outputs; it has to succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=600, **more)
    output = (done.stdout + done.stderr).decode(errors="replace")
    expect(done.returncode == 0, f"it ended with {done.returncode}: {output[-2000:]}")
    return output

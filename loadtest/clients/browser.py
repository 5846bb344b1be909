"""Chromium, which opens a page over HTTPS with an authority that was imported."""

import os
import re
import subprocess
from pathlib import Path

from stack import LIMIT, Proxy, Stack, expect, run


def executable() -> tuple[Path | str, dict[str, str]]:
    """The browser of the system, or the one that loadtest/tools.sh has unpacked, with its libraries."""
    root = Path("target/tools/root").absolute()
    unpacked = root / "usr/lib/chromium/chromium"
    if not unpacked.exists():
        return "chromium", {}
    libraries = [root / "usr/lib", root / "lib"]
    found = [path for place in libraries for path in [*place.glob("*-linux-*"), *place.glob("*-linux-*/pulseaudio")]]
    return unpacked, {"LD_LIBRARY_PATH": ":".join(str(path) for path in found)}


def chromium(stack: Stack, proxy: Proxy) -> str:
    program, variables = executable()
    home = stack.files / "home"
    database = home / ".pki/nssdb"
    database.mkdir(parents=True)
    run("certutil", "-d", f"sql:{database}", "-N", "--empty-password")
    run("certutil", "-d", f"sql:{database}", "-A", "-t", "C,,", "-n", "self-made", "-i", stack.authority)
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=10000"]
    command += [f"--user-data-dir={home / 'profile'}", "--dump-dom", f"https://localhost:{proxy.tls}/page"]
    environment = {**os.environ, **variables, "HOME": str(home)}
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=LIMIT * 3, env=environment)
    page = done.stdout.decode(errors="replace")
    said = dict(re.findall(r'<p id="(\w+)">([^<]*)</p>', page))
    expect(said == {"navigation": "h2", "fetch": "h2", "socket": "hello"}, f"{said} {page[-500:]} {done.stderr[-1500:]!r}")
    line = proxy.request("/socket")
    expect((line["method"], line["protocol"]) == ("CONNECT", "h2"), f"the WebSocket: {line}")
    return "a page, a fetch and a WebSocket over HTTP/2"

"""Real clients against the proxy, and real servers behind it: `make check-clients`.

Each module has clients of a kind, and `stack.py` starts what they talk to. A check returns what it has seen, or fails with what was wrong.
"""

import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import browser
import calls
import commands
import sockets
from stack import Stack


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> int:
    # It ends as after Ctrl-C, and what it has started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    thorough = bool(os.environ.get("THOROUGH"))
    failed = 0

    def report(name: str, check, *arguments) -> None:
        nonlocal failed
        begun = time.monotonic()
        try:
            print(f"ok     {name}: {check(*arguments)} ({time.monotonic() - begun:.1f} s)", flush=True)
        # A client's own errors are its findings.
        except Exception as error:
            failed += 1
            print(f"WRONG  {name}: {type(error).__name__}: {error}", flush=True)

    with tempfile.TemporaryDirectory() as files:
        stack = Stack(Path(files))
        origins = [sockets.Origin(), calls.Origin(stack, tls=False), calls.Origin(stack, tls=True)]
        try:
            talk, plain, secure = origins
            port = free_port()
            stack.origin(port)
            web = stack.proxy("web", f"127.0.0.1:{port}")
            websockets = stack.proxy("websockets", f"127.0.0.1:{talk.port}")
            h2c = stack.proxy("h2c", f"127.0.0.1:{plain.port}", "  upstream: {protocol: h2c}\n")
            verified = f"  upstream: {{tls: {{ca_file: '{stack.authority}'}}}}\n"
            tls = stack.proxy("tls", f"https://localhost:{secure.port}", verified)
            report("curl, versions", commands.curl_versions, stack, web)
            report("curl, bodies", commands.curl_bodies, stack, web)
            report("nghttp", commands.nghttp, stack, web)
            report("h2load", commands.h2load, stack, web)
            report("openssl s_client", commands.openssl, stack, web)
            report("Python's h2", sockets.requests_over_h2, stack, web)
            report("Python's websockets over HTTP/1.1", sockets.over_http1, stack, websockets)
            report("Python's websockets over HTTP/2", sockets.over_http2, stack, websockets)
            report("grpcio to an origin with h2c", calls.calls, stack, h2c, plain)
            report("grpcio to an origin with TLS", calls.calls, stack, tls, secure)
            report("Node's http2", commands.node, stack, web)
            report("sslscan", commands.sslscan, stack, web)
            if thorough:
                report("Chromium", browser.chromium, stack, websockets)
                report("testssl", commands.testssl, stack, web)
            for proxy in [web, websockets, h2c, tls]:
                report(f"the proxy {proxy.name}", proxy.leave)
        finally:
            stack.end()
            for origin in origins:
                origin.end()
    print("all is well" if not failed else f"{failed} checks found something wrong")
    return bool(failed)


sys.exit(main())

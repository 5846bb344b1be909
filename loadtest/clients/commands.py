"""Clients that are commands: curl, nghttp, h2load, openssl, Node, and the scanners of TLS."""

import json
import re
import subprocess
import time
import xml.etree.ElementTree as xml
from pathlib import Path

from stack import LIMIT, Proxy, Stack, expect, run

HERE = Path(__file__).parent


def curl(stack: Stack, *arguments: object, **more) -> tuple[str, str]:
    """The body, and the status with the version of HTTP."""
    wanted = "\n%{http_code} HTTP/%{http_version}"
    output = run("curl", "-sS", "--max-time", LIMIT, "--cacert", stack.authority, "-w", wanted, *arguments, **more)
    body, facts = output.rsplit("\n", 1)
    return body, facts


def curl_versions(stack: Stack, web: Proxy) -> str:
    for option, to, version in [
        ("--http2", f"https://localhost:{web.tls}", "2"),
        ("--http1.1", f"https://localhost:{web.tls}", "1.1"),
        ("--http2-prior-knowledge", f"http://localhost:{web.plain}", "2"),
        # It asks for an upgrade to HTTP/2, which RFC 9113 has taken back.
        ("--http2", f"http://localhost:{web.plain}", "1.1"),
    ]:
        body, facts = curl(stack, option, f"{to}/headers")
        expect(facts == f"200 HTTP/{version}", f"{option} {to}: {facts}")
        scheme = to.split(":")[0]
        expect(f"x-forwarded-proto: {scheme}\n" in body.lower(), f"{option} {to}: {body}")
    return "--http2, --http2-prior-knowledge and --http1.1, with TLS and without"


def curl_bodies(stack: Stack, web: Proxy) -> str:
    sent = stack.files / "body"
    sent.write_bytes(bytes(range(256)) * 20_000)
    got = stack.files / "got"
    for option, to in [
        ("--http2", f"https://localhost:{web.tls}"),
        ("--http1.1", f"https://localhost:{web.tls}"),
        ("--http2-prior-knowledge", f"http://localhost:{web.plain}"),
    ]:
        # With a length, and without one.
        for upload in [("-T", sent), ("-X", "POST", "-T", "-")]:
            with sent.open("rb") as stdin:
                _, facts = curl(stack, option, *upload, "-o", got, f"{to}/echo", stdin=stdin)
            expect(facts.startswith("200 "), f"{option} {upload}: {facts}")
            expect(got.read_bytes() == sent.read_bytes(), f"{option} {upload}: another body came back")
        _, facts = curl(stack, option, "-I", "-o", got, f"{to}/bytes/1000")
        expect(facts.startswith("200 ") and b"content-length: 1000" in got.read_bytes().lower(), f"HEAD: {got.read_text()}")
        body, facts = curl(stack, option, "-H", "Expect: 100-continue", "--data-binary", "four", f"{to}/upload")
        expect((body, facts[:3]) == ("4\n", "200"), f"Expect: {body} {facts}")
    return "5 MB up and down with a length and without, HEAD, Expect"


def nghttp(stack: Stack, web: Proxy) -> str:
    for to in [f"https://localhost:{web.tls}", f"http://localhost:{web.plain}"]:
        table = run("nghttp", "--null-out", "--stat", "--multiply=30", f"{to}/bytes/20000", f"{to}/chunked/5")
        answered = re.findall(r"^\s*\d+\s+\S+\s+\S+\s+\S+\s+(\d{3})\s+\S+\s+/", table, re.MULTILINE)
        expect(answered == ["200"] * 60, f"{to}: {table[-3000:]}")
    # With padding, a small window, a dependency and a trailer.
    body = stack.files / "small"
    body.write_bytes(b"x" * 5000)
    options = ["--verbose", "--padding=50", "--window-bits=10", "--weight=7", "--trailer=x-end: 1", f"--data={body}"]
    frames = run("nghttp", *options, f"https://localhost:{web.tls}/echo")
    expect(":status: 200" in frames and frames.count("x") >= 5000, frames[-2000:])
    return "60 requests at a time with TLS and without; padding, windows of 1 KiB, a trailer"


def h2load(stack: Stack, web: Proxy) -> str:
    for more, to in [
        ([], f"https://localhost:{web.tls}"),
        ([], f"http://localhost:{web.plain}"),
        (["--h1"], f"https://localhost:{web.tls}"),
    ]:
        command = ["h2load", "-n2000", "-c10", "-m20", *more, f"{to}/bytes/1000"]
        output = run(*command)
        expect("2000 succeeded, 0 failed, 0 errored, 0 timeout" in output, f"{command}: {output[-2000:]}")
        expect("status codes: 2000 2xx" in output, f"{command}: {output[-2000:]}")
    return "2,000 requests over each of h2, h2c and HTTP/1.1 with TLS, 20 at a time on 10 connections"


def s_client(stack: Stack, web: Proxy, *more: object, said: str | None = None, last: str = "closed") -> str:
    """What openssl sees of a handshake, and if something is `said` then, of what comes until the `last` line."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{web.tls}", "-servername", "localhost"]
    command += ["-CAfile", stack.authority, "-verify_return_error", "-verify_hostname", "localhost", *more]
    process = subprocess.Popen([str(part) for part in command], stdin=-1, stdout=-1, stderr=subprocess.STDOUT)
    process.stdin.write((said or "").encode())
    process.stdin.flush()
    if said is None:
        process.stdin.close()
    try:
        output = ""
        for line in process.stdout:
            output += line.decode(errors="replace")
            if said is not None and last in output:
                break
        return output
    finally:
        process.kill()
        process.wait()


def openssl(stack: Stack, web: Proxy) -> str:
    for version in ["-tls1_2", "-tls1_3"]:
        session = stack.files / f"session{version}"
        for offered, chosen in [("h2,http/1.1", "h2"), ("http/1.1", "http/1.1")]:
            output = s_client(stack, web, version, "-alpn", offered)
            expect("Verify return code: 0 (ok)" in output, output[-2000:])
            expect(f"ALPN protocol: {chosen}\n" in output, output[-2000:])
        # In TLS 1.3 tickets come after the handshake, so a response is read.
        request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        output = s_client(stack, web, version, "-sess_out", session, said=request)
        expect("HTTP/1.1 200 OK" in output, output[-2000:])
        output = s_client(stack, web, version, "-sess_in", session)
        expect("Reused, TLSv" in output, f"{version}: the session is not resumed: {output[-2000:]}")
    for old in ["-tls1", "-tls1_1"]:
        output = s_client(stack, web, old, "-cipher", "ALL:@SECLEVEL=0")
        expect("alert protocol version" in output or "alert handshake failure" in output, f"{old}: {output[-2000:]}")
    # "R" alone in a line makes it ask for a new handshake.
    begun = time.monotonic()
    output = s_client(stack, web, "-tls1_2", said="R\n", last="no renegotiation")
    expect("RENEGOTIATING" in output and "no renegotiation" in output, f"renegotiation: {output[-2000:]}")
    expect(time.monotonic() - begun < LIMIT / 2, "renegotiation: it is refused only when the connection ends")
    return "TLS 1.2 and 1.3 with ALPN and resumption; older versions and a renegotiation are refused"


def node(stack: Stack, web: Proxy) -> str:
    return run("node", HERE / "http2.mjs", web.tls, web.plain, stack.authority).strip()


def sslscan(stack: Stack, web: Proxy) -> str:
    report = stack.files / "sslscan.xml"
    run("sslscan", "--show-sigs", f"--xml={report}", f"127.0.0.1:{web.tls}")
    tree = xml.parse(report).find("ssltest")
    expect(tree is not None, report.read_text())
    enabled = {f"{protocol.get('type')}{protocol.get('version')}" for protocol in tree.iter("protocol") if protocol.get("enabled") == "1"}
    expect(enabled == {"tls1.2", "tls1.3"}, f"versions: {enabled}")
    ciphers = {cipher.get("cipher") for cipher in tree.iter("cipher")}
    strong = re.compile(r"(TLS_(AES_(128|256)_GCM|CHACHA20_POLY1305)_SHA(256|384)|ECDHE-(ECDSA|RSA)-(AES(128|256)-GCM-SHA(256|384)|CHACHA20-POLY1305))")
    weak = {cipher for cipher in ciphers if not strong.fullmatch(cipher)}
    expect(ciphers and not weak, f"suites: {weak or ciphers}")
    expect(all(beat.get("vulnerable") == "0" for beat in tree.iter("heartbleed")), "heartbleed")
    expect(all(compression.get("supported") == "0" for compression in tree.iter("compression")), "compression")
    renegotiation = tree.find("renegotiation")
    expect(renegotiation.get("secure") == "1" or renegotiation.get("supported") == "0", f"{xml.tostring(renegotiation)}")
    return f"{', '.join(sorted(enabled))} and {len(ciphers)} suites, all with forward secrecy and AEAD"


# What testssl finds that is true of a certificate for a trial, or asks for more than there is to have.
ACCEPTED = {
    "cert_revocation": "an authority without a key revokes nothing",
    "DNS_CAArecord": "localhost has none",
    "HSTS": "tls.hsts turns it on",
    "cipher_order": "all suites are strong, and clients know which are fast for them",
    "engine_problem": "it wants an OpenSSL with GOST",
    "ipv4_in_header": "the origin names itself",
    "security_headers": "those are the origin's to send",
}


def testssl(stack: Stack, web: Proxy) -> str:
    report = stack.files / "testssl.json"
    command = ["testssl", "--quiet", "--color", "0", "--warnings", "off", "--openssl-timeout", "20", "--jsonfile", report]
    command += ["--add-ca", stack.authority, f"localhost:{web.tls}"]
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=900, stdin=subprocess.DEVNULL)
    expect(report.exists(), f"no report: {(done.stdout + done.stderr)[-2000:]!r}")
    findings = json.loads(report.read_text())
    seen = {finding["id"] for finding in findings}
    for wanted in ["SSLv2", "TLS1_1", "secure_client_renego", "CRIME_TLS", "ROBOT", "LUCKY13", "RC4", "cipherlist_NULL"]:
        expect(wanted in seen, f"{wanted} was not looked at: {sorted(seen)}")
    bad = [finding for finding in findings if finding["severity"] not in ("OK", "INFO", "DEBUG") and finding["id"] not in ACCEPTED]
    expect(not bad, "\n".join(f"{finding['severity']} {finding['id']}: {finding['finding']}" for finding in bad))
    return f"{len(findings)} findings, none of them a weakness"

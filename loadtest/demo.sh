#!/bin/sh
# Three demo origins and the proxy, until Ctrl-C. `make run` builds the binaries and runs this.
set -eu

bin=${BIN:-target/debug}
conf=${CONF:-conf/embedded.yaml}
targets=${SENTINEL_TARGETS:-127.0.0.1:8081,127.0.0.1:8082,127.0.0.1:8083}
proxy_port=${PROXY_PORT:-8080}
metrics_port=${METRICS_PORT:-2112}

. loadtest/cleanup.sh

# A process that has ended has said why in its log.
both_run() {
    kill -0 "$origins" 2>/dev/null || { echo "the demo origins have ended; see the log above" >&2; exit 1; }
    kill -0 "$proxy" 2>/dev/null || { echo "the proxy has ended; see the log above" >&2; exit 1; }
}

# shellcheck disable=SC2046  # one word an address
"$bin/origin" $(echo "$targets" | tr ',' ' ') &
origins=$!
SENTINEL_TARGETS=$targets "$bin/gopherproxy" -c "$conf" &
proxy=$!
sleep 0.5
until both_run && "$bin/gopherproxy" -c "$conf" --healthcheck >/dev/null; do
    sleep 0.1
done

cat <<READY

  GopherProxy   http://localhost:$proxy_port        balanced over $targets
  Metrics       http://localhost:$metrics_port/metrics
  Readiness     http://localhost:$metrics_port/readyz

  Try it:       for i in 1 2 3 4 5 6 7; do curl -i http://localhost:$proxy_port/; done
  Five answers from three origins, then 429: a client may send five at once and two a second after that.

  Ctrl-C ends all of it. The log follows.

READY

while both_run; do
    sleep 1
done

#!/bin/sh
# The proxy over three demo origins, or over SENTINEL_TARGETS where that is set, until Ctrl-C. `make run` builds the binaries and runs
# this.
set -eu

bin=${BIN:-target/debug}
conf=${CONF:-conf/embedded.yaml}
own=${SENTINEL_TARGETS:-}
targets=${own:-${DEMO_ORIGINS:-127.0.0.1:8081,127.0.0.1:8082,127.0.0.1:8083}}
proxy_port=${PROXY_PORT:-8080}
metrics_port=${METRICS_PORT:-2112}

# Runs a command without a wait that Ctrl-C could not end.
patiently() {
    "$@" &
    wait $!
}

# Of this very process, a subshell or not: its parent, its group and the foreground group of its terminal.
look_around() {
    read -r _ _ _ parent group _ _ foreground _ 2>/dev/null </proc/self/stat || parent= group= foreground=-
}

# A process that has ended has said why in its log. Nor does this outlive whoever started it.
all_run() {
    [ -z "$origins" ] || kill -0 "$origins" 2>/dev/null || { echo "the demo origins have ended; see the log above" >&2; exit 1; }
    kill -0 "$proxy" 2>/dev/null || { echo "the proxy has ended; see the log above" >&2; exit 1; }
    look_around
    [ "$parent" = "$starter" ] || exit 1
}

demo() {
    . loadtest/cleanup.sh
    trap 'end; echo "Stopped."; exit 0' INT
    look_around
    starter=$parent
    if [ -z "$own" ]; then
        # shellcheck disable=SC2046,SC2086  # one word an address
        $apart "$bin/origin" $(echo "$targets" | tr ',' ' ') &
        origins=$!
        # A proxy that is quicker would warn that they are down.
        for target in $(echo "$targets" | tr ',' ' '); do
            until patiently "$bin/origin" --healthcheck "$target" >/dev/null 2>&1; do
                kill -0 "$origins" 2>/dev/null || { echo "the demo origins have ended; see the log above" >&2; exit 1; }
                patiently sleep 0.1
            done
        done
    fi
    # shellcheck disable=SC2086
    SENTINEL_TARGETS=$targets $apart "$bin/gopherproxy" -c "$conf" &
    proxy=$!
    patiently sleep 0.5
    looks=0
    until all_run && patiently "$bin/gopherproxy" -c "$conf" --healthcheck >/dev/null 2>&1; do
        looks=$((looks + 1))
        [ "$looks" != 20 ] || echo "Waiting for $targets to take connections: is it running?"
        patiently sleep 0.1
    done

    if [ -n "${TRY:-}" ]; then
        try=$TRY
        expect=$EXPECT
    elif [ "${RATE_LIMIT:-}" = off ]; then
        try="curl -i http://localhost:$proxy_port/"
        expect="The limit for each client is off."
    elif [ -n "$own" ]; then
        try="curl -i http://localhost:$proxy_port/"
        expect="Your application answers. A client may send five requests at once and two a second after that; more are answered 429.
  RATE_LIMIT=off in front of make turns that limit off."
    else
        try="for i in 1 2 3 4 5 6 7; do curl -i http://localhost:$proxy_port/; done"
        expect="Five answers from three origins, then 429: a client may send five at once and two a second after that."
    fi
    printf '%s\n' "" \
        "  GopherProxy   http://localhost:$proxy_port        balanced over $targets" \
        "  Metrics       http://localhost:$metrics_port/metrics" \
        "  Readiness     http://localhost:$metrics_port/readyz" "" \
        "  Try it:       $try" \
        "  $expect" "" \
        "  Ctrl-C ends all of it. The log follows." ""

    while all_run; do
        patiently sleep 1
    done
}

# make calls it an error when Ctrl-C ends it. So in the foreground of a terminal the demo is a job of its own (set -m), which has that
# foreground alone, and Ctrl-C reaches nobody else. Ctrl-Z would stop it behind make's back, and the terminal would be nobody's.
look_around
if [ "$group" = "$foreground" ]; then
    trap '' TSTP
    set -m
    (demo)
else
    demo
fi

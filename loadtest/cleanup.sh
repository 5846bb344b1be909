# Read in (`. loadtest/cleanup.sh`) by scripts that start a proxy and its origins: whatever ends such a script ends those too, and
# waits for them. It keeps their process ids in `proxy` and `origins`, which are empty until then.
# shellcheck shell=sh

proxy=
origins=

# What is started behind these words has a process group of its own, which Ctrl-C does not reach: it gets one signal, the one from
# `end`, and not two. If the script is killed the kernel ends it.
apart=
! command -v setsid >/dev/null 2>&1 || apart=setsid
! setpriv --pdeathsig=TERM true 2>/dev/null || apart="$apart setpriv --pdeathsig=TERM"

end() {
    trap '' HUP INT QUIT TERM EXIT
    # The proxy first: one that still runs would warn that its origins are down.
    for process in $proxy $origins; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
}
trap end EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 131' QUIT
trap 'exit 143' TERM

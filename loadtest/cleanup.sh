# Read in (`. loadtest/cleanup.sh`) by scripts that start a proxy and its origins: whatever ends such a script ends those too, and
# waits for them. It keeps their process ids in `proxy` and `origins`, which are empty until then.
# shellcheck shell=sh

proxy=
origins=

end() {
    trap '' INT TERM EXIT
    # shellcheck disable=SC2086  # each is one process id or none
    kill $proxy $origins 2>/dev/null || true
    wait 2>/dev/null || true
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

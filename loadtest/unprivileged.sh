#!/bin/sh
# The integration tests, as built, once more as a user of no privileges: what passes as root alone fails here. Run as root after
# `make test`; another user's tests are run without privileges anyway. Arguments are the test binary's.
set -eu
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || exit 0
tests=$(${CARGO:-cargo} test --package gopherproxy --test it --no-run 2>&1 | sed -n 's/.*(\(.*\/it-[0-9a-f]*\)).*/\1/p')
tests=$(realpath "$tests")
home=$(mktemp -d)
# A checkout that only its owner may enter (`mktemp -d` makes such) is open to others meanwhile.
checkout=$PWD
mode=$(stat -c %a .)
chmod o+rx .
trap 'chmod "$mode" "$checkout"; rm -rf "$home"' EXIT
chown 65534:65534 "$home"
as_nobody="setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"

closed=
directory=$PWD
while [ "$directory" != / ]; do
    directory=$(dirname "$directory")
    $as_nobody test -x "$directory" || closed=$directory
done
if [ -z "$closed" ]; then
    cd proxy
    $as_nobody env HOME="$home" TMPDIR="$home" "$tests" "$@"
    exit
fi

# The checkout is in a directory that others can't enter. In a mount namespace of their own the tests see an empty one there, with the
# checkout in it.
# shellcheck disable=SC2016  # the inner shell's variables
unshare --mount sh -euc '
    checkout=$PWD closed=$1 home=$2
    shift 2
    mkdir "$home/checkout"
    mount --bind "$checkout" "$home/checkout"
    mount -t tmpfs -o mode=755 none "$closed"
    mkdir -p "$checkout"
    mount --move "$home/checkout" "$checkout"
    cd "$checkout/proxy"
    exec env HOME="$home" TMPDIR="$home" "$@"
' sh "$closed" "$home" $as_nobody "$tests" "$@"

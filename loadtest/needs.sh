#!/bin/sh
# Looks for what a make target can't do without, before it does anything: `needs.sh rust python`. What is missing is said all at once,
# with the way to get it.
set -eu

failed=

# lacks WHAT HOW-TO-GET-IT
lacks() {
    echo "$1. $2" >&2
    failed=1
}

there() {
    command -v "$1" >/dev/null 2>&1
}

# How to install a Debian package; others have it under that name or one like it.
package() {
    if there apt-get; then
        echo "Install it with: sudo apt-get install $1"
    else
        echo "Install it with the package manager of this system (Debian calls it $1)."
    fi
}

rust() {
    needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    get="Install it with rustup: https://rustup.rs"
    # shellcheck disable=SC2086  # CARGO may have arguments
    set -- ${CARGO:-cargo}
    there "$1" || { lacks "needs Rust $needed or later; found no $1" "$get"; return; }
    found=$(${RUSTC:-rustc} --version 2>/dev/null) || { lacks "needs Rust $needed or later; rustc does not run" "$get"; return; }
    found=${found#rustc }
    found=${found%%[ -]*}
    minor=${found#*.}
    minor=${minor%%.*}
    if [ "${found%%.*}" -lt "${needed%%.*}" ] || { [ "${found%%.*}" = "${needed%%.*}" ] && [ "$minor" -lt "${needed#*.}" ]; }; then
        lacks "needs Rust $needed or later; found $found" "$get"
    fi
    there "${CC:-cc}" || lacks "needs a C compiler; found no ${CC:-cc}" "$(package gcc) libc6-dev"
}

for need in "$@"; do
    case $need in
    rust) rust ;;
    c++) there "${CXX:-c++}" || lacks "needs a C++ compiler; found no ${CXX:-c++}" "$(package g++)" ;;
    python) there python3 || lacks "needs Python 3; found no python3" "$(package python3)" ;;
    venv)
        if ! there python3; then
            lacks "needs Python 3 with venv; found no python3" "$(package python3-venv)"
        elif ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
            lacks "needs Python's venv module" "$(package python3-venv)"
        fi
        ;;
    curl) there curl || lacks "needs curl" "$(package curl)" ;;
    openssl) there openssl || lacks "needs openssl" "$(package openssl)" ;;
    docker)
        if ! there docker; then
            lacks "needs Docker with its compose plugin; found no docker" "Install it: https://docs.docker.com/engine/install/"
        elif ! docker compose version >/dev/null 2>&1; then
            lacks "needs Docker's compose plugin" "Install it: https://docs.docker.com/compose/install/linux/"
        elif ! docker info >/dev/null 2>&1; then
            lacks "needs a running Docker daemon that this user may talk to" "Try: docker info"
        fi
        ;;
    node)
        node -e 'process.exit(+(parseInt(process.versions.node) < 20))' 2>/dev/null ||
            lacks "needs Node 20 or later" "Install it: https://nodejs.org"
        ;;
    *)
        echo "needs.sh does not know $need" >&2
        exit 2
        ;;
    esac
done
[ -z "$failed" ]

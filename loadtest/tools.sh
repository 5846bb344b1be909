#!/bin/sh
# Installs the named tools where they are missing, and says so before it does.
set -eu

missing=
for tool in "$@"; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
[ -n "$missing" ] || exit 0

as_root=sudo
# The packages have the names of their tools, except redis-server outside Debian.
packages=$missing
if command -v apt-get >/dev/null 2>&1; then
    install="apt-get install -y --no-install-recommends"
    before="apt-get update"
else
    before=true
    if command -v dnf >/dev/null 2>&1; then
        install="dnf install -y"
    elif command -v apk >/dev/null 2>&1; then
        install="apk add"
    elif command -v pacman >/dev/null 2>&1; then
        install="pacman -S --noconfirm"
    elif command -v brew >/dev/null 2>&1; then
        install="brew install"
        as_root=
    else
        echo "missing:$missing, and this system has no package manager that I know." >&2
        echo "Install$missing (Redis 6 or later) and run this again." >&2
        exit 1
    fi
fi

[ "$(id -u)" != 0 ] || as_root=
command -v apt-get >/dev/null 2>&1 || packages=$(echo "$missing" | sed 's/redis-server/redis/')
if [ -n "$as_root" ] && ! command -v "$as_root" >/dev/null 2>&1; then
    echo "missing:$missing, and neither root nor sudo to install with." >&2
    echo "As root, run: $install$packages" >&2
    exit 1
fi

echo "missing:$missing. Installing with: $as_root $install$packages"
# shellcheck disable=SC2086  # the words are meant to be split
{
    $as_root $before
    $as_root $install $packages
}
for tool in $missing; do
    # A package may start a server of its own on the usual port: nobody asked for that. Ours are on free ones.
    if [ -e "/etc/init.d/$tool" ] && command -v service >/dev/null 2>&1; then
        $as_root service "$tool" stop >/dev/null 2>&1 || true
    fi
    command -v "$tool" >/dev/null 2>&1 || { echo "$tool is still missing after the installation" >&2; exit 1; }
done

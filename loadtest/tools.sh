#!/bin/sh
# Gets the named tools where they are not on the PATH, and says first what that takes.
#
# On Debian and its kin their packages are unpacked below target/tools, by any user: nothing is installed, so no service starts, now or
# at the next boot. The programs are in target/tools/bin. Elsewhere the package manager of the system installs them.
set -eu

unpacked=$PWD/target/tools

missing=
# As Debian names their packages.
packages=
for tool in "$@"; do
    PATH=$PATH:/usr/sbin:$unpacked/bin command -v "$tool" >/dev/null 2>&1 && continue
    missing="$missing $tool"
    case $tool in
        nghttp | h2load) packages="$packages nghttp2-client" ;;
        testssl) packages="$packages testssl.sh" ;;
        certutil) packages="$packages libnss3-tools" ;;
        *) packages="$packages $tool" ;;
    esac
done
[ -n "$missing" ] || exit 0

# $1: how to install them by hand.
give_up() {
    echo "Install$missing (Redis 6 or later) and run this again${1:+: $1}" >&2
    exit 1
}

# apt for this user, with lists and downloads of its own.
apt() {
    apt-get -o Debug::NoLocking=true -o APT::Sandbox::User=root \
        -o "Dir::State=$unpacked/apt" -o Dir::State::status=/var/lib/dpkg/status -o "Dir::Cache=$unpacked/apt" "$@"
}

unpack() {
    echo "missing:$missing. Debian's packages will be unpacked into target/tools; nothing is installed on this system."
    mkdir -p "$unpacked/bin" "$unpacked/root" "$unpacked/apt/lists/partial" "$unpacked/apt/archives/partial"
    echo "Reading the lists of packages (20 MB)"
    apt -q update || return 1
    # shellcheck disable=SC2086  # the words are meant to be split
    LC_ALL=C apt --assume-no --no-install-recommends install $packages | grep -E '^(Need to get|After this)' || return 1
    # apt would also say that it installs them.
    # shellcheck disable=SC2086
    { apt -q --assume-yes --no-install-recommends --download-only install $packages && : >"$unpacked/apt/complete"; } | grep '^Get:'
    [ -e "$unpacked/apt/complete" ] || return 1
    for package in "$unpacked"/apt/archives/*.deb; do
        dpkg-deb --extract "$package" "$unpacked/root" || return 1
    done
    # A program finds the libraries that were unpacked with it, and those of the system are still everybody else's.
    for program in "$unpacked"/root/usr/bin/* "$unpacked"/root/usr/sbin/*; do
        [ -x "$program" ] || continue
        wrapper=$unpacked/bin/${program##*/}
        cat >"$wrapper" <<'WRAPPER'
#!/bin/sh
root=${0%/*}/../root
for directory in "$root"/usr/lib/*-linux-* "$root"/lib/*-linux-*; do
    [ ! -d "$directory" ] || LD_LIBRARY_PATH=$directory${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
done
[ ! -d "$root/usr/libexec/valgrind" ] || VALGRIND_LIB=$root/usr/libexec/valgrind
[ ! -d "$root/etc/testssl" ] || TESTSSL_INSTALL_DIR=$root/etc/testssl
export LD_LIBRARY_PATH VALGRIND_LIB TESTSSL_INSTALL_DIR
WRAPPER
        echo "exec \"\$root/${program#"$unpacked/root/"}\" \"\$@\"" >>"$wrapper"
        chmod +x "$wrapper"
    done
    rm -rf "$unpacked/apt"
}

# $@: the command that installs packages, as root.
install() {
    command="$* $(echo "$missing" | sed 's/redis-server/redis/; s/h2load/nghttp2/')"
    if [ "$1" != brew ] && [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 || give_up "as root, $command"
        command="sudo $command"
    fi
    echo "missing:$missing. Installing with: $command"
    $command || give_up
}

if command -v apt-get >/dev/null 2>&1; then
    unpack || give_up "sudo apt-get install --no-install-recommends$packages"
elif command -v dnf >/dev/null 2>&1; then
    install dnf install -y
elif command -v apk >/dev/null 2>&1; then
    install apk add
elif command -v pacman >/dev/null 2>&1; then
    install pacman -S --noconfirm
elif command -v brew >/dev/null 2>&1; then
    install brew install
else
    echo "missing:$missing, and this system has no package manager that I know." >&2
    give_up
fi
for tool in $missing; do
    PATH=$PATH:/usr/sbin:$unpacked/bin command -v "$tool" >/dev/null 2>&1 || {
        echo "$tool is still missing" >&2
        exit 1
    }
done

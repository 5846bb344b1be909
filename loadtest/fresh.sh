#!/bin/sh
# What a newcomer has: `make run` and `make test` from nothing, in a fresh clone, as an ordinary user with sudo, in a minimal Debian with
# gcc, make, git, curl and this machine's Rust. `make fresh` runs this; it takes root or sudo, debootstrap, 8 GB of disk and some 20
# minutes. Each command must end well and in time, must not be silent for long, and must leave nothing behind: no process, no package
# and no service.
#
# All of it happens in namespaces, so that no mount and no process outlives this script, however that ends. Packages and crates come from
# where this machine gets its own (MIRROR is another place for packages). What is not committed is not tested. The network is this
# machine's: where the usual ports are taken, PROXY_PORT, METRICS_PORT and DEMO_ORIGINS choose others.
set -eu
cd "$(dirname "$0")/.."

# Seconds: for each command, and without a word.
patience=${FRESH_PATIENCE:-1800}
silence=120
port=${PROXY_PORT:-8080}
packages=gcc,libc6-dev,make,git,curl,sudo,ca-certificates
# What a machine may need to get at packages and crates, and the ports.
variables='^(https?_proxy|no_proxy|SSL_CERT_FILE|SSL_CERT_DIR|CARGO_(HTTP|NET|REGISTR)[A-Z_]*|(PROXY|METRICS)_PORT|DEMO_ORIGINS)='

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# Of the user who runs `make fresh`: the commit and the toolchain. Then as root, and then in namespaces.
as_the_user() {
    sh loadtest/needs.sh rust curl
    command -v debootstrap >/dev/null 2>&1 || fail "needs debootstrap. Install it with: sudo apt-get install debootstrap"
    rust=$(rustc --print sysroot)
    mkdir -p target
    git bundle create --quiet target/commit.bundle HEAD
    if [ "$(id -u)" = 0 ]; then
        as_root "$rust"
    else
        exec sudo --preserve-env sh loadtest/fresh.sh as_root "$rust"
    fi
}

as_root() {
    root=$(mktemp -d /var/tmp/gopherproxy-fresh.XXXXXX)
    chmod 755 "$root"
    namespaces=
    # The kernel ends whoever is in the namespaces together with the process that made them.
    trap '[ -z "$namespaces" ] || kill -KILL $namespaces 2>/dev/null || true; wait; rm -rf --one-file-system "$root"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    setpriv --pdeathsig=KILL unshare --mount --pid --fork --kill-child --mount-proc sh loadtest/fresh.sh inside "$root" "$1" &
    namespaces=$!
    wait "$namespaces"
}

inside() {
    root=$1
    system "$2"
    as_newcomer "git -c advice.detachedHead=false clone --quiet /opt/commit.bundle gopherproxy && gcc --version | head -n 1 && cargo --version"
    before=$(state)

    echo "== make run, from nothing"
    start "make run"
    watch "make run" curl --silent --fail --output /dev/null --max-time 5 "http://localhost:$port/"
    echo "It answers after $(($(date +%s) - began)) s."
    printf '\003' >&3
    finish "make run"
    grep -q 'Stopped\.' "$root/tmp/log" || fail "make run did not say that it stopped"
    ! grep -aE 'second signal|Error' "$root/tmp/log" || fail "make run did not end in peace"

    echo "== make test, after it"
    start "make test"
    finish "make test"
    grep -a '^test result' "$root/tmp/log"
    echo "Both commands keep their word."
}

# A minimal Debian in $root, with the toolchain $1.
system() {
    sources=$(find /etc/apt/sources.list /etc/apt/sources.list.d -name '*.list' -o -name '*.sources' 2>/dev/null || true)
    # shellcheck disable=SC2086  # the words are meant to be split
    mirror=${MIRROR:-$(sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' $sources | head -n 1)}
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    echo "== a minimal $suite in $root, for some minutes"
    debootstrap --variant=minbase --include=$packages "$suite" "$root" "$mirror" >target/debootstrap.log 2>&1 ||
        { tail -n 20 target/debootstrap.log >&2; fail "debootstrap; see target/debootstrap.log"; }
    rm -f "$root/etc/apt/sources.list"
    for file in sources.list sources.list.d trusted.gpg trusted.gpg.d keyrings auth.conf.d apt.conf.d; do
        [ ! -e "/etc/apt/$file" ] || cp -a "/etc/apt/$file" "$root/etc/apt/"
    done
    cp -a /usr/share/keyrings/. "$root/usr/share/keyrings/"
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    chroot "$root" useradd --create-home --shell /bin/bash newcomer
    echo 'newcomer ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/newcomer"
    for settings in "${CARGO_HOME:-$HOME/.cargo}"/config.toml; do
        [ ! -e "$settings" ] || install -D -m 644 "$settings" "$root/home/newcomer/.cargo/config.toml"
    done
    chroot "$root" chown -R newcomer: /home/newcomer
    install -m 644 target/commit.bundle "$root/opt/"
    mkdir "$root/opt/rust"
    mount --bind -o ro "$1" "$root/opt/rust"
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
}

# Runs a line of shell as the newcomer, who has just logged in: nothing is ignored, as signals are in the background of a script.
as_newcomer() {
    kept=$(env | grep -iE "$variables" || true)
    # shellcheck disable=SC2086  # the words are meant to be split
    chroot "$root" setpriv --reuid=newcomer --regid=newcomer --init-groups \
        env --default-signal --ignore-environment --chdir=/home/newcomer $kept HOME=/home/newcomer USER=newcomer TERM=xterm LANG=C.UTF-8 \
        PATH=/opt/rust/bin:/usr/local/bin:/usr/bin:/bin sh -c "$1"
}

# Starts a command on a terminal, whose keys are descriptor 3.
start() {
    rm -f "$root/tmp/keys" "$root/tmp/code"
    mkfifo "$root/tmp/keys"
    : >"$root/tmp/log"
    chmod 666 "$root/tmp/log"
    began=$(date +%s)
    (
        code=0
        as_newcomer "cd gopherproxy && exec script -qefc 'stty cols 100 rows 30; $1' /tmp/log" <"$root/tmp/keys" >/dev/null || code=$?
        echo $code >"$root/tmp/code"
    ) &
    exec 3>"$root/tmp/keys"
    said=$began size=0 longest=0
}

ended() {
    [ -s "$root/tmp/code" ]
}

# Looks at the command $1 every second, until the rest of the words hold.
watch() {
    name=$1
    shift
    until "$@"; do
        sleep 1
        now=$(date +%s)
        grown=$(wc -c <"$root/tmp/log")
        [ "$grown" = "$size" ] || said=$now
        size=$grown
        [ $((now - said)) -le "$longest" ] || longest=$((now - said))
        problem=
        [ $((now - began)) -le "$patience" ] || problem="takes more than $patience s"
        ! ended || [ "$1" = ended ] || problem="has ended with $(cat "$root/tmp/code")"
        [ -z "$problem" ] || { tail -n 60 "$root/tmp/log" >&2; fail "$name $problem"; }
    done
}

# Waits for the end of the command $1, and judges it.
finish() {
    watch "$1" ended
    exec 3>&-
    code=$(cat "$root/tmp/code")
    [ "$code" = 0 ] || { tail -n 100 "$root/tmp/log" >&2; fail "$1 ended with $code"; }
    echo "$1 ended well after $(($(date +%s) - began)) s; its longest silence was $longest s."
    [ "$longest" -le "$silence" ] || fail "$1 said nothing for $longest s"
    left=$(find /proc -maxdepth 1 -name '[0-9]*' -uid "$(chroot "$root" id -u newcomer)" -exec cat {}/comm \;)
    [ -z "$left" ] || fail "$1 left processes: $left"
    [ "$(state)" = "$before" ] || fail "$1 changed what is installed or which services start"
}

# What is installed, and what starts with the machine.
state() {
    chroot "$root" dpkg-query --show
    find "$root/etc/systemd" "$root"/etc/rc*.d "$root/etc/init.d" 2>/dev/null | sort
}

"${@:-as_the_user}"

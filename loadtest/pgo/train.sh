#!/bin/sh
# Makes the profile that release builds are optimised by: which way requests go through the code, and how often.
#
# The proxy, and the do-nothing proxy that the bench compares it with, are built with counters and sent the bench's loads; what they
# have counted becomes release.profdata. The profile fits the sources and the compiler that it was made with. A function that has
# changed since is optimised without it, as all of them are by another compiler: nothing breaks, but the gain is gone.
#
# It also says what never ran, which is optimised for size; a sparse profile (`merge --sparse`) would leave that out. So what has to be
# fast needs a row below.
#
# It takes llvm-profdata of the compiler's LLVM or a later one: from `rustup component add llvm-tools`, a package named llvm, or
# LLVM_PROFDATA.
set -eu
cd "$(dirname "$0")/../.."

# What the bench takes, before minutes of building.
sh loadtest/needs.sh rust python
sh loadtest/tools.sh wrk h2load

target=target/pgo
counts=$PWD/$target/counts
# Each with the traffic that it should be good at; what they have in common counts most.
rows=get,64k,1m,upload,connect,conns,limited,clients,tls,h2,streams,handshake,grpc,gzip
sysroot=$(rustc --print sysroot)
for tool in "${LLVM_PROFDATA:-}" "$sysroot"/lib/rustlib/*/bin/llvm-profdata llvm-profdata; do
    command -v "$tool" >/dev/null 2>&1 && profdata=$tool && break
done
[ -n "${profdata:-}" ] || {
    echo "missing: llvm-profdata. Install it with: rustup component add llvm-tools" >&2
    exit 1
}

cargo=${CARGO:-cargo}
RUSTFLAGS="-Cprofile-generate=$counts" CARGO_TARGET_DIR=$target $cargo build --release --bin gopherproxy --bin bare
# Build scripts and procedural macros have counted too.
rm -rf "$counts"
# What loads the two and answers behind them is no part of it.
$cargo build --bin origin --bin pacer --bin sentinel
cp target/debug/origin target/debug/pacer target/debug/sentinel $target/release/
python3 loadtest/peers/bench.py --bin $target/release --peers gopherproxy,bare --rows $rows --rounds 1 --seconds 3
"$profdata" merge -o loadtest/pgo/release.profdata "$counts"/*.profraw
ls -l loadtest/pgo/release.profdata

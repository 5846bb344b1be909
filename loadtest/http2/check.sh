#!/bin/sh
# Runs check.py against the binaries in BIN, with Python's hpack and hyperframe, which it gets from PyPI into target/http2.
set -eu
cd "$(dirname "$0")/../.."

sh loadtest/needs.sh venv openssl
wanted=loadtest/http2/requirements.txt
if ! cmp -s "$wanted" target/http2/requirements.txt; then
    echo "missing: $(tr '\n' ' ' <"$wanted"). Installing from PyPI into target/http2"
    python3 -m venv --clear target/http2
    target/http2/bin/python -m pip install --quiet --requirement "$wanted"
    cp "$wanted" target/http2/
fi
PYTHONDONTWRITEBYTECODE=1 exec target/http2/bin/python loadtest/http2/check.py

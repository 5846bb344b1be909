#!/bin/sh
# Runs check.py against the binaries in BIN, with Python's hpack and hyperframe, which it gets from PyPI into target/http2.
set -eu
cd "$(dirname "$0")/../.."

sh loadtest/needs.sh venv openssl
sh loadtest/venv.sh http2
PYTHONDONTWRITEBYTECODE=1 exec target/http2/bin/python loadtest/http2/check.py

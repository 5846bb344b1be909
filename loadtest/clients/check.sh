#!/bin/sh
# Runs check.py against the binaries in BIN, with clients from Debian's packages (loadtest/tools.sh) and from PyPI, which it gets into
# target/clients. With THOROUGH=1 also those that are large or take minutes: Chromium, and testssl.
set -eu
cd "$(dirname "$0")/../.."

sh loadtest/needs.sh venv curl openssl node
sh loadtest/tools.sh nghttp h2load sslscan
[ -z "${THOROUGH:-}" ] || sh loadtest/tools.sh certutil chromium testssl
sh loadtest/venv.sh clients
PYTHONDONTWRITEBYTECODE=1 exec target/clients/bin/python loadtest/clients/check.py

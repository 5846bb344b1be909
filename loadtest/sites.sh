#!/bin/sh
# The proxy with conf/sites.yaml, over four demo servers, until Ctrl-C. `make run-sites` builds the binaries and runs this.
set -eu

bin=${BIN:-target/debug}
sites=${SITES:-$PWD/target/sites}

# Clients trust both sites with one file.
for site in shop api; do
    "$bin/gopherproxy" certificate --directory "$sites/$site" "$site.localhost"
done
cat "$sites/shop/self-made-ca.pem" "$sites/api/self-made-ca.pem" >"$sites/ca.pem"
sed "s|/etc/gopherproxy/tls|$sites|" conf/sites.yaml >"$sites/sites.yaml"

CONF=$sites/sites.yaml \
DEMO_ORIGINS=127.0.0.1:8081,127.0.0.1:8082,127.0.0.1:8083,127.0.0.1:8084 \
TRY="curl --cacert $sites/ca.pem https://shop.localhost:8443/" \
EXPECT="docs/sites.md has more to try." \
exec sh loadtest/demo.sh

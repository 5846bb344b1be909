# GopherProxy: `make help` lists the targets.

CARGO  ?= cargo
CONF   ?= conf/embedded.yaml
# The stamp of images, which have no repository to ask. Cargo's builds find the same values themselves (chassis/build.rs).
VERSION ?= $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null)
STAMP    = VERSION=$(VERSION) COMMIT=$(COMMIT)
# Where `make install` puts things; DESTDIR goes before all of them.
PREFIX  ?= /usr/local
CONFDIR ?= /etc/gopherproxy
UNITDIR ?= $(PREFIX)/lib/systemd/system
# A release is optimised with a profile (loadtest/pgo/). Cargo compares the flags and not the file, so its checksum is among them.
PROFILE   = $(CURDIR)/loadtest/pgo/release.profdata
OPTIMISED = RUSTFLAGS="$(RUSTFLAGS) -Cprofile-use=$(PROFILE) --cfg=profile_$(firstword $(shell cksum $(PROFILE)))"
# How long each fuzz target runs, in seconds, and the targets.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= member forwarded_for config head http2_head response_head response_chunks proxy_protocol certificate limiter routes
# cargo-fuzz passes flags that only the nightly compiler accepts; RUSTC_BOOTSTRAP makes the stable one accept them.
FUZZ = RUSTC_BOOTSTRAP=1 $(CARGO) fuzz
# The tests of what clients and origins see of HTTP. They pass over both forwarders; proxy/tests/it/support/forwarder.rs has the exceptions.
HTTP_TESTS = bodies closing compression connection_limits connection_reuse connections error_pages failing_backends faulty_origins forward_auth forwarding full_duplex hostile \
	http2 http2_attacks http2_bodies http2_connections http2_heads http2_stalls large_responses limit log memory origin_answers pauses protocols records \
	refusals retries route_rules routes routes_reload slow_clients smuggling targets websocket
# Those that run again over TLS to their origins.
TLS_TESTS = bodies both_forwarders connection_reuse failing_backends faulty_origins full_duplex large_responses memory origin_answers records retries \
	smuggling targets websocket
# One image after the other: the classic builder does not notice that they share a build stage, and would run it for each at once.
COMPOSE_BUILD = COMPOSE_PARALLEL_LIMIT=1 docker compose build
# The system's tools first, then those that loadtest/tools.sh has unpacked. Debian's servers are in sbin.
export PATH := $(PATH):/usr/sbin:/sbin:$(CURDIR)/target/tools/bin
# Each target checks first for the tools it needs, so that none fails after minutes for lack of one.
NEEDS = CARGO="$(CARGO)" sh loadtest/needs.sh
FIRST_BUILD = [ -e "$${CARGO_TARGET_DIR:-target}/debug/gopherproxy" ] || echo "First build: about 3 minutes on two cores. After that, seconds."
# Scripts that start processes run with exec: make passes SIGTERM to its shell, but not to the shell's children.

.DEFAULT_GOAL := help
.PHONY: help run run-sites mock-backends test lint build install up down logs clean purge check-observability check-dashboard check-http2 check-clients e2e k6-smoke k6-load k6-spike k6-sustained slow-clients test-thorough soak fuzz bench check-bench pgo microbench instructions fresh rust docker tools

help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: rust ## runs the proxy over three demo origins, or over yours: TARGETS=127.0.0.1:3000 (no Redis, no Docker)
	@$(FIRST_BUILD)
	@$(CARGO) build --bin gopherproxy --bin origin
	@CONF="$(CONF)" $(if $(TARGETS),SENTINEL_TARGETS="$(TARGETS)") exec sh loadtest/demo.sh

run-sites: rust ## runs two sites with TLS (conf/sites.yaml) over four demo servers; docs/sites.md says what to try
	@$(FIRST_BUILD)
	@$(CARGO) build --bin gopherproxy --bin origin
	@exec sh loadtest/sites.sh

mock-backends: rust ## runs the three demo origins alone, on all addresses (ports 8081 to 8083)
	@$(CARGO) build --bin origin
	@exec target/debug/origin 0.0.0.0:8081 0.0.0.0:8082 0.0.0.0:8083

build: rust ## builds the release binaries (link-time optimisation: takes minutes)
	$(OPTIMISED) $(CARGO) build --release --bin gopherproxy --bin sentinel

install: BUILT = $(or $(BIN),target/release)
install: ## installs the built binaries, a systemd unit, and a configuration where there is none (PREFIX, DESTDIR)
	@[ -x $(BUILT)/gopherproxy ] && [ -x $(BUILT)/sentinel ] || { echo "Nothing is built yet. Run: make build" >&2; exit 1; }
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(CONFDIR)"
	install -m 755 $(BUILT)/gopherproxy $(BUILT)/sentinel "$(DESTDIR)$(PREFIX)/bin"
	sed -e 's|/usr/local/bin/|$(PREFIX)/bin/|g' -e 's|/etc/gopherproxy/|$(CONFDIR)/|g' conf/gopherproxy.service >"$(DESTDIR)$(UNITDIR)/gopherproxy.service"
	@if [ -e "$(DESTDIR)$(CONFDIR)/gopherproxy.yaml" ]; then echo "$(DESTDIR)$(CONFDIR)/gopherproxy.yaml is there and stays as it is"; \
	else set -x; install -m 644 conf/gopherproxy.yaml "$(DESTDIR)$(CONFDIR)/gopherproxy.yaml"; fi

up: docker ## builds, stamps and starts the compose stack; waits until all of it is healthy
	@grep -qs '^GRAFANA_PASSWORD=..*' .env && ! grep -qs '^GRAFANA_PASSWORD=admin$$' .env || \
	echo "WARNING: Grafana has the default password, which everybody knows. Set GRAFANA_PASSWORD in .env." >&2
	$(STAMP) $(COMPOSE_BUILD)
	$(STAMP) docker compose up --detach --wait
	@echo "proxy http://localhost:8080   prometheus http://localhost:9090   grafana http://localhost:3000"

down: docker ## stops the compose stack; keeps its volumes
	$(STAMP) docker compose --profile https down

logs: docker ## follows the log of proxy and sentinel
	$(STAMP) docker compose logs --follow proxy sentinel

clean: ## removes what was built; keeps data
	$(CARGO) clean

purge: docker ## stops the compose stack and removes its volumes: the registry, Prometheus's history, Grafana's settings
	$(STAMP) docker compose --profile https down --volumes

e2e: docker ## builds and starts the compose stack, checks it from outside, and removes it
	@$(NEEDS) curl
	$(STAMP) $(COMPOSE_BUILD)
	$(STAMP) exec sh loadtest/e2e.sh

check-observability: rust tools ## runs every query of the dashboard and the alerts against a real Prometheus under traffic
	$(CARGO) build --workspace --bins
	$(CARGO) test --package gopherproxy --test it -- prometheus::

check-dashboard: ## checks the dashboard against Grafana's own types and the documented metrics (needs Node 20)
	@$(NEEDS) node
	@cd observability/grafana/check && npm install --no-audit --no-fund --silent && npm run --silent check

check-http2: rust ## checks HTTP/2 against RFC 9113 and RFC 7541, case by case, with and without TLS; ONLY=6.9 for some
	@$(FIRST_BUILD)
	$(CARGO) build --bin gopherproxy --bin origin
	@ONLY="$(ONLY)" exec sh loadtest/http2/check.sh

check-clients: rust ## checks the proxy with curl, nghttp, h2load, openssl, Node, gRPC and others; THOROUGH=1 with Chromium and testssl
	@$(FIRST_BUILD)
	$(CARGO) build --bin gopherproxy --bin origin
	@exec sh loadtest/clients/check.sh

k6-smoke: ## a k6 load test with a proxy and origins of its own; also k6-load, k6-spike, k6-sustained
k6-smoke k6-load k6-spike k6-sustained:
	@sh loadtest/k6.sh install
	@[ -n "$(PROXY_URL)" ] || $(NEEDS) rust
	@[ -n "$(PROXY_URL)" ] || $(OPTIMISED) $(CARGO) build --release --bin gopherproxy --bin origin
	@BIN=target/release exec sh loadtest/k6.sh $(@:k6-%=%)

slow-clients: ## a thousand slow connections in each of slowhttptest's modes, and what other clients see meanwhile (4 minutes)
	@$(NEEDS) rust python
	@sh loadtest/tools.sh slowhttptest
	$(OPTIMISED) $(CARGO) build --release --bin gopherproxy --bin origin --bin pacer
	@exec python3 loadtest/slow_clients.py

bench: ## benchmarks the proxy beside its peers, in half an hour; less with ROUNDS=1 SECONDS=1 ROWS=get,limited PEERS=gopherproxy,nginx BIN=target/release
	@$(NEEDS) python $(if $(BIN),,rust)
	@$(OPTIMISED) exec python3 loadtest/peers/bench.py $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) \
	$(if $(ROWS),--rows $(ROWS)) $(if $(PEERS),--peers $(PEERS)) $(if $(BIN),--bin $(BIN))

check-bench: ## checks that the benchmark's tables and plot match its measurements (no load; needs Python)
	@$(NEEDS) python
	@cd loadtest/peers && python3 -m unittest --quiet test_results

pgo: rust ## makes a new profile for release builds; needs llvm-profdata, and ten minutes
	@sh loadtest/pgo/train.sh

microbench: rust ## times the limiter, the choice of a backend, heads, chunks and a log line, in nanoseconds
	$(CARGO) bench --package gopherproxy --bench request_path

instructions: rust ## counts the instructions of a request, and fails if they have grown; RECORD=1 records them
	@RECORD=$(RECORD) exec sh loadtest/callgrind.sh

test: rust tools ## runs every test, with real sockets and a real redis-server; those of HTTP over both forwarders, and over TLS to origins
	@$(FIRST_BUILD)
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace
	FORWARDER=pingora $(CARGO) test --package gopherproxy --test it -- $(HTTP_TESTS:%=%::)
	ORIGINS=tls $(CARGO) test --package gopherproxy --test it -- $(TLS_TESTS:%=%::)

test-thorough: rust tools ## the same with many more upgrades, restarts and faults, for longer
	$(CARGO) build --workspace --bins
	THOROUGH=1 $(CARGO) test --workspace
	THOROUGH=1 FORWARDER=pingora $(CARGO) test --package gopherproxy --test it -- $(HTTP_TESTS:%=%::)
	THOROUGH=1 ORIGINS=tls $(CARGO) test --package gopherproxy --test it -- $(TLS_TESTS:%=%::)
	THOROUGH=1 $(MAKE) check-clients

fuzz: ## runs every fuzz target for FUZZ_SECONDS (60) over its corpus; installs cargo-fuzz where it is missing
	@$(NEEDS) rust c++
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo "missing: cargo-fuzz. Installing with: $(CARGO) install cargo-fuzz --locked"; \
	$(CARGO) install cargo-fuzz --locked; }
	$(FUZZ) build --fuzz-dir fuzz
	@set -e; for target in $(FUZZ_TARGETS); do \
		echo "fuzzing $$target for $(FUZZ_SECONDS) s"; mkdir -p fuzz/target/found/$$target; \
		$(FUZZ) run --fuzz-dir fuzz $$target fuzz/target/found/$$target fuzz/corpus/$$target -- \
			-dict=fuzz/dictionaries/$$target -timeout=30 -max_total_time=$(FUZZ_SECONDS); \
	done

soak: rust tools ## traffic and random faults for SOAK_SECONDS (half an hour); SOAK_SEED repeats a run
	$(CARGO) build --workspace --bins
	SOAK_SECONDS=$${SOAK_SECONDS:-1800} $(CARGO) test --package gopherproxy --test it -- soak:: --nocapture

lint: rust ## checks formatting, clippy, docs and dependencies
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if c++ --version >/dev/null 2>&1; then \
	CARGO_TARGET_DIR=$${CARGO_TARGET_DIR:-target} $(CARGO) clippy --manifest-path fuzz/Cargo.toml -- -D warnings; \
	else echo "a C++ compiler is not installed: fuzz targets not checked"; fi
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items
	@CARGO="$(CARGO)" sh loadtest/pgo/names.sh
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check bans licenses sources; \
	else echo "cargo-deny is not installed: dependencies not checked (cargo install cargo-deny)"; fi
	@if cargo-machete --version >/dev/null 2>&1; then $(CARGO) machete; \
	else echo "cargo-machete is not installed: unused dependencies not checked (cargo install cargo-machete)"; fi
	@if node -e 'process.exit(+(parseInt(process.versions.node) < 20))' >/dev/null 2>&1; then $(MAKE) --no-print-directory check-dashboard; \
	else echo "Node 20 is not installed: the dashboard's types not checked (make check-dashboard)"; fi
	@if python3 --version >/dev/null 2>&1; then $(MAKE) --no-print-directory check-bench; \
	else echo "Python is not installed: the tables of the bench not checked (make check-bench)"; fi

fresh: rust ## runs `make run` and `make test` from nothing, in a minimal Debian (needs debootstrap, root or sudo)
	@exec sh loadtest/fresh.sh

tools:
	@sh loadtest/tools.sh redis-server prometheus
	@! command -v apt-get >/dev/null 2>&1 || sh loadtest/tools.sh pebble

rust docker:
	@$(NEEDS) $@

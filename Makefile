# GopherProxy: `make help` lists what there is.

CARGO  ?= cargo
CONF   ?= conf/embedded.yaml
# Stamped into binaries and images that are built from here.
VERSION ?= $(shell git describe --tags --always 2>/dev/null)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null)
STAMP    = VERSION=$(VERSION) COMMIT=$(COMMIT)
# One image after the other: the classic builder does not see that they share their build, and would do it for each at once.
COMPOSE_BUILD = COMPOSE_PARALLEL_LIMIT=1 docker compose build

.DEFAULT_GOAL := help
.PHONY: help run mock-backends test lint build up down logs clean check-observability check-dashboard e2e k6-smoke k6-load k6-spike k6-sustained bench microbench instructions tools

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## the proxy over three demo origins, with no Redis and no Docker
	@$(CARGO) build --quiet --bin gopherproxy --bin origin
	@CONF=$(CONF) sh loadtest/demo.sh

mock-backends: ## the three demo origins alone, on all addresses (ports 8081 to 8083)
	@$(CARGO) build --quiet --bin origin
	@exec target/debug/origin 0.0.0.0:8081 0.0.0.0:8082 0.0.0.0:8083

build: ## the binaries as they are shipped (link-time optimisation: takes minutes)
	$(STAMP) $(CARGO) build --release --bin gopherproxy --bin sentinel

up: ## the compose stack, built and stamped; waits until all of it is healthy
	@grep -qs '^GRAFANA_PASSWORD=..*' .env && ! grep -qs '^GRAFANA_PASSWORD=admin$$' .env || \
	echo "WARNING: Grafana has the default password, which everybody knows. Set GRAFANA_PASSWORD in .env." >&2
	$(STAMP) $(COMPOSE_BUILD)
	$(STAMP) docker compose up --detach --wait
	@echo "proxy http://localhost:8080   prometheus http://localhost:9090   grafana http://localhost:3000"

down: ## stops the compose stack; its volumes stay
	$(STAMP) docker compose down

logs: ## follows the log of proxy and sentinel
	$(STAMP) docker compose logs --follow proxy sentinel

clean: ## removes what was built, and the stack with its volumes
	$(CARGO) clean
	$(STAMP) docker compose down --volumes

e2e: ## builds and starts the compose stack, checks it from outside, and removes it
	$(STAMP) $(COMPOSE_BUILD)
	$(STAMP) sh loadtest/e2e.sh

check-observability: tools ## every query of the dashboard and the alerts, asked of a real Prometheus under traffic
	$(CARGO) build --workspace --bins
	$(CARGO) test --package gopherproxy --test it -- prometheus::

check-dashboard: ## the dashboard against Grafana's own types and the README's metrics (needs Node 20)
	@cd observability/grafana/check && npm install --no-audit --no-fund --silent && npm run --silent check

k6-smoke: ## users at work, counted by k6, over a proxy and origins of its own; also k6-load, k6-spike, k6-sustained
k6-smoke k6-load k6-spike k6-sustained:
	@[ -n "$(PROXY_URL)" ] || $(STAMP) $(CARGO) build --quiet --release --bin gopherproxy --bin origin
	@BIN=target/release sh loadtest/k6.sh $(@:k6-%=%)

bench: ## the proxy beside its peers, in half an hour; less with ROUNDS=1 SECONDS=1 ROWS=get,limited PEERS=gopherproxy,nginx BIN=target/release
	@python3 loadtest/peers/bench.py $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) \
	$(if $(ROWS),--rows $(ROWS)) $(if $(PEERS),--peers $(PEERS)) $(if $(BIN),--bin $(BIN))

microbench: ## the limiter, the pick of a backend and a line of the log, in nanoseconds
	$(CARGO) bench --package gopherproxy --bench request_path

instructions: ## how many instructions a request takes, and whether that has grown; RECORD=1 records it
	@RECORD=$(RECORD) sh loadtest/callgrind.sh

test: tools ## every test, on real sockets and a real redis-server
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace

lint: ## formatting, clippy, docs, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check bans licenses sources; \
	else echo "cargo-deny is not installed: dependencies not checked (cargo install cargo-deny)"; fi
	@if node -e 'process.exit(+(parseInt(process.versions.node) < 20))' >/dev/null 2>&1; then $(MAKE) --no-print-directory check-dashboard; \
	else echo "Node 20 is not installed: the dashboard's types not checked (make check-dashboard)"; fi

tools:
	@sh loadtest/tools.sh redis-server prometheus

# GopherProxy: `make help` lists what there is.

CARGO ?= cargo
CONF  ?= conf/embedded.yaml

.DEFAULT_GOAL := help
.PHONY: help run mock-backends test lint build tools

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## the proxy over three demo origins, with no Redis and no Docker
	@$(CARGO) build --quiet --bin gopherproxy --bin origin
	@CONF=$(CONF) sh loadtest/demo.sh

mock-backends: ## the three demo origins alone, on all addresses (ports 8081 to 8083)
	@$(CARGO) build --quiet --bin origin
	@exec target/debug/origin 0.0.0.0:8081 0.0.0.0:8082 0.0.0.0:8083

build: ## the binaries as they are shipped (link-time optimisation: takes minutes)
	$(CARGO) build --release --bin gopherproxy --bin sentinel

test: tools ## every test, on real sockets and a real redis-server
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace

lint: ## formatting, clippy, docs, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check bans licenses sources; \
	else echo "cargo-deny is not installed: dependencies not checked (cargo install cargo-deny)"; fi

tools:
	@sh loadtest/tools.sh redis-server

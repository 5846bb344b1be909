# Three images from one build: `proxy`, `sentinel`, and `origin` for the demo. Each holds a static binary, its configuration and
# the certificate authorities, and nothing else: no shell, no package manager, no C library. The build needs no BuildKit.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# The binaries are optimised with the same profile as `make build`. They contain no path of the builder, so the same sources
# give the same bytes wherever they are built.
ENV RUSTFLAGS="-Cprofile-use=/src/loadtest/pgo/release.profdata --remap-path-prefix=/src=gopherproxy --remap-path-prefix=/usr/local/cargo=cargo"

# Dependencies first, with the manifests and empty crates: this layer is rebuilt only when they change.
COPY loadtest/pgo/release.profdata loadtest/pgo/
COPY Cargo.toml Cargo.lock ./
COPY third_party third_party
COPY allocator/Cargo.toml allocator/
COPY chassis/Cargo.toml chassis/
COPY registry/Cargo.toml registry/
COPY sentinel/Cargo.toml sentinel/
COPY proxy/Cargo.toml proxy/
COPY loadtest/origin/Cargo.toml loadtest/origin/
COPY loadtest/peers/bare/Cargo.toml loadtest/peers/bare/
COPY loadtest/peers/pacer/Cargo.toml loadtest/peers/pacer/
RUN set -eu; \
    for crate in allocator chassis registry sentinel proxy loadtest/origin; do mkdir -p $crate/src; echo '//! Empty.' > $crate/src/lib.rs; done; \
    for crate in sentinel proxy loadtest/origin; do printf '//! Empty.\nfn main() {}\n' > $crate/src/main.rs; done; \
    cargo build --locked --release --bin gopherproxy --bin sentinel --bin origin; \
    rm -rf allocator chassis registry sentinel proxy loadtest/origin loadtest/peers

COPY . .
ARG VERSION=
ARG COMMIT=
# The sources may be older than the empty crates, and cargo would then consider them built. The binaries are static, because the
# images have no C library, and their relocations are packed, which saves 300 kB. The flags apply only to the final link, because
# procedural macros can't be static.
RUN set -eu; \
    find allocator chassis registry sentinel proxy loadtest -name '*.rs' -exec touch {} +; \
    mkdir -p /out/state; \
    for bin in gopherproxy sentinel origin; do \
        cargo rustc --locked --release --package $bin --bin $bin -- -C target-feature=+crt-static \
            -C link-arg=-Wl,-z,pack-relative-relocs; \
        cp target/release/$bin /out/; \
    done

FROM scratch AS origin
COPY --from=build /out/origin /usr/local/bin/origin
USER 1001:1001
ENTRYPOINT ["/usr/local/bin/origin"]

FROM scratch AS sentinel
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/sentinel /usr/local/bin/sentinel
USER 1001:1001
EXPOSE 2113
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/usr/local/bin/sentinel", "--healthcheck"]
ENTRYPOINT ["/usr/local/bin/sentinel"]

FROM scratch AS proxy
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/gopherproxy /usr/local/bin/gopherproxy
COPY conf/container.yaml /etc/gopherproxy/gopherproxy.yaml
# A volume that is mounted here gets its owner from the image.
COPY --from=build --chown=1001:1001 /out/state /var/lib/gopherproxy
USER 1001:1001
EXPOSE 8080 2112
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/usr/local/bin/gopherproxy", "-c", "/etc/gopherproxy/gopherproxy.yaml", "--healthcheck"]
ENTRYPOINT ["/usr/local/bin/gopherproxy", "-c", "/etc/gopherproxy/gopherproxy.yaml"]

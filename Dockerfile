# Three images from one build: `proxy`, `sentinel`, and `origin` for the demo. Each is a static binary, its configuration and
# the certificate authorities, on nothing at all: no shell, no package manager, no C library. It needs no BuildKit.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# The binaries are static, because the images have nothing to link with; and no path of the builder is in them, so that
# the same sources give the same bytes wherever they are built.
ENV RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=/src=gopherproxy --remap-path-prefix=/usr/local/cargo=cargo"

# Dependencies first, with the manifests and empty crates: this layer is built anew only when they change. They are
# built for a named target, or else the static flag would reach procedural macros too, which can't have it.
COPY Cargo.toml Cargo.lock ./
COPY third_party third_party
COPY chassis/Cargo.toml chassis/
COPY registry/Cargo.toml registry/
COPY sentinel/Cargo.toml sentinel/
COPY proxy/Cargo.toml proxy/
COPY loadtest/origin/Cargo.toml loadtest/origin/
COPY loadtest/peers/bare/Cargo.toml loadtest/peers/bare/
COPY loadtest/peers/pacer/Cargo.toml loadtest/peers/pacer/
RUN set -eu; \
    for crate in chassis registry sentinel proxy loadtest/origin; do mkdir -p $crate/src; touch $crate/src/lib.rs; done; \
    for crate in sentinel proxy loadtest/origin; do echo 'fn main() {}' > $crate/src/main.rs; done; \
    rustc --print host-tuple > /target; \
    cargo build --locked --release --target "$(cat /target)" --bin gopherproxy --bin sentinel --bin origin; \
    rm -rf chassis registry sentinel proxy loadtest

COPY . .
ARG VERSION=
ARG COMMIT=
# The sources may be older than the empty crates were, by which cargo would take them for built.
RUN set -eu; \
    find chassis registry sentinel proxy loadtest -name '*.rs' -exec touch {} +; \
    cargo build --locked --release --target "$(cat /target)" --bin gopherproxy --bin sentinel --bin origin; \
    mkdir -p /out/state; \
    for bin in gopherproxy sentinel origin; do cp "target/$(cat /target)/release/$bin" /out/; done

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
# A volume that is mounted here takes its owner from the image.
COPY --from=build --chown=1001:1001 /out/state /var/lib/gopherproxy
USER 1001:1001
EXPOSE 8080 2112
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/usr/local/bin/gopherproxy", "-c", "/etc/gopherproxy/gopherproxy.yaml", "--healthcheck"]
ENTRYPOINT ["/usr/local/bin/gopherproxy", "-c", "/etc/gopherproxy/gopherproxy.yaml"]

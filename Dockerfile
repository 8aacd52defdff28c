# The emulated instances, and `routebalance render` for Envoy's configuration. The module is not in here: Envoy loads what
# `cargo filter` has built.
FROM rust:1.95-slim-trixie AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY envoy envoy
COPY models models
COPY src src
COPY tests/fuzz tests/fuzz
COPY vendor vendor
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin routebalance && cp target/release/routebalance /usr/local/bin/

FROM debian:trixie-slim
RUN useradd --system --no-create-home routebalance \
    # A named volume mounted here belongs to the user, too.
    && install --directory --owner=routebalance /routebalance /routebalance/rendered
COPY --from=build /usr/local/bin/routebalance /usr/local/bin/routebalance
USER routebalance
WORKDIR /routebalance
# The tools end on Ctrl-C.
STOPSIGNAL SIGINT
ENTRYPOINT ["routebalance"]

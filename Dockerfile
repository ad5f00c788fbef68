# The program in a small image:
#
#     docker build -t nextword .
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" nextword train configs/statquest.toml
#     docker run --rm -v "$PWD:/work" -p 8080:8080 -e NEXTWORD_API_KEY=secret nextword \
#         serve runs/statquest --host 0.0.0.0
#
# The default build has the CPU backend only. `--build-arg FEATURES=cli,flex,wgpu` adds GPUs through Vulkan; the
# image then also needs `libvulkan1` and the GPU's driver, and the container the GPU. BuildKit is required.

FROM rust:1.95.0-slim-bookworm AS build
ARG FEATURES=cli,flex
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package nextword --no-default-features --features "$FEATURES" \
    && cp target/release/nextword /usr/local/bin/nextword

FROM debian:bookworm-slim
COPY --from=build /usr/local/bin/nextword /usr/local/bin/nextword
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/nextword/
RUN useradd --create-home --uid 1000 nextword && mkdir /work && chown nextword /work
USER nextword
WORKDIR /work
EXPOSE 8080
ENTRYPOINT ["nextword"]
CMD ["--help"]

#!/usr/bin/env bash
# Checks what the features of the package `nextword` bring in, by the resolved dependency graph: a backend
# brings no other, and the library alone brings nothing of the program. With --build the program is also
# checked with each backend alone, and the library without the program, in a target folder of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

# The packages in a build of `nextword` with the features "$1", one name per line.
packages() {
    cargo tree --package nextword --edges normal --prefix none --format '{p}' --locked \
        --no-default-features --features "$1" | cut -d' ' -f1 | sort -u
}

# The features "$1" must bring the packages "$2" and none of "$3".
check() {
    local found name
    found=$(packages "$1")
    for name in $2; do
        grep -qx "$name" <<<"$found" || { echo "features $1: $name is missing" >&2; exit 1; }
    done
    for name in $3; do
        if grep -qx "$name" <<<"$found"; then
            echo "features $1 bring in $name; see: cargo tree -p nextword -e features -i $name" >&2
            exit 1
        fi
    done
    echo "features $1: $(wc -l <<<"$found") packages"
}

program="anyhow clap ctrlc indicatif mimalloc nextword-hub tracing-subscriber ureq"
server="axum hyper nextword-server tokio"
flex="burn-flex"
ndarray="burn-ndarray"
wgpu="burn-wgpu wgpu cubecl-wgpu naga"

check flex "$flex" "$ndarray $wgpu $program $server"
check ndarray "$ndarray" "$flex $wgpu $program $server"
check wgpu "burn-wgpu" "$flex $ndarray $program $server"
check server,flex "$flex nextword-server tokio" "$ndarray $wgpu $program"
check cli,flex "$flex $program" "$ndarray $wgpu"
check cli,ndarray "$ndarray $program" "$flex $wgpu"
check cli,wgpu "burn-wgpu $program" "$flex $ndarray mpi"
check cli,flex,mpi "$flex $program mpi" "$ndarray $wgpu"

if [ "${1:-}" = --build ]; then
    export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/features"
    for backend in flex ndarray wgpu; do
        echo "cargo check: cli,$backend"
        cargo check --package nextword --bins --lib --locked \
            --no-default-features --features "cli,$backend"
    done
    echo "cargo check: flex"
    cargo check --package nextword --lib --locked --no-default-features --features flex
fi

#!/usr/bin/env bash
# Checks that take too long for every change: run them before a release, on a machine with time.
#
#     scripts/long_checks.sh [PART...]      # default: all parts that need only Rust
#
# Parts that need only Rust: malformed resume simd features neon fuzz sanitizer deny package
# Parts that need Python packages (pip install torch transformers safetensors tokenizers llama-cpp-python
# lm-eval[api] peft): parity activations llama_cpp peft lm_eval load
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/nextword/target}"
tools="$CARGO_TARGET_DIR/tools"
python="${PYTHON:-python3}"
nextword="$CARGO_TARGET_DIR/release/nextword"

run() { printf '$ %s\n' "$*" && "$@"; }

# The program and a model to test it with.
build() {
    run cargo build --release --locked --package nextword
    model="$CARGO_TARGET_DIR/long_checks/quickstart"
    [ -e "$model/best" ] || run "$nextword" train configs/quickstart.toml --set out="$model" --quiet
}

# Many more damaged model and adapter folders, GGUF files, token files, conversations, templates and answers of a Hub
# than in CI.
malformed() {
    run env NEXTWORD_MALFORMED=5000 cargo test --release --workspace --locked --test tests -- malformed untrusted damage
    run env NEXTWORD_MALFORMED=5000 cargo test --release --locked --package nextword-hub --lib -- untrusted
}

# Runs that are interrupted at random steps and resumed.
resume() { run env NEXTWORD_RESUME_TRIALS=50 cargo test --release --workspace --locked --test tests -- resume; }

# The whole workspace at lower instruction sets. .ci/run tests only the kernels at these, the rest at the highest.
simd() {
    for isa in scalar avx2; do
        run env NEXTWORD_SIMD=$isa cargo test --release --workspace --locked
    done
}

# The program with each backend alone, and the library without the program.
features() { run scripts/check_features.sh --build; }

# The kernels' NEON code compiles; the aarch64 jobs of the workflow run it.
neon() {
    run rustup target add aarch64-unknown-linux-gnu
    run cargo check --locked --package nextword-kernels --target aarch64-unknown-linux-gnu
}

# The fuzz targets compile, and run for a minute each where cargo-fuzz is installed.
fuzz() {
    run cargo check --release --manifest-path tests/fuzz/Cargo.toml --target-dir "$CARGO_TARGET_DIR/fuzz"
    command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is not installed: targets were compiled only"; return; }
    for target in tests/fuzz/fuzz_targets/*.rs; do
        (cd tests && run cargo fuzz run --sanitizer none "$(basename "$target" .rs)" -- -max_total_time=60)
    done
}

# AddressSanitizer over the kernels' tests: reads and writes out of bounds in `unsafe` code.
sanitizer() {
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    for isa in scalar avx2 avx512; do
        run env NEXTWORD_SIMD=$isa RUSTFLAGS=-Zsanitizer=address cargo +nightly test --release --locked \
            --package nextword-kernels --target "$host" --target-dir "$CARGO_TARGET_DIR/sanitizer" --tests
    done
}

# Licenses, banned crates and sources of all dependencies, and known vulnerabilities where there is a network.
deny() {
    if [ ! -x "$tools/bin/cargo-deny" ]; then
        run cargo install cargo-deny --locked --version '^0.20' --root "$tools"
    fi
    run "$tools/bin/cargo-deny" check bans licenses sources
    run "$tools/bin/cargo-deny" check advisories || echo "advisories: see above; not an error of this check"
}

# Packages of all crates, each built from its package alone.
package() { run cargo package --workspace --exclude nextword-tests --locked; }

# Imports, exports, logits and gradients of many more shapes than the committed fixtures, against transformers.
parity() {
    run "$python" scripts/parity.py
    run "$python" scripts/make_architecture_reference.py --random 20
}

# Every tensor inside 300 random models, against PyTorch.
activations() { run "$python" scripts/dump_activations.py 300; }

# Greedy completions of llama.cpp from exported GGUF files.
llama_cpp() { build && run "$python" scripts/compare_llama_cpp.py "$nextword"; }

# Adapters that are imported and exported again, loaded by PEFT.
peft() { build && run "$python" scripts/make_finetune_reference.py --check "$nextword"; }

# Scores of lm-evaluation-harness.
lm_eval() { build && run "$python" scripts/lm_eval_check.py "$nextword" "$model"; }

# A server under load: aborted requests, slow clients, malformed requests.
load() { build && run "$python" scripts/load_test.py "$nextword" "$model/best"; }

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(malformed resume simd features neon fuzz sanitizer deny package)
for part in "${parts[@]}"; do
    case $part in
    malformed | resume | simd | features | neon | fuzz | sanitizer | deny | package | \
        parity | activations | llama_cpp | peft | lm_eval | load)
        printf '\n== %s (%s s)\n' "$part" "$SECONDS"
        "$part"
        ;;
    *)
        echo "unknown part $part" >&2
        exit 2
        ;;
    esac
done
printf '\n== done (%s s)\n' "$SECONDS"

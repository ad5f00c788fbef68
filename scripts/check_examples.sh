#!/usr/bin/env bash
# Builds and runs the examples of the package `nextword`, and checks what they print.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --package nextword --examples
examples="${CARGO_TARGET_DIR:-target}/release/examples"

# Runs the example "$1" with the arguments "${@:3}"; its output must match the pattern "$2".
expect() {
    local output
    output=$("$examples/$1" "${@:3}")
    grep -qE "$2" <<<"$output" || { printf '%s: no match for %s in\n%s\n' "$1" "$2" "$output" >&2; exit 1; }
    echo "$1: ok"
}

expect train_char 'validation loss [0-2]\.'
expect train_char 'validation loss' README.md 20
expect sample '^temperature 0: what is statquest -> awesome \(probability [01]\.'
expect probe 'blocks\.0\.attn\.hook_pattern +\[1, 4, 4\]'

# The server prints its address, answers, and stops on SIGINT.
log=$(mktemp)
"$examples/serve" docs/models/letters 0 >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
fail() { printf 'serve: %s; its output:\n%s\n' "$1" "$(cat "$log")" >&2; exit 1; }
address=
for _ in $(seq 300); do
    address=$(grep -m 1 -oE 'http://[0-9.]+:[0-9]+' "$log" || true)
    [ -z "$address" ] || break
    kill -0 "$server" 2>/dev/null || fail "the server ended before it printed an address"
    sleep 0.1
done
[ -n "$address" ] || fail "no address within 30 s"
answer=$(curl --silent --show-error --fail-with-body --max-time 60 "$address/v1/completions" \
    -H 'Content-Type: application/json' -d '{"prompt": "One day", "max_tokens": 5}') ||
    fail "a completion failed: $answer"
grep -q '"text"' <<<"$answer" || fail "a completion without text: $answer"
kill -INT "$server"
wait "$server" || fail "it ended with status $? after SIGINT"
echo "serve: ok"

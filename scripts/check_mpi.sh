#!/usr/bin/env bash
# Trains over MPI with processes as ranks: the same bits as one process, resuming on another number of ranks, and what
# happens when a rank fails. Builds the program with the feature `mpi`, unless PROGRAM is one:
#
#     scripts/check_mpi.sh [PROGRAM]
#
# Needs mpirun of Open MPI, its headers and libclang (Debian: openmpi-bin libopenmpi-dev libclang-dev). Takes about
# three minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
export RAYON_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

work=$(mktemp -d)
jobs_started=()
mounted=
cleanup() {
    for job in "${jobs_started[@]}"; do kill -9 "$job" 2>/dev/null || true; done
    [ -z "$mounted" ] || umount -l "$mounted" || true
    rm -rf "$work"
}
trap cleanup EXIT

program=${1:-}
if [ -z "$program" ]; then
    cargo build --release --package nextword --features mpi
    # The next build without the feature replaces the program in the target folder.
    cp "${CARGO_TARGET_DIR:-target}/release/nextword" "$work/nextword"
    program="$work/nextword"
fi

cat > "$work/tiny.toml" <<'TOML'
name = "tiny"
[data]
builtin = "stories"
documents = 12
order = "epoch"
[model]
context_length = 16
n_layers = 2
n_heads = 2
d_model = 16
[model.dropout]
embedding = 0.1
attention = 0.1
residual = 0.1
[train]
steps = 20
batch_size = 2
accumulation = 8
lanes = 8
log_every = 1
[schedule]
learning_rate = 3e-3
min_learning_rate = 3e-4
warmup_steps = 4
end_step = 20
[validation]
every = 10
windows = 12
[checkpoint]
every = 5
TOML

fail() { echo "failed: $1" >&2; exit 1; }

# train RUN RANKS [--set KEY=VALUE ...]: a new run, within a minute.
train() {
    local run=$1 ranks=$2
    shift 2
    timeout -k 10 60 "$program" train "$work/tiny.toml" --quiet --ranks "$ranks" --set "out=\"$work/$run\"" "$@"
}

resume() {
    local run=$1 ranks=$2
    shift 2
    timeout -k 10 60 "$program" resume "$work/$run" --quiet --ranks "$ranks" "$@"
}

# The hashes of weights and moments at the end of a run.
hashes() { (cd "$work/$1/checkpoints/step-00000020" && sha256sum model.safetensors optimizer.safetensors); }

# The same, and its losses.
bits() {
    hashes "$1"
    grep -oE '"(loss|val_loss|grad_norm)":[^,]*' "$work/$1/metrics.jsonl"
}

same_bits() { [ "$(bits "$1")" = "$(bits "$2")" ] || fail "$1 and $2 differ"; }

# wait_until SECONDS WHAT COMMAND...: waits until the command succeeds.
wait_until() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "no $what in time"
        sleep 0.1
    done
}

# start RUN RANKS ...: a run in the background; `job` is its process, whose child is mpirun, and `ranks` are those of the
# ranks.
start() {
    local run=$1 count=$2
    shift 2
    "$program" train "$work/tiny.toml" --quiet --ranks "$count" --set "out=\"$work/$run\"" "$@" >"$work/${run//\//-}.log" 2>&1 &
    job=$!
    jobs_started+=("$job")
    wait_until 30 "first checkpoint of $run" test -e "$work/$run/checkpoints/step-00000005/MANIFEST.json"
    mapfile -t ranks < <(pgrep -P "$(pgrep -P "$job")" | sort -n)
    jobs_started+=("${ranks[@]}")
    [ "${#ranks[@]}" = "$count" ] || fail "$run has ${#ranks[@]} processes"
}

has_ended() { ! kill -0 "$1" 2>/dev/null; }

# ended SECONDS: waits for the end of the job and its ranks. `code` is the exit code. 10 seconds after the death of a rank;
# 20 where the ranks do more before they end: several attempts to save, a timeout of 3 s, or a save. Open MPI takes two
# seconds to end them, and the machine may be busy.
ended() {
    for process in "$job" "${ranks[@]}"; do
        wait_until "$1" "end of process $process" has_ended "$process"
    done
    code=0
    wait "$job" || code=$?
}

echo "-- bits of 1, 2, 4 and 8 ranks"
variants=(
    "seed=1337" "optimizer.kind=sgd" "optimizer.kind=muon" "train.precision=bf16" "data.packing=documents"
)
for variant in "${variants[@]}"; do
    for ranks_of_run in 1 2 4 8; do
        train "$variant-$ranks_of_run" "$ranks_of_run" --set "$variant"
        same_bits "$variant-1" "$variant-$ranks_of_run"
    done
done
echo "-- moments divided over ranks"
for variant in seed=1337 optimizer.kind=muon; do
    train "$variant-shards" 4 --set "$variant" --set parallel.shard_optimizer=true
    same_bits "$variant-1" "$variant-shards"
done
echo "-- bits over TCP"
OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo train tcp 4
same_bits seed=1337-1 tcp

echo "-- resuming on 4, 2 and 1 ranks"
train chain 1 --set train.steps=5
resume chain 4 --set train.steps=10
resume chain 2 --set train.steps=15
resume chain 1 --set train.steps=20
[ "$(hashes seed=1337-1)" = "$(hashes chain)" ] || fail "the resumed run differs"
train shards 8 --set train.steps=5 --set parallel.shard_optimizer=true
resume shards 2 --set train.steps=10
resume shards 1 --set train.steps=15
resume shards 4 --set train.steps=20
[ "$(hashes seed=1337-1)" = "$(hashes shards)" ] || fail "the resumed run with divided moments differs"

echo "-- evaluating on 1 and 3 ranks"
printf 'Once upon a time there was a fox.\n%.0s' {1..400} >"$work/text.txt"
for ranks_of_run in 1 3; do
    timeout -k 10 60 "$program" eval "$work/chain" "$work/text.txt" --batch-size 4 --json --ranks "$ranks_of_run" \
        >"$work/eval-$ranks_of_run.json"
done
cmp "$work/eval-1.json" "$work/eval-3.json" || fail "evaluations differ"

long=(--set train.steps=1000000 --set checkpoint.keep_every=5)
# Continues to the step after which the other runs ended.
finish() {
    find "$work/$1/checkpoints" -maxdepth 1 -name 'step-*' ! -name 'step-00000005' -exec rm -r {} +
    resume "$1" 1 --set train.steps=20
    same_bits seed=1337-1 "$1"
}
for victim in 0 1 3; do
    echo "-- rank $victim is killed"
    start "killed-$victim" 4 "${long[@]}"
    kill -9 "${ranks[$victim]}"
    ended 10
    [ $code -ne 0 ] || fail "exit code 0 after the death of a rank"
    grep -q "has ended" "$work/killed-$victim.log" || { cat "$work/killed-$victim.log"; fail "the dead rank is not named"; }
    finish "killed-$victim"
done

echo "-- a rank is killed while rank 0 saves"
start killed-saving 2 "${long[@]}" --set checkpoint.every=1 --set parallel.shard_optimizer=true
saving() { compgen -G "$work/killed-saving/checkpoints/.tmp-*" >"$work/saving"; }
seen=
for _ in $(seq 10000); do
    if saving; then
        seen=1
        break
    fi
done
[ -n "$seen" ] || fail "rank 0 was not seen while it saves"
kill -9 "${ranks[1]}"
ended 10
[ $code -ne 0 ] || fail "exit code 0 after the death of a rank"
grep -q "rank 1 on .* has ended" "$work/killed-saving.log" || { cat "$work/killed-saving.log"; fail "the dead rank is not named"; }
finish killed-saving

if [ "$(id -u)" = 0 ] && mkdir "$work/full" && mount -t tmpfs -o size=2m none "$work/full" 2>"$work/mount.log"; then
    echo "-- the disk of rank 0 is full"
    mounted="$work/full"
    start full/run 2 "${long[@]}"
    dd if=/dev/zero of="$work/full/rest" bs=4k 2>"$work/dd.log" || true
    ended 20
    grep -q "rank 0 on .*No space\|rank 0 on .*free" "$work/full-run.log" || { cat "$work/full-run.log"; fail "the full disk is not named"; }
    [ $code = 5 ] || { cat "$work/full-run.log"; fail "exit code $code with a full disk"; }
    rm "$work/full/rest"
    finish full/run
else
    echo "-- a full disk: not tested, needs root and tmpfs"
fi

echo "-- a rank that is stopped"
start stopped 2 "${long[@]}" --set parallel.timeout=3
kill -STOP "${ranks[1]}"
ended 20
[ $code -ne 0 ] || fail "exit code 0 after a rank was stopped"
grep -q "no answer from all ranks" "$work/stopped.log" || { cat "$work/stopped.log"; fail "the timeout is not reported"; }
finish stopped

echo "-- Ctrl-C"
start interrupted 2 "${long[@]}"
kill -INT "$job"
ended 20
[ $code = 130 ] || { cat "$work/interrupted.log"; fail "exit code $code after an interruption"; }
finish interrupted

echo "-- the program is replaced during a run"
cp "$program" "$work/replaced-program"
original=$program
program="$work/replaced-program"
start replaced 2 "${long[@]}"
rm "$program"
cp "$original" "$program"
sleep 9 # Longer than mpirun may run without ranks.
has_ended "$job" && { cat "$work/replaced.log"; fail "the run ended when its program was replaced"; }
kill -INT "$job"
ended 20
[ $code = 130 ] || { cat "$work/replaced.log"; fail "exit code $code after an interruption"; }
program=$original

echo "-- other data on a rank"
code=0
timeout -k 10 60 mpirun --oversubscribe --bind-to none \
    -n 1 "$program" train "$work/tiny.toml" --set "out=\"$work/other\"" : \
    -n 1 "$program" train "$work/tiny.toml" --set "out=\"$work/other\"" --set data.documents=11 \
    >"$work/other.log" 2>&1 || code=$?
[ $code = 1 ] || { cat "$work/other.log"; fail "exit code $code with other data"; }
grep -q "rank 1 on .* differs from rank 0 in the data" "$work/other.log" || { cat "$work/other.log"; fail "the data is not named"; }

echo "-- other instructions on a rank"
code=0
timeout -k 10 60 mpirun --oversubscribe --bind-to none \
    -n 1 "$program" train "$work/tiny.toml" --set "out=\"$work/unlike\"" : \
    -n 1 -x NEXTWORD_SIMD=scalar "$program" train "$work/tiny.toml" --set "out=\"$work/unlike\"" \
    >"$work/unlike.log" 2>&1 || code=$?
[ $code = 1 ] || { cat "$work/unlike.log"; fail "exit code $code with unlike ranks"; }
grep -q "rank 1 on .* differs from rank 0 in the instruction set" "$work/unlike.log" || fail "the difference is not named"

echo "-- refusals"
code=0
train three 3 2>"$work/three.log" || code=$?
[ $code = 2 ] && grep -q "1, 2, 4 or 8 ranks" "$work/three.log" || fail "3 ranks of 8 lanes"
code=0
timeout -k 10 60 mpirun --oversubscribe -n 2 "$program" devices >"$work/devices.log" 2>&1 || code=$?
[ $code = 2 ] || fail "exit code $code of a command that runs on one process"
echo "training over MPI: passed in $SECONDS s"

#!/usr/bin/env bash
# Checks and measures a GPU in at most ten minutes, and needs no network. Run it on a quiet machine:
#
#     scripts/gpu_check.sh --nextword target/release/nextword --device vulkan --out gpu.jsonl
#
# Each line of the output is a JSON object: the devices, the largest differences between the CPU and the GPU,
# and the speed of products, training and decoding. Where python3 has PyTorch, the training is measured beside
# PyTorch, eager and compiled, on `--torch-device` (default: cuda). A step that fails or takes too long is a
# line with `failed`, and the script ends with status 1. `--dry-run` runs every step but the products in its
# smallest form, by default on a software adapter.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
nextword=$root/target/release/nextword device= out=gpu.jsonl torch_device=cuda is_dry=
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) is_dry=1 ;;
        --nextword) nextword=$(realpath "$2"); shift ;;
        --device) device=$2; shift ;;
        --torch-device) torch_device=$2; shift ;;
        --out) out=$2; shift ;;
        *) echo "unknown argument $1" >&2; exit 2 ;;
    esac
    shift
done
device=${device:-$([ -n "$is_dry" ] && echo wgpu:software || echo vulkan)}
: >"$out" || exit 2
out=$(realpath "$out")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2
failures=0

# Runs the command "${@:3}" for at most "$2" seconds, or until ten minutes are over; its lines of JSON become results of step "$1".
step() {
    local name=$1 limit=$2 start=$SECONDS status=0
    local left=$((600 - SECONDS))
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    [ "$limit" -gt 0 ] || limit=1
    echo "$name" >&2
    timeout "$limit" "$@" >lines.txt 2>errors.txt || status=$?
    grep '^{' lines.txt | sed "s|^{|{\"step\":\"$name\",|" >>"$out"
    if [ "$status" -ne 0 ]; then
        failures=$((failures + 1))
        printf '{"step":"%s","failed":%d,"seconds":%d}\n' "$name" "$status" $((SECONDS - start)) >>"$out"
        tail -n 5 errors.txt >&2
    fi
}

if [ -n "$is_dry" ]; then
    sizes=small rounds=1 steps=1 tokens=2 training=3
else
    sizes="medium gpt2" rounds=3 steps=10 tokens=64 training=40
fi

step devices 60 "$nextword" devices --json
# A run on the CPU and the same run on the GPU: their losses belong together.
quickstart="$root/configs/quickstart.toml"
for target in flex "$device"; do
    step "train $target" 100 "$nextword" train "$quickstart" --set "name=${target//:/-}" \
        --set "device=$target" --set "train.steps=$training" --set train.log_every=1
    last=$(tail -n 1 "runs/${target//:/-}/metrics.jsonl" 2>/dev/null)
    [ -z "$last" ] || printf '{"step":"loss %s","metrics":%s}\n' "$target" "$last" >>"$out"
done
step compare 60 "$nextword" compare runs/flex --device flex --device "$device" --windows 2 --json
bench=("$nextword" bench)
flags=(--device "$device" --rounds "$rounds" --json)
[ -n "$is_dry" ] || step products 60 "${bench[@]}" matmul "${flags[@]}"
has_torch=
python3 -c "import torch; torch.zeros(1, device='$torch_device')" 2>/dev/null && has_torch=1
for size in $sizes; do
    if [ -n "$has_torch" ]; then
        step "train $size" 150 python3 "$root/scripts/compare_pytorch.py" --nextword "$nextword" --size "$size" \
            --device "$device" --torch-device "$torch_device" --rounds "$rounds" --steps "$steps" --json
    else
        step "train $size" 90 "${bench[@]}" train --size "$size" --steps "$steps" "${flags[@]}"
    fi
    step "decode $size" 40 "${bench[@]}" decode --size "$size" --tokens "$tokens" "${flags[@]}"
    for bits in 8 4; do
        step "decode $size at $bits bits" 40 "${bench[@]}" decode --size "$size" --bits "$bits" \
            --tokens "$tokens" "${flags[@]}"
    done
done
echo "$out: $(wc -l <"$out") results, $failures failures" >&2
[ "$failures" -eq 0 ]

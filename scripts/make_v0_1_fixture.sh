#!/usr/bin/env bash
# Writes tests/fixtures/v0.1 with the program of version 0.1 (commit 9e59c6a): a run that was stopped
# after half of its steps, a model folder, its 8-bit form, and what that program computed from them.
#
#     scripts/make_v0_1_fixture.sh path/to/nextword-0.1
#
# The files protect runs and models that exist: do not write them again with a newer program.
set -euo pipefail
nextword=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
out="$root/tests/fixtures/v0.1"
work=$(mktemp -d)
cd "$work"

cat >config.toml <<'TOML'
name = "run"
out = "run"

[data]
builtin = "stories"
documents = 12
order = "epoch"

[model]
context_length = 16
n_layers = 2
n_heads = 2
n_kv_heads = 1
d_model = 16
position = "rotary"
norm = "rms"
feed_forward = "swiglu"
tied_head = false

[model.bias]
qkv = false
attention_output = false
feed_forward = false
norm = false

[model.rotary.scaling]
kind = "linear"
factor = 2.0

[model.dropout]
embedding = 0.1
attention = 0.1
residual = 0.1

[train]
steps = 400
batch_size = 4
accumulation = 2
log_every = 20

[schedule]
learning_rate = 1e-2
min_learning_rate = 1e-3
warmup_steps = 20

[validation]
every = 100
windows = 4

[checkpoint]
every = 200
keep_last = 2
TOML
"$nextword" train config.toml --quiet
cp -r run whole
# As if the run had been killed after step 200.
rm -r run/checkpoints/step-00000400
checkpoint=run/checkpoints/step-00000200
bytes=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["metrics_bytes"])' "$checkpoint/state.json")
truncate -s "$bytes" run/metrics.jsonl
for model in best last; do
    rm -r "run/$model"
    mkdir "run/$model"
    cp "$checkpoint"/{model.safetensors,config.json,tokenizer.json,card.json} "run/$model"
done
cp -r run/best model
"$nextword" quantize model --bits 8 --out model-int8
# Text in the characters that the model knows.
"$nextword" generate run "One day" --max-tokens 300 --seed 3 --temperature 1 >text.txt

python3 - "$nextword" <<'PY'
import hashlib, json, subprocess, sys
nextword = sys.argv[1]

def run(*args):
    output = subprocess.run([nextword, *args], check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[0]) if output.startswith("{") else None

def sha256(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()

expected = {"text": {}, "loss": {}, "hf": {}, "gguf": {}, "int8": sha256("model-int8/model.safetensors")}
expected["losses"] = [
    line["loss"] for line in map(json.loads, open("whole/metrics.jsonl")) if line.get("loss") is not None
]
for model in ["run", "model", "model-int8"]:
    for name, sampling in {"greedy": ["--temperature", "0"], "sampled": ["--seed", "3"]}.items():
        prompt = ["One day", *sampling, "--max-tokens", "40", "--json"]
        expected["text"][f"{model} {name}"] = run("generate", model, *prompt)["text"]
    expected["loss"][model] = run("eval", model, "text.txt", "--json")["loss"]
for model in ["run", "model"]:
    run("export", model, "--format", "hf", "--out", f"{model}-hf")
    run("export", model, "--format", "gguf", "--out", f"{model}.gguf")
    files = ["model.safetensors", "config.json", "tokenizer.json"]
    expected["hf"][model] = {name: sha256(f"{model}-hf/{name}") for name in files}
    expected["gguf"][model] = sha256(f"{model}.gguf")
# Sums differ between vector widths: these hashes are those of AVX-512.
assert "avx512f" in open("/proc/cpuinfo").read()
expected["resumed_avx512"] = {
    name: sha256(f"whole/checkpoints/step-00000400/{name}")
    for name in ["model.safetensors", "optimizer.safetensors"]
}
json.dump(expected, open("expected.json", "w"), indent=1)
PY

rm -rf "$out"
mkdir -p "$out"
cp -r run model model-int8 text.txt expected.json "$out"
rm -f "$out/run/run.lock"
rm -r "$work"

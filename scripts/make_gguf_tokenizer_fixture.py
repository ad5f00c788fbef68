#!/usr/bin/env python3
"""Writes tests/fixtures/gguf_pre_tokenizers.json: the tokens that llama.cpp gives for texts, for each pre-tokenizer.

    pip install gguf==0.19.0 numpy && npm install node-llama-cpp
    python scripts/make_gguf_tokenizer_fixture.py path/to/node_modules

The vocabulary has the 256 bytes, a token for each merge, and `</s>`. Merges reach over the places where the patterns cut.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

NAMES = "gpt-2 llama-bpe dbrx qwen2 smollm gpt-4o tekken deepseek-coder deepseek-v3 default".split()
MERGES = """t h|th e|Ġ t|Ġt h|Ġth e|T h|Th e|Ġ T|1 2|12 3|3 4|Ġ 1|Ġ Ġ|ĠĠ Ġ|ĠĠ ĠĠ|Ċ Ċ|Ċ Ġ|ĉ ĉ|' s|' S|' t|n '|! !|Ġ !|- -|. .|. a|a b|b a|
a 1|1 a|_ a|( a|/ /|Ċ a|č Ċ|! Ċ|/ Ċ|Ã ©|e Ã|Ġ Ã|Ã ī|ä ¸|Ñ Ģ|B C|b C|BC d|c d|< =|+ +|$ 1|& a|; Ċ""".replace("\n", "").split("|")
PARTS = """the|The|the| the| The|a|b|ab|A|B|BC|Cd|cd|1|12|123|1234| 1| 12|7|'s|'S|'t|n't|!|!!| !|-|--|.|..|,|;|(|)|_|/|//|$|&|<=|++|
é| é|É|中|文字|р| р|½|Ⅷ|🙂|\n|\n\n|\r\n|\t|\t\t| |  |   |    |\u3000|</s>""".replace("\n|é", "|é").split("|")

TOKENIZE = """
import {getLlama, LlamaLogLevel} from "node-llama-cpp"; import fs from "fs";
const [job, out] = process.argv.slice(2), {paths, texts} = JSON.parse(fs.readFileSync(job)), ids = [];
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1});
for (const modelPath of paths) {
    const model = await llama.loadModel({modelPath, gpuLayers: 0, useMmap: false});
    ids.push(texts.map(text => Array.from(model.tokenize(text, true))));
    await model.dispose();
}
fs.writeFileSync(out, JSON.stringify(ids)); process.exit(0);
"""


def byte_characters():
    """GPT-2's alphabet: a printable character for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


def write_model(path, name, tokens):
    """Write a model of one small layer with this pre-tokenizer."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    for part in "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split():
        shapes[f"blk.0.{part}"] = (32, 32)
    for part in ("attn_norm", "ffn_norm"):
        shapes[f"blk.0.{part}"] = (32,)
    for tensor, shape in shapes.items():
        writer.add_tensor(f"{tensor}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    tokens = byte_characters() + [merge.replace(" ", "") for merge in MERGES] + ["</s>"]
    assert len(set(tokens)) == len(tokens)
    random.seed(15)
    texts = ["".join(random.choices(PARTS, k=random.randrange(1, 16))) for _ in range(120)]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "node_modules").symlink_to(Path(sys.argv[1]).resolve())
        paths = [str(folder / f"{name}.gguf") for name in NAMES]
        for path, name in zip(paths, NAMES):
            write_model(path, name, tokens)
        (folder / "tokenize.mjs").write_text(TOKENIZE)
        (folder / "job.json").write_text(json.dumps({"paths": paths, "texts": texts}))
        keep_links = ["--preserve-symlinks", "--preserve-symlinks-main"]
        command = ["node", *keep_links, "tokenize.mjs", "job.json", "ids.json"]
        subprocess.run(command, cwd=folder, check=True)
        ids = json.loads((folder / "ids.json").read_text())
    fixture = {"merges": MERGES, "texts": texts, "ids": dict(zip(NAMES, ids))}
    path = Path(__file__).parent.parent / "tests/fixtures/gguf_pre_tokenizers.json"
    path.write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

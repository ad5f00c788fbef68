"""Compare greedy completions of llama.cpp with an adapter with those of PEFT.

Makes small random models with random adapters, imports both with the program, and exports them as GGUF
files. llama.cpp, as built for node-llama-cpp, loads the model with the adapter (`--lora`); its greedy
tokens must be those of transformers with PEFT.

    pip install torch transformers peft tokenizers
    npm install --ignore-scripts node-llama-cpp   # in NODE
    python scripts/compare_llama_cpp_lora.py target/release/nextword NODE
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, GPT2Config, GPTNeoXConfig,
    LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config,
)  # fmt: skip

from parity import randomize

VOCAB, CONTEXT, PROMPTS, TOKENS = 400, 96, 5, 32
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": CONTEXT, "bos_token_id": None,
    "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
GROUPS = SIZES | {"num_key_value_heads": 2}
GPT2 = {
    "vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 3, "n_head": 4,
    "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
PATTERNS = {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"k_proj": 3}, "use_rslora": True}
WINDOWS = {"query_pre_attn_scalar": 32, "sliding_window": 16}
CASES = {
    "llama": (LlamaConfig(**GROUPS), {}),
    "llama_patterns": (LlamaConfig(**GROUPS), PATTERNS),
    "qwen2": (Qwen2Config(**GROUPS, tie_word_embeddings=True), {}),
    "qwen3": (Qwen3Config(**GROUPS, head_dim=32), {}),
    "gpt2": (GPT2Config(**GPT2), {"fan_in_fan_out": True}),
    "gpt_neox": (GPTNeoXConfig(**SIZES, rotary_pct=0.5, hidden_act="gelu_new"), {}),
    "gemma": (GemmaConfig(**GROUPS, head_dim=32), {}),
    "gemma2": (Gemma2Config(**GROUPS, head_dim=32, **WINDOWS), {}),
    "gemma3_text": (
        Gemma3TextConfig(**GROUPS, head_dim=32, **WINDOWS, tie_word_embeddings=False), {},
    ),
}  # fmt: skip

# Prints the greedy tokens after each prompt, as JSON.
DRIVER = """
import {getLlama} from "node-llama-cpp";
const [modelPath, lora, prompts, count] = JSON.parse(process.argv[2]);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath});
const results = [];
for (const prompt of prompts) {
    const options = lora ? {lora: {adapters: [{filePath: lora, scale: 1}]}} : {};
    const context = await model.createContext({contextSize: 96, threads: 1, ...options});
    const tokens = [];
    for await (const token of context.getSequence().evaluate(prompt, {temperature: 0})) {
        tokens.push(token);
        if (tokens.length === count) break;
    }
    results.push(tokens);
    await context.dispose();
}
console.log("RESULT " + JSON.stringify(results));
process.exit(0);
"""


def tokenizer():
    """Train a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    text = ["The miller's old dog slept by the door, and nobody dared to wake it at all that day."]
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def greedy(model, prompt):
    """Return the most likely next tokens, one after the other, and the lead of each over the second."""
    ids, leads = list(prompt), []
    for _ in range(TOKENS):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        best = logits.topk(2).values
        leads.append((best[0] - best[1]).item())
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], leads


def make(folder, config, settings, seed):
    """Write a model and an adapter, and return the model with the adapter."""
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, seed)
    model.eval().save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", **settings)
    model = get_peft_model(model, lora)
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)
    model.eval().save_pretrained(folder / "peft")
    return model


def llama_cpp(node, model, lora, prompts):
    """Return the greedy tokens of llama.cpp."""
    driver = node / "compare_lora.mjs"
    driver.write_text(DRIVER)
    arguments = json.dumps([str(model), lora and str(lora), prompts, TOKENS])
    done = subprocess.run(["node", driver, arguments], cwd=node, capture_output=True, text=True)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stdout + done.stderr
    return json.loads(results[0].removeprefix("RESULT "))


def check(name, program, node, folder, seed):
    """Compare all prompts of one model."""
    config, settings = CASES[name]
    model = make(folder, config, settings, seed)
    run = lambda *args: subprocess.run([program, *map(str, args)], check=True, capture_output=True)
    run("import", folder / "model", "--out", folder / "base")
    run("import", folder / "peft", "--base", folder / "base", "--out", folder / "adapter")
    run("export", folder / "base", "--format", "gguf", "--out", folder / "base.gguf")
    run("export", folder / "adapter", "--format", "gguf-lora", "--out", folder / "lora.gguf")
    rng = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(1, 300, (5,), generator=rng).tolist() for _ in range(PROMPTS)]
    expected = [greedy(model, prompt) for prompt in prompts]
    found = llama_cpp(node, folder / "base.gguf", folder / "lora.gguf", prompts)
    without = llama_cpp(node, folder / "base.gguf", None, prompts)
    changed, compared = 0, 0
    for (tokens, leads), tuned, base in zip(expected, found, without, strict=True):
        # The end of a text is not among llama.cpp's tokens.
        end = tokens.index(0) if 0 in tokens else TOKENS
        # A lead below llama.cpp's rounding decides nothing: the rest is another text.
        if tuned[:end] != tokens[:end]:
            end = next(i for i in range(end) if tuned[i : i + 1] != tokens[i : i + 1])
            assert leads[end] < 5e-3, (name, leads, tokens, tuned)
        changed += base[:end] != tokens[:end]
        compared += end
    assert changed, (name, "the adapter changes nothing")
    print(f"{name}: {compared} tokens equal, other than the base's for {changed} of {PROMPTS} prompts", flush=True)


def main():
    """Compare all models."""
    torch.set_num_threads(1)
    program, node = (Path(path).resolve() for path in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as scratch:
        for seed, name in enumerate(CASES):
            folder = Path(scratch) / name
            folder.mkdir()
            check(name, program, node, folder, seed)


if __name__ == "__main__":
    main()

"""Compares greedy continuations with llama.cpp's, from GGUF files that nextword writes.

Random small models of each architecture with a byte-pair encoding trained here, and any records
named on the command line: 20 prompts each, 32 tokens, f32. The quantized types have to load and to
give finite logits.

    pip install torch transformers safetensors tokenizers llama-cpp-python
    python scripts/continuations.py target/release/nextword [RECORD...]
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from llama_cpp import GGML_TYPE_F32, Llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, GPT2Config, GPTNeoXConfig,
    LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config,
)  # fmt: skip

from parity import LLAMA3, linear, randomize

VOCAB, CONTEXT, PROMPTS, TOKENS = 320, 96, 20, 32
TEXT = [
    "The miller's old dog slept by the door, and nobody dared to wake it.",
    "In 1815 the river rose 12 feet; we'd never seen anything like it!",
    "She asked: \"Where does the road go?\" They said it goes nowhere.",
    "Ä small café near the harbour sells bread, cheese and naïve paintings.",
    "    def area(x, y):\n        return x * y  # tabs\tand spaces",
]

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
CASES = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2_untied": GPT2Config(**GPT2, tie_word_embeddings=False),
    "llama": LlamaConfig(**GROUPS, rope_parameters=LLAMA3),
    "llama_linear": LlamaConfig(**GROUPS, rope_parameters=linear(10000.0), tie_word_embeddings=True),
    "llama_biases": LlamaConfig(**GROUPS, head_dim=32, attention_bias=True),
    "mistral": MistralConfig(**GROUPS, head_dim=16, sliding_window=None),
    "qwen2": Qwen2Config(**GROUPS, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**GROUPS, head_dim=32),
    "gpt_neox": GPTNeoXConfig(**SIZES, rotary_pct=0.5, hidden_act="gelu_new"),
    "gpt_neox_in_turn": GPTNeoXConfig(
        **SIZES, rotary_pct=1.0, hidden_act="gelu_new", use_parallel_residual=False
    ),
    "gemma": GemmaConfig(**GROUPS, head_dim=32),
    "gemma2": Gemma2Config(**GROUPS, head_dim=32, query_pre_attn_scalar=32, sliding_window=16),
    "gemma3_text": Gemma3TextConfig(
        **GROUPS, head_dim=32, query_pre_attn_scalar=32, sliding_window=16,
        sliding_window_pattern=3,
    ),
}  # fmt: skip


def tokenizer():
    """A byte-pair encoding like GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    made.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def prompts(text):
    """Pieces of the text, of many lengths."""
    return [text[7 * i : 7 * i + 3 + 2 * i] for i in range(PROMPTS)]


def run(*command):
    """Runs a command; its output is shown where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def compare(program, record, name, texts, folder):
    """Greedy continuations, ours and theirs."""
    gguf = folder / f"{name}.gguf"
    run(program, "export", record, "--format", "gguf", "--out", gguf)
    # Its cache is f16 unless told otherwise, which decides between near neighbours.
    exact = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32, "flash_attn": False}
    model = Llama(str(gguf), n_ctx=0, verbose=False, n_threads=1, **exact)
    equal = 0
    for text in texts:
        ours = json.loads(run(
            program, "generate", record, text, "--raw", "--temperature", 0, "--max-tokens", TOKENS,
            "--json", "--quiet",
        ))["ids"]  # fmt: skip
        ids = model.tokenize(text.encode(), add_bos=True, special=True)
        theirs = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            theirs.append(token)
            if token == model.token_eos() or len(theirs) == len(ours):
                break
        equal += ours == theirs
        if ours != theirs:
            print(f"{name}: {text!r}\n  {ours}\n  {theirs}")
    losses = []
    for kind in ("f16", "q8_0", "q4_0"):
        run(program, "export", record, "--format", "gguf", "--dtype", kind, "--out", gguf)
        small = Llama(str(gguf), n_ctx=0, verbose=False, n_threads=1)
        small.eval(small.tokenize(texts[-1].encode(), add_bos=True, special=True))
        logits = small._ctx.get_logits()[: small.n_vocab()]
        assert all(math.isfinite(value) for value in logits), (name, kind)
        losses.append(f"{kind} {gguf.stat().st_size}")
    print(f"{name}: {equal} of {len(texts)} continuations equal; bytes: {', '.join(losses)}", flush=True)
    # Its GELU is a table in half precision, which decides between near neighbours of a random model.
    has_table = not name.startswith(("llama", "mistral", "qwen"))
    return equal >= len(texts) - has_table


def main():
    """Random models, then the records that were named."""
    program, records = Path(sys.argv[1]).resolve(), [Path(name) for name in sys.argv[2:]]
    fine = True
    with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
        folder = Path(folder)
        for seed, (name, config) in enumerate(CASES.items()):
            config._attn_implementation = "eager"
            model = AutoModelForCausalLM.from_config(config)
            randomize(model, seed)
            model.save_pretrained(folder / name)
            tokenizer().save_pretrained(folder / name)
            record = folder / f"{name}-record"
            run(program, "import", folder / name, "--out", record)
            fine &= compare(program, record, name, prompts(" ".join(TEXT)), folder)
        for record in records:
            texts = prompts("Once there was a cat who lived in a house near the sea. " * 4)
            fine &= compare(program, record, record.parent.name, texts, folder)
    assert fine, "continuations differ"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

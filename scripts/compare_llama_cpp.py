"""Compare greedy completions with those of llama.cpp, using GGUF files exported by nextword.

Tests a small random model of each architecture, with a BPE tokenizer trained here, and any model
folders given on the command line: 20 prompts each, 32 tokens, f32. Where completions differ,
transformers must agree with nextword, and with llama.cpp once it uses the same half-precision lookup
table for GELU. Logits of smaller data types must be close to those of f32.

    pip install torch transformers safetensors tokenizers llama-cpp-python
    python scripts/compare_llama_cpp.py target/release/nextword [MODEL...]
"""

import copy
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from llama_cpp import GGML_TYPE_F32, Llama
from tokenizers import (
    Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers,
)  # fmt: skip
from transformers import (
    AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, GPT2Config, GPTNeoXConfig,
    LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config,
)  # fmt: skip

from parity import LLAMA3, linear, randomize

VOCAB, CONTEXT, PROMPTS, TOKENS = 400, 96, 20, 32
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
    "gpt_neox_sequential": GPTNeoXConfig(
        **SIZES, rotary_pct=1.0, hidden_act="gelu_new", use_parallel_residual=False
    ),
    "gemma": GemmaConfig(**GROUPS, head_dim=32),
    "gemma2": Gemma2Config(**GROUPS, head_dim=32, query_pre_attn_scalar=32, sliding_window=16),
    "gemma3_text": Gemma3TextConfig(
        **GROUPS, head_dim=32, query_pre_attn_scalar=32, sliding_window=16,
        sliding_window_pattern=3,
    ),
}  # fmt: skip


# Pre-tokenizer patterns, by their names in llama.cpp, as they appear in tokenizer.json.
SPLIT_PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
TOKENIZER_KINDS = {
    "llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2",
    "mistral": "sentencepiece", "llama_linear": "sentencepiece", "gemma": "sentencepiece", "gemma2": "sentencepiece",
}  # fmt: skip


def train_tokenizer(kind):
    """Train a byte-level BPE tokenizer with a split pattern, or a SentencePiece-like one."""
    if kind == "sentencepiece":
        return sentencepiece_like()
    tokenizer = Tokenizer(models.BPE())
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in SPLIT_PATTERNS:
        split = pre_tokenizers.Split(Regex(SPLIT_PATTERNS[kind]), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def sentencepiece_like():
    """Create a tokenizer like Llama 2's: characters with byte fallback, spaces as U+2581, all possible
    merges of each token, and a BOS token."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    # Characters and bytes already fill most of the vocabulary.
    trained.train_from_iterator(["▁" + text for text in TEXT[:3]], trainers.BpeTrainer(vocab_size=138))
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {name: i for i, name in enumerate(names + [token for token, _ in learned])}
    assert len(vocab) <= VOCAB, len(vocab)
    merges = [
        (token[:cut], token[cut:])
        for token, _ in learned
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    strip = decoders.Strip(" ", 1, 0)
    decoder_steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(decoder_steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def prompts(text):
    """Return substrings of the text of various lengths."""
    return [text[7 * i : 7 * i + 3 + 2 * i] for i in range(PROMPTS)]


def run(*command):
    """Run a command and return its stdout; include its stderr in the error if it fails."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout


def table_gelu(x):
    """Compute GELU as llama.cpp does: the tanh approximation from a half-precision lookup table."""
    rounded = x.half().float()
    inner = math.sqrt(2 / math.pi) * rounded * (1 + 0.044715 * rounded * rounded)
    looked_up = (0.5 * rounded * (1 + torch.tanh(inner))).half().float()
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, looked_up))


class TableGelu(torch.nn.Module):
    """`table_gelu` as a module."""

    def forward(self, x):
        return table_gelu(x)


def with_table_gelu(model):
    """Return a copy of the model that uses llama.cpp's GELU."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name in ("act", "act_fn"):
            if hasattr(module, name):
                setattr(module, name, TableGelu())
    return model


@torch.no_grad()
def greedy(model, ids, count):
    """Return a greedy completion by transformers."""
    tokens = list(ids)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(ids) :]


def last_logits(gguf, text):
    """Return llama.cpp's logits after a text."""
    model = Llama(str(gguf), n_ctx=0, verbose=False, n_threads=1)
    model.eval(model.tokenize(text.encode(), add_bos=True, special=True))
    return torch.tensor(model._ctx.get_logits()[: model.n_vocab()])


def compare(program, model_dir, name, texts, folder, original=None):
    """Compare greedy completions of nextword and llama.cpp, and return whether they agree.

    A difference is accepted if `original` (transformers) shows it too when its GELU is replaced by
    llama.cpp's."""
    gguf = folder / f"{name}.gguf"
    run(program, "export", model_dir, "--format", "gguf", "--out", gguf)
    # The KV cache is f16 by default, which can flip near-ties.
    exact = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32, "flash_attn": False}
    model = Llama(str(gguf), n_ctx=0, verbose=False, n_threads=1, **exact)
    bos = json.loads((Path(model_dir) / "card.json").read_text()).get("bos_id")
    tokenizer = Tokenizer.from_file(str(Path(model_dir) / "tokenizer.json"))
    equal, explained, passed = 0, 0, True
    for text in texts:
        ids = model.tokenize(text.encode(), add_bos=True, special=True)
        encoded = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == ([] if bos is None else [bos]) + encoded, (name, text, ids, encoded)
        ours = json.loads(run(
            program, "generate", model_dir, text, "--raw", "--temperature", 0, "--max-tokens", TOKENS,
            "--json", "--quiet",
        ))["ids"]  # fmt: skip
        theirs = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            theirs.append(token)
            if token == model.token_eos() or len(theirs) == len(ours):
                break
        equal += ours == theirs
        if ours != theirs:
            print(f"{name}: {text!r}\n  {ours}\n  {theirs}")
            matches_ours = original and greedy(original, ids, len(ours)) == ours
            matches_theirs = original and greedy(with_table_gelu(original), ids, len(theirs)) == theirs
            print(f"  transformers agrees with nextword: {matches_ours}; with table GELU, with llama.cpp: {matches_theirs}")
            explained += bool(matches_ours and matches_theirs)
    passed &= equal + explained == len(texts)
    # Random weights amplify rounding errors, but a layout bug would exceed the limits by far.
    results, f32_logits = [], last_logits(gguf, texts[-1])
    for kind, limit in (("f16", 0.01), ("q8_0", 0.15), ("q4_0", 2.0)):
        run(program, "export", model_dir, "--format", "gguf", "--dtype", kind, "--out", gguf)
        logits = last_logits(gguf, texts[-1])
        error = float((logits - f32_logits).norm() / f32_logits.norm())
        passed &= error < limit
        results.append(f"{kind} {gguf.stat().st_size} bytes, relative logit error {error:.1e}")
    print(
        f"{name}: {equal} of {len(texts)} completions equal, {explained} explained; "
        + "; ".join(results),
        flush=True,
    )
    return passed


def main():
    """Compare random models, then the given model folders."""
    program, model_dirs = Path(sys.argv[1]).resolve(), [Path(name) for name in sys.argv[2:]]
    passed = True
    with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
        folder = Path(folder)
        for seed, (name, config) in enumerate(CASES.items()):
            config._attn_implementation = "eager"
            model = AutoModelForCausalLM.from_config(config).eval()
            randomize(model, seed)
            model.save_pretrained(folder / name)
            # Also writes tokenizer_config.json, so that transformers loads tokenizer.json unchanged.
            tokenizer = train_tokenizer(TOKENIZER_KINDS.get(name))
            tokenizer.save_pretrained(folder / name)
            settings = json.loads((folder / name / "config.json").read_text())
            settings |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            (folder / name / "config.json").write_text(json.dumps(settings))
            model_dir = folder / f"{name}-model"
            run(program, "import", folder / name, "--out", model_dir)
            passed &= compare(program, model_dir, name, prompts(" ".join(TEXT)), folder, model)
        for model_dir in model_dirs:
            texts = prompts("Once there was a cat who lived in a house near the sea. " * 4)
            passed &= compare(program, model_dir, model_dir.parent.name, texts, folder)
    assert passed, "completions differ"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

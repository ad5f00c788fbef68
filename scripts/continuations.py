"""Compares greedy continuations with llama.cpp's, from GGUF files that nextword writes.

Random small models of each architecture with byte-pair encodings trained here, and any records
named on the command line: 20 prompts each, 32 tokens, f32. Where one differs, transformers has to go
our way, and theirs once its GELU is looked up in half precision as llama.cpp does. The smaller types
have to give logits near those of f32.

    pip install torch transformers safetensors tokenizers llama-cpp-python
    python scripts/continuations.py target/release/nextword [RECORD...]
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


# What cuts a text into words, as nextword finds it in a tokenizer.json and llama.cpp knows it by name.
WORDS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
KINDS = {
    "llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2",
    "mistral": "pieces", "llama_linear": "pieces", "gemma": "pieces", "gemma2": "pieces",
}  # fmt: skip


def tokenizer(kind):
    """A byte-pair encoding of bytes with one of the rules for words, or one like SentencePiece's."""
    if kind == "pieces":
        return pieces()
    made = Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in WORDS:
        split = pre_tokenizers.Split(Regex(WORDS[kind]), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bytes_ = pre_tokenizers.Sequence([split, bytes_])
    made.pre_tokenizer = bytes_
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    made.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def pieces():
    """Characters with a fallback to bytes, spaces written as an underline, and every way to merge a
    piece, as Llama 2's files have it; a token at the beginning."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    # Fewer than the model has room for: with characters and bytes it is nearly full.
    trained.train_from_iterator(["▁" + text for text in TEXT[:3]], trainers.BpeTrainer(vocab_size=138))
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {name: i for i, name in enumerate(names + [piece for piece, _ in learned])}
    assert len(vocab) <= VOCAB, len(vocab)
    merges = [
        (piece[:cut], piece[cut:])
        for piece, _ in learned
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    strip = decoders.Strip(" ", 1, 0)
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    made.decoder = decoders.Sequence(fallback)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def prompts(text):
    """Pieces of the text, of many lengths."""
    return [text[7 * i : 7 * i + 3 + 2 * i] for i in range(PROMPTS)]


def run(*command):
    """Runs a command; its output is shown where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def table_gelu(x):
    """llama.cpp's GELU: the tanh approximation looked up in half precision."""
    rounded = x.half().float()
    inner = math.sqrt(2 / math.pi) * rounded * (1 + 0.044715 * rounded * rounded)
    looked_up = (0.5 * rounded * (1 + torch.tanh(inner))).half().float()
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, looked_up))


class TableGelu(torch.nn.Module):
    """The same as a module."""

    def forward(self, x):
        return table_gelu(x)


def tabled(model):
    """The model with llama.cpp's GELU."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name in ("act", "act_fn"):
            if hasattr(module, name):
                setattr(module, name, TableGelu())
    return model


@torch.no_grad()
def continued(model, ids, count):
    """The likeliest tokens one after the other, by transformers."""
    found = list(ids)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([found]), use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
    return found[len(ids) :]


def last_logits(gguf, text):
    """llama.cpp's logits after a text."""
    model = Llama(str(gguf), n_ctx=0, verbose=False, n_threads=1)
    model.eval(model.tokenize(text.encode(), add_bos=True, special=True))
    return torch.tensor(model._ctx.get_logits()[: model.n_vocab()])


def compare(program, record, name, texts, folder, original=None):
    """Greedy continuations, ours and theirs; where they part, `original` has to part in the same way
    when its GELU is exchanged for llama.cpp's. Whether all is well."""
    gguf = folder / f"{name}.gguf"
    run(program, "export", record, "--format", "gguf", "--out", gguf)
    # Its cache is f16 unless told otherwise, which decides between near neighbours.
    exact = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32, "flash_attn": False}
    model = Llama(str(gguf), n_ctx=0, verbose=False, n_threads=1, **exact)
    bos = json.loads((Path(record) / "card.json").read_text()).get("bos_id")
    tokenizer = Tokenizer.from_file(str(Path(record) / "tokenizer.json"))
    equal, explained, fine = 0, 0, True
    for text in texts:
        ids = model.tokenize(text.encode(), add_bos=True, special=True)
        known = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == ([] if bos is None else [bos]) + known, (name, text, ids, known)
        ours = json.loads(run(
            program, "generate", record, text, "--raw", "--temperature", 0, "--max-tokens", TOKENS,
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
            as_ours = original and continued(original, ids, len(ours)) == ours
            as_theirs = original and continued(tabled(original), ids, len(theirs)) == theirs
            print(f"  transformers goes our way: {as_ours}; with GELU from a table theirs: {as_theirs}")
            explained += bool(as_ours and as_theirs)
    fine &= equal + explained == len(texts)
    # Weights at random carry what is rounded far: a fault of layout still is an order of size above.
    sizes, whole = [], last_logits(gguf, texts[-1])
    for kind, most in (("f16", 0.01), ("q8_0", 0.15), ("q4_0", 2.0)):
        run(program, "export", record, "--format", "gguf", "--dtype", kind, "--out", gguf)
        logits = last_logits(gguf, texts[-1])
        apart = float((logits - whole).norm() / whole.norm())
        fine &= apart < most
        sizes.append(f"{kind} {gguf.stat().st_size} bytes, logits {apart:.1e} apart")
    print(
        f"{name}: {equal} of {len(texts)} continuations equal, {explained} explained; "
        + "; ".join(sizes),
        flush=True,
    )
    return fine


def main():
    """Random models, then the records that were named."""
    program, records = Path(sys.argv[1]).resolve(), [Path(name) for name in sys.argv[2:]]
    fine = True
    with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
        folder = Path(folder)
        for seed, (name, config) in enumerate(CASES.items()):
            config._attn_implementation = "eager"
            model = AutoModelForCausalLM.from_config(config).eval()
            randomize(model, seed)
            model.save_pretrained(folder / name)
            # What makes transformers read the file as it stands.
            made = tokenizer(KINDS.get(name))
            made.save_pretrained(folder / name)
            settings = json.loads((folder / name / "config.json").read_text())
            settings |= {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id}
            (folder / name / "config.json").write_text(json.dumps(settings))
            record = folder / f"{name}-record"
            run(program, "import", folder / name, "--out", record)
            fine &= compare(program, record, name, prompts(" ".join(TEXT)), folder, model)
        for record in records:
            texts = prompts("Once there was a cat who lived in a house near the sea. " * 4)
            fine &= compare(program, record, record.parent.name, texts, folder)
    assert fine, "continuations differ"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

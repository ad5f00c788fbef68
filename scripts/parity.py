"""Compare imported and exported models with Hugging Face transformers on small random models.

Creates models with unusual shapes, and their logits, for every model type that nextword supports. The
test `imported_models_match_transformers` imports them, compares logits on each device and exports
them. This script then loads the exported models: weights and logits must be bitwise identical. Every
tensor inside them is compared with what `nextword explain` shows.

    pip install torch transformers safetensors tokenizers
    python scripts/parity.py              # uses a temporary folder
    python scripts/parity.py --fixtures   # writes the first model of each type to tests/fixtures/hf

The committed files come from torch 2.15.0 and transformers 5.24.0.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma3TextConfig, GemmaConfig, GPT2Config,
    GPTNeoXConfig, LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config,
)  # fmt: skip

import dump_activations

ROOT = Path(__file__).resolve().parent.parent
VOCAB, CONTEXT, BATCH, SEQ = 101, 24, 2, 13

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2,
    "num_attention_heads": 5, "max_position_embeddings": CONTEXT,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
GQA_SIZES = SIZES | {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
GEMMA = GQA_SIZES | {"head_dim": 6}
DEEP = {"num_hidden_layers": 3}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "beta_fast": 4.0,
    "original_max_position_embeddings": 12,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 20, "n_layer": 2, "n_head": 5,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def linear(theta):
    """Return RoPE parameters with linear scaling by 2.5."""
    return {"rope_type": "linear", "rope_theta": theta, "factor": 2.5}


# The first of each type becomes a fixture, and those in OTHER_FIXTURES.
CASES = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2_untied": GPT2Config(
        **GPT2, n_inner=36, activation_function="gelu", tie_word_embeddings=False
    ),
    "gpt2_relu": GPT2Config(**GPT2, activation_function="relu"),
    "llama": LlamaConfig(**GQA_SIZES, rope_parameters=LLAMA3),
    "llama_tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama_linear": LlamaConfig(**GQA_SIZES, rope_parameters=linear(10000.0)),
    "llama_biases": LlamaConfig(**GQA_SIZES, head_dim=6, attention_bias=True, mlp_bias=True),
    "llama_yarn": LlamaConfig(**GQA_SIZES | {"head_dim": 8}, rope_parameters=YARN),
    "mistral": MistralConfig(**GQA_SIZES, head_dim=4, sliding_window=5),
    "mistral_whole": MistralConfig(**GQA_SIZES, head_dim=4, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen2_windows": Qwen2Config(
        **(GQA_SIZES | DEEP), use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**GQA_SIZES, head_dim=8),
    "qwen3_biases": Qwen3Config(**SIZES, num_key_value_heads=5, head_dim=4, attention_bias=True),
    "gpt_neox": GPTNeoXConfig(**GQA_SIZES | {"num_key_value_heads": None}, rotary_pct=0.5),
    "gpt_neox_sequential": GPTNeoXConfig(
        **SIZES, use_parallel_residual=False, rotary_pct=1.0, hidden_act="gelu_new"
    ),
    "gemma": GemmaConfig(**GEMMA),
    "gemma_mqa": GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=4),
    "gemma2": Gemma2Config(**(GEMMA | DEEP), sliding_window=5, query_pre_attn_scalar=7),
    "gemma2_uncapped": Gemma2Config(
        **GEMMA, sliding_window=5, attn_logit_softcapping=None, final_logit_softcapping=None
    ),
    "gemma3_text": Gemma3TextConfig(
        **(GEMMA | DEEP), sliding_window=5, sliding_window_pattern=3, query_pre_attn_scalar=9
    ),
    "gemma3_text_linear": Gemma3TextConfig(
        **GEMMA, sliding_window=5, sliding_window_pattern=2,
        rope_parameters={
            "full_attention": linear(1000.0),
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    # transformers reads attn_logit_softcapping but does not apply it.
    "gemma3_text_yarn": Gemma3TextConfig(
        **(GEMMA | DEEP), sliding_window=5, sliding_window_pattern=3, attn_logit_softcapping=0.5,
        rope_parameters={
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "gpt_neox_yarn": GPTNeoXConfig(
        **GQA_SIZES | {"num_key_value_heads": None},
        rope_parameters=YARN | {"partial_rotary_factor": 0.5, "attention_factor": 1.0},
    ),
}  # fmt: skip
# config.json of these contains only sizes, to test the defaults of each model type.
SMALL = SIZES | {"hidden_size": 64, "num_attention_heads": 4}
CASES |= {
    "gpt2_absent": GPT2Config(**GPT2),
    "llama_absent": LlamaConfig(**SIZES),
    "mistral_absent": MistralConfig(**SMALL | {"num_attention_heads": 8}),
    "qwen2_absent": Qwen2Config(**SMALL | {"num_attention_heads": 32}),
    "qwen3_absent": Qwen3Config(**SMALL | {"num_attention_heads": 32}),
    "gpt_neox_absent": GPTNeoXConfig(**SMALL),
    "gemma_absent": GemmaConfig(**SMALL | {"num_attention_heads": 16}),
    "gemma2_absent": Gemma2Config(**SMALL),
    "gemma3_text_absent": Gemma3TextConfig(**(SMALL | {"num_hidden_layers": 7})),
}  # fmt: skip
OTHER_FIXTURES = ("gemma3_text_yarn", "gpt_neox_yarn")
CONFIG_FIELDS = set(SIZES) | set(GPT2) | {"model_type", "architectures"}
HALF_PRECISION = {"llama_biases": torch.bfloat16, "qwen3_biases": torch.float16}
# Without an effective sliding window, these are exported as Llama.
LLAMA_EQUIVALENT = ("mistral_whole", "mistral_absent")
SHARDED = ("gpt2_untied", "qwen2_windows")


def make_tokenizer():
    """Create a word-level tokenizer."""
    words = ["<unk>", "<s>", "</s>"] + [f"w{i}" for i in range(VOCAB - 3)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def randomize(model, seed):
    """Randomize all parameters: norm scales around their initial value, others around 0."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        is_scale = parameter.dim() == 1 and name.endswith("weight")
        center = float(is_scale and not model.config.model_type.startswith("gemma"))
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng) + center


def make(folder, name, config, seed):
    """Write a folder with a model, its tokenizer, a batch of token ids and their logits."""
    folder = folder / name
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, seed)
    model = model.to(HALF_PRECISION.get(name, torch.float32)).eval()
    model.save_pretrained(folder, max_shard_size="8KB" if name in SHARDED else "1GB")
    make_tokenizer().save_pretrained(folder)
    if name.endswith("_absent"):
        fields = json.loads((folder / "config.json").read_text())
        fields = {key: value for key, value in fields.items() if key in CONFIG_FIELDS}
        (folder / "config.json").write_text(json.dumps(fields))
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (BATCH, SEQ), generator=rng)
    with torch.no_grad():
        # Reload, since converting a model to half precision also rounds its RoPE tables.
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        logits = model.eval()(input_ids=ids, use_cache=False).logits
    inputs = {"batch": BATCH, "seq": SEQ, "inputs": ids.flatten().tolist()}
    (folder / "inputs.json").write_text(json.dumps(inputs) + "\n")
    save_file({"logits": logits.contiguous()}, folder / "expected.safetensors")


def check(folder, name):
    """Check that the exported model equals the original, and return its number of tensors."""
    exported = folder / "exported" / name
    original = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    model, info = AutoModelForCausalLM.from_pretrained(
        exported, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), (name, info)
    expected, actual = original.state_dict(), model.state_dict()
    assert expected.keys() == actual.keys(), (name, expected.keys() ^ actual.keys())
    for key, tensor in expected.items():
        assert torch.equal(tensor, actual[key]), (name, key)
    assert type(original) is type(model) or name in LLAMA_EQUIVALENT, (name, type(model))
    ids = torch.tensor([json.loads((folder / name / "inputs.json").read_text())["inputs"]])
    with torch.no_grad():
        logits = [m.eval()(input_ids=ids[:, :CONTEXT]).logits for m in (original, model)]
    assert torch.equal(*logits), (name, (logits[0] - logits[1]).abs().max())
    text = "w0 w5 w97 </s>"
    token_ids = [AutoTokenizer.from_pretrained(f)(text).input_ids for f in (folder / name, exported)]
    assert token_ids[0] == token_ids[1], (name, token_ids)
    return len(expected)


def make_fixtures():
    """Write the first model of each type as a fixture for tests without Python."""
    folder = ROOT / "tests" / "fixtures" / "hf"
    shutil.rmtree(folder, ignore_errors=True)
    seen = set()
    for seed, (name, config) in enumerate(CASES.items()):
        if config.model_type not in seen or name in OTHER_FIXTURES:
            seen.add(config.model_type)
            make(folder, name, config, seed)
            if name in dump_activations.DUMPED_CASES:
                dump_activations.dump_transformers(folder / name)


def main():
    """Import and export all models in the Rust test, and check the exported models."""
    folder = Path(tempfile.mkdtemp(prefix="parity-"))
    try:
        for seed, (name, config) in enumerate(CASES.items()):
            make(folder, name, config, seed)
            dump_activations.dump_transformers(folder / name)
        test = ["cargo", "test", "--release", "--workspace", "--test", "tests", "--"]
        test += ["imported_models_match_transformers", "explained_tensors_match_transformers_models", "--nocapture"]
        env = os.environ | {"NEXTWORD_PARITY": str(folder)}
        subprocess.run(test, cwd=ROOT, env=env, check=True)
        for name in CASES:
            print(f"{name}: {check(folder, name)} tensors and all logits equal after export")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_fixtures() if "--fixtures" in sys.argv else main()

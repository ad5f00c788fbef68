"""Dump the activations of models computed by PyTorch, as references for `nextword explain`.

There are two independent sources: transformers' models, recorded by forward hooks on their modules,
and, for options that those lack (and for StatQuest's model), PyTorch functions in f64 with RoPE
frequencies from transformers. Tensor names follow TransformerLens.

    pip install torch transformers safetensors
    python scripts/dump_activations.py        # writes tests/fixtures/inside and some of tests/fixtures/hf
    python scripts/dump_activations.py 300    # generates 300 random models and runs the test on them

`scripts/parity.py` dumps more variants of transformers' models. The committed files come from
torch 2.15.0 and transformers 5.24.0.
"""

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
SEQ = 6  # One more than the sliding window of the fixtures.

# Hook names of the input and the output of each module.
MODULE_HOOKS = {
    "wte": (None, "hook_embed"), "wpe": (None, "hook_pos_embed"), "ln_f": (None, "ln_final.hook_normalized"),
    "norm": (None, "ln_final.hook_normalized"), "final_layer_norm": (None, "ln_final.hook_normalized"),
}  # fmt: skip
BLOCK_HOOKS = {
    "": ("hook_resid_pre", "hook_resid_post"),
    # GPT-2
    "ln_1": (None, "ln1.hook_normalized"), "attn.c_proj": (None, "hook_attn_out"),
    "ln_2": ("hook_resid_mid", "ln2.hook_normalized"),
    "mlp.c_fc": (None, "mlp.hook_pre"), "mlp.c_proj": ("mlp.hook_post", "hook_mlp_out"),
    # Llama and similar models
    "input_layernorm": (None, "ln1.hook_normalized"), "self_attn.o_proj": (None, "hook_attn_out"),
    "post_attention_layernorm": ("hook_resid_mid", "ln2.hook_normalized"),
    "mlp.gate_proj": (None, "mlp.hook_pre"), "mlp.up_proj": (None, "mlp.hook_pre_linear"),
    "mlp.down_proj": ("mlp.hook_post", "hook_mlp_out"),
    # GPT-NeoX
    "attention.dense": (None, "hook_attn_out"), "mlp.dense_h_to_4h": (None, "mlp.hook_pre"),
    "mlp.dense_4h_to_h": ("mlp.hook_post", "hook_mlp_out"),
}  # fmt: skip
SANDWICH_BLOCK_HOOKS = {
    "self_attn.o_proj": (None, "hook_attn_out_before_norm"),
    "post_attention_layernorm": (None, "hook_attn_out"),
    "pre_feedforward_layernorm": ("hook_resid_mid", "ln2.hook_normalized"),
    "mlp.down_proj": ("mlp.hook_post", "hook_mlp_out_before_norm"),
    "post_feedforward_layernorm": (None, "hook_mlp_out"),
}  # fmt: skip


@contextmanager
def patched(owner, name, value):
    """Temporarily set `owner.name` to `value`."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield original
    finally:
        setattr(owner, name, original)


def transformers_activations(model, ids):
    """Return the activations of a transformers model (with eager attention) for a list of token ids."""
    config, activations, kind = model.config, {}, model.config.model_type
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def record(name, x):
        activations[name] = x.detach()[0].clone()

    def heads(x):  # [batch, seq, heads * head_dim] to [batch, heads, seq, head_dim]
        return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)

    def projections(block, module, x):
        """Record queries, keys and values from the output of a module."""
        if module == "attn.c_attn":
            parts = dict(zip("qkv", map(heads, x.chunk(3, -1))))
        elif module == "attention.query_key_value":
            qkv = x.unflatten(-1, (-1, 3 * head_dim)).transpose(1, 2)
            parts = dict(zip("qkv", qkv.chunk(3, -1)))
        elif module in ("self_attn.q_norm", "self_attn.k_norm"):
            # Gemma 3 normalizes after moving the heads first, Qwen 3 before.
            parts = {module[10]: x if kind == "gemma3_text" else x.transpose(1, 2)}
        elif module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            raw = f"{block}self_attn.{module[10]}_norm" in normed
            parts = {module[10] + ("_before_norm" if raw else ""): heads(x)}
        else:
            return
        for letter, part in parts.items():
            record(f"{block}attn.hook_{letter}", part)

    normed, hooks, rotary = set(), [], getattr(model.base_model, "rotary_emb", None)
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    prefix = next(name for name, m in model.named_modules() if m is blocks) + "."
    table = BLOCK_HOOKS | (SANDWICH_BLOCK_HOOKS if kind in ("gemma2", "gemma3_text") else {})
    if kind == "gpt_neox" and config.use_parallel_residual:
        table |= {"post_attention_layernorm": (None, "ln2.hook_normalized")}
    for path, module in model.named_modules():
        if path.startswith(prefix):
            layer, _, module_name = path[len(prefix) :].partition(".")
            block = f"blocks.{layer}."
            if module_name in ("self_attn.q_norm", "self_attn.k_norm"):
                normed.add(block + module_name)
            input_name, output_name = table.get(module_name, (None, None))
        else:
            block, module_name = "", path
            input_name, output_name = MODULE_HOOKS.get(path.rsplit(".", 1)[-1], (None, None))

        def hook(_, args, result, block=block, module_name=module_name, input_name=input_name, output_name=output_name):
            result = result[0] if isinstance(result, tuple) else result
            if input_name:
                record(block + input_name, args[0])
            if output_name:
                record(block + output_name, result)
            projections(block, module_name, result)

        hooks.append(module.register_forward_hook(hook))

    def attention(module, query, key, value, mask, **options):
        layer = next(i for i, b in enumerate(blocks) if any(m is module for m in b.modules()))
        block, softmax, uses_rope = f"blocks.{layer}.attn.", F.softmax, kind != "gpt2"
        if uses_rope:
            # transformers applies YaRN's factor in RoPE, nextword in the product of queries and keys.
            factor = getattr(rotary, "attention_scaling", 1.0)
            record(f"{block}hook_rot_q", query / factor)
            record(f"{block}hook_rot_k", key / factor)

        def record_scores(scores, *args, **kwargs):
            record(f"{block}hook_attn_scores", scores.masked_fill(scores < -1e30, -math.inf))
            return softmax(scores, *args, **kwargs)

        with patched(F, "softmax", record_scores):
            z, pattern = eager(module, query, key, value, mask, **options)
        record(f"{block}hook_pattern", pattern)
        record(f"{block}hook_z", z.transpose(1, 2))
        return z, pattern

    with torch.no_grad(), patched(sys.modules[type(model).__module__], "eager_attention_forward", attention) as eager:
        record("logits", model(input_ids=torch.tensor([ids]), use_cache=False).logits)
    for hook in hooks:
        hook.remove()
    return activations


def frequencies(config, head_dim, layer):
    """Return the RoPE frequencies of `layer` and the scaling factor of queries and keys."""
    rotary, windows = config["rotary"], config["windows"]
    width = rotary["width"] or head_dim
    scaling, base = rotary["scaling"], rotary["base"]
    if rotary["local_base"] and windows and windows[layer % len(windows)] > 0:
        scaling, base = {"kind": "none"}, rotary["local_base"]
    kind = scaling["kind"]
    if kind == "ntk":
        scaled_base = base * scaling["factor"] ** (width / (width - 2)) if width > 2 else base
        return scaled_base ** (-2.0 * torch.arange(width // 2).double() / width), 1.0
    if kind == "none":
        return base ** (-2.0 * torch.arange(width // 2).double() / width), 1.0
    parameters = {"rope_type": kind, "rope_theta": base} | {k: v for k, v in scaling.items() if k != "kind"}
    original = parameters.pop("original_context_length", None)
    if original:
        parameters["original_max_position_embeddings"] = original
    hf_config = LlamaConfig(hidden_size=width, num_attention_heads=1, head_dim=width, rope_parameters=parameters,
                            max_position_embeddings=config["context_length"])  # fmt: skip
    inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](hf_config, torch.device("cpu"))
    return inv_freq.double(), factor


def alibi_slopes(n):
    """Return the ALiBi slopes, as defined by its authors for any number of heads."""
    power = 2 ** math.floor(math.log2(n))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    return torch.tensor(slopes if power == n else slopes + alibi_slopes(2 * power)[0::2][: n - power].tolist()).double()


ACTIVATIONS = {
    "gelu": F.gelu, "geglu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "geglu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(), "silu": F.silu, "swiglu": F.silu,
}  # fmt: skip


def reference_activations(config, weights, ids):
    """Compute the activations of a nextword model with PyTorch functions in f64, for every option."""
    weights, activations = {name: w.double() for name, w in weights.items()}, {}
    seq, n_heads, head_dim, eps = len(ids), config["n_heads"], config["head_dim"], config["norm_eps"]
    placement, has_norms = config["norm_placement"], config["norm"] != "none"

    def record(name, x):
        activations[name] = x
        return x

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"].mT, weights.get(f"{name}.bias"))

    def norm(name, x, kind=config["norm"]):
        weight = weights[f"{name}.weight"] + float(config["norm_unit_offset"])
        if kind == "layer":
            return F.layer_norm(x, weight.shape, weight, weights.get(f"{name}.bias"), eps)
        return F.rms_norm(x, weight.shape, weight, eps)

    def heads(name, x):
        return linear(name, x).unflatten(-1, (-1, head_dim)).transpose(0, 1)  # [heads, seq, head_dim]

    def apply_rope(layer, x):
        freqs, _ = frequencies(config, head_dim, layer)
        angles = torch.arange(seq)[:, None] * freqs
        a, b, rest = x.split([len(freqs), len(freqs), head_dim - 2 * len(freqs)], dim=-1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), rest], -1)

    def soft_cap(c, x):
        return x if c is None else c * torch.tanh(x / c)

    def attention(layer, block, x):
        letters = {"q": "query", "k": "key", "v": "value"}
        qkv = {letter: heads(f"{block}attention.{name}", x) for letter, name in letters.items()}
        for letter in "qk" if config["qk_norm"] else "":
            raw = record(f"{block}attn.hook_{letter}_before_norm", qkv[letter])
            qkv[letter] = norm(f"{block}attention.{letters[letter]}_norm", raw, "rms")
        for letter, x in qkv.items():
            record(f"{block}attn.hook_{letter}", x)
        scale = (config["score_width"] or head_dim) ** -0.5
        if config["position"] == "rotary":
            scale *= frequencies(config, head_dim, layer)[1] ** 2
            for letter in "qk":
                qkv[letter] = record(f"{block}attn.hook_rot_{letter}", apply_rope(layer, qkv[letter]))
        k, v = (qkv[letter].repeat_interleave(n_heads // config["n_kv_heads"], 0) for letter in "kv")
        distance = torch.arange(seq)[:, None] - torch.arange(seq)
        hidden = distance < 0
        window = config["windows"][layer % len(config["windows"])] if config["windows"] else 0
        if window:
            hidden |= distance >= window
        bias = torch.zeros(n_heads, seq, seq).double()
        if config["position"] == "alibi":
            bias -= alibi_slopes(n_heads)[:, None, None] * distance
        bias = bias.masked_fill(hidden, -math.inf)
        scores = record(f"{block}attn.hook_attn_scores", soft_cap(config["score_soft_cap"], qkv["q"] @ k.mT * scale) + bias)
        pattern = record(f"{block}attn.hook_pattern", scores.softmax(-1))
        z = record(f"{block}attn.hook_z", pattern @ v)
        if config["score_soft_cap"] is None:
            fused = F.scaled_dot_product_attention(qkv["q"], k, v, attn_mask=bias, scale=scale)
            assert torch.allclose(z, fused, rtol=1e-9, atol=1e-9)
        z = z.transpose(0, 1).flatten(1)
        return linear(f"{block}attention.output", z) if config["output_projection"] else z

    def feed_forward(block, x):
        name, f = f"{block}feed_forward", ACTIVATIONS[config["feed_forward"]]
        up = linear(f"{name}.up", x)
        if f"{name}.gate.weight" in weights:
            gate = record(f"{block}mlp.hook_pre", linear(f"{name}.gate", x))
            hidden = f(gate) * record(f"{block}mlp.hook_pre_linear", up)
        else:
            hidden = f(record(f"{block}mlp.hook_pre", up))
        return linear(f"{name}.down", record(f"{block}mlp.hook_post", hidden))

    def pre_norm(block, ln, name, x):
        if not has_norms or placement == "post":
            return x
        return record(f"{block}{ln}.hook_normalized", norm(f"{block}{name}_norm", x))

    def add_residual(block, letters, ln, name, x, update):
        """Add a sublayer's output to `x`, recording the hooks along the way."""
        if has_norms and placement == "sandwich":
            update = norm(f"{block}{name}_post_norm", record(f"{block}hook_{letters}_out_before_norm", update))
        update = record(f"{block}hook_{letters}_out", update)
        x = x + update if config["residual"] else update
        if has_norms and placement == "post":
            x = norm(f"{block}{name}_norm", record(f"{block}hook_{letters}_sum", x))
            record(f"{block}{ln}.hook_normalized", x)
        return x

    table = weights["token_embedding.weight"]
    x = record("hook_embed", F.embedding(torch.tensor(ids), table) * (config["embedding_scale"] or 1.0))
    if config["position"] == "learned":
        x = x + record("hook_pos_embed", weights["position_embedding.weight"][:seq])
    if config["position"] == "sinusoidal":
        d, i = x.shape[-1], torch.arange(x.shape[-1])
        angles = torch.arange(seq).double()[:, None] * 10000.0 ** (-(i - i % 2).double() / d)
        x = x + record("hook_pos_embed", torch.where(i % 2 == 0, angles.sin(), angles.cos()))
    for layer in range(config["n_layers"]):
        block = f"blocks.{layer}."
        residual = record(f"{block}hook_resid_pre", x)
        x = add_residual(block, "attn", "ln1", "attention", x,
                  attention(layer, block, pre_norm(block, "ln1", "attention", residual)))  # fmt: skip
        if config["feed_forward"] != "none":
            record(f"{block}hook_resid_mid", x)
            residual = residual if config["parallel"] else x
            x = add_residual(block, "mlp", "ln2", "feed_forward", x,
                      feed_forward(block, pre_norm(block, "ln2", "feed_forward", residual)))  # fmt: skip
        record(f"{block}hook_resid_post", x)
    if has_norms and placement != "post":
        x = record("ln_final.hook_normalized", norm("final_norm", x))
    weight = table if config["tied_head"] else weights["head.weight"].mT
    record("logits", soft_cap(config["logit_soft_cap"], F.linear(x, weight, weights.get("head.bias"))))
    return {name: x.float() for name, x in activations.items()}


def weight_shapes(config):
    """Return the name and shape of each weight."""
    d, d_ff, dim, bias = config["d_model"], config["d_ff"], config["head_dim"], config["bias"]
    q, kv, shapes = config["n_heads"] * dim, config["n_kv_heads"] * dim, {}

    def linear(name, d_in, d_out, has_bias):
        shapes[f"{name}.weight"] = (d_in, d_out)
        if has_bias:
            shapes[f"{name}.bias"] = (d_out,)

    def norm(name):
        if config["norm"] != "none":
            shapes[f"{name}.weight"] = (d,)
        if config["norm"] == "layer" and bias["norm"]:
            shapes[f"{name}.bias"] = (d,)

    shapes["token_embedding.weight"] = (config["vocab_size"], d)
    if config["position"] == "learned":
        shapes["position_embedding.weight"] = (config["context_length"], d)
    for block in (f"blocks.{layer}." for layer in range(config["n_layers"])):
        for name, width in (("query", q), ("key", kv), ("value", kv)):
            linear(f"{block}attention.{name}", d, width, bias["qkv"])
        if config["qk_norm"]:
            shapes |= {f"{block}attention.{name}_norm.weight": (dim,) for name in ("query", "key")}
        if config["output_projection"]:
            linear(f"{block}attention.output", q, d, bias["attention_output"])
        sublayers = ["attention"] + ["feed_forward"] * (config["feed_forward"] != "none")
        for name in sublayers:
            norm(f"{block}{name}_norm")
            if config["norm_placement"] == "sandwich":
                norm(f"{block}{name}_post_norm")
        if config["feed_forward"] != "none":
            if config["feed_forward"] in ("swiglu", "geglu", "geglu_tanh"):
                linear(f"{block}feed_forward.gate", d, d_ff, bias["feed_forward"])
            linear(f"{block}feed_forward.up", d, d_ff, bias["feed_forward"])
            linear(f"{block}feed_forward.down", d_ff, d, bias["feed_forward"])
    if config["norm_placement"] != "post":
        norm("final_norm")
    if not config["tied_head"]:
        shapes["head.weight"] = (d, config["vocab_size"])
    if bias["head"]:
        shapes["head.bias"] = (config["vocab_size"],)
    return shapes


STATQUEST = {
    "vocab_size": 5, "context_length": 6, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 2, "d_model": 2,
    "d_ff": None, "position": "sinusoidal", "rotary": {"base": 10000.0, "scaling": {"kind": "none"}, "width": None, "local_base": None},
    "norm": "none", "norm_eps": 1e-5, "norm_placement": "pre", "feed_forward": "none",
    "bias": {"qkv": False, "attention_output": False, "feed_forward": False, "norm": False, "head": True},
    "tied_head": False, "output_projection": False, "qk_norm": False, "norm_unit_offset": False, "embedding_scale": None,
    "score_width": None, "score_soft_cap": None, "parallel": False, "logit_soft_cap": None, "windows": [], "residual": True,
}  # fmt: skip


def sample_config(rng):
    """Return a random small configuration."""
    optionally = lambda value: value if rng.random() < 0.25 else None  # noqa: E731
    scaling = rng.choice([
        {"kind": "none"}, {"kind": "linear", "factor": 2.5}, {"kind": "ntk", "factor": 3.0},
        {"kind": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8},
        {"kind": "yarn", "factor": 4.0, "original_context_length": 16, "beta_fast": 2.0, "beta_slow": 0.5,
         "attention_factor": 1.14, "truncate": rng.random() < 0.5},
    ])  # fmt: skip
    free = scaling["kind"] != "yarn"
    n_heads, n_kv_heads = rng.choice([(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)])
    head_dim, own_width, parallel = rng.choice([4, 6]), rng.random() < 0.5, rng.random() < 0.25
    return STATQUEST | {
        "vocab_size": 7, "context_length": 8, "n_layers": rng.choice([1, 2]), "n_heads": n_heads, "n_kv_heads": n_kv_heads,
        "head_dim": head_dim, "d_model": n_heads * head_dim + 2 * own_width, "d_ff": 5,
        "position": rng.choice(["learned", "sinusoidal", "rotary", "rotary", "alibi", "none"]),
        "rotary": {"base": 100.0, "scaling": scaling, "width": rng.choice([None, 2]) if free else None,
                   "local_base": rng.choice([None, 10.0]) if free else None},
        "norm": rng.choice(["layer", "rms", "none"]), "norm_eps": 1e-2, "parallel": parallel,
        "norm_placement": rng.choice(["pre", "sandwich"] + ["post"] * (not parallel)),
        "feed_forward": rng.choice(["none", *ACTIVATIONS]),
        "bias": {name: rng.random() < 0.5 for name in STATQUEST["bias"]}, "tied_head": rng.random() < 0.5,
        "output_projection": own_width or rng.random() < 0.5, "qk_norm": rng.random() < 0.5,
        "norm_unit_offset": rng.random() < 0.25, "embedding_scale": optionally(2.5), "score_width": optionally(7.0),
        "score_soft_cap": optionally(1.5), "logit_soft_cap": optionally(3.0), "windows": rng.choice([[], [3], [2, 0]]),
        "residual": rng.random() < 0.75,
    }  # fmt: skip


def make(folder, config, seed):
    """Write a folder with a nextword model, token ids and activations."""
    rng, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in weight_shapes(config).items():
        scale = float(name.endswith("norm.weight") and not config["norm_unit_offset"])
        spread = 0.4 if len(shape) == 1 else shape[0] ** -0.5
        weights[name] = scale + spread * torch.randn(shape, generator=rng)
    ids = torch.randint(config["vocab_size"], (min(SEQ, config["context_length"] - 1),), generator=rng).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: value for name, value in config.items() if value is not None}
    fields["rotary"] = {name: value for name, value in config["rotary"].items() if value is not None}
    (folder / "model.json").write_text(json.dumps({"config": fields, "ids": ids}) + "\n")
    save_file(weights, folder / "model.safetensors")
    save_file(contiguous(reference_activations(config, weights, ids)), folder / "inside.safetensors")


def contiguous(tensors):
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def dump_transformers(folder):
    """Write the activations that transformers computes for the model in `folder` and its first ids."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = json.loads((folder / "inputs.json").read_text())["inputs"][:SEQ]
    save_file(contiguous(transformers_activations(model.eval(), ids)), folder / "inside.safetensors")


# transformers models with committed activations, which together cover all of their options.
DUMPED_CASES = ("gpt2", "llama", "gpt_neox", "gemma2", "gemma3_text", "gemma3_text_yarn")
# Seeds of random models that together cover all of nextword's options.
SEEDS = [40, 404, 1359, 1783, 2238, 2255, 2365, 2737, 2744, 2753, 2897]


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    if not count:
        for name in DUMPED_CASES:
            dump_transformers(FIXTURES / "hf" / name)
        make(FIXTURES / "inside" / "statquest", STATQUEST, 0)
        for seed in SEEDS:
            make(FIXTURES / "inside" / f"any_{seed}", sample_config(random.Random(seed)), seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            make(Path(folder) / f"any_{seed}", sample_config(random.Random(seed)), seed)
        test = ["cargo", "test", "--release", "--workspace", "--test", "tests", "--"]
        test += ["explained_tensors_match_pytorch_for_every_option", "--nocapture"]
        subprocess.run(test, cwd=ROOT, env=os.environ | {"NEXTWORD_INSIDE": folder}, check=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

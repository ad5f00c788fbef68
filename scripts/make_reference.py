"""Generate the reference values in tests/fixtures that the Rust code must reproduce.

The references come from independent implementations: GPT-2 and Llama of Hugging Face transformers, and
AdamW and activations of PyTorch. Only the names and layout of the weights are nextword's (see
crates/model/src/weights). Before a model is written, a forward pass implemented here on the converted
weights must give the same logits and gradients.

Can be run from any directory; overwrites earlier output:

    pip install torch transformers safetensors
    python scripts/make_reference.py

The committed files come from torch 2.15.0 and transformers 5.24.0. A second run on the same machine
gives the same bytes; another CPU or another version may change the last bits.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
VOCAB, CONTEXT, BATCH, SEQ = 61, 16, 3, 11
IGNORE = 4294967295  # u32::MAX: a target excluded from the loss.

NO_BIAS = dict.fromkeys(("qkv", "attention_output", "feed_forward", "norm", "head"), False)
GPT2_LIKE = {
    "vocab_size": VOCAB, "context_length": CONTEXT, "n_layers": 2, "n_heads": 3, "d_model": 24,
    "position": "learned", "norm": "layer", "norm_eps": 1e-5, "norm_placement": "pre",
    "feed_forward": "gelu_tanh", "bias": dict.fromkeys(NO_BIAS, True) | {"head": False},
    "tied_head": True,
}  # fmt: skip
LLAMA_LIKE = {
    "vocab_size": VOCAB, "context_length": CONTEXT, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
    "head_dim": 8, "d_model": 32, "d_ff": 48, "position": "rotary", "rotary": {"base": 10000.0},
    "norm": "rms", "norm_eps": 1e-6, "norm_placement": "pre", "feed_forward": "swiglu",
    "bias": NO_BIAS, "tied_head": False,
}  # fmt: skip
ADAMW = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 2.0}
LEARNING_RATES = [0.001, 0.002, 0.004, 0.008, 0.01, 0.009, 0.007, 0.005, 0.003, 0.0015]

# Hugging Face module names (GPT-2, then Llama; block modules without the layer number) to nextword's.
OUR_MODULE = {
    "transformer.wte": "token_embedding", "transformer.wpe": "position_embedding",
    "ln_1": "attention_norm", "attn.c_proj": "attention.output", "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.up", "mlp.c_proj": "feed_forward.down",
    "transformer.ln_f": "final_norm",
    "model.embed_tokens": "token_embedding", "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value", "self_attn.o_proj": "attention.output",
    "post_attention_layernorm": "feed_forward_norm", "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up", "mlp.down_proj": "feed_forward.down",
    "model.norm": "final_norm", "lm_head": "head",
}  # fmt: skip


def gpt2(config):
    """Create Hugging Face's GPT-2 with the sizes of `config`."""
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=config["vocab_size"], n_positions=config["context_length"],
        n_layer=config["n_layers"], n_head=config["n_heads"], n_embd=config["d_model"],
        layer_norm_epsilon=config["norm_eps"], activation_function="gelu_new",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, use_cache=False, attn_implementation="eager",
    ))  # fmt: skip


def llama(config):
    """Create Hugging Face's Llama with the sizes of `config`."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=config["vocab_size"], max_position_embeddings=config["context_length"],
        num_hidden_layers=config["n_layers"], num_attention_heads=config["n_heads"],
        num_key_value_heads=config["n_kv_heads"], head_dim=config["head_dim"],
        hidden_size=config["d_model"], intermediate_size=config["d_ff"], hidden_act="silu",
        rms_norm_eps=config["norm_eps"], attention_bias=False, mlp_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": config["rotary"]["base"]},
        tie_word_embeddings=False, use_cache=False, attn_implementation="eager",
    ))  # fmt: skip


def randomize(model, seed):
    """Randomize all parameters: standard deviation 0.2, mean 1 for norm scales, else 0."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.eval().named_parameters():
        center = float(parameter.dim() == 1 and name.endswith("weight"))
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng) + center
        assert not ((parameter == 0) | (parameter == 1)).any(), name


def random_batch(seed):
    """Return token ids and targets; one target in row 0 and all but two in row 2 are ignored."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (BATCH, SEQ + 1), generator=rng)
    targets = ids[:, 1:].clone()
    targets[0, seed % SEQ] = IGNORE
    targets[2, : SEQ - 2] = IGNORE
    return {"inputs": ids[:, :-1], "targets": targets}


def mean_loss(logits, batch):
    """Return the mean cross-entropy over targets that are not ignored."""
    return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORE)


def convert(model, value=lambda parameter: parameter):
    """Return `value` of each parameter (itself or its gradient) with nextword's names and layout."""
    ours = {}
    for name, parameter in model.named_parameters():
        tensor, (module, kind) = value(parameter).detach(), name.rsplit(".", 1)
        if isinstance(model.get_submodule(module), torch.nn.Linear):
            tensor = tensor.mT  # From [d_out, d_in]; GPT-2's `Conv1D` is already [d_in, d_out].
        block = ""
        if module not in OUR_MODULE:
            _, _, layer, module = module.split(".", 3)
            block = f"blocks.{layer}."
        if module == "attn.c_attn":
            for part, chunk in zip(("query", "key", "value"), tensor.chunk(3, dim=-1)):
                ours[f"{block}attention.{part}.{kind}"] = chunk
        else:
            ours[f"{block}{OUR_MODULE[module]}.{kind}"] = tensor
    return {name: torch.empty(tensor.shape).copy_(tensor) for name, tensor in ours.items()}


def our_logits(config, weights, inputs):
    """Compute the forward pass from converted weights only: `x @ W + b`."""
    n_heads, n_kv_heads = config["n_heads"], config.get("n_kv_heads", config["n_heads"])
    head_dim, seq = config.get("head_dim", config["d_model"] // n_heads), inputs.shape[1]

    def linear(name, x):
        return x @ weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)

    def norm(name, x):
        x = x - x.mean(-1, keepdim=True) if config["norm"] == "layer" else x
        x = x / (x.square().mean(-1, keepdim=True) + config["norm_eps"]).sqrt()
        return x * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)

    def apply_rope(x):  # [batch, seq, heads, head_dim]
        freqs = config["rotary"]["base"] ** (-2.0 * torch.arange(head_dim // 2).double() / head_dim)
        angles = (torch.arange(seq)[:, None, None] * freqs).repeat(1, 1, 2)
        rotated = torch.cat([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], dim=-1)
        return x * angles.cos().to(x.dtype) + rotated * angles.sin().to(x.dtype)

    def attention(name, x):
        parts = (linear(f"{name}.{part}", x) for part in ("query", "key", "value"))
        q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in parts)
        q, k = (apply_rope(q), apply_rope(k)) if config["position"] == "rotary" else (q, k)
        future, outputs = torch.ones(seq, seq).triu(1).bool(), []
        for head in range(n_heads):
            kv_head = head // (n_heads // n_kv_heads)
            scores = q[:, :, head] @ k[:, :, kv_head].mT / math.sqrt(head_dim)
            outputs.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, :, kv_head])
        return linear(f"{name}.output", torch.cat(outputs, dim=-1))

    def feed_forward(name, x):
        up = linear(f"{name}.up", x)
        if config["feed_forward"] == "swiglu":
            return linear(f"{name}.down", F.silu(linear(f"{name}.gate", x)) * up)
        return linear(f"{name}.down", F.gelu(up, approximate="tanh"))

    table = weights["token_embedding.weight"]
    x = table[inputs]
    if config["position"] == "learned":
        x = x + weights["position_embedding.weight"][:seq]
    for block in (f"blocks.{layer}" for layer in range(config["n_layers"])):
        x = x + attention(f"{block}.attention", norm(f"{block}.attention_norm", x))
        x = x + feed_forward(f"{block}.feed_forward", norm(f"{block}.feed_forward_norm", x))
    return norm("final_norm", x) @ (table.mT if config["tied_head"] else weights["head.weight"])


def write(path, value, indent=None):
    """Write named tensors as safetensors, or any other value as JSON with tensors as flat lists."""
    path = FIXTURES / path
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        path.write_bytes(save(value))
    else:
        text = json.dumps(value, indent=indent, default=lambda tensor: tensor.flatten().tolist())
        path.write_text(text + "\n")


def make_model(folder, config, model, seed):
    """Write a folder with a model, a batch, and its logits, loss and gradients."""
    batch = random_batch(seed)
    randomize(model, seed)
    logits = model(input_ids=batch["inputs"]).logits
    loss = mean_loss(logits, batch)
    loss.backward()
    weights, gradients = convert(model), convert(model, lambda parameter: parameter.grad)
    expected = {f"grad.{name}": gradient for name, gradient in gradients.items()}
    expected |= {"logits": logits.detach(), "loss": loss.detach()[None]}
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    ours = {"logits": our_logits(config, leaves, batch["inputs"])}
    mean_loss(ours["logits"], batch).backward()
    ours |= {f"grad.{name}": leaf.grad for name, leaf in leaves.items()}
    max_error = max((ours[name] - expected[name]).abs().max().item() for name in ours)
    print(f"{folder}: loss {loss.item():.6f}; maximum difference of the forward pass here: {max_error:.1e}")
    assert max_error <= 1e-5 and len(ours) == len(expected) - 1
    write(f"{folder}/config.json", config, indent=2)
    write(f"{folder}/inputs.json", {"batch": BATCH, "seq": SEQ, **batch})
    write(f"{folder}/model.safetensors", weights)
    write(f"{folder}/expected.safetensors", expected)


def make_adamw(model, seed):
    """Run ten AdamW steps on the GPT-2-like model, each on a new batch."""
    randomize(model, seed)
    parameters, limit, steps = list(model.parameters()), ADAMW["clip_norm"], []
    betas, decay = (ADAMW["beta1"], ADAMW["beta2"]), ADAMW["weight_decay"]
    matrices = {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": decay}
    vectors = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrices, vectors], betas=betas, eps=ADAMW["eps"])
    for step, lr in enumerate(LEARNING_RATES):
        batch = random_batch(100 + step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = mean_loss(model(input_ids=batch["inputs"]).logits, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit).item()
        optimizer.step()
        steps.append({"learning_rate": lr, **batch, "loss": loss.item(), "grad_norm": norm})
        print(f"adamw: loss {loss.item():.6f}, norm {norm:.6f}, clipped: {norm > limit}")
    assert 3 <= sum(step["grad_norm"] > limit for step in steps) < len(steps)
    # Softmax is invariant to the key bias. Its gradient is zero except for rounding errors, which
    # AdamW amplifies to full steps: these weights are noise, and nothing else depends on them.
    weights = convert(model)
    noise = [name for name in weights if name.endswith("key.bias")]
    write("adamw/run.json", {"batch": BATCH, "seq": SEQ, **ADAMW, "noise": noise, "steps": steps})
    write("adamw/expected.safetensors", weights)


def make_activations():
    """Write activations computed in f64 from f32 inputs, rounded to f32."""
    small = [1e-30, 1e-8, 1e-3, 0.1, 0.7517915, 1.25]
    x = torch.tensor(sorted([i / 2 for i in range(-24, 25)] + small + [-v for v in small])).double()
    values = {"x": x, "gelu": F.gelu(x), "gelu_tanh": F.gelu(x, approximate="tanh"),
              "silu": F.silu(x), "relu_squared": F.relu(x).square()}  # fmt: skip
    write("activations/expected.json", {name: value.float() for name, value in values.items()})


def make_activation_gradients():
    """Write values and gradients of every activation and gate, in f64 from f32 inputs, rounded to f32.

    Each output is multiplied by `factor` and summed before the backward pass.
    """
    rng = torch.Generator().manual_seed(5)
    x = [i / 4 for i in range(-48, 49) if i != 0] + [-100.0, -30.0, -1e-3, 1e-3, 30.0, 100.0]
    x = torch.cat([torch.tensor(x), 3 * torch.randn(90, generator=rng)]).float().double()
    up, factor = (torch.randn(len(x), generator=rng).double() for _ in range(2))
    functions = {
        "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu,
        "relu_squared": lambda x: F.relu(x).square(), "silu": F.silu,
    }  # fmt: skip
    values = {"x": x, "up": up, "factor": factor}
    for name, function in functions.items():
        inputs = x.clone().requires_grad_(), up.clone().requires_grad_()
        y = function(inputs[0])
        values[name] = y.detach()
        [values[f"{name}_dx"]] = torch.autograd.grad((y * factor).sum(), inputs[0])
        gated = function(inputs[0]) * inputs[1]
        d_gate, d_up = torch.autograd.grad((gated * factor).sum(), inputs)
        values |= {f"{name}_d_gate": d_gate, f"{name}_d_up": d_up}
    write("activations/gradients.json", {name: value.float() for name, value in values.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_model("gpt2_like", GPT2_LIKE, gpt2(GPT2_LIKE), 1)
    make_model("llama_like", LLAMA_LIKE, llama(LLAMA_LIKE), 2)
    make_adamw(gpt2(GPT2_LIKE), 1)
    make_activations()
    make_activation_gradients()

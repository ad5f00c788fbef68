"""Generate adapters in tests/fixtures/peft with the values that PEFT and PyTorch compute with them.

The base models are those in tests/fixtures/hf. Each folder contains an adapter as PEFT saves it, and

    case.json            the base, token ids `inputs` and `targets`, and the settings of AdamW
    expected.safetensors `logits` with the adapter, the `loss` over the targets that are not ignored, and
                         the `losses` before each of ten AdamW steps
    gradients.safetensors  the gradient of each tensor of the adapter, with the names of the adapter's file

    pip install torch transformers peft safetensors
    python scripts/make_finetune_reference.py               # writes the fixtures
    python scripts/make_finetune_reference.py --check PATH  # PATH is the built program

With --check, the program imports every adapter and exports it again; PEFT must load the result without
missing or unexpected tensors and compute the same logits.

The committed files come from torch 2.15.0, transformers 5.24.0 and peft 0.21.2.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

ROOT = Path(__file__).resolve().parent.parent
BASES = ROOT / "tests" / "fixtures" / "hf"
FIXTURES = ROOT / "tests" / "fixtures" / "peft"
IGNORE = 4294967295  # u32::MAX: a target excluded from the loss.
ADAMW = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}
STEPS = 10

# Base, settings. The first of each base has gradients and losses.
CASES = {
    "llama": ("llama", {"r": 4, "lora_alpha": 8}),
    "mistral": ("mistral", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}),
    "qwen2": ("qwen2", {"r": 4, "lora_alpha": 8}),
    "qwen3": ("qwen3", {"r": 2, "lora_alpha": 3}),
    "gpt2": ("gpt2", {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True}),
    "gpt_neox": ("gpt_neox", {"r": 4, "lora_alpha": 8}),
    "gemma": ("gemma", {"r": 4, "lora_alpha": 8}),
    "gemma2": ("gemma2", {
        "r": 2, "lora_alpha": 4, "layers_to_transform": [0, 2], "target_modules": ["k_proj", "up_proj"],
    }),
    "gemma3_text": ("gemma3_text", {"r": 2, "lora_alpha": 4}),
    "llama_rslora": ("llama", {"r": 2, "lora_alpha": 16, "use_rslora": True}),
    "llama_patterns": ("llama", {
        "r": 3, "lora_alpha": 5, "rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\.down_proj": 2},
        "alpha_pattern": {"self_attn.k_proj": 7, r".*\.0\.self_attn\.(v|o)_proj": 11, "^model.norm": 1},
    }),
    "llama_dora": ("llama", {"r": 2, "lora_alpha": 4, "use_dora": True}),
    "gpt2_dora": ("gpt2", {"r": 2, "lora_alpha": 4, "use_dora": True, "fan_in_fan_out": True}),
    "gpt2_bias": ("gpt2", {"r": 2, "lora_alpha": 4, "bias": "lora_only", "fan_in_fan_out": True}),
    "qwen2_tied": ("qwen2", {
        "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"], "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    }),
    # "norm" also matches post_attention_layernorm and input_layernorm: PEFT compares endings.
    "llama_saved": ("llama", {"r": 2, "lora_alpha": 4, "modules_to_save": ["lm_head", "norm"]}),
    "llama_embedding": ("llama", {
        "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "embed_tokens", "lm_head"], "rank_pattern": {"lm_head": 2},
    }),
    "qwen2_tied_embedding": ("qwen2", {
        "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True,
    }),
    "bart": ("../architectures/bart/hf", {"r": 2, "lora_alpha": 6, "rank_pattern": {"fc1": 3}}),
}  # fmt: skip


def base_model(name):
    """Load a base model."""
    kind = AutoModelForSeq2SeqLM if "bart" in name else AutoModelForCausalLM
    return kind.from_pretrained(BASES / name, dtype=torch.float32, attn_implementation="eager").eval()


def randomize(model, seed):
    """Randomize all parameters of the adapter, so that none has a zero gradient."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_factor = re.search("lora_(embedding_)?[AB]", name) is not None
            noise = 0.2 * torch.randn(parameter.shape, generator=rng)
            # In place: tied updates share their memory.
            parameter.data.copy_(noise if is_factor else parameter.data * (1 + noise))


def read_inputs(base):
    """Return the inputs of the base's fixture."""
    folder = BASES / base
    return json.loads((folder.parent if "architectures" in base else folder).joinpath("inputs.json").read_text())


def make_batch(base):
    """Return the token ids of the base's fixture, and the next ones as targets: half of them ignored."""
    case = read_inputs(base)
    ids = torch.tensor(case["inputs"]).view(case["batch"], case["seq"])
    targets = torch.full_like(ids, IGNORE)
    targets[:, :-1] = ids[:, 1:]
    targets[0, :4] = IGNORE
    targets[1, :9] = IGNORE
    return ids, targets


def compute_logits(model, ids, source):
    """Return the logits, of a decoder of `ids` after `source` if there is one."""
    with torch.no_grad():
        if source is None:
            return model(input_ids=ids, use_cache=False).logits
        lengths = torch.tensor(source["lengths"])[:, None]
        tokens = torch.tensor(source["inputs"]).view(-1, source["seq"])
        mask = (torch.arange(source["seq"])[None] < lengths).long()
        return model(input_ids=tokens, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits


def mean_loss(model, ids, targets):
    """Return the mean cross-entropy over targets that are not ignored."""
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def trained(model):
    """Return the parameters that are trained, with the names of the adapter's file."""
    return {
        name.replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def train(model, ids, targets):
    """Return the gradients of the first step and the losses before each step."""
    parameters, losses, gradients = trained(model), [], {}
    settings = {"lr": ADAMW["lr"], "betas": (ADAMW["beta1"], ADAMW["beta2"]), "eps": ADAMW["eps"]}
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=ADAMW["weight_decay"], **settings)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = mean_loss(model, ids, targets)
        loss.backward()
        losses.append(loss.detach())
        if not gradients:
            gradients = {name: p.grad.clone().contiguous() for name, p in parameters.items()}
        torch.nn.utils.clip_grad_norm_(parameters.values(), ADAMW["clip_norm"])
        optimizer.step()
    return gradients, torch.stack(losses)


def make(name, base, settings, seed):
    """Write the fixture `name`."""
    folder = FIXTURES / name
    settings = {"target_modules": "all-linear"} | settings
    source = read_inputs(base).get("source")
    task = "SEQ_2_SEQ_LM" if source else "CAUSAL_LM"
    model = get_peft_model(base_model(base), LoraConfig(task_type=task, lora_dropout=0.0, **settings))
    randomize(model, seed)
    model.eval()  # Dropout and training do not differ here, but PEFT merges nothing in this mode.
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config["base_model_name_or_path"] = f"fixtures/{base.removeprefix('../').removesuffix('/hf')}"
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    ids, targets = make_batch(base)
    expected = {"logits": compute_logits(model, ids, source).contiguous()}
    if name == base:
        gradients, losses = train(model, ids, targets)
        expected |= {"loss": losses[:1].clone(), "losses": losses}
        save_file(gradients, folder / "gradients.safetensors")
    save_file(expected, folder / "expected.safetensors")
    case = {
        "base": base, "batch": ids.shape[0], "seq": ids.shape[1],
        "inputs": ids.flatten().tolist(), "targets": targets.flatten().tolist(), "adamw": ADAMW,
    }  # fmt: skip
    if source:
        case["source"] = source
    (folder / "case.json").write_text(json.dumps(case) + "\n")


def check(name, program, scratch):
    """Import and export a fixture with the program, and check that PEFT loads the result."""
    case = json.loads((FIXTURES / name / "case.json").read_text())
    base, adapter, exported = (scratch / f"{name}-{part}" for part in ("base", "adapter", "peft"))
    run = lambda *args: subprocess.run([program, *map(str, args)], check=True, capture_output=True)
    run("import", BASES / case["base"], "--out", base)
    run("import", FIXTURES / name, "--base", base, "--out", adapter)
    run("export", adapter, "--base", base, "--format", "peft", "--out", exported)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT only warns of missing tensors.
        warnings.simplefilter("ignore", FutureWarning)
        model = PeftModel.from_pretrained(base_model(case["base"]), exported).eval()
    file = load_file(exported / "adapter_model.safetensors")
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert file.keys() == own.keys(), (name, file.keys() ^ own.keys())
    if not name.endswith("_embedding"):  # Updates of embedding and output layer come out as full copies.
        original = load_file(FIXTURES / name / "adapter_model.safetensors")
        assert original.keys() == file.keys(), (name, original.keys() ^ file.keys())
        for key, tensor in original.items():
            assert torch.equal(tensor, file[key]), (name, key)
    ids = torch.tensor(case["inputs"]).view(case["batch"], case["seq"])
    logits = compute_logits(model, ids, case.get("source"))
    expected = load_file(FIXTURES / name / "expected.safetensors")["logits"]
    worst = (logits - expected).abs().max().item()
    assert worst < 1e-5, (name, worst)
    print(f"{name}: {len(file)} tensors equal, largest difference of a logit {worst:.1e}")


def main():
    """Write the fixtures, or check the program."""
    torch.set_num_threads(1)
    if "--check" in sys.argv:
        program = Path(sys.argv[sys.argv.index("--check") + 1]).resolve()
        with tempfile.TemporaryDirectory() as scratch:
            for name in CASES:
                check(name, program, Path(scratch))
        return
    shutil.rmtree(FIXTURES, ignore_errors=True)
    for seed, (name, (base, settings)) in enumerate(CASES.items()):
        make(name, base, settings, seed)


if __name__ == "__main__":
    main()

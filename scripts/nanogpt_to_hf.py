"""Convert a nanoGPT checkpoint to a Hugging Face model folder for `nextword import`, or the vocabulary of
nanoGPT's character data to a `tokenizer.json` for `nextword train`.

    python scripts/nanogpt_to_hf.py data/shakespeare_char/meta.pkl data/shakespeare_char
    nextword train CONFIG --set data.prepared=data/shakespeare_char

    pip install torch safetensors
    python scripts/nanogpt_to_hf.py out/ckpt.pt FOLDER --meta data/shakespeare_char/meta.pkl
    python scripts/nanogpt_to_hf.py out/ckpt.pt FOLDER --tokenizer path/to/gpt2/tokenizer.json
    nextword import FOLDER --out models/mine

A checkpoint is a pickle file; only tensors and plain values are loaded from it. `meta.pkl` contains
the vocabulary of a character model and is loaded in the same safe way: no code in it is run.
"""

import argparse
import json
import pickle
from pathlib import Path

# Linear weights are [out, in] in nanoGPT and [in, out] in GPT-2.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


class SafeUnpickler(pickle.Unpickler):
    """Unpickler that accepts only plain values and never runs code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"not a plain character table: it references {module}.{name}")


def convert_tensors(state):
    """Return GPT-2's tensors: linear weights transposed, missing biases filled with zeros."""
    import torch

    tensors = {}
    for name, tensor in state.items():
        name = name.removeprefix("_orig_mod.")
        if name == "lm_head.weight" or name.endswith(".attn.bias"):
            continue  # Tied to the token embedding; the causal mask.
        tensor = tensor.t() if name.endswith(TRANSPOSED) else tensor
        tensors[name] = tensor.float().contiguous().clone()
    for name in [name for name in tensors if name.endswith(".weight")]:
        bias = name.removesuffix("weight") + "bias"
        if "wte" not in name and "wpe" not in name and bias not in tensors:
            tensors[bias] = torch.zeros(tensors[name].shape[-1])
    return tensors


def config(args, eos_id):
    """Return GPT-2's `config.json`. nanoGPT uses the exact GELU."""
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": args["vocab_size"],
        "n_positions": args["block_size"], "n_ctx": args["block_size"], "n_layer": args["n_layer"],
        "n_head": args["n_head"], "n_embd": args["n_embd"], "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "torch_dtype": "float32",
        "bos_token_id": eos_id, "eos_token_id": eos_id,
    }  # fmt: skip


def character_tokenizer(meta):
    """Return a character-level `tokenizer.json` in the form that nextword writes."""
    try:
        with open(meta, "rb") as file:
            found = SafeUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError) as error:
        raise SystemExit(f"{meta}: {error or 'it is empty'}") from error
    ids = found.get("stoi") if isinstance(found, dict) else None
    if not isinstance(ids, dict) or not all(isinstance(id, int) for id in ids.values()):
        raise SystemExit(f"{meta}: no character table (`stoi`) found")
    if sorted(ids.values()) != list(range(len(ids))) or not all(isinstance(c, str) for c in ids):
        raise SystemExit(f"{meta}: the ids of the characters are not 0 to {len(ids) - 1}")
    split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": split, "post_processor": None, "decoder": {"type": "Fuse"}, "model": model,
    }  # fmt: skip


def write_tokenizer(tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="ckpt.pt, or meta.pkl alone")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--meta", type=Path, help="meta.pkl of a character model")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of GPT-2, for all other models")
    args = parser.parse_args()
    if args.checkpoint.suffix == ".pkl":
        tokenizer = character_tokenizer(args.checkpoint)
        write_tokenizer(json.dumps(tokenizer, ensure_ascii=False), args.folder)
        print(f"{args.folder / 'tokenizer.json'}: {len(tokenizer['model']['vocab'])} characters")
        return
    if (args.meta is None) == (args.tokenizer is None):
        parser.error("pass either --meta (character model) or --tokenizer (GPT-2 tokenizer)")
    import torch
    from safetensors.torch import save_file

    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    if args.meta:
        tokenizer, eos_id = json.dumps(character_tokenizer(args.meta), ensure_ascii=False), None
    else:
        tokenizer, eos_id = args.tokenizer.read_text(encoding="utf-8"), 50256
    write_tokenizer(tokenizer, args.folder)
    text = json.dumps(config(checkpoint["model_args"], eos_id), indent=2)
    (args.folder / "config.json").write_text(text + "\n")
    converted = convert_tensors(checkpoint["model"])
    tensors = {f"transformer.{name.removeprefix('transformer.')}": t for name, t in converted.items()}
    save_file(tensors, args.folder / "model.safetensors", metadata={"format": "pt"})
    print(f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values())} parameters in {args.folder}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}") from error

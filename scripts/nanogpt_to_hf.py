"""Turns a nanoGPT checkpoint into a Hugging Face folder that `nextword import` reads.

    pip install torch safetensors
    python scripts/nanogpt_to_hf.py out/ckpt.pt FOLDER --meta data/shakespeare_char/meta.pkl
    python scripts/nanogpt_to_hf.py out/ckpt.pt FOLDER --tokenizer path/to/gpt2/tokenizer.json
    nextword import FOLDER --out models/mine

A checkpoint is a pickle: torch reads only tensors and plain values of it here. `meta.pkl` holds the
characters of a character model, and is read in the same way.
"""

import argparse
import json
import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file

# nanoGPT's linear layers are [out, in], GPT-2's [in, out].
TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


class Plain(pickle.Unpickler):
    """A pickle of numbers, texts, lists and tables, and nothing that runs."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and is no table of characters")


def tensors(state):
    """GPT-2's tensors: turned, with zeros for the biases that a model does without."""
    found = {}
    for name, tensor in state.items():
        name = name.removeprefix("_orig_mod.")
        if name == "lm_head.weight" or name.endswith(".attn.bias"):
            continue  # The token embedding again; the causal mask.
        turned = tensor.t() if name.endswith(TURNED) else tensor
        found[name] = turned.float().contiguous().clone()
    for name in [name for name in found if name.endswith(".weight")]:
        bias = name.removesuffix("weight") + "bias"
        if "wte" not in name and "wpe" not in name and bias not in found:
            found[bias] = torch.zeros(found[name].shape[-1])
    return found


def config(args, vocab):
    """GPT-2's `config.json`; nanoGPT computes GELU exactly."""
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": args["vocab_size"],
        "n_positions": args["block_size"], "n_ctx": args["block_size"], "n_layer": args["n_layer"],
        "n_head": args["n_head"], "n_embd": args["n_embd"], "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "torch_dtype": "float32",
        "bos_token_id": vocab, "eos_token_id": vocab,
    }  # fmt: skip


def characters(meta):
    """A `tokenizer.json` with a token for each character, as nextword writes it."""
    with open(meta, "rb") as file:
        ids = Plain(file).load()["stoi"]
    each = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": each, "post_processor": None, "decoder": {"type": "Fuse"}, "model": model,
    }  # fmt: skip


def main():
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--meta", type=Path, help="the meta.pkl of a character model")
    parser.add_argument("--tokenizer", type=Path, help="GPT-2's tokenizer.json, for all other models")
    given = parser.parse_args()
    if (given.meta is None) == (given.tokenizer is None):
        parser.error("give the text's --meta (a character model) or GPT-2's --tokenizer")
    checkpoint = torch.load(given.checkpoint, map_location="cpu", weights_only=True)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.meta:
        tokenizer, end = json.dumps(characters(given.meta), ensure_ascii=False), None
    else:
        tokenizer, end = given.tokenizer.read_text(encoding="utf-8"), 50256
    (given.folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    text = json.dumps(config(checkpoint["model_args"], end), indent=2)
    (given.folder / "config.json").write_text(text + "\n")
    found = {f"transformer.{name.removeprefix('transformer.')}": t for name, t in tensors(checkpoint["model"]).items()}
    save_file(found, given.folder / "model.safetensors", metadata={"format": "pt"})
    print(f"{len(found)} tensors, {sum(t.numel() for t in found.values())} numbers in {given.folder}")


if __name__ == "__main__":
    main()

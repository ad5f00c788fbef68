"""Generate the reference values of encoders, prefix models and encoder-decoders in tests/fixtures/architectures.

The references come from independent implementations: BERT, BART and GPT-2 (with the mask of a prefix
model) of Hugging Face transformers, and torch.nn.Transformer. Only the names and layout of the weights are
nextword's (see crates/model/src/weights).

Can be run from any directory; overwrites earlier output:

    pip install torch transformers safetensors tokenizers
    python scripts/make_architecture_reference.py              # writes the committed files
    python scripts/make_architecture_reference.py --random 20  # tests models of random shapes

The committed files come from torch 2.15.0 and transformers 5.24.0. A second run on the same machine
gives the same bytes; another CPU or another version may change the last bits.
"""

import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel,
)  # fmt: skip

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "architectures"
VOCAB, CONTEXT, BATCH, SEQ, SOURCE = 13, 8, 3, 6, 5
LENGTHS, SOURCE_LENGTHS, PREFIXES = [6, 4, 5], [5, 2, 3], [3, 1, 6]
D_MODEL, HEADS, D_FF, LAYERS = 12, 3, 20, 2
IGNORE = 4294967295  # u32::MAX: a target excluded from the loss.
UNUSED = 1  # BART's and BERT's padding id has no gradient: it does not occur.


def sizes():
    """The sizes of a model in nextword's names."""
    return {
        "vocab_size": VOCAB, "context_length": CONTEXT, "n_layers": LAYERS, "n_heads": HEADS,
        "d_model": D_MODEL, "d_ff": D_FF,
    }  # fmt: skip


BIAS = dict.fromkeys(("qkv", "attention_output", "feed_forward", "norm", "head"), True)


def random_ids(rows, columns):
    """Random ids without UNUSED."""
    ids = torch.randint(0, VOCAB - 1, (rows, columns))
    return ids + (ids >= UNUSED)


def spread(model):
    """Move every parameter away from its initial value, so that none is 0 or 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            is_scale = parameter.dim() == 1 and bool((parameter == 1).all())
            noise = torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.2)
            parameter.copy_(noise + 1.0 if is_scale else noise)
    return model.eval()


def padding(lengths, columns):
    """1 for the real tokens of each row."""
    return (torch.arange(columns)[None] < torch.tensor(lengths)[:, None]).long()


def targets_of(lengths, columns, keep):
    """Random targets; IGNORE beyond the length of a row and where a draw is not below `keep`."""
    targets = random_ids(len(lengths), columns)
    dropped = (padding(lengths, columns) == 0) | (torch.rand(targets.shape) >= keep)
    dropped[0, 0] = False
    return targets.masked_fill(dropped, -100)


def mean_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def save_hugging_face(model, folder):
    """Save a model as transformers does, with a tokenizer of words."""
    model.save_pretrained(folder)
    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: id for id, word in enumerate(names + [f"w{id}" for id in range(5, VOCAB)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(names)
    tokenizer.save(str(folder / "tokenizer.json"))


class Case:
    """One model with its inputs; `convert` maps named tensors, weights or gradients, to ours."""

    def __init__(self, name, config, model, convert, forward, inputs):
        self.name, self.config, self.model = name, config, model
        self.convert, self.forward, self.inputs = convert, forward, inputs

    def write(self, folder):
        folder = folder / self.name
        folder.mkdir(parents=True, exist_ok=True)
        logits, loss = self.forward(self.model)
        loss.backward()
        parameters = dict(self.model.named_parameters())
        weights = self.convert({n: p.detach() for n, p in parameters.items()}, folded=True)
        zeros = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
        gradients = self.convert(zeros, folded=False)
        assert weights.keys() == gradients.keys()
        expected = {f"grad.{n}": g for n, g in gradients.items()}
        expected |= {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
        (folder / "config.json").write_text(json.dumps(self.config) + "\n")
        (folder / "inputs.json").write_text(json.dumps(self.inputs) + "\n")
        for file, tensors in [("model", weights), ("expected", expected)]:
            tensors = {n: t.float().contiguous() for n, t in sorted(tensors.items())}
            (folder / f"{file}.safetensors").write_bytes(save(tensors))
        if self.name in ("bert", "bart"):
            save_hugging_face(self.model, folder / "hf")
        print(f"{self.name}: loss {loss.item():.4f}, {len(weights)} tensors")


def listed(ids):
    return ids.flatten().masked_fill(ids.flatten() == -100, IGNORE).tolist()


def rename(patterns, tensors, transposed):
    """Rename with the first matching pattern; matrices outside embeddings are transposed if asked."""
    ours = {}
    for name, tensor in tensors.items():
        for pattern, replacement in patterns:
            if re.fullmatch(pattern, name):
                new = re.sub(pattern, replacement, name)
                break
        else:
            raise KeyError(name)
        if new == "-":
            continue
        if tensor.dim() == 2 and transposed and "embedding" not in new:
            tensor = tensor.T
        ours[new] = tensor
    return ours


def bert():
    model = BertForMaskedLM(BertConfig(
        vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=D_FF, hidden_act="gelu", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=CONTEXT, type_vocab_size=2,
        layer_norm_eps=1e-12, pad_token_id=UNUSED, attn_implementation="eager",
    ))  # fmt: skip
    patterns = [
        (r"bert\.embeddings\.word_embeddings\.weight", "token_embedding.weight"),
        (r"bert\.embeddings\.position_embeddings\.weight", "position_embedding.weight"),
        (r"bert\.embeddings\.token_type_embeddings\.weight", "-"),
        (r"bert\.embeddings\.LayerNorm\.(\w+)", r"embedding_norm.\1"),
        (r"bert\.encoder\.layer\.(\d+)\.attention\.self\.(\w+)\.(\w+)", r"blocks.\1.attention.\2.\3"),
        (r"bert\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attention.output.\2"),
        (r"bert\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)", r"blocks.\1.attention_norm.\2"),
        (r"bert\.encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"blocks.\1.feed_forward.up.\2"),
        (r"bert\.encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"blocks.\1.feed_forward.down.\2"),
        (r"bert\.encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", r"blocks.\1.feed_forward_norm.\2"),
        (r"cls\.predictions\.transform\.dense\.(\w+)", r"head_transform.dense.\1"),
        (r"cls\.predictions\.transform\.LayerNorm\.(\w+)", r"head_transform.norm.\1"),
        (r"cls\.predictions\.bias", "head.bias"),
    ]

    def convert(tensors, folded):
        ours = rename(patterns, tensors, transposed=True)
        if folded:  # All tokens are of type 0: its embedding is part of each position's.
            types = tensors["bert.embeddings.token_type_embeddings.weight"]
            ours["position_embedding.weight"] = ours["position_embedding.weight"] + types[0]
        return ours

    ids, targets = random_ids(BATCH, SEQ), targets_of(LENGTHS, SEQ, 0.5)

    def forward(model):
        logits = model(input_ids=ids, attention_mask=padding(LENGTHS, SEQ)).logits
        return logits, mean_loss(logits, targets)

    config = sizes() | {
        "architecture": "encoder", "position": "learned", "norm": "layer", "norm_eps": 1e-12,
        "norm_placement": "post", "embedding_norm": True, "head_transform": True,
        "feed_forward": "gelu", "bias": BIAS, "tied_head": True,
    }  # fmt: skip
    inputs = {"batch": BATCH, "seq": SEQ, "inputs": listed(ids), "targets": listed(targets), "lengths": LENGTHS}
    return Case("bert", config, spread(model), convert, forward, inputs)


def source_inputs(source):
    return {"seq": SOURCE, "inputs": listed(source), "lengths": SOURCE_LENGTHS}


def bart():
    model = BartForConditionalGeneration(BartConfig(
        vocab_size=VOCAB, d_model=D_MODEL, encoder_layers=LAYERS + 1, decoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=D_FF,
        decoder_ffn_dim=D_FF, max_position_embeddings=CONTEXT, activation_function="gelu",
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, scale_embedding=True,
        pad_token_id=UNUSED, attn_implementation="eager",
    ))  # fmt: skip
    # A buffer, here a parameter, to have a gradient.
    del model._buffers["final_logits_bias"]
    model.register_parameter("final_logits_bias", nn.Parameter(torch.zeros(1, VOCAB)))
    modules = [
        (r"self_attn\.(q|k|v)_proj", lambda m: "attention." + {"q": "query", "k": "key", "v": "value"}[m[1]]),
        (r"encoder_attn\.(q|k|v)_proj",
         lambda m: "cross_attention." + {"q": "query", "k": "key", "v": "value"}[m[1]]),
        (r"self_attn\.out_proj", lambda m: "attention.output"),
        (r"encoder_attn\.out_proj", lambda m: "cross_attention.output"),
        (r"self_attn_layer_norm", lambda m: "attention_norm"),
        (r"encoder_attn_layer_norm", lambda m: "cross_attention_norm"),
        (r"final_layer_norm", lambda m: "feed_forward_norm"),
        (r"fc1", lambda m: "feed_forward.up"),
        (r"fc2", lambda m: "feed_forward.down"),
    ]

    def our_name(name):
        if name == "model.shared.weight":
            return "token_embedding.weight"
        if name == "final_logits_bias":
            return "head.bias"
        stack, rest = re.fullmatch(r"model\.(encoder|decoder)\.(.*)", name).groups()
        prefix = "encoder." if stack == "encoder" else ""
        if rest.startswith("embed_positions"):
            return f"{prefix}position_embedding.weight"
        if rest.startswith("layernorm_embedding"):
            return f"{prefix}embedding_norm.{rest.split('.')[-1]}"
        layer, module, kind = re.fullmatch(r"layers\.(\d+)\.(.*)\.(\w+)", rest).groups()
        for pattern, replacement in modules:
            if match := re.fullmatch(pattern, module):
                return f"{prefix}blocks.{layer}.{replacement(match)}.{kind}"
        raise KeyError(name)

    def convert(tensors, folded):
        ours = {}
        for name, tensor in tensors.items():
            new = our_name(name)
            if new.endswith("position_embedding.weight"):
                tensor = tensor[2:]  # The first two positions are for padding.
            elif new == "head.bias":
                tensor = tensor.flatten()
            elif tensor.dim() == 2 and "embedding" not in new:
                tensor = tensor.T
            ours[new] = tensor
        return ours

    source, ids = random_ids(BATCH, SOURCE), random_ids(BATCH, SEQ)
    targets = targets_of(LENGTHS, SEQ, 1.0)

    def forward(model):
        logits = model(
            input_ids=source, attention_mask=padding(SOURCE_LENGTHS, SOURCE), decoder_input_ids=ids
        ).logits
        return logits, mean_loss(logits, targets)

    config = sizes() | {
        "architecture": "encoder_decoder", "n_encoder_layers": LAYERS + 1, "position": "learned",
        "norm": "layer", "norm_eps": 1e-5, "norm_placement": "post", "embedding_norm": True,
        "feed_forward": "gelu", "bias": BIAS, "tied_head": True, "embedding_scale": math.sqrt(D_MODEL),
    }  # fmt: skip
    inputs = {
        "batch": BATCH, "seq": SEQ, "inputs": listed(ids), "targets": listed(targets),
        "source": source_inputs(source),
    }  # fmt: skip
    return Case("bart", config, spread(model), convert, forward, inputs)


def sinusoids():
    """Vaswani et al. 2017, section 3.5."""
    positions = torch.arange(CONTEXT, dtype=torch.float64)[:, None]
    frequencies = 10000.0 ** -(torch.arange(0, D_MODEL, 2, dtype=torch.float64) / D_MODEL)
    angles = positions * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()


class Translator(nn.Module):
    """torch.nn.Transformer with separate embeddings, sinusoidal positions and an output layer."""

    def __init__(self):
        super().__init__()
        self.source = nn.Embedding(VOCAB, D_MODEL)
        self.target = nn.Embedding(VOCAB, D_MODEL)
        self.transformer = nn.Transformer(
            D_MODEL, HEADS, LAYERS, LAYERS, D_FF, dropout=0.0, activation="relu", norm_first=True,
            batch_first=True,
        )  # fmt: skip
        self.output = nn.Linear(D_MODEL, VOCAB)

    def forward(self, source, target):
        table = sinusoids()
        ignored = padding(SOURCE_LENGTHS, SOURCE) == 0
        x = self.transformer(
            self.source(source) + table[:SOURCE], self.target(target) + table[:SEQ],
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(SEQ), tgt_is_causal=True,
            src_key_padding_mask=ignored, memory_key_padding_mask=ignored,
        )  # fmt: skip
        return self.output(x)


def translator():
    model = Translator()
    names = {
        "self_attn": "attention", "multihead_attn": "cross_attention", "linear1": "feed_forward.up",
        "linear2": "feed_forward.down",
    }  # fmt: skip

    def convert(tensors, folded):
        ours = {
            "encoder.token_embedding.weight": tensors["source.weight"],
            "token_embedding.weight": tensors["target.weight"],
            "head.weight": tensors["output.weight"].T, "head.bias": tensors["output.bias"],
        }  # fmt: skip
        for name, tensor in tensors.items():
            if not name.startswith("transformer."):
                continue
            stack, rest = name.removeprefix("transformer.").split(".", 1)
            prefix = "encoder." if stack == "encoder" else ""
            if rest.startswith("norm."):
                ours[f"{prefix}final_norm.{rest.split('.')[-1]}"] = tensor
                continue
            layer, module, kind = re.fullmatch(r"layers\.(\d+)\.(.*?)[._](\w+)", rest.replace(
                "in_proj_", "in_proj.")).groups()  # fmt: skip
            block = f"{prefix}blocks.{layer}"
            if module.startswith("norm"):
                norms = ["attention_norm", "cross_attention_norm", "feed_forward_norm"]
                if stack == "encoder":
                    norms.pop(1)
                ours[f"{block}.{norms[int(module[-1]) - 1]}.{kind}"] = tensor
                continue
            layer_name, _, rest = rest.removeprefix(f"layers.{layer}.").partition(".")
            module = names[layer_name]
            kind = "weight" if name.endswith("weight") else "bias"
            if rest.startswith("in_proj"):
                for part, chunk in zip(("query", "key", "value"), tensor.chunk(3)):
                    ours[f"{block}.{module}.{part}.{kind}"] = chunk.T if kind == "weight" else chunk
                continue
            if rest.startswith("out_proj"):
                module += ".output"
            ours[f"{block}.{module}.{kind}"] = tensor.T if kind == "weight" else tensor
        return ours

    source, ids = random_ids(BATCH, SOURCE), random_ids(BATCH, SEQ)
    targets = targets_of(LENGTHS, SEQ, 1.0)

    def forward(model):
        logits = model.train()(source, ids)  # The fast path of evaluation has no gradients.
        return logits, mean_loss(logits, targets)

    config = sizes() | {
        "architecture": "encoder_decoder", "share_embeddings": False, "position": "sinusoidal",
        "norm": "layer", "norm_eps": 1e-5, "norm_placement": "pre", "feed_forward": "relu",
        "bias": BIAS, "tied_head": False,
    }  # fmt: skip
    inputs = {
        "batch": BATCH, "seq": SEQ, "inputs": listed(ids), "targets": listed(targets),
        "source": source_inputs(source),
    }  # fmt: skip
    return Case("translator", config, spread(model), convert, forward, inputs)


def prefix():
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_layer=LAYERS, n_head=HEADS, n_embd=D_MODEL, n_inner=D_FF,
        activation_function="gelu_new", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, use_cache=False, attn_implementation="eager",
    ))  # fmt: skip
    modules = {
        "ln_1": "attention_norm", "attn.c_proj": "attention.output", "ln_2": "feed_forward_norm",
        "mlp.c_fc": "feed_forward.up", "mlp.c_proj": "feed_forward.down",
    }  # fmt: skip
    top = {"wte": "token_embedding", "wpe": "position_embedding", "ln_f": "final_norm"}

    def convert(tensors, folded):
        ours = {}
        for name, tensor in tensors.items():
            module, kind = name.removeprefix("transformer.").rsplit(".", 1)
            if module in top:
                ours[f"{top[module]}.{kind}"] = tensor
                continue
            _, layer, module = module.split(".", 2)
            if module == "attn.c_attn":
                for part, chunk in zip(("query", "key", "value"), tensor.chunk(3, dim=-1)):
                    ours[f"blocks.{layer}.attention.{part}.{kind}"] = chunk
                continue
            ours[f"blocks.{layer}.{modules[module]}.{kind}"] = tensor
        return ours

    ids, targets = random_ids(BATCH, SEQ), targets_of([SEQ] * BATCH, SEQ, 0.8)
    positions = torch.arange(SEQ)
    is_visible = (positions[None, None, :] <= positions[None, :, None]) | (
        positions[None, None, :] < torch.tensor(PREFIXES)[:, None, None]
    )
    mask = torch.zeros(BATCH, 1, SEQ, SEQ).masked_fill(~is_visible[:, None], float("-inf"))

    def forward(model):
        logits = model(input_ids=ids, attention_mask=mask).logits
        causal = model(input_ids=ids).logits
        assert not torch.allclose(logits[0, 0], causal[0, 0]), "the mask is used"
        return logits, mean_loss(logits, targets)

    config = sizes() | {
        "architecture": "prefix", "position": "learned", "norm": "layer", "norm_eps": 1e-5,
        "norm_placement": "pre", "feed_forward": "gelu_tanh", "bias": BIAS | {"head": False},
        "tied_head": True,
    }  # fmt: skip
    inputs = {"batch": BATCH, "seq": SEQ, "inputs": listed(ids), "targets": listed(targets), "prefixes": PREFIXES}
    return Case("prefix", config, spread(model), convert, forward, inputs)


def draw_sizes(seed):
    """Replace the sizes of the committed files by random ones."""
    global VOCAB, CONTEXT, BATCH, SEQ, SOURCE, LENGTHS, SOURCE_LENGTHS, PREFIXES, D_MODEL, HEADS, D_FF, LAYERS
    draw = random.Random(seed).randint
    HEADS = draw(1, 4)
    D_MODEL, D_FF, LAYERS = HEADS * 2 * draw(1, 9), draw(1, 70), draw(1, 3)
    BATCH, SEQ, SOURCE, VOCAB = draw(1, 4), draw(2, 40), draw(2, 40), draw(8, 90)
    CONTEXT = max(SEQ, SOURCE) + draw(0, 3)
    lengths = lambda longest: [longest] + [draw(1, longest) for _ in range(BATCH - 1)]  # noqa: E731
    LENGTHS, SOURCE_LENGTHS, PREFIXES = lengths(SEQ), lengths(SOURCE), lengths(SEQ)
    PREFIXES[0] = max(2, PREFIXES[0] // 2)


def test_random(count):
    """Run the Rust test on models of random shapes."""
    for seed in range(count):
        draw_sizes(seed)
        with tempfile.TemporaryDirectory() as folder:
            for build in BUILDERS:
                torch.manual_seed(seed)
                build().write(Path(folder))
            command = ["cargo", "test", "--release", "--workspace", "--test", "tests", "--", "matches_pytorch_in_logits"]
            environment = os.environ | {"NEXTWORD_ARCHITECTURES": folder}
            subprocess.run(command, check=True, cwd=ROOT, env=environment)


BUILDERS = [bert, bart, translator, prefix]

if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    if sys.argv[1:2] == ["--random"]:
        test_random(int(sys.argv[2]))
    else:
        for seed, build in enumerate(BUILDERS):
            torch.manual_seed(seed)
            build().write(FIXTURES)

#!/usr/bin/env python3
"""Training speed of nextword and PyTorch on this machine, alternately in one run.

    pip install torch
    python scripts/compare_pytorch.py --nextword target/release/nextword --size medium --modes eager compile

Both sides train the same architecture (GPT as in GPT-2: pre-norm, learned positions, GELU, tied
output layer) with AdamW and clipping at 1.0 on random tokens. Every round times some steps of each
mode and of nextword, in turn; the ratio of a round is nextword's tokens per second over PyTorch's.
Reported are the medians over all rounds, and the peak memory of both processes.

With --decode, tokens are generated one by one from models of random weights instead: by nextword, and
by `transformers` (pip install transformers) with its cache.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time

SIZES = {
    # layers, heads, d_model, context, batch, vocabulary, bias, tanh-approximated GELU
    "small": (4, 4, 128, 64, 12, 65, False, False),
    "medium": (6, 6, 384, 256, 4, 65, False, False),
    "gpt2": (12, 12, 768, 256, 2, 50257, True, True),
}


def build(size):
    import torch
    from torch import nn
    from torch.nn import functional as F

    layers, heads, d_model, context, _, vocab, bias, tanh = SIZES[size]

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(d_model))
            self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None

        def forward(self, x):
            return F.layer_norm(x, (d_model,), self.weight, self.bias, 1e-5)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = Norm(), Norm()
            self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
            self.out = nn.Linear(d_model, d_model, bias=bias)
            self.up = nn.Linear(d_model, 4 * d_model, bias=bias)
            self.down = nn.Linear(4 * d_model, d_model, bias=bias)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = (
                y.view(b, t, heads, d_model // heads).transpose(1, 2)
                for y in self.qkv(self.norm1(x)).split(d_model, dim=2)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, d_model))
            h = F.gelu(self.up(self.norm2(x)), approximate="tanh" if tanh else "none")
            return x + self.down(h)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(vocab, d_model)
            self.places = nn.Embedding(context, d_model)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = Norm()
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, ids, targets):
            x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits.view(-1, vocab), targets.view(-1))

    return Model()


def worker(size, mode):
    """Answers each line `N` on standard input with the seconds that N steps took."""
    import torch

    torch.manual_seed(1337)
    _, _, _, context, batch, vocab, _, _ = SIZES[size]
    model = build(size)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    run = torch.compile(model) if "compile" in mode else model
    half = "bf16" in mode

    def step():
        ids = torch.randint(0, vocab, (batch, context + 1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    first = [step() for _ in range(3)][0]
    assert abs(first - math.log(vocab)) < 0.5, first
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        begin = time.perf_counter()
        for _ in range(count):
            step()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds / count, "peak": peak_memory("self")}), flush=True)


def decode_worker(size):
    """Answers each line `N` on standard input with the seconds that each of N tokens took."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1337)
    layers, heads, d_model, context, _, vocab, _, _ = SIZES[size]
    config = GPT2Config(vocab_size=vocab, n_positions=context, n_embd=d_model, n_layer=layers, n_head=heads)
    model = GPT2LMHeadModel(config).eval()
    prompt = torch.arange(16)[None] * 7919 % vocab

    def generate(count):
        exactly = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True)
        with torch.inference_mode():
            model.generate(prompt, pad_token_id=0, **exactly)

    generate(4)
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        begin = time.perf_counter()
        generate(1)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        generate(count + 1)
        seconds = time.perf_counter() - begin - first
        print(json.dumps({"seconds": seconds / count, "peak": peak_memory("self")}), flush=True)


def peak_memory(pid):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


class Torch:
    def __init__(self, size, mode):
        command = [sys.executable, os.path.abspath(__file__), "--worker", mode, "--size", size]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().strip() == "ready", f"{mode} did not start"

    def steps(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def nextword(program, what, size, count, extra):
    counted = "--steps" if what == "train" else "--tokens"
    command = [program, "bench", what, "--size", size, counted, str(count), "--rounds", "1", "--json"]
    done = subprocess.run(command + extra, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)
    return {"seconds": report["seconds"]["median"], "peak": report["peak_memory_bytes"],
            "cores": report["cores_busy"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--modes", nargs="+", default=["eager", "compile"],
                        choices=["eager", "compile", "eager-bf16", "compile-bf16"])
    parser.add_argument("--nextword", default="target/release/nextword", help="the program")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="nextword's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps in a round [default: about two seconds]")
    parser.add_argument("--decode", action="store_true", help="compare generation instead of training")
    parser.add_argument("--bits", choices=["8", "4"], help="with --decode: nextword's weights [default: f32]")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "transformers":
        return decode_worker(arguments.size)
    if arguments.worker:
        return worker(arguments.size, arguments.worker)

    size = arguments.size
    if arguments.decode:
        what, modes, unit = "decode", ["transformers"], 1
        extra = ["--bits", arguments.bits] if arguments.bits else []
        count = arguments.steps or 64
    else:
        what, modes, unit = "train", arguments.modes, SIZES[size][3] * SIZES[size][4]
        extra = ["--precision", arguments.precision]
        count = arguments.steps or {"small": 60, "medium": 10, "gpt2": 3}[size]
    peers = {mode: Torch(size, mode) for mode in modes}
    ours, theirs = [], {mode: [] for mode in peers}
    for _ in range(arguments.rounds):
        ours.append(nextword(arguments.nextword, what, size, count, extra))
        for mode, peer in peers.items():
            theirs[mode].append(peer.steps(count))
    for peer in peers.values():
        peer.stop()

    def median(values):
        return statistics.median(value["seconds"] for value in values)

    cores = statistics.median(value["cores"] for value in ours)
    print(f"{what} {size} {' '.join(extra)}: nextword {unit / median(ours):,.0f} tokens/s, "
          f"{ours[-1]['peak'] / 2**20:,.0f} MiB, {cores:.2f} cores busy")
    for mode, values in theirs.items():
        ratios = sorted(t["seconds"] / o["seconds"] for o, t in zip(ours, values))
        print(f"  {mode:<14}{unit / median(values):>9,.0f} tokens/s, "
              f"{values[-1]['peak'] / 2**20:>6,.0f} MiB; nextword is "
              f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
              f"with {ours[-1]['peak'] / values[-1]['peak']:.2f} of its memory")


if __name__ == "__main__":
    main()

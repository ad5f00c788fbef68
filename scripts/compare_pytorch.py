#!/usr/bin/env python3
"""Compare the training speed of nextword and PyTorch on this machine in interleaved rounds.

    pip install torch
    python scripts/compare_pytorch.py --nextword target/release/nextword --size medium --modes eager compile

Both train the same GPT-2 architecture (pre-norm, learned positions, GELU, tied output layer) on random
tokens with AdamW and gradient clipping at 1.0. Each round times a few steps of nextword and of each
PyTorch mode; its ratio is nextword's tokens per second divided by PyTorch's. The output reports medians
over all rounds and the peak memory of each process.

With --decode, compares token generation with randomly initialized models instead, against
`transformers` with its KV cache (pip install transformers).

On a GPU, name the devices of both: --device vulkan --torch-device cuda. The peak memory is that of the
main memory.
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
            self.positions = nn.Embedding(context, d_model)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = Norm()
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, ids, targets):
            x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits.view(-1, vocab), targets.view(-1))

    return Model()


def worker(size, mode, device):
    """For each line `N` on stdin, run N training steps and report the seconds per step."""
    import torch

    torch.manual_seed(1337)
    _, _, _, context, batch, vocab, _, _ = SIZES[size]
    model = build(size).to(device)
    decay = [p for p in model.parameters() if p.dim() > 1]
    no_decay = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    compiled = torch.compile(model) if "compile" in mode else model
    bf16 = "bf16" in mode

    def step():
        ids = torch.randint(0, vocab, (batch, context + 1)).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            loss = compiled(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
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
        start = time.perf_counter()
        for _ in range(count):
            step()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds / count, "peak": peak_memory("self")}), flush=True)


def decode_worker(size):
    """For each line `N` on stdin, generate N tokens and report the seconds per token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1337)
    layers, heads, d_model, context, _, vocab, _, _ = SIZES[size]
    config = GPT2Config(vocab_size=vocab, n_positions=context, n_embd=d_model, n_layer=layers, n_head=heads)
    model = GPT2LMHeadModel(config).eval()
    prompt = torch.arange(16)[None] * 7919 % vocab

    def generate(count):
        options = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True)
        with torch.inference_mode():
            model.generate(prompt, pad_token_id=0, **options)

    generate(4)
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        start = time.perf_counter()
        generate(1)
        first = time.perf_counter() - start
        start = time.perf_counter()
        generate(count + 1)
        seconds = time.perf_counter() - start - first
        print(json.dumps({"seconds": seconds / count, "peak": peak_memory("self")}), flush=True)


def peak_memory(pid):
    """Return the peak resident memory of a process in bytes."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


class TorchWorker:
    """A worker process that runs PyTorch in one mode."""

    def __init__(self, size, mode, device):
        command = [sys.executable, os.path.abspath(__file__), "--worker", mode, "--size", size]
        command += ["--torch-device", device]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().strip() == "ready", f"{mode} did not start"

    def measure(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def bench_nextword(program, task, size, count, extra):
    count_flag = "--steps" if task == "train" else "--tokens"
    command = [program, "bench", task, "--size", size, count_flag, str(count), "--rounds", "1", "--json"]
    result = subprocess.run(command + extra, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(result.stdout)
    return {"seconds": report["seconds"]["median"], "peak": report["peak_memory_bytes"],
            "cores": report["cores_busy"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small", help="model size")
    parser.add_argument("--modes", nargs="+", default=["eager", "compile"],
                        choices=["eager", "compile", "eager-bf16", "compile-bf16"], help="PyTorch modes")
    parser.add_argument("--nextword", default="target/release/nextword", help="nextword executable")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="precision of nextword")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument("--steps", type=int, help="steps (or tokens) per round [default: about two seconds]")
    parser.add_argument("--decode", action="store_true", help="compare generation instead of training")
    parser.add_argument("--bits", choices=["8", "4"], help="with --decode: bits per weight of nextword [default: f32]")
    parser.add_argument("--device", default="flex", help="device of nextword")
    parser.add_argument("--torch-device", default="cpu", help="device of PyTorch, for training")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "transformers":
        return decode_worker(arguments.size)
    if arguments.worker:
        return worker(arguments.size, arguments.worker, arguments.torch_device)

    size = arguments.size
    if arguments.decode:
        task, modes, tokens = "decode", ["transformers"], 1
        extra = ["--bits", arguments.bits] if arguments.bits else []
        count = arguments.steps or 64
    else:
        task, modes, tokens = "train", arguments.modes, SIZES[size][3] * SIZES[size][4]
        extra = ["--precision", arguments.precision]
        count = arguments.steps or {"small": 60, "medium": 10, "gpt2": 3}[size]
    extra += ["--device", arguments.device]
    baselines = {mode: TorchWorker(size, mode, arguments.torch_device) for mode in modes}
    ours, theirs = [], {mode: [] for mode in baselines}
    for _ in range(arguments.rounds):
        ours.append(bench_nextword(arguments.nextword, task, size, count, extra))
        for mode, baseline in baselines.items():
            theirs[mode].append(baseline.measure(count))
    for baseline in baselines.values():
        baseline.stop()

    def median(values):
        return statistics.median(value["seconds"] for value in values)

    if arguments.json:
        speeds = {mode: tokens / median(values) for mode, values in theirs.items()}
        return print(json.dumps({"task": task, "size": size, "device": arguments.device,
                                 "torch_device": arguments.torch_device,
                                 "tokens_per_second": tokens / median(ours), "pytorch": speeds}))
    cores = statistics.median(value["cores"] for value in ours)
    print(f"{task} {size} {' '.join(extra)}: nextword {tokens / median(ours):,.0f} tokens/s, "
          f"{ours[-1]['peak'] / 2**20:,.0f} MiB, {cores:.2f} cores busy")
    for mode, values in theirs.items():
        ratios = sorted(t["seconds"] / o["seconds"] for o, t in zip(ours, values))
        print(f"  {mode:<14}{tokens / median(values):>9,.0f} tokens/s, "
              f"{values[-1]['peak'] / 2**20:>6,.0f} MiB; nextword is "
              f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
              f"with {ours[-1]['peak'] / values[-1]['peak']:.2f} of its memory")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Train the decoder, the prefix model and the encoder-decoder of configs/translate-*.toml, and compare them.

    python scripts/compare_architectures.py target/release/nextword [--seeds 3] [--steps N] [--keep FOLDER]

The decoder is trained twice: with the loss on source and target, and on the target alone. All see the same pairs
in batches of the same size. Prints a Markdown table: parameters, the share of held-out sentences whose translation is
exactly that of the data (mean, and the seeds one by one), minutes of training, and tokens per second of `generate`.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Name, configuration, settings.
ARMS = [
    ("decoder, loss on both", "translate-decoder", ["data.loss_on=both"]),
    ("decoder, loss on target", "translate-decoder", ["data.loss_on=target"]),
    ("prefix model", "translate-prefix", []),
    ("encoder-decoder", "translate-encoder-decoder", []),
]

# Held-out sentences that are translated at the end.
SENTENCES = 480

# Translations to measure the speed of generation with.
PROMPTS = ["the girl sees the red car", "my old dogs do not look for the big house", "we bought some blue shirts"]


def nextword(program, folder, *arguments):
    """Run a command of nextword and return both outputs."""
    command = [str(pathlib.Path(program).resolve()), *arguments]
    result = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout, result.stderr


def train(program, folder, config, settings, name, seed, steps):
    """Train one model; return the share of exact translations and the minutes of training."""
    sets = [f"name={name}", f"seed={seed}", "validation.every=0", f"validation.completions={SENTENCES}",
            "samples.every=0", *settings]  # fmt: skip
    if steps is not None:
        sets.append(f"train.steps={steps}")
    sets = [argument for setting in sets for argument in ("--set", setting)]
    nextword(program, folder, "train", str(ROOT / f"configs/{config}.toml"), "--quiet", *sets)
    lines = (folder / f"runs/{name}/metrics.jsonl").read_text().splitlines()
    last = [line for line in map(json.loads, lines) if "exact" in line][-1]
    return last["exact"], last["elapsed"] / 60


def parameters(program, folder, name):
    """Return the number of parameters of a trained model."""
    output, _ = nextword(program, folder, "inspect", f"runs/{name}")
    return re.search(r"([\d,]+) parameters", output).group(1)


def speed(program, folder, name):
    """Return the median speed of greedy translations in tokens per second."""
    speeds = []
    for prompt in PROMPTS:
        _, notes = nextword(program, folder, "generate", f"runs/{name}", prompt, "--temperature", "0")
        speeds += [float(n) * (1000 if k else 1) for n, k in re.findall(r"([\d.]+)(k?) tok/s", notes)]
    return statistics.median(speeds) if speeds else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the runs; without it they are removed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print("| model | parameters | exact | by seed | minutes | tokens/s |\n|---|---|---|---|---|---|", flush=True)
        for number, (title, config, settings) in enumerate(ARMS):
            names = [f"arm{number}-seed{seed}" for seed in range(1, args.seeds + 1)]
            results = [
                train(args.program, folder, config, settings, name, seed, args.steps)
                for seed, name in enumerate(names, 1)
            ]
            exact = [share for share, _ in results]
            shares = ", ".join(f"{100 * share:.1f} %" for share in exact)
            minutes = statistics.mean(minutes for _, minutes in results)
            print(f"| {title} | {parameters(args.program, folder, names[0])} | {100 * statistics.mean(exact):.1f} % | "
                  f"{shares} | {minutes:.1f} | {speed(args.program, folder, names[0]):.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

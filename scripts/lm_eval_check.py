"""Compare `nextword eval` with lm-evaluation-harness on the same questions and texts.

    pip install lm-eval[api] torch transformers
    python scripts/lm_eval_check.py target/release/nextword runs/quickstart

The model generates the questions: each asks for the correct continuation of a generated text among the
endings of other texts, some of which contain two-byte characters. The harness evaluates the model
through `nextword serve`, and for texts longer than the context through transformers with the exported
model, because its API models use windows two tokens shorter than the given maximum length. Exits with 0
if both give the same scores.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
QUESTIONS = 60


def serve(program, model_dir):
    command = [program, "serve", f"m={model_dir}", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "listening on " in line:
            return process, line.split("listening on ")[1].split()[0]
    raise SystemExit("the server did not start")


def request_json(url, path, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def texts(url, count, tokens):
    """Generate texts with the model, one per seed."""
    bodies = [{"prompt": "One day", "max_tokens": tokens, "seed": n, "overflow": "slide"} for n in range(count)]
    responses = [request_json(url, "/v1/completions", body) for body in bodies]
    return ["One day" + response["choices"][0]["text"] for response in responses]


def questions(url):
    words = [text.split() for text in texts(url, QUESTIONS, 60)]
    rng = random.Random(1)
    for n, own in enumerate(words):
        cut = len(own) // 2
        label = rng.randrange(4)
        others = rng.sample([w for m, w in enumerate(words) if m != n], 4)
        endings = [" ".join(other[-rng.randrange(2, 7):]) for other in others]
        endings[label] = " ".join(own[cut : cut + rng.randrange(2, 7)])
        # Make lengths in bytes and in characters differ, not proportionally.
        greek = str.maketrans("aeioubdklmnprst", "αειουβδκλμνπρστ")
        endings = [e.translate(greek) if rng.randrange(3) == 0 else e for e in endings]
        yield {"context": " ".join(own[:cut]), "endings": endings, "label": label}


TASK_TYPES = {
    "choice": (
        "output_type: multiple_choice\ndoc_to_text: context\ndoc_to_choice: endings\ndoc_to_target: label\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]\n"
    ),
    "texts": (
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n"
    ),
}


def evaluate_harness(folder, name, kind, model, arguments):
    """Return the scores of lm-evaluation-harness for the items in `name`.jsonl."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}\n"
        "test_split: test\n" + TASK_TYPES[kind]
    )
    results = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=[name], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )["results"][name]  # fmt: skip
    return {key.split(",")[0]: value for key, value in results.items() if key.endswith(",none")}


def evaluate_nextword(program, model_dir, folder, name):
    """Return the scores of `nextword eval` for the items in `name`.jsonl."""
    command = [program, "eval", str(model_dir), "--task", str(folder / f"{name}.jsonl"), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def compare(name, theirs, ours, pairs, tolerance):
    """Print the scores and return whether they agree."""
    scores = {key: (theirs[key], ours[mine]) for key, mine in pairs.items()}
    print(json.dumps({name: scores}))
    return all(abs(a - b) <= tolerance * abs(b) for a, b in scores.values())


CHOICE = {"acc": "accuracy", "acc_norm": "accuracy_by_characters", "acc_bytes": "accuracy_by_bytes"}
TEXTS = {"word_perplexity": "word_perplexity", "bits_per_byte": "bits_per_byte"}


def main():
    program, path = sys.argv[1:]
    candidates = [Path(path), Path(path) / "best", Path(path) / "last"]
    model_dir = next(candidate for candidate in candidates if (candidate / "config.json").exists())
    process, url = serve(program, model_dir)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            exported = folder / "exported"
            subprocess.run(
                [program, "export", model_dir, "--format", "hf", "--out", exported],
                check=True, capture_output=True,
            )  # fmt: skip
            length = request_json(url, "/v1/models/m")["meta"]["n_ctx_train"]
            items = {
                "choice": list(questions(url)),
                "short": [{"text": text.replace("e", "é", 2)} for text in texts(url, 10, 60)],
                "long": [{"text": text} for text in texts(url, 5, 5 * length // 2)],
            }
            for item, lines in items.items():
                text = "\n".join(json.dumps(line) for line in lines)
                (folder / f"{item}.jsonl").write_text(text + "\n")
            served = {
                "base_url": url + "/v1/completions", "model": "m", "tokenizer": str(exported),
                "tokenizer_backend": "huggingface", "max_length": length, "num_concurrent": 4,
            }  # fmt: skip
            local = {"pretrained": str(exported), "dtype": "float32", "max_length": length, "device": "cpu"}
            passed = True
            for item, kind, model, arguments, pairs, tolerance in (
                ("choice", "choice", "local-completions", served, CHOICE, 0),
                ("short", "texts", "local-completions", served, TEXTS, 1e-5),
                ("long", "texts", "hf", local, TEXTS, 1e-5),
            ):
                theirs = evaluate_harness(folder, item, kind, model, arguments)
                ours = evaluate_nextword(program, model_dir, folder, item)
                passed &= compare(item, theirs, ours, pairs, tolerance)
    finally:
        process.terminate()
        process.wait()
    sys.exit(not passed)


if __name__ == "__main__":
    main()

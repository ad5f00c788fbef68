"""The same questions and texts through lm-evaluation-harness and through `nextword eval`.

    pip install lm-eval[api] torch transformers
    python scripts/lm_eval_check.py target/release/nextword runs/quickstart

The model writes the questions itself: where one of its texts goes on, among the ends of others, with
endings in letters of two bytes among them. The harness asks `nextword serve`, and for texts longer than the context
also transformers with the exported model: its models behind an interface take windows two tokens shorter
than the length that they are told. Exit code 0 if the programs give the same scores.
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


def serve(program, record):
    command = [program, "serve", f"m={record}", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "listening on " in line:
            return process, line.split("listening on ")[1].split()[0]
    raise SystemExit("the server does not start")


def ask(url, path, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def texts(url, count, tokens):
    """What the model writes, one text for each seed."""
    bodies = [{"prompt": "One day", "max_tokens": tokens, "seed": n, "overflow": "slide"} for n in range(count)]
    answers = [ask(url, "/v1/completions", body) for body in bodies]
    return ["One day" + answer["choices"][0]["text"] for answer in answers]


def questions(url):
    words = [text.split() for text in texts(url, QUESTIONS, 60)]
    rng = random.Random(1)
    for n, of in enumerate(words):
        cut = len(of) // 2
        label = rng.randrange(4)
        others = rng.sample([w for m, w in enumerate(words) if m != n], 4)
        endings = [" ".join(other[-rng.randrange(2, 7):]) for other in others]
        endings[label] = " ".join(of[cut : cut + rng.randrange(2, 7)])
        # Bytes and characters differ, and not in proportion.
        greek = str.maketrans("aeioubdklmnprst", "αειουβδκλμνπρστ")
        endings = [e.translate(greek) if rng.randrange(3) == 0 else e for e in endings]
        yield {"context": " ".join(of[:cut]), "endings": endings, "label": label}


KINDS = {
    "choice": (
        "output_type: multiple_choice\ndoc_to_text: context\ndoc_to_choice: endings\ndoc_to_target: label\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]\n"
    ),
    "texts": (
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n"
    ),
}


def harness(folder, name, kind, model, arguments):
    """What lm-evaluation-harness makes of the items in `name`.jsonl."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}\n"
        "test_split: test\n" + KINDS[kind]
    )
    results = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=[name], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )["results"][name]  # fmt: skip
    return {key.split(",")[0]: value for key, value in results.items() if key.endswith(",none")}


def own(program, record, folder, name):
    """What `nextword eval` makes of them."""
    task = [program, "eval", str(record), "--task", str(folder / f"{name}.jsonl"), "--json"]
    return json.loads(subprocess.run(task, check=True, capture_output=True).stdout)


def compare(name, theirs, ours, pairs, tolerance):
    """Prints both; whether they are the same."""
    both = {key: (theirs[key], ours[mine]) for key, mine in pairs.items()}
    print(json.dumps({name: both}))
    return all(abs(a - b) <= tolerance * abs(b) for a, b in both.values())


CHOICE = {"acc": "accuracy", "acc_norm": "accuracy_by_characters", "acc_bytes": "accuracy_by_bytes"}
TEXTS = {"word_perplexity": "word_perplexity", "bits_per_byte": "bits_per_byte"}


def main():
    program, record = sys.argv[1:]
    places = [Path(record), Path(record) / "best", Path(record) / "last"]
    record = next(place for place in places if (place / "config.json").exists())
    process, url = serve(program, record)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            exported = folder / "exported"
            subprocess.run(
                [program, "export", record, "--format", "hf", "--out", exported],
                check=True, capture_output=True,
            )  # fmt: skip
            length = ask(url, "/v1/models/m")["meta"]["n_ctx_train"]
            items = {
                "choice": list(questions(url)),
                "short": [{"text": text.replace("e", "é", 2)} for text in texts(url, 10, 60)],
                "long": [{"text": text} for text in texts(url, 5, 5 * length // 2)],
            }
            for item, lines in items.items():
                written = "\n".join(json.dumps(line) for line in lines)
                (folder / f"{item}.jsonl").write_text(written + "\n")
            served = {
                "base_url": url + "/v1/completions", "model": "m", "tokenizer": str(exported),
                "tokenizer_backend": "huggingface", "max_length": length, "num_concurrent": 4,
            }  # fmt: skip
            local = {"pretrained": str(exported), "dtype": "float32", "max_length": length, "device": "cpu"}
            fine = True
            for item, kind, model, arguments, pairs, tolerance in (
                ("choice", "choice", "local-completions", served, CHOICE, 0),
                ("short", "texts", "local-completions", served, TEXTS, 1e-5),
                ("long", "texts", "hf", local, TEXTS, 1e-5),
            ):
                theirs = harness(folder, item, kind, model, arguments)
                fine &= compare(item, theirs, own(program, record, folder, item), pairs, tolerance)
    finally:
        process.terminate()
        process.wait()
    sys.exit(not fine)


if __name__ == "__main__":
    main()

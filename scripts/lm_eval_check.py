"""The same questions through lm-evaluation-harness and `nextword serve`, and through `nextword eval`.

    pip install lm-eval[api]
    python scripts/lm_eval_check.py target/release/nextword runs/quickstart

The model writes the questions itself: where one of its texts goes on, among the ends of others.
Exit code 0 if both programs give the same scores.
"""

import json
import os
import random
import shutil
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


def questions(url):
    texts = [
        ask(url, "/v1/completions", {"prompt": "One day", "max_tokens": 60, "seed": n})["choices"][0]["text"]
        for n in range(QUESTIONS)
    ]
    words = [("One day" + text).split() for text in texts]
    rng = random.Random(1)
    for n, of in enumerate(words):
        cut = len(of) // 2
        label = rng.randrange(4)
        others = rng.sample([w for m, w in enumerate(words) if m != n], 4)
        endings = [" ".join(other[-rng.randrange(2, 7):]) for other in others]
        endings[label] = " ".join(of[cut : cut + rng.randrange(2, 7)])
        yield {"context": " ".join(of[:cut]), "endings": endings, "label": label}


def harness(url, folder, tokenizer, length):
    import lm_eval
    from lm_eval.tasks import TaskManager

    (folder / "task.yaml").write_text(
        "task: own\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'task.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: context\n"
        "doc_to_choice: endings\ndoc_to_target: label\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    model = {
        "base_url": url + "/v1/completions", "model": "m", "tokenizer": str(tokenizer),
        "tokenizer_backend": "huggingface", "max_length": length, "num_concurrent": 4,
    }
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model="local-completions", model_args=model, tasks=["own"], task_manager=manager, bootstrap_iters=0
    )["results"]["own"]
    return results["acc,none"], results["acc_norm,none"]


def main():
    program, record = sys.argv[1:]
    places = [Path(record), Path(record) / "best", Path(record) / "last"]
    record = next(place for place in places if (place / "config.json").exists())
    process, url = serve(program, record)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tokenizer = folder / "tokenizer"
            tokenizer.mkdir()
            shutil.copy(record / "tokenizer.json", tokenizer)
            (tokenizer / "tokenizer_config.json").write_text(
                json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<EOS>"})
            )
            lines = [json.dumps(question) for question in questions(url)]
            (folder / "task.jsonl").write_text("\n".join(lines) + "\n")
            length = ask(url, "/v1/models/m")["meta"]["n_ctx_train"]
            theirs = harness(url, folder, tokenizer, length)
            task = [program, "eval", str(record), "--task", str(folder / "task.jsonl"), "--json"]
            report = json.loads(subprocess.run(task, check=True, capture_output=True).stdout)
    finally:
        process.terminate()
        process.wait()
    ours = report["accuracy"], report["accuracy_by_bytes"]
    print(json.dumps({"questions": QUESTIONS, "lm_eval": theirs, "nextword_eval": ours}))
    sys.exit(theirs != ours)


if __name__ == "__main__":
    main()

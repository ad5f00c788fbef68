"""Run the commands in README.md from top to bottom, on small sizes, and check how each of them exits.

    python scripts/check_readme.py path/to/nextword [path/to/python with the package openai]

Every line of the ```sh blocks is run in a temporary folder that contains the placeholders of README, such as
`my.txt`. The tables below say what is different from README: fewer steps, other files. A new kind of command in
README needs an entry there.
"""

import json
import os
import pathlib
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from array import array

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Commands that another step of .ci/run runs.
ELSEWHERE = ("cargo test", "pip install", "maturin build")

# Arguments that README's commands get in addition, by the start of the command: fewer steps and tokens.
SMALLER = {
    "train configs/quickstart.toml": ["--set", "train.steps=30", "--set", "validation.windows=8"],
    "train configs/shakespeare-char-cpu.toml": ["--set", "train.steps=20", "--set", "validation.windows=8"],
    "train configs/chat.toml": ["--set", "train.steps=3", "--set", "data.documents=40", "--set", "validation.completions=2"],
    "preview configs/chat.toml": ["--set", "data.documents=40"],
    "preview configs/chat-dpo.toml": ["--set", "data.documents=40"],
    "train configs/chat-dpo.toml": ["--set", "data.documents=40", "--set", "validation.completions=2"],
    "plan configs/chat-lora.toml": ["--set", "lora.rank=4"],
    "train configs/chat-lora.toml": ["--set", "lora.rank=4", "--set", "train.epochs=1"],
    "preview configs/translate-decoder.toml": ["--set", "data.documents=40"],
    "train configs/translate-encoder-decoder.toml": ["--set", "train.steps=3", "--set", "data.documents=40"],
    "train configs/fill-in.toml": ["--set", "train.steps=3", "--set", "data.documents=20", "--set", "validation.windows=2"],
    "train configs/llama-small.toml": ["--set", "train.steps=3", "--set", "validation.windows=8"],
    "generate": ["--max-tokens", "20"],
    "sweep": ["--steps", "3", "--set", "data.documents=300", "--set", "validation.windows=8"],
    "doctor": ["--device", "flex"],
    "doctor configs/quickstart.toml": [],
    "compare": ["--windows", "20"],
    "bench train": ["--rounds", "1", "--steps", "1", "--warm-up", "0"],
    "bench decode": ["--rounds", "1", "--tokens", "8"],
    "bench load": ["--rounds", "1"],
    "serve": ["--port", "0"],
    "watch": ["--port", "0"],
}

# Words that are replaced.
REPLACED = {"train.steps=4000": "train.steps=25"}

# Standard input of commands that read it.
INPUT = {"chat": "On a\n/quit\n"}

# Output that a command must have, by its start.
OUTPUT = {
    "generate runs/statquest-normal": r"^vamos",
    "generate runs/statquest": r"^awesome",
    "plan": r"parameters +[\d,]+[\s\S]+memory[\s\S]+disk[\s\S]+speed +[\d.]+k? tokens/s[\s\S]+time +about",
    "inspect": r"parameters",
    "sweep": r"difference[\s\S]+model.n_layers=4 schedule.learning_rate=3e-3",
    "compare": r"is better by",
    "doctor": r"micro-batches and one batch",
    "doctor configs/quickstart.toml": r"nothing found",
    "eval runs/mine": r"bits per byte",
    "eval mine-int8": r"against",
    "eval runs/quickstart --task": r"accuracy",
    "devices": r"flex",
    "preview configs/translate-decoder.toml": r"<SEP>",
    "fill": r"Once upon a[\s\S]+%",
    "embed": r"1\.0000",
    "chat": r"\S",
}

# A chat template that needs no special token but EOS.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

# Seconds that a command may take at most. The default is generous: other programs may run at the same time.
SECONDS = {"plan": 25, "plan configs/quickstart.toml --minutes 30": 120}
DEFAULT_SECONDS = 120


def write_placeholders(folder):
    """Write the files that README's commands read but do not create."""
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    readme = (ROOT / "README.md").read_text()
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    (folder / "my.txt").write_text(readme)
    (folder / "other.txt").write_text(readme[:4000])
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").write_text(readme)
    (folder / "texts/b.txt").write_text(architecture)
    question = {"context": "On a warm day a fox", "endings": [" ran.", " xq."], "label": 0}
    (folder / "hellaswag.jsonl").write_text(json.dumps(question) + "\n")
    shutil.copytree(ROOT / "tests/fixtures/hf/llama", folder / "path/to/folder")
    for name in ["SmolLM2-135M", "SmolLM2-135M-Instruct"]:
        write_hub_cache(folder / "home/hub", name)
    write_conversations(folder / "support.jsonl")
    write_nanogpt_data(folder / "data/shakespeare_char", readme)


def write_conversations(path):
    """Write conversations as in OpenAI's API."""
    messages = lambda n: [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": str(n)}]
    path.write_text("".join(json.dumps({"messages": messages(n)}) + "\n" for n in range(40)))


def write_hub_cache(cache, name):
    """Write a cache of the Hugging Face Hub that has a model of README, so that nothing is downloaded."""
    repository = cache / f"models--HuggingFaceTB--{name}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(ROOT / "tests/fixtures/hf/llama", snapshot)
    if name.endswith("Instruct"):
        (snapshot / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    os.environ |= {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def write_nanogpt_data(folder, text):
    """Write what nanoGPT's data/shakespeare_char/prepare.py does."""
    folder.mkdir(parents=True)
    ids = {character: number for number, character in enumerate(sorted(set(text)))}
    tokens = array("H", [ids[character] for character in text])
    for name, part in [("train", tokens[: len(tokens) * 9 // 10]), ("val", tokens[len(tokens) * 9 // 10 :])]:
        (folder / f"{name}.bin").write_bytes(part.tobytes())
    meta = {"vocab_size": len(ids), "stoi": ids, "itos": {number: c for c, number in ids.items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


class RunsCode:
    """A pickle of this creates a file where it is loaded without care."""

    def __reduce__(self):
        return (os.mkdir, ("code-was-run",))


def check_untrusted_pickles(folder):
    """Check that scripts/nanogpt_to_hf.py refuses what is not a table of characters, and runs no code from it."""
    tables = [RunsCode(), {"stoi": RunsCode()}, {"stoi": {"a": 0, "b": 2}}, {"stoi": [1]}, {}, [1], {"stoi": {1: 0}}]
    for table in [pickle.dumps(table) for table in tables] + [b"", b"text", b"\x80\x04"]:
        (folder / "untrusted.pkl").write_bytes(table)
        command = [sys.executable, str(ROOT / "scripts/nanogpt_to_hf.py"), "untrusted.pkl", "out"]
        result = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        refused = result.returncode == 1 and result.stderr.startswith("untrusted.pkl: ")
        assert refused and not (folder / "code-was-run").exists(), (table, result)


def blocks(language):
    """Return the code blocks of README in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)


def entry(table, command, default=None):
    """Return the entry of `table` whose key is the longest start of `command`."""
    keys = [key for key in table if command == key or command.startswith(key + " ")]
    return table[max(keys, key=len)] if keys else default


def words(line):
    """Split a command as a shell does; comments are left out."""
    return shlex.split(line, comments=True)


def arguments(line):
    """Return nextword's arguments for a line of README; None if it is not a command of nextword."""
    line = line.replace("cargo run --release -- ", "nextword ", 1)
    found = words(line)
    if found[0] != "nextword":
        return None
    found = [REPLACED.get(word, word) for word in found[1:]]
    return found + entry(SMALLER, " ".join(found), [])


def fail(line, problem, output=""):
    sys.exit(f"README: {line}\n{problem}\n{output}")


def run(line, command, folder, name):
    """Run one command, which must succeed."""
    seconds = entry(SECONDS, name, DEFAULT_SECONDS)
    try:
        result = subprocess.run(
            command, cwd=folder, input=entry(INPUT, name, ""), timeout=seconds,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        fail(line, f"took more than {seconds} s", error.stdout)
    if result.returncode != 0:
        fail(line, f"exit code {result.returncode}", result.stdout)
    expected = entry(OUTPUT, name)
    if expected and not re.search(expected, result.stdout, flags=re.M):
        fail(line, f"no match for {expected}", result.stdout)


def serve(line, command, folder, clients):
    """Start a server, ask it as README's clients do, and stop it with Ctrl-C, after which it must succeed."""
    log = folder / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + DEFAULT_SECONDS
        address = None
        while address is None:
            if server.poll() is not None or time.monotonic() > deadline:
                fail(line, "the server does not listen", log.read_text())
            time.sleep(0.1)
            address = re.search(r"http://[\d.]+:\d+", log.read_text())
        with urllib.request.urlopen(f"{address[0]}/v1/models", timeout=30) as response:
            assert json.load(response)["data"], line
        for python, program in clients:
            program = program.replace("http://127.0.0.1:8080", address[0])
            run(f"python {program}", [python, "-c", program], folder, "python")
        server.send_signal(signal.SIGINT)
        if server.wait(timeout=60) != 0:
            fail(line, f"exit code {server.returncode} after Ctrl-C", log.read_text())
    finally:
        server.kill()


def watch(line, command, folder):
    """Start the page of the runs, ask it for their list, and stop it with Ctrl-C, after which it must succeed."""
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://[\d.]+:\d+", server.stderr.readline())
        with urllib.request.urlopen(f"{address[0]}/runs", timeout=30) as response:
            assert "quickstart" in [run["name"] for run in json.load(response)], line
        server.send_signal(signal.SIGINT)
        if server.wait(timeout=60) != 0:
            fail(line, f"exit code {server.returncode} after Ctrl-C")
    finally:
        server.kill()


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    openai_python = sys.argv[2] if len(sys.argv) > 2 else None
    os.environ["COLUMNS"] = "80"
    ran = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_placeholders(folder)
        check_untrusted_pickles(folder)
        for line in "".join(blocks("sh")).splitlines():
            if not line.strip() or line.startswith(ELSEWHERE):
                continue
            start = time.monotonic()
            found = arguments(line)
            if found is None:
                command = words(line)
                if command[0] != "python3":
                    fail(line, "is not in the tables of scripts/check_readme.py")
                run(line, [sys.executable, *command[1:]], folder, "python3")
            elif found[0] == "watch":
                watch(line, [program, *found], folder)
            elif found[0] == "serve":
                # The first server is the one that the Python client asks.
                has_client = openai_python and "runs/quickstart" in found
                clients = [(openai_python, text) for text in blocks("python")] if has_client else []
                serve(line, [program, *found], folder, clients)
            else:
                run(line, [program, *found], folder, " ".join(found))
            ran += 1
            print(f"{time.monotonic() - start:6.1f} s  {words(line)[:4]}", flush=True)
    assert ran > 30, f"only {ran} commands found"
    print(f"{ran} commands of README: ok")


if __name__ == "__main__":
    main()

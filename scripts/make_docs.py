"""Run the commands in docs/*.md and insert their output.

    python scripts/make_docs.py path/to/nextword

In ```console blocks, lines that start with "$ nextword" are commands, and the other lines are their
output. tests/docs.rs runs the same commands and compares the output.
"""

import pathlib
import re
import shlex
import subprocess
import sys

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"


def run(program, command):
    words = shlex.split(command)
    assert words[0] == "nextword", command
    result = subprocess.run([program, *words[1:]], cwd=DOCS, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    return result.stdout


def with_output(block, program):
    """Return the console block with the current output of its commands."""
    commands = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    parts = [f"$ {command}\n{run(program, command)}" for command in commands]
    return "```console\n" + "\n".join(part.rstrip() + "\n" for part in parts) + "```"


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        text = re.sub(r"```console\n(.*?)```", lambda m: with_output(m[1], program), text, flags=re.S)
        page.write_text(text)


if __name__ == "__main__":
    main()

"""Check what only a terminal shows: line editing in `chat`, and the progress line at several widths.

    python scripts/check_terminal.py path/to/nextword RUN

RUN is a run folder or a model folder without a chat template. Needs a system with pseudo-terminals.
"""

import fcntl
import os
import pathlib
import pty
import re
import select
import struct
import sys
import tempfile
import termios
import time

SECONDS = 120
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program in a pseudo-terminal of a given width."""

    def __init__(self, columns, command, folder="."):
        self.output = ""
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ.update(TERM="xterm", NO_COLOR="1")
            os.execv(command[0], command)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(self, timeout):
        """Read what is there within `timeout` seconds; False at the end of the output."""
        if not select.select([self.file], [], [], timeout)[0]:
            return True
        try:
            found = os.read(self.file, 65536)
        except OSError:  # Linux: the other side is closed.
            found = b""
        self.output += found.decode("utf-8", "replace")
        return bool(found)

    def wait_for(self, text, count=1):
        """Read until `text` occurs `count` times."""
        deadline = time.monotonic() + SECONDS
        while self.text().count(text) < count:
            is_open = self.read(1)
            assert is_open and time.monotonic() < deadline, f"no {text!r} in {self.text()!r}"

    def send(self, keys):
        """Press `keys` once the program waits for them: after half a second without output."""
        while True:
            before = len(self.output)
            assert self.read(0.5), self.output
            if len(self.output) == before:
                break
        os.write(self.file, keys if isinstance(keys, bytes) else keys.encode())

    def text(self):
        return ESCAPES.sub("", self.output)

    def exit_code(self):
        while self.read(SECONDS):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def check_chat(program, run):
    options = ["--max-tokens", "4", "--temperature", "0"]
    chat = Terminal(80, [program, "chat", run, *options])
    chat.wait_for("> ")
    chat.send("On aX\x7f\r")  # Backspace.
    chat.send("/undo\r")
    chat.wait_for("removed: On a\r")
    chat.send("\x1b[A\x1b[A\r")  # Up twice: the first line again.
    chat.send("/undo\r")
    chat.wait_for("removed: On a\r", 2)
    chat.send("half a line\x03")  # Ctrl-C discards the line.
    chat.wait_for("type /quit or press Ctrl-D to exit")
    chat.send(b"not UTF-8: \xff")
    chat.wait_for("this line is not valid UTF-8")
    chat.send("/quix\x1b[D\x1b[3~t\r")  # Left and delete.
    assert chat.exit_code() == 0, chat.output
    assert "\ufffd" not in chat.output and "unknown command" not in chat.output, chat.output

    chat = Terminal(80, [program, "chat", run, *options])
    chat.wait_for("> ")
    chat.send("\x04")  # Ctrl-D.
    assert chat.exit_code() == 0, chat.output


def check_progress(program):
    config = pathlib.Path(__file__).resolve().parent.parent / "configs/quickstart.toml"
    settings = ["train.steps=20", "train.log_every=1", "train.batch_size=2", "validation.every=0", "samples.every=0"]
    for columns, shown in [(200, "gnorm"), (80, "tok/s"), (80, "eta"), (40, "eta"), (40, "loss"), (20, "loss")]:
        with tempfile.TemporaryDirectory() as folder:
            command = [program, "train", str(config)]
            for setting in settings:
                command += ["--set", setting]
            terminal = Terminal(columns, command, folder)
            assert terminal.exit_code() == 0, terminal.output
        lines = re.split(r"[\r\n]+", terminal.text())
        progress = [line for line in lines if re.search(r"(^|[█░▏▎▍▌▋▊▉ ])(step \d+/20|loss [\d.]+ *$)", line)]
        assert progress and any(shown in line for line in progress), (columns, shown, lines)
        too_long = [line for line in progress if len(line) > columns]
        assert not too_long, (columns, too_long)


def main():
    program, run = (str(pathlib.Path(path).resolve()) for path in sys.argv[1:])
    check_chat(program, run)
    check_progress(program)
    print("chat and progress in a terminal: ok")


if __name__ == "__main__":
    main()

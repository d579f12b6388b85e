"""How a command ends."""

import os
import subprocess
import sys

from hmx.config import PROJECT
from hmx.errors import UserError, command

RUN = "import sys; from hmx.errors import command; sys.exit(command('Stopped.')(lambda: {})())"


def ended(action) -> int:
    return command("Stopped.")(action)()


def raising(error: BaseException):
    def main():
        raise error

    return main


def test_mistakes_files_and_ctrl_c_end_with_a_sentence_and_a_status(tmp_path, capsys):
    assert ended(lambda: 0) == 0
    assert ended(raising(UserError("No such thing."))) == 2
    assert ended(lambda: tmp_path.write_text("")) == 2
    assert ended(raising(OSError(28, "No space left on device"))) == 2
    assert ended(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.splitlines() == [
        "error: No such thing.",
        f"error: {tmp_path} can't be used (Is a directory).",
        "error: The output can't be used (No space left on device).",
        "",
        "Stopped.",
    ]


def test_whoever_has_seen_enough_gets_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        code = [sys.executable, "-c", RUN.format("print('many lines')")]
        done = subprocess.run(code, cwd=PROJECT, stdout=output, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_character_that_the_terminal_does_not_know_is_replaced():
    code = [sys.executable, "-c", RUN.format("print('an \\u25c0 answer')")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(code, cwd=PROJECT, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("an ? answer\n", "")


def test_what_is_typed_may_be_no_utf8():
    code = [sys.executable, "-c", RUN.format("print(ascii(sys.stdin.readline()))")]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(code, cwd=PROJECT, input=b"caf\xe9\n", capture_output=True, env=environment)
    assert (done.stdout, done.stderr) == (b"'caf\\udce9\\n'\n", b"")

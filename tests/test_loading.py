"""A terminal says that imports take their seconds, until the command begins."""

import contextlib
import os
import pty
import subprocess
import sys

import pytest

WORDS = b"loading PyTorch ..."


def on_a_terminal(*words: str) -> bytes:
    """All that the command writes to its terminal."""
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, stdin=its_end, stdout=its_end, stderr=its_end):
        os.close(its_end)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux tells of the end
            while part := os.read(terminal, 1024):
                shown += part
    os.close(terminal)
    return shown


@pytest.mark.parametrize("words", [("fastlatent.clean",), ("fastlatent", "clean")])
def test_the_words_are_gone_when_the_command_begins(words: tuple[str, ...]) -> None:
    shown = on_a_terminal(*words, "/nowhere")
    assert shown.startswith(WORDS + b"\r\033[Kerror: /nowhere ")
    assert shown.count(WORDS) == 1


def test_what_takes_no_time_says_nothing() -> None:
    assert on_a_terminal("fastlatent", "--version").startswith(b"fastlatent ")


def test_elsewhere_nothing_is_said() -> None:
    command = [sys.executable, "-m", "fastlatent.clean", "/nowhere"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.stderr.startswith(b"error: /nowhere ")

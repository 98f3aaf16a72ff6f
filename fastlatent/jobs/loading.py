"""What a terminal shows while a command's imports take their seconds."""

import os
import sys


def say_loading() -> None:
    """Say so, in the first process of a launcher."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print("loading PyTorch ...", end="", file=sys.stderr, flush=True)


def clear_loading() -> None:
    """Take the words away, as the command begins."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)

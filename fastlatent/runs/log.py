"""The numbers and pictures of a run, as they come: metrics.jsonl and TensorBoard."""

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlatent.files.reading import reading
from fastlatent.jobs.progress import say

if TYPE_CHECKING:
    from PIL.Image import Image


class Log:
    """metrics.jsonl, a line of numbers at a time, and the same for TensorBoard."""

    def __init__(self, folder: Path, step: int = 0, length: int = 0):
        """Continue after `step`, with metrics.jsonl cut back to `length` bytes."""
        path = folder / "metrics.jsonl"
        self._file = path.open("ab")
        if length < path.stat().st_size:
            self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)
        self._board = Board(folder, step + 1)

    def numbers(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One line: {"kind": ..., "step": ..., "epoch": ..., values}."""
        line = {"kind": kind, "step": step, "epoch": round(epoch, 6), **values}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        for name, value in values.items():
            self._board.call("add_scalar", f"{kind}/{name}", value, step)

    def picture(self, name: str, step: int, picture: "Image") -> None:
        self._board.call("add_image", name, np.asarray(picture), step, dataformats="HWC")

    def settings(self, values: dict[str, Any]) -> None:
        """The settings of the run by name, for TensorBoard's table of hyper-parameters."""
        self._board.settings(values)

    def flush_to_disk(self) -> int:
        """The length in bytes of metrics.jsonl, all of it safely on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._board.close()


class Board:
    """What TensorBoard shows. Where it fails this is said once, and training goes on without."""

    def __init__(self, folder: Path, purge_step: int):
        self._folder = folder
        self._writer: Any = None
        self._hook = threading.excepthook
        threading.excepthook = self._heard
        try:
            # Importing this takes longer than importing all of ours.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except Exception as error:  # a broken installation can end in any of them
            self._give_up(error)

    def call(self, method: str, *arguments: Any, **options: Any) -> None:
        """Hand something to TensorBoard's writer."""
        if self._writer is not None:
            try:
                getattr(self._writer, method)(*arguments, **options)
            except Exception as error:  # of its own thread, from an earlier call
                self._give_up(error)

    def settings(self, values: dict[str, Any]) -> None:
        """Hyper-parameters, beside the test loss that each run is to be ordered by."""
        if self._writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        plain = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in values.items()}
        for summary in hparams(plain, {"test/loss": 0.0}):
            try:
                self._writer.file_writer.add_summary(summary)
            except Exception as error:
                self._give_up(error)
                return

    def close(self) -> None:
        self.call("close")
        threading.excepthook = self._hook

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"note: {self._folder} gets nothing more for TensorBoard: {reason}")

    def _heard(self, failure: threading.ExceptHookArgs) -> None:
        # The writer's thread hands its error on to the next call; it need not print it as well.
        if not type(failure.thread).__module__.startswith("tensorboard"):
            self._hook(failure)


def read_metrics(folder: Path, length: int | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or of its first `length` bytes.

    A last line cut off by a crash is left out. ValueError names the line that is damaged.
    """
    path = folder / "metrics.jsonl"
    with reading(path, "is damaged"):
        lines = path.read_bytes()[:length].splitlines(keepends=True)
    found = []
    for number, line in enumerate((line for line in lines if line.endswith(b"\n")), 1):
        with reading(path, f"is damaged: line {number} is not valid JSON"):
            found.append(json.loads(line))
        if not _is_record(found[-1]):
            raise ValueError(
                f"{path} is damaged: line {number} must hold kind, step, epoch and numbers"
            )
    return found


def _is_record(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return False
    numbers = [value for name, value in line.items() if name != "kind"]
    whole = type(line.get("step")) is int and line["step"] >= 0
    return whole and "epoch" in line and all(map(is_number, numbers))


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that float holds; NaN and infinities are."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 1023
    return isinstance(value, float)

"""What the processes of a run, and a run and its checkpoint, must have in common."""

import hashlib
import json
from pathlib import Path
from typing import Any

from fastlatent.data import Dataset, Split
from fastlatent.jobs.errors import RunError
from fastlatent.presets import TrainConfig
from fastlatent.runs import EVALUATED, State, check_values, flat, read_metrics, to_json
from fastlatent.runs.files import digest

MARK = 8  # hexadecimal digits by which images and checkpoints are told apart

# Settings in which ranks may differ: where images lie and how they are read.
OF_RANKS = {"data.name", "data.root", "data.resident", "data.workers", "data.download"}


def what_ranks_share(config: TrainConfig, data: Dataset, resume: State | None) -> dict[str, Any]:
    """What has to be the same on all ranks, by names to tell it by."""
    shared = {name: value for name, value in flat(to_json(config)).items() if name not in OF_RANKS}
    for split in filter(None, (data.train, data.test, data.validation)):
        shared[f"{split.name} images"] = f"{len(split):,} (of mark {split.mark_text[:MARK]})"
    shared["checkpoint"] = (
        "none" if resume is None else f"{resume.step} (of mark {mark_of(resume)})"
    )
    return shared


def mark_of(state: State) -> str:
    """A hash of the weights and numbers of a checkpoint."""
    numbers = json.dumps(state.values, sort_keys=True, default=str)
    both = numbers + digest(state.tensors[EVALUATED])
    return hashlib.blake2b(both.encode()).hexdigest()[:MARK]


def check_resumable(state: State, train: Split, out: Path) -> None:
    """RunError when the run cannot go on from the checkpoint with these training images."""
    file = out / "state" / str(state.step) / "state.json"
    try:
        check_values(state.values)
    except ValueError as error:
        raise RunError(f"{file} is damaged: {error}") from None
    before, mark = state.values["images"], state.values.get("mark")  # older runs have no mark
    if before != len(train):
        raise RunError(
            f"the training set has {len(train)} images now and had {before}; the run cannot go on"
        )
    if mark is not None and mark != train.mark_text:
        raise RunError(
            f"the {len(train)} training images are others than those that {out} was trained on, "
            "or in another order; the run cannot go on"
        )
    if (out / "metrics.jsonl").is_file():
        read_metrics(out, state.values["metrics_bytes"])

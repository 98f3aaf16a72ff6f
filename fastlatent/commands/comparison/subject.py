"""What a run folder tells about its run, read and checked; weights are not loaded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from fastlatent.commands.comparison.evaluation import Evaluation, read_evaluation
from fastlatent.data.config import DataConfig
from fastlatent.files.code import Code
from fastlatent.jobs.errors import UsageError
from fastlatent.models import LatentModel, model_title
from fastlatent.runs import Run, read_metrics

# Settings of the models that say what the loss is; losses compare where these agree.
LOSS_SETTINGS = (
    "family",
    "code",
    "image_shape",
    "architecture",
    "likelihood",
    "latent",
    "kl_weight",
    "fixed_variance",
    "evaluate_with",
    "test_corruption",
    "test_corruption_strength",
)


@dataclass(frozen=True)
class Subject:
    """One run to compare."""

    label: str  # unlike that of the others
    run: Run
    model: LatentModel  # without memory: for its sizes and its unit
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl; none where there is no such file
    evaluation: Evaluation | None

    @staticmethod
    def read(run: Run, label: str) -> "Subject":
        """The run; RunError or ValueError names the file that is damaged."""
        with torch.device("meta"):
            model = run.fresh_model()
        return Subject(label, run, model, read_log(run.path), read_evaluation(run))

    @property
    def family(self) -> str:
        return model_title(self.run.config.model)

    @property
    def data(self) -> str:
        """The data set and the classes chosen of it."""
        return data_words(self.run.config.data)

    @property
    def subject(self) -> str:
        return f"{self.family} on {self.data}"

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def scale(self) -> tuple[object, ...]:
        """What must agree before losses of two runs can be compared."""
        model, data = self.run.config.model, self.run.config.data
        settings = tuple(getattr(model, name, None) for name in LOSS_SETTINGS)
        images = (data.name, data.size, data.crop, data.classes)
        return (self.model.loss_unit, *images, *settings)

    def curve(self, kind: str, name: str = "loss") -> list[tuple[int, float]]:
        """Steps and values of a number of that name in the lines of that kind.

        Those of "test" are of validation images where progress was measured on these.
        """
        if kind == "test" and any(line["kind"] == "validation" for line in self.metrics):
            kind = "validation"
        lines = (line for line in self.metrics if line["kind"] == kind and name in line)
        return [(line["step"], line[name]) for line in lines]

    @property
    def alternating_losses(self) -> list[str]:
        """The losses of alternating steps; empty where a training step has one loss."""
        lines = (line for line in self.metrics if line["kind"] == "train")
        return sorted({name for line in lines for name in line if name.endswith("_loss")})

    @property
    def training_seconds(self) -> float | None:
        """Time spent in training steps, by the logged speed; None where the log does not tell."""
        rates = dict(self.curve("train", "images_per_second"))
        steps = [0, *rates]
        if not rates or not all(rate > 0 for rate in rates.values()):
            return None
        batch = self.run.config.batch
        return sum((step - before) * batch / rates[step] for before, step in pairwise(steps))


def subjects(paths: Sequence[Path], code: Code | None = None) -> list[Subject]:
    """The runs in these folders; `code` is what models of the user's own take.

    Raises UsageError where one is named twice, RunError or ValueError where one cannot be read.
    """
    places = [Path(os.path.realpath(path.expanduser())) for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"the run {place} is named more than once")
    runs = [Run.open(path.expanduser(), code) for path in paths]
    labels = distinct_labels(places)
    return [Subject.read(run, label) for run, label in zip(runs, labels, strict=True)]


def distinct_labels(places: Sequence[Path]) -> list[str]:
    """The names of distinct folders, with as many of their parents as tell them all apart."""
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        labels = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(labels)) == len(labels):
            break
    return labels


def data_words(data: DataConfig) -> str:
    """The data set and the classes chosen of it."""
    # Not the whole path of a folder or file: a page that is passed on says enough with its name.
    name = data.short
    return f"{name} ({' '.join(map(str, data.classes))})" if data.classes else name


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, none where it is missing; ValueError where one is damaged."""
    return read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []

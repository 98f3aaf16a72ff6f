"""The table of runs: its columns, and which value of each is the best.

Values of a column are compared only where their scales agree: same data, same unit, same loss, same
features of images stored alike.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal, NamedTuple

from fastlatent.commands.comparison.evaluation import Evaluation
from fastlatent.commands.comparison.subject import Subject
from fastlatent.estimate import Estimate
from fastlatent.inference.latents import FITTED
from fastlatent.jobs.progress import format_seconds
from fastlatent.models.base import NATS

Better = Literal["lower", "higher"]

VALUES: dict[str, Better] = {
    "loss": "lower",
    "reconstruction": "lower",
    "fitted_reconstruction": "lower",
    "elbo": "higher",
    "log_likelihood": "higher",
    "pixel_error": "lower",
}
UNITS = {"log_likelihood": NATS, "pixel_error": "pixels in [0, 1]"}  # of what no model returns
LAYERS = "KL of each layer"


class Metric(NamedTuple):
    """How a number of an image set is headed and read."""

    title: str  # with {} for the name of the features
    better: Better | None
    note: str


METRICS = {
    "frechet_distance": Metric("FD({})", "lower", "Frechet distance of features"),
    "kernel_distance": Metric("KD({})", "lower", "squared kernel distance (MMD) of features"),
    "precision": Metric("precision", "higher", "images that lie among the reference images"),
    "recall": Metric("recall", "higher", "reference images that lie among the images"),
    "density": Metric("density", "higher", "how densely reference images surround the images"),
    "coverage": Metric("coverage", "higher", "reference images with an image nearby"),
    "prd_f8": Metric("F8", "higher", "F score of the PRD curve that weighs recall"),
    "prd_f1/8": Metric("F1/8", "higher", "F score of the PRD curve that weighs precision"),
}
# Only of the Inception network do these numbers go by the names that papers use.
INCEPTION = {"frechet_distance": "FID", "kernel_distance": "KID"}
SETS: dict[str, str] = {
    "prior": "samples from the prior",
    "copula": "samples by the copula",
    "random": "random bits",
    **{kind: f"samples from a fitted prior: {kind}" for kind in FITTED},
}


@dataclass(frozen=True)
class Cell:
    """What one run has in a column."""

    text: str
    value: float | str | None = None  # to sort by; None: the text
    error: float | None = None
    scale: tuple[object, ...] | None = None  # None: not to be compared
    note: str = ""


@dataclass
class Column:
    """A quantity of the runs, a cell for each; None where a run does not have it."""

    group: str
    title: str
    unit: str = ""
    better: Better | None = None
    note: str = ""
    cells: list[Cell | None] = field(default_factory=list)

    @property
    def is_text(self) -> bool:
        return any(cell is not None and cell.value is None for cell in self.cells)

    @property
    def compared(self) -> list[dict[int, Estimate]]:
        """The values by their places, those together that are compared with each other.

        Unknown errors are 0.
        """
        scales: dict[tuple[object, ...], dict[int, Estimate]] = {}
        for place, cell in enumerate(() if self.better is None else self.cells):
            if cell is None or cell.scale is None or not isinstance(cell.value, int | float):
                continue
            if math.isfinite(cell.value):
                found = Estimate(cell.value, cell.error or 0)
                scales.setdefault(cell.scale, {})[place] = found
        return [*scales.values()]

    @property
    def best(self) -> dict[int, bool]:
        """Places of the best values among those that can be compared; of equal values none.

        True where it is clear: two standard errors of the difference away from all others, as if
        these had been measured on images of their own.
        """
        found: dict[int, bool] = {}
        for numbers in self.compared:
            values = [number.value for number in numbers.values()]
            best = min(values) if self.better == "lower" else max(values)
            others = [number for number in numbers.values() if number.value != best]
            for place, number in numbers.items():
                if others and number.value == best:
                    found[place] = all(_differ(number, other) for other in others)
        return found


def rivals(columns: Sequence[Column], labels: Sequence[str]) -> list[str]:
    """Which runs a mark sets apart, where a column holds others that it is not compared with."""
    found: dict[tuple[str, ...], list[str]] = {}
    for column in columns:
        known = sum(cell is not None for cell in column.cells)
        for numbers in column.compared:
            if column.best.keys() & numbers.keys() and len(numbers) < known:
                titles = found.setdefault(tuple(labels[place] for place in numbers), [])
                titles += [] if column.title in titles else [column.title]
    return [f"{', '.join(runs)}: {', '.join(titles)}" for runs, titles in found.items()]


def _differ(a: Estimate, b: Estimate) -> bool:
    return abs(a.value - b.value) > 2 * math.hypot(a.error, b.error)


Entry = tuple[Column, Cell]  # a column without cells, and what a run has there


def columns_of(runs: Sequence[Subject]) -> list[Column]:
    """The columns that any of the runs fills, groups together."""
    columns: dict[tuple[str, str, str], Column] = {}
    for place, run in enumerate(runs):
        for column, cell in entries(run):
            column = columns.setdefault((column.group, column.title, column.unit), column)
            column.cells += [None] * (place + 1 - len(column.cells))
            column.cells[place] = cell
    for column in columns.values():
        column.cells += [None] * (len(runs) - len(column.cells))
    groups = list(dict.fromkeys(column.group for column in columns.values()))
    return sorted(columns.values(), key=lambda column: groups.index(column.group))


def entries(run: Subject) -> Iterator[Entry]:
    """All that is known about a run."""
    yield from _setup(run)
    yield from _training(run)
    if run.evaluation is not None:
        yield from _values(run, run.evaluation)
        yield from _sets(run.evaluation)


def _setup(run: Subject) -> Iterator[Entry]:
    dim, kind = run.model.latent_dim, run.model.latent_kind
    name = run.run.config.name
    yield Column("run", "family"), Cell(run.family, note=f"trained as {name}")
    shape = " x ".join(map(str, run.model.image_shape))
    each = run.run.config.data.per_class
    note = f"images of {shape}" + (f", {each:,} of each class" if each is not None else "")
    yield Column("run", "data"), Cell(run.data, note=note)
    latents = f"{dim:,} {'bits' if kind == 'bits' else 'real'}"
    yield Column("run", "latents"), Cell(latents, dim)
    yield Column("run", "parameters"), Cell(f"{run.parameters:,}", run.parameters)


def _training(run: Subject) -> Iterator[Entry]:
    group = "training"
    if run.metrics:
        step, epoch = run.metrics[-1]["step"], run.metrics[-1]["epoch"]
        yield Column(group, "steps"), Cell(f"{step:,}", step)
        yield Column(group, "epochs"), Cell(f"{epoch:,.4g}", epoch)
    seconds = run.training_seconds
    if seconds is not None:
        note = "in training steps, by the logged speed; without evaluation and pictures"
        yield Column(group, "time", note=note), Cell(format_seconds(seconds), seconds)
    curve = [(step, loss) for step, loss in run.curve("test") if math.isfinite(loss)]
    if curve:
        unit = run.model.loss_unit
        step, loss = curve[-1]
        at = f"after step {step:,}"
        yield (
            Column(group, "test loss", unit, "lower", "at the end of training"),
            Cell(f"{loss:,.5g}", loss, scale=run.scale, note=at),
        )
        step, loss = min(curve, key=lambda point: point[1])
        at = f"after step {step:,}"
        yield (
            Column(group, "best test loss", unit, "lower", "the lowest that was measured"),
            Cell(f"{loss:,.5g}", loss, scale=run.scale, note=at),
        )


def _values(run: Subject, evaluation: Evaluation) -> Iterator[Entry]:
    yield Column("evaluation", "measured on"), _circumstances(evaluation)
    measured_on = (evaluation.split, evaluation.images)
    for name, number in evaluation.values.items():
        samples = evaluation.samples.get(name)
        title = name.replace("_", " ")
        if samples is not None:
            title += f", {samples:,} samples"
        unit = evaluation.units.get(name, UNITS.get(name, run.model.unit_of(name)))
        scale = (*run.scale, unit, *measured_on, samples)
        better, group = VALUES.get(name), "evaluation"
        if name.startswith("kl_layer_"):
            title, group = f"layer {name.removeprefix('kl_layer_')}", LAYERS
        column = Column(group, title, unit, better)
        yield column, _cell(number, scale)
        if better == "higher" and name in evaluation.bits:
            column = Column(group, title, "bits per dimension", "lower")
            yield column, _cell(evaluation.bits[name], scale)


def _circumstances(evaluation: Evaluation) -> Cell:
    words = [evaluation.split]
    if evaluation.images is not None:
        words.append(f"{evaluation.images:,} images")
    if evaluation.weights != "last":
        words.append(f"{evaluation.weights} weights")
    if not evaluation.current:
        words.append("older weights")
    note = "" if evaluation.current else "the run was trained further since; evaluate it again"
    return Cell(", ".join(words), note=note)


def _sets(evaluation: Evaluation) -> Iterator[Entry]:
    features = evaluation.features
    short = "features" if features is None else features.short
    compared = "" if features is None else f"features: {without_folders(features.extractor)}"
    if features is not None and features.reference:
        compared += f"; against {without_folders(features.reference)}"
    if features is not None and features.jpeg:
        compared += "; images stored as JPEG before"
    if features is not None and features.closed_balls:
        compared += "; the surface of a ball counts as inside"
    for name, images in evaluation.sets.items():
        group = SETS.get(name, name.replace("_", " "))
        scale = (name, images.images, features)
        note = "" if images.images is None else f"{images.images:,} images; "
        for key, number in images.metrics.items():
            metric = METRICS.get(key, Metric(key.replace("_", " "), None, ""))
            title = metric.title.format(short)
            if short.lower() == "inception":
                title = INCEPTION.get(key, title)
            column = Column(group, title, "", metric.better, metric.note)
            yield column, _cell(number, scale, note + compared)


def without_folders(text: str) -> str:
    """The text with the names of files alone, as a page that is passed on need not say whose."""
    named = re.sub(
        r"\b(folder|npz|h5):(.+?)(?=, right on |$)",
        lambda match: f"{match[1]}:{PurePath(match[2]).name}",
        text,
    )
    return PurePath(named).name if "/" in named or "\\" in named else named


def _cell(number: Estimate, scale: tuple[object, ...], note: str = "") -> Cell:
    error = number.error if math.isfinite(number.error) else None
    return Cell(str(number), number.value, error, scale, note)

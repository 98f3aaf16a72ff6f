"""What experiments on curves found, for people and for programs: tables, CSV, JSON, NumPy."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastlatent import plots
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.data import Split
from fastlatent.files.writing import written_whole
from fastlatent.geometry.descent import Status
from fastlatent.geometry.experiment import Experiment, Summary, summarise
from fastlatent.jobs.progress import say
from fastlatent.runs import Run
from fastlatent.runs.files import fingerprint, write_json

if TYPE_CHECKING:
    from PIL.Image import Image


def joined_images(split: Split, index: Tensor) -> dict[str, list[int]]:
    """Which images (2, n) of the split are joined, and their classes where known, by column."""
    columns = {}
    for name, row in zip(("first", "last"), index.cpu(), strict=True):
        columns[f"{name}_image"] = row.tolist()
        if split.labels is not None and split.labels.ndim == 1:
            columns[f"{name}_label"] = split.labels[row.to(split.labels.device)].tolist()
    return columns


def pair_rows(
    result: Experiment, extra: Mapping[str, Tensor], joined: Mapping[str, Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """What is known of each pair, by column, after the columns on what it joins."""
    found = result.geodesics
    columns: dict[str, Tensor] = {
        "straight_length": found.straight_length,
        "straight_error": found.straight_error,
        "length": found.length,
        "length_error": found.length_error,
        "improvement": result.improvement,
        "original_straight_length": result.original_straight,
        "original_length": result.original_length,
        "original_improvement": result.original_improvement,
        "energy": found.energy,
        "energy_excess": found.energy_excess,
        "iterations": found.iterations,
        "evaluations": found.evaluations,
        **extra,
    }
    names = [Status(code).name.lower() for code in found.status.tolist()]
    listed: dict[str, Sequence[Any]] = {name: x.tolist() for name, x in columns.items()}
    return {"pair": range(1, len(names) + 1), **joined, "status": names, **listed}


def stated(form: str, unit: str, *numbers: float, between: str = ", ") -> str:
    """The numbers for people; unknown where one is not finite."""
    if not all(map(math.isfinite, numbers)):
        return "unknown"
    return between.join(f"{number:{form}}" for number in numbers) + unit


def statistics_lines(results: Mapping[str, Experiment]) -> list[str]:
    """The table of one or more experiments, under both rules, with their statuses and times."""
    columns: list[tuple[str, str, Summary, Tensor, Tensor]] = []
    for name, result in results.items():
        found, rows = result.geodesics, result.counted
        for rule, gain, line, curve in (
            ("measured", result.improvement, found.straight_length, found.length),
            (
                "original's rule",
                result.original_improvement,
                result.original_straight,
                result.original_length,
            ),
        ):
            columns.append((name, rule, summarise(100 * gain[rows]), line[rows], curve[rows]))
    cells = {
        "mean improvement": [stated(".2f", " %", s.mean) for _, _, s, _, _ in columns],
        "  its 95 % interval": [
            stated(".2f", " %", s.low, s.high, between=" to ") for _, _, s, _, _ in columns
        ],
        "standard deviation": [stated(".2f", " %", s.sd) for _, _, s, _, _ in columns],
        "least, most": [stated(".2f", " %", s.least, s.most) for _, _, s, _, _ in columns],
        "mean length, straight": [stated(".4f", "", float(x.mean())) for _, _, _, x, _ in columns],
        "mean length, shorter": [stated(".4f", "", float(x.mean())) for _, _, _, _, x in columns],
    }
    headings = [[rule for _, rule, *_ in columns]]
    if any(results):
        headings.insert(0, [name for name, *_ in columns])
    width = 2 + max(22, *(len(cell) for row in (*headings, *cells.values()) for cell in row))
    lines = [f"  {'':24}" + "".join(f"{cell:>{width}}" for cell in row) for row in headings]
    lines += [
        f"  {title:24}" + "".join(f"{cell:>{width}}" for cell in row)
        for title, row in cells.items()
    ]
    for name, result in results.items():
        lines.append("  " + (f"{name}: " if name else "") + ending(result))
    return lines


def ending(result: Experiment) -> str:
    """How the searches ended and what they took."""
    n = len(result.start)
    ways = ", ".join(
        f"{k:,} {name.replace('_', ' ')}" for name, k in result.status_counts().items()
    )
    found = result.geodesics
    alone = int((found.length.isfinite() & ~found.straight_length.isfinite()).sum())
    if alone:
        ways += f"; {alone:,} without a straight line of finite length, left out of the means"
    each = float(found.evaluations.double().mean())
    return (
        f"{ways}; {result.seconds:.2f} s, {result.seconds / n:.4f} s and {each:,.0f} decoder "
        "evaluations a pair"
    )


def summary_values(result: Experiment) -> dict[str, Any]:
    """The statistics as JSON values; null for what cannot be known. Improvements as fractions."""
    rows, found = result.counted, result.geodesics
    gains = {"measured": result.improvement, "original": result.original_improvement}
    lengths = {
        "straight": found.straight_length,
        "shorter": found.length,
        "original_straight": result.original_straight,
        "original_shorter": result.original_length,
    }
    return {
        "improvement": {
            name: {key: known(x) for key, x in asdict(summarise(gain[rows])).items()}
            for name, gain in gains.items()
        },
        "mean_length": {name: known(float(x[rows].mean())) for name, x in lengths.items()},
        "status": result.status_counts(),
        "seconds": result.seconds,
        "seconds_per_pair": result.seconds / len(result.start),
        "evaluations": int(found.evaluations.sum()),
    }


def known(number: float) -> float | None:
    """The number as JSON has it."""
    return number if math.isfinite(number) else None


def circumstances(trained: Trained, options: RunOptions) -> dict[str, Any]:
    """What the numbers depend on: the weights and the command line, without groups of options.

    A group belongs to one method, and these are the numbers of another.
    """
    stated = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(options).items()
        if not isinstance(value, Path)
        and not is_dataclass(value)
        and name not in ("other", "folder", "root", "map", "show")
    }
    return {
        "run": trained.path.name,
        "fingerprint": fingerprint(trained.folder.weights_file(options.weights)),
        "latents": trained.model.latent_dim,
        **stated,
        "seed": trained.seed,
        "device": trained.device.type,
    }


def write_rows(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """A CSV with a heading; floats keep every bit, unknown numbers are empty."""
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(
            ["" if x is None or x != x else x for x in row]
            for row in zip(*columns.values(), strict=True)
        )
    say(f"pairs: {path}")


def write_curves(path: Path, result: Experiment) -> None:
    """The control points, the knots and how the lengths fell, as NumPy reads them."""
    names = ("control", "knots", "history")
    arrays = {name: getattr(result.geodesics, name) for name in names}
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{key: x.cpu().numpy() for key, x in arrays.items()})
    say(f"curves: {path}")


def write_values(path: Path, values: Any) -> None:
    """Numbers and circumstances as JSON."""
    write_json(path, values)
    say(f"numbers: {path}")


@dataclass(frozen=True)
class Files:
    """Where the results of one command go: the run folder, or a folder of its own."""

    run: Run
    folder: Path | None

    def _place(self, name: str, home: Path) -> Path:
        path = (home if self.folder is None else self.folder.expanduser()) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_rows(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        write_rows(self._place(f"{name}.csv", self.run.path), columns)

    def write_curves(self, name: str, result: Experiment) -> None:
        write_curves(self._place(f"{name}.npz", self.run.path), result)

    def write_values(self, name: str, values: Any) -> None:
        write_values(self._place(f"{name}.json", self.run.path), values)

    def draw(self, name: str, picture: "Image") -> None:
        place = self._place(f"{name}.png", self.run.images)
        say(f"picture: {plots.save(picture, place, self.run.path.name)}")

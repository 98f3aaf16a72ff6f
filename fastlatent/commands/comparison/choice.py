"""Which columns stand first, and what runs that differ in their seeds alone have in common."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev

from fastlatent.commands.comparison.columns import SETS, Cell, Column
from fastlatent.commands.comparison.subject import Subject
from fastlatent.estimate import Estimate
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.spelling import did_you_mean
from fastlatent.runs.config import to_json

SEEDS = "mean ± standard deviation of runs that differ in their seeds alone"
MOST = 5  # columns at first sight
# Samples as a run draws them where nothing else is said, then those of priors fitted later.
DRAWN = tuple(group for name, group in SETS.items() if name != "random")
# The beginnings of their titles, the most telling first.
FIRST = (
    "loss",
    "log likelihood",
    "FD",
    "FID",
    "precision",
    "recall",
    "best test loss",
    "parameters",
    "time",
)


def first_columns(columns: Sequence[Column]) -> list[Column]:
    """The five numbers, at most, that tell most about these runs."""
    shown = [c for c in columns if c.group in ("run", "training", "evaluation")] + _samples(columns)
    found: dict[str, Column] = {}
    for beginning in FIRST:
        fitting = [column for column in shown if column.title.startswith(beginning)]
        if fitting and not (beginning == "best test loss" and "loss" in found):
            best = max(fitting, key=_known)
            alike = [c for c in shown if (c.title, c.better) == (best.title, best.better)]
            found[beginning] = _joined(alike)
    return [*found.values()][:MOST]


def _joined(columns: Sequence[Column]) -> Column:
    """Columns of one title in different units, side by side: a run has a cell in one of them."""
    cells = [
        next((cell for cell in cells if cell is not None), None)
        for cells in zip(*(column.cells for column in columns), strict=True)
    ]
    return replace(columns[0], unit=" or ".join(c.unit for c in columns if c.unit), cells=cells)


def _samples(columns: Sequence[Column]) -> list[Column]:
    """How good each run's samples are, of those in the first of DRAWN that it has."""
    measured = [column for group in DRAWN for column in columns if column.group == group]
    runs = zip(*(column.cells for column in measured), strict=True)
    groups = [
        next((c.group for c, cell in zip(measured, cells, strict=True) if cell is not None), None)
        for cells in runs
    ]
    found: dict[str, Column] = {}
    for column in measured:
        joined = found.setdefault(
            column.title, replace(column, group="samples", cells=[None] * len(groups))
        )
        for place, cell in enumerate(column.cells):
            if cell is not None and column.group == groups[place]:
                scale = cell.scale and cell.scale[1:]  # without the name of the set
                note = f"{column.group}; {cell.note}"
                joined.cells[place] = replace(cell, scale=scale, note=note)
    return [*found.values()]


def _known(column: Column) -> int:
    """How many runs have it."""
    return sum(cell is not None for cell in column.cells)


def chosen(columns: Sequence[Column], words: Sequence[str]) -> list[Column]:
    """The columns whose group or title holds one of the words, in the order of the words.

    Raises UsageError for a word that no column holds.
    """
    found: list[Column] = []
    for word in words:
        fitting = [c for c in columns if word.lower() in f"{c.group} {c.title}".lower()]
        if not fitting:
            titles = list(dict.fromkeys(column.title for column in columns))
            guess = did_you_mean(word, titles) or f"; choose from {', '.join(titles)}"
            raise UsageError(f"--columns: no column holds {word!r}{guess}")
        found += [column for column in fitting if column not in found]
    return found


def seeds_of(
    runs: Sequence[Subject], columns: Sequence[Column]
) -> tuple[list[Column], list[str]]:  # a cell for each group of runs, and the groups' labels
    """Means and standard deviations over runs that differ in their seeds alone.

    A group has a cell where all of its runs have numbers that can be compared.
    """
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        key = json.dumps(to_json(replace(run.run.config, seed=0)), sort_keys=True)
        groups.setdefault(key, []).append(place)
    several = [p for p in groups.values() if len({runs[k].run.config.seed for k in p}) > 1]
    labels = [f"{runs[places[0]].run.config.name}, {len(places)} runs" for places in several]
    means = [
        replace(column, better=None, cells=[_mean(column, places) for places in several])
        for column in columns
    ]
    return [column for column in means if any(column.cells)], labels


def _mean(column: Column, places: Sequence[int]) -> Cell | None:
    cells = [column.cells[place] for place in places]
    known = [cell for cell in cells if cell is not None and cell.scale is not None]
    if len(known) < len(cells) or len({cell.scale for cell in known}) > 1:
        return None
    values = [float(cell.value) for cell in known if cell.value is not None]
    if not all(map(math.isfinite, values)):
        return None
    each = ", ".join(cell.text for cell in known)
    return Cell(str(Estimate(mean(values), stdev(values))), mean(values), note=f"mean of {each}")

"""What evaluate left in evaluation.json, checked; parts that are not there are empty."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlatent.estimate import Estimate
from fastlatent.files.reading import read_json
from fastlatent.jobs.errors import RunError
from fastlatent.runs import Run
from fastlatent.runs.files import fingerprint
from fastlatent.runs.folder import WEIGHT_FILES
from fastlatent.runs.log import is_number


@dataclass(frozen=True)
class Features:
    """What images were compared by, and with what."""

    extractor: str
    short: str  # its name in headings
    reference: str
    reference_images: int | None
    jpeg: bool  # whether images were stored as JPEG before
    closed_balls: bool  # whether the surface of a ball belongs to it


@dataclass(frozen=True)
class StoredSet:
    """Images of one kind, measured by their features."""

    images: int | None
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """The numbers of a run, and what they were measured on."""

    split: str
    images: int | None
    weights: str  # "last" or "best"
    current: bool  # False where the weights have changed since
    values: dict[str, Estimate]
    units: dict[str, str]  # of the values; earlier versions stored none
    bits: dict[str, Estimate]  # those of `values` that are likelihoods, in bits per dimension
    samples: dict[str, int]  # draws behind a bound, by the name of the value
    features: Features | None
    sets: dict[str, StoredSet]


def read_evaluation(run: Run) -> Evaluation | None:
    """The run's evaluation; None where there is none. RunError where the file is damaged."""
    path = run.path / "evaluation.json"
    if not path.is_file():
        return None
    stored = _object(read_json(path), path, "it")
    weights = str(stored.get("weights", "last"))
    values, units, bits, samples = {}, {}, {}, {}
    for name, entry in _object(stored.get("values", {}), path, "values").items():
        where = f"values: {name}"
        measured = _measured(entry, ("mean", "standard_error"), path, where)
        if measured is None:
            continue
        values[name] = measured
        unit = _text(entry.get("unit"), path, f"{where}: unit")
        if unit is not None:
            units[name] = unit
        if is_number(entry.get("bits_per_dimension")):
            bits[name] = _scaled(measured, entry["bits_per_dimension"])
        count = _count(entry.get("samples"), path, f"{where}: samples")
        if count is not None:
            samples[name] = count
    return Evaluation(
        split=str(stored.get("split", "test")),
        images=_count(stored.get("images"), path, "images"),
        weights=weights,
        current=_is_current(run, weights, stored.get("fingerprint")),
        values=values,
        units=units,
        bits=bits,
        samples=samples,
        features=_features(stored, path),
        sets=_sets(stored, path),
    )


def _features(stored: dict[str, Any], path: Path) -> Features | None:
    if stored.get("features") is None:
        return None
    features = _object(stored["features"], path, "features")
    extractor = str(features.get("extractor", "unknown features"))
    return Features(
        extractor,
        short=str(features.get("short", extractor)),
        reference=str(features.get("reference", "")),
        reference_images=_count(
            features.get("reference_images"), path, "features: reference_images"
        ),
        jpeg=stored.get("jpeg") is True,
        closed_balls=stored.get("closed_balls") is True,
    )


def _sets(stored: dict[str, Any], path: Path) -> dict[str, StoredSet]:
    sets = {}
    for name, entry in _object(stored.get("sets", {}), path, "sets").items():
        entry = _object(entry, path, f"sets: {name}")
        found = {}
        for metric, number in _object(entry.get("metrics", {}), path, f"sets: {name}").items():
            measured = _measured(number, ("value", "error"), path, f"sets: {name}: {metric}")
            if measured is not None:
                found[metric] = measured
        sets[name] = StoredSet(_count(entry.get("images"), path, f"sets: {name}: images"), found)
    return sets


def _measured(entry: Any, keys: tuple[str, str], path: Path, where: str) -> Estimate | None:
    """The number under the first key, its error under the second; None where it is null."""
    first, second = keys
    entry = _object(entry, path, where)
    value, error = entry.get(first), entry.get(second)
    for key, number in ((first, value), (second, error)):
        if number is not None and not is_number(number):
            raise RunError(f"{path} is damaged: {where}: {key} must be a number; got {number!r}")
    return None if value is None else Estimate(value, math.nan if error is None else error)


def _scaled(measured: Estimate, value: float) -> Estimate:
    """The same number in another unit, in which it is `value`."""
    scale = abs(value / measured.value) if measured.value else math.nan
    return Estimate(value, measured.error * scale)


def _object(value: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: {where} must be a JSON object; got {value!r}")
    return value


def _text(value: Any, path: Path, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise RunError(f"{path} is damaged: {where} must be text; got {value!r}")
    return value


def _count(value: Any, path: Path, where: str) -> int | None:
    if value is not None and type(value) is not int:
        raise RunError(f"{path} is damaged: {where} must be a whole number; got {value!r}")
    return value


def _is_current(run: Run, weights: str, mark: Any) -> bool:
    """Whether the weights are those that were measured, as far as can be known."""
    if weights not in WEIGHT_FILES or not isinstance(mark, str):
        return True
    path = run.path / WEIGHT_FILES[weights]
    return not path.is_file() or fingerprint(path) == mark

"""What was measured, as a table to print, as JSON, and as a picture."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlatent import plots
from fastlatent.estimate import Estimate
from fastlatent.inference.passes import Bound
from fastlatent.jobs.progress import say
from fastlatent.metrics import KernelDistance, Scores
from fastlatent.metrics.features import distance_name
from fastlatent.models.base import NATS
from fastlatent.runs.evaluation.extractors import Extractor

if TYPE_CHECKING:
    from PIL.Image import Image

LIKELIHOOD = "log_likelihood"
HIGHER_IS_BETTER = ("elbo", LIKELIHOOD)  # bits per dimension count their negative
TITLES = {"prd_f8": "F8", "prd_f1/8": "F1/8"}


@dataclass(frozen=True)
class Losses:
    """What a model says of held-out images."""

    means: dict[str, Estimate]
    pixel_error: Estimate  # squared error of the pixels of reconstructions
    bound: Bound | None
    samples: int | None  # of the bound
    units: dict[str, str]  # of the means, by their names
    bits_per_nat: float | None  # bits per dimension; None where likelihoods are no probabilities

    def lines(self) -> list[str]:
        """The numbers as a table, each with its unit."""
        in_bits = self.bits_per_nat is not None
        values = self.values()
        widest = max(len(value["unit"]) for value in values.values())
        heading = f"  {'':28}{'mean':>16}{'standard error':>18}  {'unit':{widest}}"
        lines = [(heading + f"{'bits/dimension':>18}" * in_bits).rstrip()]
        for name, value in values.items():
            title = name.replace("_", " ")
            if name == "pixel_error":
                title = "squared error of pixels"
            elif name == LIKELIHOOD:
                title = f"log-likelihood, {self.samples:,} samples"
            error = math.nan if value["standard_error"] is None else value["standard_error"]
            line = f"  {title:28}{value['mean']:16.4f}{error:18.4f}  {value['unit']:{widest}}"
            bits = value.get("bits_per_dimension")
            lines.append((line + ("" if bits is None else f"{bits:18.4f}")).rstrip())
        if self.bound is not None and math.isfinite(self.bound.sampling_error):
            lines.append(
                f"  Drawing no more than {self.samples:,} samples alone gives an error of "
                f"{self.bound.sampling_error:.4f}; more bring the bound closer, from below."
            )
        if self.bound is not None and self.bound.warning is not None:
            lines.append(f"  {self.bound.warning}")
        return lines

    def values(self) -> dict[str, dict[str, Any]]:
        """The numbers as JSON values; null for an error that cannot be known."""
        measured: dict[str, Estimate | Bound] = dict(self.means)
        if self.bound is not None:
            measured[LIKELIHOOD] = self.bound
        values: dict[str, dict[str, Any]] = {}
        units = {LIKELIHOOD: NATS} | self.units
        for name, mean in measured.items():
            unit = units.get(name, "")
            values[name] = {
                "mean": mean.value,
                "standard_error": _known(mean.error),
                "unit": unit,
            }
            if self.bits_per_nat is not None and unit == NATS:
                sign = -1 if name in HIGHER_IS_BETTER else 1
                values[name]["bits_per_dimension"] = sign * self.bits_per_nat * mean.value
        if self.bound is not None:
            values[LIKELIHOOD] |= {
                "samples": self.samples,
                "sampling_error": _known(self.bound.sampling_error),
                "dominated_images": self.bound.dominated,
            }
        values["pixel_error"] = {
            "mean": self.pixel_error.value,
            "standard_error": _known(self.pixel_error.error),
            "unit": "pixels in [0, 1]",
        }
        return values


@dataclass
class Comparisons:
    """Sets of images next to one reference, by the features of one network."""

    heading: str  # of the Frechet distance
    features: dict[str, Any]  # extractor, short, reference, reference_images
    sets: dict[str, Scores] = field(default_factory=dict)
    counts: dict[str, int | None] = field(default_factory=dict)  # None: not known

    def lines(self) -> list[str]:
        """A row for each metric, a column for each set; a standard error behind each number."""
        names = list(
            dict.fromkeys(name for scores in self.sets.values() for name in scores.metrics)
        )
        kernel = "KID" if self.heading == "FID" else "kernel distance"
        titled = TITLES | {"frechet_distance": self.heading, "kernel_distance": kernel}
        counts = ("" if count is None else f"{count:,}" for count in self.counts.values())
        real = self.features["reference_images"]
        known = "" if real is None else f"{real:,}"
        rows = [["", *self.sets], ["images", *counts], ["real images", *[known] * len(self.sets)]]
        for name in names:
            found = (scores.metrics.get(name) for scores in self.sets.values())
            numbers = ("" if number is None else str(number) for number in found)
            rows.append([titled.get(name, name), *numbers])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"  {row[0]:{widths[0]}}"
            + "".join(f"{c:>{w + 3}}" for c, w in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ]
        noted: dict[str, list[str]] = {}
        for name, scores in self.sets.items():
            for note in scores.notes:
                noted.setdefault(note, []).append(name)
        for note, those in noted.items():
            of = "" if len(those) == len(self.sets) else f"{', '.join(those)}: "
            lines.append(f"  {of}{note}")
        return lines

    def values(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        sets = {
            name: {
                "images": self.counts[name],
                "metrics": {
                    metric: {"value": found.value, "error": _known(found.error)}
                    for metric, found in scores.metrics.items()
                },
                **({} if scores.kernel is None else {"kernel": _subsets(scores.kernel)}),
                "notes": scores.notes,
            }
            for name, scores in self.sets.items()
        }
        return {"features": self.features, "sets": sets}

    def picture(self) -> "Image":
        """The PRD curves of all sets."""
        curves = {
            name: (scores.prd.recall, scores.prd.precision)
            for name, scores in self.sets.items()
            if scores.prd is not None
        }
        return plots.prd_curves(curves, f"PRD against {self.features['reference']}")


def comparisons(extractor: Extractor | None, reference: str, count: int | None) -> Comparisons:
    """No set yet next to the reference of so many images; None: features come as they are."""
    known = {"reference": reference, "reference_images": count}
    if extractor is None:
        about = {"extractor": "features as given", "short": "features"}
        return Comparisons(distance_name(None), about | known)
    about = {"extractor": extractor.about, "short": extractor.short}
    return Comparisons(distance_name(extractor.features), about | known)


def draw_prd(compared: Comparisons, path: Path, subject: str) -> None:
    """The PRD curves, where there are any."""
    if any(scores.prd for scores in compared.sets.values()):
        say(f"picture: {plots.save(compared.picture(), path, subject)}")


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add a line of JSON to a file of results."""
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    with path.open("a") as file:
        file.write(json.dumps({"time": stamp} | values) + "\n")


def _subsets(kernel: KernelDistance) -> dict[str, float]:
    """What the published protocol of the LBAE states beside the mean."""
    return {
        "subsets": kernel.subsets,
        "subset_size": kernel.subset_size,
        "deviation": kernel.deviation,
    }


def _known(error: float) -> float | None:
    return error if math.isfinite(error) else None

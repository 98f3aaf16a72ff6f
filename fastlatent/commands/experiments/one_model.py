"""Pairs of latents of one model, whose lines are shortened, and the pictures of what comes out."""

from typing import Literal, NamedTuple

import torch

from fastlatent import plots
from fastlatent.commands.experiments import pictures
from fastlatent.commands.experiments.findings import Files, joined_images
from fastlatent.commands.experiments.shorter import (
    length_notes,
    pair_images,
    seeded_draws,
    sequences,
)
from fastlatent.commands.trained import Trained
from fastlatent.geometry.experiment import Experiment, Pairs, eigenvector_pairs
from fastlatent.geometry.field import metric_field
from fastlatent.geometry.metric import Metric
from fastlatent.jobs.errors import UsageError

MAPPED = 2000  # images in a map, at most
MARGIN = 0.05  # around what a map shows, in units of its sides
STEPS = 16  # images of a sequence


class Ends(NamedTuple):
    """What is joined."""

    kind: Literal["eigenvector", "images", "prior"]
    step_size: float  # distance of the ends of kind eigenvector
    per_class: int | None  # take images only from the first so many of each class

    @property
    def about(self) -> str:
        """In words."""
        return {
            "images": "encoded test images",
            "prior": "two draws from the prior",
            "eigenvector": f"a step of {self.step_size:g} along the largest eigenvector",
        }[self.kind]


def find_pairs(
    trained: Trained, metric: Metric, n: int, ends: Ends
) -> tuple[Pairs, dict[str, list[int]]]:
    """The ends of the curves, and the columns that tell of which images they are."""
    untied = torch.zeros(n, dtype=torch.bool)
    if ends.kind == "images":
        index, split = pair_images(trained, n, ends.per_class), trained.split("test")
        start, end = trained.latents_of(split, index.flatten()).chunk(2)
        return Pairs(start, end, untied), joined_images(split, index)
    if ends.per_class is not None:
        raise UsageError("--per-class needs --ends images")
    start = seeded_draws(trained, n, "geodesics")
    if ends.kind == "prior":
        end = seeded_draws(trained, n, "geodesics/end")
        return Pairs(start, end, untied), {}
    return eigenvector_pairs(metric, start, ends.step_size), {}


def draw_sequences(
    trained: Trained, metric: Metric, result: Experiment, files: Files, name: str, show: int
) -> None:
    """The `show` pairs that gain most, image by image."""
    counted = result.counted.nonzero()[:, 0]
    order = result.improvement[counted].argsort(descending=True, stable=True)
    rows = counted[order[:show]]
    if not len(rows):
        return
    images = sequences(trained, metric, result, rows, STEPS)
    numbers = ", ".join(str(k + 1) for k in rows.tolist())
    picture = plots.walks(
        None,
        images.flatten(0, 1),
        None,
        f"equal steps along the lines of pairs {numbers}, which gain most",
        length_notes(result, rows.tolist()),
    )
    files.draw(f"{name}-sequences", picture)


def draw_map(
    trained: Trained, metric: Metric, result: Experiment, files: Files, name: str, between: str
) -> None:
    """The metric over the latent plane, with encoded images and the curves."""
    split, names = trained.split("test"), trained.data.label_names or ()
    index = split.spread(MAPPED)
    latents = trained.latents_of(split, index)
    labels = None
    if split.labels is not None and split.labels.ndim == 1:
        labels = split.labels[index.to(split.labels.device)]
    shown = torch.cat([latents, result.geodesics.control.flatten(0, 1)])
    shown = shown[shown.isfinite().all(1)]
    low, high = shown.amin(0), shown.amax(0)
    margin = (MARGIN * (high - low)).clamp_min(1e-3)
    field = metric_field(metric, low - margin, high + margin)
    encoded = pictures.Encoded(latents, labels, names)
    title = f"{trained.path.name}: the metric of its latents{between}"
    files.draw(f"{name}-map", pictures.metric_map(field, encoded, result, title))

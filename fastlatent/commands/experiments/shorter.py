"""Shorter curves through the latents of a trained model: what the commands on them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlatent.commands.experiments.findings import stated
from fastlatent.commands.trained import RunOptions, Trained
from fastlatent.geometry.experiment import Experiment, experiment, walk_along
from fastlatent.geometry.length import curve_measure
from fastlatent.geometry.metric import Metric
from fastlatent.inference.latents import decode
from fastlatent.inference.passes import evaluating
from fastlatent.jobs.errors import UsageError
from fastlatent.jobs.progress import Progress
from fastlatent.models.capabilities import draw_prior
from fastlatent.models.features import VGG19Features
from fastlatent.noise import generator

Feature = Literal["logistic", "vgg"]

FEATURE_NAMES: dict[Feature, str] = {
    "logistic": "class log-probabilities of a logistic regression",
    "vgg": "the last map of a VGG-19",
}
VGG_DRAWS = 4  # of a stochastic decoder's noise: hundreds of features have no cheap closed form


@dataclass(frozen=True)
class CurveOptions(RunOptions):
    """What every command that shortens curves takes."""

    tolerance: float | None = None
    """A search ends when its next step promises less than this share of the curve's energy;
    default: that of fastlatent.geometry.geodesic."""
    max_iterations: int | None = None
    """Iterations on each level, at most; epochs of the published procedure. Default: that of
    fastlatent.geometry.geodesic; for interpolate --solver original 50."""
    chunk: int | None = None
    """Curves to shorten at a time; default: 32 on a CPU, 1024 on a GPU, fewer for large decoders.
    """
    feature: Feature | None = None
    """Measure lengths between features of the images: logistic, the class log-probabilities of a
    logistic regression trained here; vgg, the last map of a VGG-19. For one run."""
    vgg: Path | None = None
    """With --feature vgg: file of its weights. The images of a VAE then carry noise, 4 draws of it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunk", "max_iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {value}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance must be between 0 and 1; got {self.tolerance}")


def metric_of(trained: Trained, feature_map: nn.Module | None = None) -> Metric:
    """The metric of the model's latents, of its images or of features of them.

    Raises UsageError where latents are bits.
    """
    draws = VGG_DRAWS if isinstance(feature_map, VGG19Features) else None
    return trained.metric(feature_map, draws)


def feature_map_of(
    trained: Trained, feature: Feature | None, weights: Path | None
) -> nn.Module | None:
    """The map under which lengths are measured, of images in [-1, 1]; None for images themselves.

    Raises UsageError for VGG without its weights and for weights without it.
    """
    if (feature == "vgg") != (weights is not None):
        raise UsageError("--feature vgg and --vgg, the file of its weights, go together")
    if feature == "logistic":
        return trained.logistic_regression
    return trained.vgg_features(weights) if weights is not None else None


def feature_name(feature: Feature, metric: Metric) -> str:
    """What lengths are measured between, and over how much noise they are a mean."""
    name = FEATURE_NAMES[feature]
    return name if metric.draws is None else f"{name}, {metric.draws} draws of noise"


def file_name(name: str, feature: Feature | None) -> str:
    """The name of what was found under lengths of images, or of features of them."""
    return name if feature is None else f"{name}-{feature}"


def shorten(metric: Metric, start: Tensor, end: Tensor, title: str, **options: Any) -> Experiment:
    """Shorter curves of the pairs, with a progress bar; `options` are those of `experiment`."""
    with Progress(title, len(start), unit="pair") as progress:

        def report(done: int) -> None:
            while progress.done < done:
                progress.advance()

        return experiment(metric, start, end, **options, report=report)


def sequences(
    trained: Trained, metric: Metric, result: Experiment, rows: Tensor, steps: int
) -> Tensor:  # (k, 2, steps, c, h, w) in [0, 1]
    """Images at equal steps along the straight lines and the shorter curves of k pairs."""
    both = [curves[rows] for curves in (result.lines, result.geodesics.curves)]
    latents = torch.stack([walk_along(metric, curves, steps) for curves in both], 1)
    images = decode(trained.model, latents.flatten(0, 2), trained.batch)
    return images.unflatten(0, latents.shape[:3])


def measures(metric: Metric, result: Experiment, points: int) -> tuple[Tensor, Tensor]:
    """The curve measure (n,) of the straight lines and of the shorter curves."""
    with torch.no_grad():
        return (
            curve_measure(metric, result.lines, points),
            curve_measure(metric, result.geodesics.curves, points),
        )


def length_notes(result: Experiment, rows: Sequence[int]) -> list[str]:
    """For each pair two captions: how long its straight line is, and its shorter curve."""
    found, notes = result.geodesics, []
    for k in rows:
        notes.append(f"straight\nlength {stated('.3f', '', float(found.straight_length[k]))}")
        gain = stated(".2f", " %", 100 * float(found.improvement[k]))
        notes.append(f"shorter by {gain}\nlength {stated('.3f', '', float(found.length[k]))}")
    return notes


def seeded_draws(trained: Trained, n: int, name: str) -> Tensor:
    """n latents from the prior, by the seed and the name of the stream: (n, d)."""
    with evaluating(trained.model):
        drawn = draw_prior(trained.model, n, generator(trained.seed, 0, name))
    return drawn.to(trained.device)


def pair_images(trained: Trained, n: int, per_class: int | None) -> Tensor:  # (2, n)
    """Indices of 2 n distinct test images, drawn by the seed, in pairs.

    Raises UsageError where there are fewer, ValueError for --per-class without classes.
    """
    split = trained.split("test")
    allowed = torch.arange(len(split))
    if per_class is not None:
        if split.labels is None or split.labels.ndim != 1:
            raise UsageError("--per-class needs a data set with classes")
        labels = split.labels.cpu()
        rows = [(labels == label).nonzero()[:per_class, 0] for label in labels.unique()]
        allowed = torch.cat(rows)
    if 2 * n > len(allowed):
        raise UsageError(
            f"--pairs must be at most {len(allowed) // 2}, half of the {len(allowed):,} test "
            f"images to choose from; got {n}"
        )
    order = torch.randperm(len(allowed), generator=generator(trained.seed, 0, "pairs"))
    return allowed[order[: 2 * n]].reshape(2, n)

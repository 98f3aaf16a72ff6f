"""Methods of walking next to each other: how far their images move, how likely, how real."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fastlatent.commands.experiments.ends import Joined
from fastlatent.commands.experiments.shorter import metric_of
from fastlatent.commands.trained import Trained
from fastlatent.estimate import Estimate
from fastlatent.inference.latents import Repair, decode
from fastlatent.inference.walking import WALKINGS, Walk, Walking, measured, walk
from fastlatent.jobs.errors import RunError, UsageError
from fastlatent.jobs.progress import say
from fastlatent.metrics import frechet_from_features
from fastlatent.metrics.features import to_uint8
from fastlatent.metrics.frechet import frechet_standard_error
from fastlatent.models.capabilities import latent_prior
from fastlatent.runs.evaluation.extractors import Extractor, classifier_of
from fastlatent.runs.evaluation.sets import ImageSet, Made, features_of, real_images
from fastlatent.runs.likely import Density, Likely, LikelyOptions


@dataclass(frozen=True)
class Row:
    """One method on one model."""

    run: str
    method: Walking
    image_length: Estimate | None  # mean over walks; its error, as all here, is NaN of one walk
    log_density: Estimate | None  # nats a point, mean over inner points; None without a density
    distance: Estimate | None  # Frechet distance of the inner images; None without features
    note: str = ""  # why there are no walks

    def columns(self) -> dict[str, Any]:
        """As JSON and CSV have them."""
        found: dict[str, Any] = {"run": self.run, "method": self.method}
        for name in ("image_length", "log_density", "distance"):
            cell = getattr(self, name)
            found[name] = None if cell is None else cell.value
            found[f"{name}_error"] = None if cell is None else cell.error
        return found


def rows_of(
    trained: Trained,
    joined: Joined,
    steps: int,
    likely: Likely | None,  # None: there is no density of the latents
    features: tuple[Extractor, Tensor] | None,  # with those of the real images
    repair: Repair,
) -> list[Row]:
    """A row for each method that the model allows, of likelihood where there is a density."""
    model, ends = trained.model, (joined.start, joined.end)
    space = None if likely is None else likely.space
    rows = []
    for method in WALKINGS[model.latent_kind]:
        if method == "likelihood":
            if likely is None:
                continue
            path = likely.walks(*ends, steps)["likely"]
        else:
            path = walk(
                model,
                method,
                *ends,
                steps,
                trained.copula(repair) if method == "copula" else None,
                metric=metric_of(trained) if method == "geodesic" else None,
            )
        numbers = measured(model, path, trained.batch, space)
        density = None if numbers.terms is None else -numbers.terms.nll / (steps - 2)
        distance = None if features is None else _distance(trained, path, *features)
        rows.append(
            Row(
                trained.path.name,
                method,
                _mean(numbers.image_length),
                None if density is None else _mean(density),
                distance,
            )
        )
    return rows


def likely_of(trained: Trained, kind: Density | Literal["auto"]) -> tuple[Likely | None, str]:
    """The density that counts; None where latents are bits, or for the reason given."""
    if trained.model.latent_kind == "bits":
        return None, ""
    if kind == "auto":
        kind = "gmm" if latent_prior(trained.model) is None else "own"
    try:
        return Likely(trained, LikelyOptions(prior=kind)), ""
    except (UsageError, RunError) as error:
        say(f"{trained.path}: no likely walks and no log p: {error}")
        return None, f"no density: {error}"


def features_for(trained: Trained, name: str) -> tuple[Extractor, Tensor] | None:
    """A network and its features of the split; None where there are no labels to learn."""
    data = trained.data
    if data.label_names is None:
        say(f"{data.name} has no labels to learn features from")
        return None
    extractor = classifier_of(trained.config.data, data, trained.device)
    split = trained.split(name)
    shown = real_images(split, len(split), trained.batch, trained.device)
    return extractor, features_of(shown, extractor.features, trained.batch, to_uint8)


def lines(rows: Sequence[Row]) -> list[str]:
    """The table for people."""
    width = 2 + max(len("run"), *(len(row.run) for row in rows))
    titles = "of images", "log p", "FD(classifier)"
    table = [f"  {'run':{width}}{'method':12}" + "".join(f"{title:>20}" for title in titles)]
    for row in rows:
        cells = (row.image_length, row.log_density, row.distance)
        shown = "".join(
            f"{'' if cell is None else f'{cell.value:.3f} ±{cell.error:.3f}':>20}" for cell in cells
        )
        shown = row.note or shown
        table.append(f"  {row.run:{width}}{row.method:12}{shown}".rstrip())
    return table


def _mean(values: Tensor) -> Estimate:  # (k,)
    values = values.double()
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), error)


def _distance(trained: Trained, path: Walk, extractor: Extractor, real: Tensor) -> Estimate | None:
    """Distance of the images between the ends; its error counts walks as drawn at random."""
    inner = path.latents[:, 1:-1]
    k, m = inner.shape[:2]
    if k < 2:
        return None

    def made() -> Made:
        flat = inner.flatten(0, 1)
        for first in range(0, len(flat), trained.batch):
            some = flat[first : first + trained.batch]
            yield first, decode(trained.model, some, trained.batch)

    images = ImageSet(path.method, k * m, made)
    fake = features_of(images, extractor.features, trained.batch, to_uint8)
    return Estimate(
        float(frechet_from_features(real, fake)), float(frechet_standard_error(real, fake, m))
    )

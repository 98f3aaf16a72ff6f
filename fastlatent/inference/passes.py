"""One pass of a trained model over a split: its test loss, its codes, what is fitted to them.

Under torch.distributed every rank takes its share and all get the same result.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastlatent.data import Batch, Split, epoch_order
from fastlatent.estimate import Estimate
from fastlatent.jobs.progress import track
from fastlatent.jobs.ranks import main_alone, rank, world
from fastlatent.metrics import Weighing, importance_log_likelihood
from fastlatent.metrics.likelihood import FEW_EFFECTIVE
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import (
    Finalising,
    Inferring,
    Refitting,
    corrupted,
    learned_latents,
)
from fastlatent.noise import Noise
from fastlatent.ops import pack_bits
from fastlatent.priors import CodeStatistics

HELD_OUT = 10_000  # images at most by which a fit between epochs is judged
BOUND = ("log_likelihood", "standard_error", "dominated")  # of an ImportanceEstimate, added up


def measure_loss(
    model: LatentModel,
    split: Split,
    batch: int,  # images at a time on each rank
    seed: int = 0,  # of the noise, where the model draws any
    limit: int | None = None,  # only so many images, evenly spread
    index: Tensor | None = None,  # (k,), only these images
) -> dict[str, float]:
    """The mean over all images of each per-image value of the model, "loss" among them."""
    means = measure(model, split, batch, seed, limit, index)
    return {name: mean.value for name, mean in means.items()}


def measure(
    model: LatentModel,
    split: Split,
    batch: int,  # images at a time on each rank
    seed: int = 0,  # of the noise, where the model draws any
    limit: int | None = None,  # only so many images, evenly spread
    index: Tensor | None = None,  # (k,), only these images
) -> dict[str, Estimate]:
    """As measure_loss, with standard errors."""
    sums: dict[str, Tensor] = {}  # (2,): of the values, of their squares
    with evaluating(model) as device:
        title = f"loss on the {split.name} split"
        for part in _share(split, batch, device, title, limit, index):
            latents = learned_latents(model, split, part.index)
            given = {} if latents is None else {"latents": latents}
            _add(sums, model(part.images, noise=Noise(seed, 0).of_images(part.index), **given))
    count = _count(split, limit) if index is None else len(index)
    totals = _totals(sums, device)
    return {name: Estimate.of_sums(*moments, count) for name, moments in totals.items()}


class Reconstructed(NamedTuple):
    """What one pass over images finds: each is encoded once for its loss and its reconstruction."""

    means: dict[str, Estimate]  # as `measure` gives them
    pixel_error: Estimate  # squared error of the pixels, in [0, 1], of the reconstructions
    latents: Tensor  # (k, d), what the k images of this rank are reconstructed from


def measure_reconstructions(
    model: LatentModel, split: Split, batch: int, seed: int = 0, limit: int | None = None
) -> Reconstructed:
    """As `measure`, and the reconstructions of the same images, shown as `forward` shows them."""
    losses: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    kept = [torch.empty(0, model.latent_dim)]
    with evaluating(model) as device:
        title = f"losses and reconstructions of the {split.name} split"
        for part in _share(split, batch, device, title, limit):
            noise = Noise(seed, 0).of_images(part.index)
            given: dict[str, Any] = {}
            latents = learned_latents(model, split, part.index)
            if latents is not None:
                given = {"latents": latents}
            elif isinstance(model, Inferring):
                features = model.features(corrupted(model, part.images, noise))
                given, latents = {"features": features}, model.latents_from(features)
            else:
                latents = model.encode(corrupted(model, part.images, noise))
            _add(losses, model(part.images, noise=noise, **given))
            error = model.decode(latents).float() - part.images
            _add(errors, {"error": error.square().flatten(1).mean(1)})
            kept.append(latents.cpu())
    count = _count(split, limit)
    means = {name: Estimate.of_sums(*sums, count) for name, sums in _totals(losses, device).items()}
    pixel_error = Estimate.of_sums(*_totals(errors, device)["error"], count)
    return Reconstructed(means, pixel_error, torch.cat(kept))


class Bound(NamedTuple):
    """The importance-weighted bound on the log-likelihood, in nats: its mean over n images."""

    value: float
    error: float  # as of any mean over images; NaN of a single image
    sampling_error: float  # the part of it from the finite number of draws; NaN of one draw
    images: int
    dominated: int  # images of which a few draws outweigh all others, as ImportanceEstimate says

    @property
    def warning(self) -> str | None:
        """In words, of how many images the draws are too few."""
        if not self.dominated:
            return None
        return (
            f"In {self.dominated:,} of {self.images:,} images a few samples outweigh all others: "
            f"fewer than {FEW_EFFECTIVE} count effectively. Their log-likelihood may be far higher."
        )


def measure_bound(
    model: LatentModel,
    split: Split,
    samples: int,  # draws of the latents for each image
    batch: int,  # draws at a time on each rank
    seed: int = 0,
    limit: int | None = None,  # only so many images, evenly spread
) -> Bound:
    """The mean of importance_log_likelihood over the images.

    Raises ValueError for a model whose draws of latents have no weights.
    """
    if not isinstance(model, Weighing):
        raise ValueError(
            f"measure_bound: {type(model).__name__} has no importance weights, so its "
            "log-likelihood has no such bound"
        )
    sums: dict[str, Tensor] = {}
    images, title = max(1, batch // samples), f"{samples:,} samples on the {split.name} split"
    with evaluating(model) as device:
        for part in _share(split, images, device, title, limit):
            noise = Noise(seed, 0).derived("bound")
            estimate = importance_log_likelihood(
                model, part.images, samples, batch=batch, noise=noise, index=part.index
            )
            _add(sums, {name: getattr(estimate, name) for name in BOUND})
    totals = _totals(sums, device)
    count = _count(split, limit)
    _, variances = totals["standard_error"]
    dominated, _ = totals["dominated"]
    mean = Estimate.of_sums(*totals["log_likelihood"], count)
    return Bound(*mean, math.sqrt(variances) / count, count, int(dominated))


def gather_codes(
    model: LatentModel,
    split: Split,
    batch: int,  # images at a time on each rank
    labels: int = 0,  # classes or attributes to count by; 0: none
    limit: int | None = None,  # only so many images, evenly spread
) -> CodeStatistics:
    """The counts over the codes of the split's images that sampling and editing need."""
    with evaluating(model) as device:
        statistics = CodeStatistics(model.latent_dim, labels, device)
        for part in _share(split, batch, device, f"codes of the {split.name} split", limit):
            words = pack_bits(model.encode(part.images))
            statistics.update(words, part.labels if labels else None)
    if world() > 1:
        count = torch.tensor(statistics.count, device=device)
        counts = (statistics.ones, statistics.agree, statistics.label_count, statistics.label_ones)
        for tensor in (count, *counts):
            dist.all_reduce(tensor)
        statistics.count = int(count)
    return statistics


def finalise(model: LatentModel, split: Split, batch: int, seed: int) -> None:
    """Let the model run its last fit, on images of the split.

    The images are drawn at random where it wants fewer than all. Every rank computes the same.
    Raises ValueError for a model without a last fit.
    """
    if not isinstance(model, Finalising):
        raise ValueError(f"finalise: {type(model).__name__} has no last fit")
    with evaluating(model) as device:
        order = epoch_order(len(split), seed, 0)[: model.finalising_images]
        images = _Images(split, batch, device, order)
        # The name of the stream is as it was, so that numbers are.
        model.finalise(images, Noise(seed, 0).derived("conclude"))


class _Images:
    """Batches of a split's images, read anew each time: all of them would not fit into memory."""

    def __init__(self, split: Split, batch: int, device: torch.device, order: Tensor):
        self.split, self.batch, self.device, self.order = split, batch, device, order

    def __iter__(self) -> Iterator[Tensor]:
        batches = self.split.batches(self.batch, self.device, order=self.order)
        title = f"images of the {self.split.name} split for the last fit"
        for part in track(batches, title, -(-len(self.order) // self.batch)):
            yield part.images


def refit(
    model: LatentModel,
    split: Split,
    batch: int,
    seed: int,
    epochs: int,
    unseen: Split | None = None,  # images that it is not fitted to
    limit: int = HELD_OUT,  # of those, evenly spread
) -> dict[str, float]:
    """Let the model fit anew what no gradient trains, to images of the split, after so many epochs.

    The images are drawn at random where it wants fewer than there are. Rank 0 computes and gives
    the others its weights; the numbers to log are its own, {} elsewhere. With `unseen` there is
    among them "held_out_log_prob", of those images. Raises ValueError for a model that fits nothing
    between epochs.
    """
    numbers: dict[str, float] = {}
    with main_alone() as mine:
        if mine:
            numbers = _refit(model, split, batch, seed, epochs, unseen, limit)
    if world() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, 0)
    return numbers


def _refit(
    model: LatentModel,
    split: Split,
    batch: int,
    seed: int,
    epochs: int,
    unseen: Split | None,
    limit: int,
) -> dict[str, float]:
    if not isinstance(model, Refitting):
        raise ValueError(f"refit: {type(model).__name__} fits nothing between epochs")
    with evaluating(model) as device:
        order = epoch_order(len(split), seed, epochs)[: model.refit_images(epochs)]
        batches = split.batches(batch, device, order=order)
        title = f"images of the {split.name} split for the fit of the prior"
        images = (part.images for part in track(batches, title, -(-len(order) // batch)))
        noise = Noise(seed, epochs).derived("refit")
        numbers = model.refit(images, noise, epochs)
        if numbers and unseen is not None:
            some = unseen.batches(batch, device, order=unseen.spread(limit))
            others = (part.images for part in some)
            held_out = model.held_out_log_prob(others, noise.derived("held out"))
            numbers["held_out_log_prob"] = held_out
    return numbers


def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Add to each name's (2,) the sum of its values (n,) and the sum of their squares."""
    for name, value in values.items():
        value = value.double()
        moments = torch.stack([value.sum(), value.square().sum()])
        sums[name] = sums[name] + moments if name in sums else moments


@contextmanager
def evaluating(model: LatentModel) -> Iterator[torch.device]:
    """The model in evaluation mode without gradients, then as it was; gives its device."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def _totals(sums: dict[str, Tensor], device: torch.device) -> dict[str, tuple[float, float]]:
    """The sums over all ranks; a rank that had no image to look at has no sums of its own."""
    names = [list(sums)]
    if world() > 1:
        dist.broadcast_object_list(names)
    totals = torch.zeros(len(names[0]), 2, dtype=torch.float64, device=device)
    for place, name in enumerate(names[0]):
        if name in sums:
            totals[place] = sums[name]
    if world() > 1:
        dist.all_reduce(totals)
    values, squares = totals.T.tolist()
    return dict(zip(names[0], zip(values, squares, strict=True), strict=True))


def _share(
    split: Split,
    batch: int,
    device: torch.device,
    title: str,
    limit: int | None = None,
    index: Tensor | None = None,  # (k,), only these images
) -> Iterator[Batch]:
    """This rank's batches, with progress."""
    chosen = split.spread(limit) if index is None else index
    mine = shares(len(chosen), batch)
    order = torch.cat([chosen[:0], *(chosen[start:end] for start, end in mine)])
    batches: Iterable[Batch] = split.batches(batch, device, order=order)
    yield from track(batches, title, len(mine))


def shares(n: int, batch: int) -> list[tuple[int, int]]:
    """Start and end of each batch of n things that falls to this rank."""
    parts = [(k, min(k + batch, n)) for k in range(0, n, batch)]
    return parts[rank() :: world()]


def _count(split: Split, limit: int | None) -> int:
    """How many images a pass looks at."""
    return len(split) if limit is None else min(limit, len(split))

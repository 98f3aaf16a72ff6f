"""One pass of a trained model over a split: its test loss, the statistics of its codes.

Under torch.distributed every rank takes its share and all get the same result.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from fastlatent.data import Batch, Split
from fastlatent.models import LatentModel
from fastlatent.noise import Noise
from fastlatent.ops import pack_bits
from fastlatent.priors import CodeStatistics
from fastlatent.progress import track


def measure_loss(
    model: LatentModel,
    split: Split,
    batch: int,  # images at a time on each rank
    seed: int = 0,  # of the noise, where the model draws any
) -> dict[str, float]:
    """The mean over all images of each per-image value of the model, "loss" among them."""
    sums: dict[str, Tensor] = {}
    with evaluating(model) as device:
        for number, part in _share(split, batch, device, f"loss on the {split.name} split"):
            noise = Noise(seed, number, _rank())
            for name, values in model(part.images, noise=noise).items():
                total = values.double().sum()
                sums[name] = sums[name] + total if name in sums else total
    return {name: total / len(split) for name, total in _totals(sums, device).items()}


def gather_codes(
    model: LatentModel,
    split: Split,
    batch: int,  # images at a time on each rank
    labels: int = 0,  # classes or attributes to count by; 0: none
    limit: int | None = None,  # only the first so many images
) -> CodeStatistics:
    """The counts over the codes of the split's images that sampling and editing need."""
    with evaluating(model) as device:
        statistics = CodeStatistics(model.latent_dim, labels, device)
        for _, part in _share(split, batch, device, f"codes of the {split.name} split", limit):
            words = pack_bits(model.encode(part.images))
            statistics.update(words, part.labels if labels else None)
    if _world() > 1:
        count = torch.tensor(statistics.count, device=device)
        counts = (statistics.ones, statistics.agree, statistics.label_count, statistics.label_ones)
        for tensor in (count, *counts):
            dist.all_reduce(tensor)
        statistics.count = int(count)
    return statistics


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


def _totals(sums: dict[str, Tensor], device: torch.device) -> dict[str, float]:
    """The sums over all ranks; a rank that had no image to look at has no sums of its own."""
    names = [list(sums)]
    if _world() > 1:
        dist.broadcast_object_list(names)
    totals = torch.zeros(len(names[0]), dtype=torch.float64, device=device)
    for place, name in enumerate(names[0]):
        if name in sums:
            totals[place] = sums[name]
    if _world() > 1:
        dist.all_reduce(totals)
    return dict(zip(names[0], totals.tolist(), strict=True))


def _share(
    split: Split, batch: int, device: torch.device, title: str, limit: int | None = None
) -> Iterator[tuple[int, Batch]]:
    """This rank's batches, numbered, with progress; the last ones of a pass may be empty."""
    count = len(split) if limit is None else min(limit, len(split))
    batch = min(batch, -(-count // _world()))
    batches: Iterable[Batch] = split.batches(
        batch, device, order=torch.arange(count), rank=_rank(), world=_world()
    )
    steps = -(-count // (batch * _world()))
    for number, part in enumerate(track(batches, title, steps)):
        if len(part.index):
            yield number, part


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

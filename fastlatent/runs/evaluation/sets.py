"""Images that a trained model makes, as sets to be compared with real ones by their features.

Under torch.distributed every rank makes its share and all get all features.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from fastlatent.data import Split
from fastlatent.inference.gallery import pick_pairs
from fastlatent.inference.latents import SAMPLINGS, Sampling, decode, draw_in_parts, unit_images
from fastlatent.inference.passes import evaluating, shares
from fastlatent.inference.walking import walk, walkings
from fastlatent.jobs.progress import track
from fastlatent.jobs.ranks import gather, world
from fastlatent.metrics.features import extract
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import latents_of
from fastlatent.noise import generator
from fastlatent.priors import BernoulliCopula, Prior, PriorKind

STEPS = 12  # of an interpolation, with both ends, which are two reconstructions
Made = Iterator[tuple[int, Tensor]]  # where a batch begins in its set, and its images in [0, 1]


@dataclass(frozen=True)
class ImageSet:
    """Images that are made batch by batch, those of this rank."""

    name: str
    count: int  # of all ranks
    made: Callable[[], Made]
    copies: bool = False  # each made from the real image of the same place


def real_images(split: Split, n: int, batch: int, device: torch.device) -> ImageSet:
    """n images, evenly spread over the split."""

    def made() -> Made:
        for start, end in shares(len(chosen), batch):
            yield start, unit_images(split, chosen[start:end], device)

    chosen = split.spread(n)
    return ImageSet(f"{split.name} images", len(chosen), made)


def made_by_model(
    model: LatentModel,
    train: Split,
    reconstructed_from: Tensor,  # (k, d), latents of the test images that fall to this rank
    n: int,
    batch: int,
    seed: int,
    copula: BernoulliCopula | None = None,  # needed where latents are bits
    priors: Mapping[PriorKind, Prior] = MappingProxyType({}),  # fitted to the model's latents
) -> list[ImageSet]:
    """Samples of each method and prior, reconstructions of n test images, interpolations.

    The test images are those of `real_images` with the same n and batch.

    An interpolation goes between two training images that no other one uses, in 12 steps of the
    model's first method of walking. One of the 10 between its ends is drawn, so that the images
    are independent. There are at most n, and fewer where there are fewer pairs.
    """
    device = next(model.parameters()).device

    def samples(method: Sampling, prior: Prior | None = None) -> ImageSet:
        def made() -> Made:
            first = 0
            for part in draw_in_parts(model, method, n, seed, copula, prior=prior):
                for start, end in shares(len(part), batch):
                    yield first + start, decode(model, part[start:end], batch)
                first += len(part)

        return ImageSet(method, n, made)

    def reconstructed() -> Made:
        first = 0
        for start, end in shares(n, batch):
            part = reconstructed_from[first : first + end - start]
            yield start, decode(model, part, batch)
            first += len(part)

    pairs = pick_pairs(len(train), n, seed)
    walks = pairs.shape[1]
    places = torch.randint(1, STEPS - 1, (walks,), generator=generator(seed, 0, "places"))

    def interpolated() -> Made:
        for first, last in shares(walks, batch):
            index = pairs[:, first:last].flatten()
            ends = unit_images(train, index, device)
            with evaluating(model):
                start, end = latents_of(model, ends, train, index).chunk(2)
                path = walk(model, walkings(model)[0], start, end, STEPS, copula)
            chosen = places[first:last].to(device)
            latents = path.latents[torch.arange(last - first, device=device), chosen]
            yield first, decode(model, latents, batch)

    sets = [samples(method) for method in SAMPLINGS[model.latent_kind]]
    sets += [samples(kind, prior) for kind, prior in priors.items()]
    sets.append(ImageSet("reconstruction", n, reconstructed, copies=True))
    if walks:
        sets.append(ImageSet("interpolation", walks, interpolated))
    return sets


def features_of(
    images: ImageSet,
    extractor: Callable[[Tensor], Tensor],
    batch: int,
    transform: Callable[[Tensor], Tensor],  # of images (n, c, h, w) in [0, 1]
) -> Tensor:  # (n, d)
    """Features of the whole set, on every rank."""
    rows: list[tuple[int, Tensor]] = []
    total = len(shares(images.count, batch))
    for start, made in track(images.made(), f"features of {images.name}", total):
        rows.append((start, extract(made.clamp(0, 1), extractor, transform=transform).all()))
    if world() == 1:
        return torch.cat([features for _, features in rows])
    gathered = gather([(start, features.cpu()) for start, features in rows])
    parts = sorted((part for share in gathered for part in share), key=lambda part: part[0])
    whole = torch.cat([features for _, features in parts])
    return whole.to(rows[0][1].device) if rows else whole

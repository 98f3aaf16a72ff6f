"""The three pictures of a model: reconstructions, samples, paths between images."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastlatent import plots
from fastlatent.data import Split
from fastlatent.inference.latents import (
    SAMPLINGS,
    Sampling,
    decode,
    draw,
    unit_images,
)
from fastlatent.inference.passes import evaluating
from fastlatent.inference.walking import Walking, walk, walkings
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import corrupted, latents_of, reconstruction_of
from fastlatent.noise import Noise, generator
from fastlatent.priors import BernoulliCopula

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES: dict[Sampling, str] = {
    "copula": "fitted to the training codes (copula)",
    "random": "fair random bits",
    "prior": "from the prior",
    "normal": "from a Gaussian fitted to the latents",
    "gmm": "from a Gaussian mixture fitted to the latents",
    "vamp": "from a VampPrior fitted to the latents",
    "hierarchical": "from a VAE fitted to the latents",
    "ladder": "from a ladder prior fitted to the latents",
}


def reconstruction_picture(
    model: LatentModel, split: Split, index: Tensor, seed: int, note: str = ""
) -> "Image":
    """Images of the split, each next to its reconstruction; corrupted first where so configured."""
    with evaluating(model) as device:
        images = unit_images(split, index, device)
        shown = corrupted(model, images, Noise(seed, 0).of_images(index))
        reconstructed = reconstruction_of(model, shown, split, index)
    caption = f"{split.name} images and their reconstructions{note}"
    damaged = None if shown is images else shown
    return plots.reconstructions(images, reconstructed, caption, damaged)


def sample_picture(
    model: LatentModel,
    method: Sampling,
    n: int,
    seed: int,
    batch: int,
    copula: BernoulliCopula | None = None,
) -> "Image":
    """n decoded samples."""
    latents = draw(model, method, n, generator(seed, 0, f"samples/{method}"), copula)
    return plots.samples(decode(model, latents, batch), f"samples: {NAMES[method]}")


def walk_picture(
    model: LatentModel,
    method: Walking,
    split: Split,
    pairs: Tensor,  # (2, k) indices of images: where the walks begin, where they end
    steps: int,
    batch: int,
    copula: BernoulliCopula | None = None,
) -> "Image":
    """Decoded walks between the latents of image pairs, one in each row."""
    device = next(model.parameters()).device
    images = unit_images(split, pairs.flatten(), device)
    first, last = images.chunk(2)
    with evaluating(model):
        start, end = latents_of(model, images, split, pairs.flatten()).chunk(2)
    path = walk(model, method, start, end, steps, copula)
    images = decode(model, path.latents.flatten(0, 1), batch).unflatten(0, (-1, steps))
    return plots.walks(first, images, last, f"interpolation ({method})")


def show_model(
    model: LatentModel,
    split: Split,
    seed: int,
    batch: int,
    copula: BernoulliCopula | None = None,  # needed where latents are bits
    every_sampling: bool = False,
) -> dict[str, "Image"]:
    """The pictures that training shows, by name; no walks where there is but one image."""
    kind = model.latent_kind
    pictures = {"reconstructions": reconstruction_picture(model, split, split.spread(32), seed)}
    for method in SAMPLINGS[kind] if every_sampling else SAMPLINGS[kind][:1]:
        pictures[f"samples-{method}"] = sample_picture(model, method, 64, seed, batch, copula)
    walking = walkings(model)[0]
    pairs = pick_pairs(len(split), 8, seed)
    if pairs.numel():
        name = f"interpolation-{walking}"
        pictures[name] = walk_picture(model, walking, split, pairs, 10, batch, copula)
    return pictures


def pick_pairs(n: int, pairs: int, seed: int) -> Tensor:  # (2, k) int64
    """Indices of up to `pairs` pairs of distinct images out of n, drawn by the seed."""
    order = torch.randperm(n, generator=generator(seed, 0, "pairs"))
    k = min(pairs, n // 2)
    return order[: 2 * k].reshape(2, k)

"""Latents to decode, drawn by a named method."""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from fastlatent.data import Split
from fastlatent.inference.passes import evaluating
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import complete_latents, draw_prior, leaves_noise_out
from fastlatent.noise import generator as stream_of
from fastlatent.priors import BernoulliCopula, Prior, PriorKind, random_bits

Sampling = Literal["copula", "random", "prior", "normal", "gmm", "vamp", "hierarchical", "ladder"]
FITTED: tuple[PriorKind, ...] = get_args(PriorKind)  # priors that fit_prior has fitted to a run
Repair = Literal["clip", "nearest_correlation", "exact_means"]

SAMPLINGS: dict[str, tuple[Sampling, ...]] = {"bits": ("copula", "random"), "real": ("prior",)}
# Latents drawn at a time, and numbers in them; no option, so that the same are drawn whatever fits
# into memory later on.
PART = 1 << 14
PART_NUMBERS = 1 << 26


def draw(
    model: LatentModel,
    method: Sampling,
    n: int,
    generator: torch.Generator,
    copula: BernoulliCopula | None = None,  # needed by the method of that name
    noise: bool = True,  # False: without the last, independent noise of a prior in two steps
    prior: Prior | None = None,  # needed by the methods that are kinds of fitted priors
) -> Tensor:  # (n, d)
    """Latents by the method: the fitted copula, fair random bits, the model's prior, a fitted one.

    Raises ValueError for a method of the other kind of latent, and without noise for a model whose
    prior cannot leave it out.
    """
    check_method("sampling", method, sampling_methods(model), model)
    if method in FITTED:
        if prior is None:
            raise ValueError(f"draw: the method {method} needs a fitted prior")
        with evaluating(model) as device:
            drawn = prior.sample(n, noise=noise, generator=generator).to(device)
            return complete_latents(model, drawn, generator)
    if method == "copula":
        if copula is None:
            raise ValueError("draw: the method copula needs a fitted copula")
        return copula.sample(n, generator=generator)
    if method == "random":
        return random_bits(n, model.latent_dim, generator=generator)
    with evaluating(model):
        if noise:
            return draw_prior(model, n, generator)
        if leaves_noise_out(model):
            return model.draw_prior(n, generator, noise=False)
        raise ValueError(
            f"draw: {type(model).__name__} draws no latents without noise; priors in two steps, as "
            "that of the family ladder, do"
        )


def draw_in_parts(
    model: LatentModel,
    method: Sampling,
    n: int,
    seed: int,
    copula: BernoulliCopula | None = None,  # needed by the method of that name
    noise: bool = True,  # as in `draw`
    prior: Prior | None = None,  # needed by the methods that are kinds of fitted priors
) -> Iterator[Tensor]:  # each (k, d)
    """n latents in parts, so that memory does not bound n; always the same for the same seed."""
    stream = stream_of(seed, 0, f"samples/{method}")
    part = max(1, min(PART, PART_NUMBERS // model.latent_dim))
    for start in range(0, n, part):
        yield draw(model, method, min(part, n - start), stream, copula, noise, prior)


def sampling_methods(model: LatentModel) -> tuple[Sampling, ...]:
    """All methods that draw latents of the model's kind, those of fitted priors last."""
    methods = SAMPLINGS[model.latent_kind]
    return methods if model.latent_kind == "bits" else (*methods, *FITTED)


def check_method(what: str, method: str, choices: tuple[str, ...], model: LatentModel) -> None:
    """ValueError unless the method fits the model's kind of latent."""
    if method not in choices:
        raise ValueError(
            f"{what} by {method!r} does not fit a model with {model.latent_kind} latents; "
            f"use {' or '.join(choices)}"
        )


def decode(model: LatentModel, latents: Tensor, batch: int) -> Tensor:  # (n, c, h, w)
    """Decoded images, `batch` at a time."""
    with evaluating(model) as device:
        parts = [model.decode(part.to(device)) for part in latents.split(batch)]
    return torch.cat(parts)


def unit_images(split: Split, index: Tensor, device: torch.device | str) -> Tensor:
    """Images of the split as the model sees them: (k, c, h, w) in [0, 1]."""
    (batch,) = split.batches(len(index), device, order=index, workers=0)
    return batch.images

"""Priors fitted to the latents of a trained run."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastlatent.commands.trained import Trained
from fastlatent.inference.latents import unit_images
from fastlatent.models.capabilities import encoder_of
from fastlatent.noise import generator
from fastlatent.priors import Prior, VampPrior


def fit_to_run(
    trained: Trained,
    build: Callable[[], Prior],
    z: Tensor,  # (n, dim)
    on_step: Callable[[], None] | None = None,  # called after each step of a fit by gradients
) -> Prior:
    """The prior as built and fitted to z: all that is random, first weights too, by the seed.

    Pseudo-images begin at training images.
    """
    torch.manual_seed(trained.seed)
    prior = build().to(trained.device).bind(encoder_of(trained.model))
    if isinstance(prior, VampPrior):
        split = trained.split("train")
        stream = generator(trained.seed, 0, "pseudo-images")
        chosen = torch.randperm(len(split), generator=stream)[: prior.components]
        prior.start_from(unit_images(split, chosen, trained.device))
    prior.on_step = on_step
    prior.fit(z, seed=trained.seed)
    prior.on_step = None
    return prior.eval()

"""The priors of LaDDer, as configured."""

import math
from typing import Any

import torch
from torch import Tensor

from fastlatent.models.ladder.config import LaDDerConfig
from fastlatent.priors import (
    GaussianMixture,
    Hierarchical,
    Ladder,
    MixtureFit,
    Normal,
    Prior,
    VampPrior,
)


def build_prior(config: LaDDerConfig) -> Prior:
    """The prior of z, before any training."""
    settings = config.prior
    if settings.kind == "normal":
        return Normal(config.dim)
    if settings.kind == "gmm":
        return GaussianMixture(config.dim, settings.components, options=mixture_fit(config))
    if settings.kind == "vamp":
        free = settings.free_pseudo_images
        return VampPrior(config.dim, config.image_shape, settings.components, free=free)
    inner: dict[str, Any] = {
        "width": settings.width,
        "depth": settings.layers,
        "activation": settings.activation,
        "scale": settings.scale,
        "start_scale": settings.start_scale,
        "scale_bounds": (settings.least_scale, settings.most_scale or math.inf),
        "predicted_std": settings.predicted_std,
        "std_head": config.posterior_std,
    }
    if settings.kind == "hierarchical":
        return Hierarchical(config.dim, settings.dim, **inner)
    components, fit = settings.components, mixture_fit(config)
    return Ladder(config.dim, settings.dim, components, fit, **inner)


def mixture_fit(config: LaDDerConfig) -> MixtureFit:
    """How the mixture over z (gmm) or t (ladder) is fitted."""
    settings = config.prior
    flat = settings.kind == "gmm"
    return MixtureFit(
        method="em" if settings.original_fit and flat else "bayesian",
        max_latents=config.schedule.refit_samples,
        ridge=settings.ridge if flat else 0.0,
        mode="original" if settings.original_fit else "default",
    )


@torch.no_grad()
def start_scale_(prior: Hierarchical, z: Tensor) -> None:
    """Let a learned deviation of p(z|t) begin at its likeliest value for latents (n, d)."""
    if prior.scale.kind != "learned":
        return
    errors = (z - prior.conditional(prior.posterior(z)[0])[0]) / prior.units
    errors = errors[:, ~prior.masked]
    low, high = map(math.log, prior.scale.bounds)
    # At a bound itself the gradient would vanish.
    place = ((errors.square().mean().sqrt().log() - low) / (high - low)).clamp(0.01, 0.99)
    prior.scale.logit.copy_(place.logit())

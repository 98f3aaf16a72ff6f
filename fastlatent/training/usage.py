"""What a model leaves unused: latents, layers or bits that are the same whatever the image."""

import torch

from fastlatent.data import Split
from fastlatent.inference.passes import evaluating
from fastlatent.models import LatentModel
from fastlatent.models.capabilities import gaussian_posterior
from fastlatent.priors import CodeStatistics

LEAST_VARIANCE = 0.01  # of a latent's posterior mean over images (Burda et al., arXiv 1509.00519)
LEAST_KL = 0.01  # nats an image, of a layer
LOOKED_AT = 1000  # images, at most


def latents_in_use(model: LatentModel, split: Split, batch: int) -> int | None:
    """How many latents vary with the image; None for a model without Gaussian posteriors.

    A latent is in use where its posterior mean varies over images by more than 0.01.
    """
    means = []
    with evaluating(model) as device:
        for part in split.batches(batch, device, order=split.spread(LOOKED_AT)):
            posterior = gaussian_posterior(model, part.images)
            if posterior is None:
                return None
            means.append(posterior[0].double())
    mean = torch.cat(means)
    return int((mean.var(0, correction=0) > LEAST_VARIANCE).sum()) if len(mean) > 1 else None


def usage(model: LatentModel, losses: dict[str, float], in_use: int | None) -> str:
    """A few words where a latent or a layer collapsed, else none."""
    layers = [value for name, value in losses.items() if name.startswith("kl_layer_")]
    used = sum(value > LEAST_KL for value in layers)
    if used < len(layers):
        return f"{used} of {len(layers)} layers in use"
    if in_use is not None and in_use < model.latent_dim:
        return f"{in_use} of {model.latent_dim} latents in use"
    return ""


def constant_bits(codes: CodeStatistics) -> int:
    """How many bits are the same in all codes."""
    return int(((codes.ones == 0) | (codes.ones == codes.count)).sum())

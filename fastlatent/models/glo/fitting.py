"""The latents of images that were not trained on, by a search with the frozen generator."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastlatent.models.glo.losses import ImageLoss, in_full_precision
from fastlatent.untouched import outside_inference_mode

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam


class Fitted(NamedTuple):
    """What a search found for n images."""

    latents: Tensor  # (n, d), of the lowest loss over all starts and steps
    loss: Tensor  # (n,)
    start_loss: Tensor  # (n,), the lowest of the starts


@outside_inference_mode
def fit_latents(
    generate: Callable[[Tensor], Tensor],  # latents (m, d) to images (m, c, h, w) in [-1, 1]
    loss: ImageLoss,
    images: Tensor,  # (n, c, h, w) in [-1, 1]
    starts: Tensor,  # (n, k, d), k latents for each image
    project: Callable[[Tensor], Tensor],  # (m, d) -> (m, d), into the region of latents
    steps: int = 200,
    rate: float = 0.2,  # at the start; it falls to 0 along half a cosine
) -> Fitted:
    """The best latents that Adam finds from each start, projected after each step.

    It has one scale for each latent: with one for each number in it, steps that end at the border
    of the region would come to rest elsewhere than at the least loss. So images do not influence
    one another: the gradient is of the sum of their losses. The generator has to treat images one
    by one too, as it does in evaluation mode; its weights are left alone.
    """
    n, k, _ = starts.shape
    targets = images.repeat_interleave(k, 0)
    latents = project(starts.flatten(0, 1).float())
    first, second = torch.zeros_like(latents), torch.zeros_like(latents[:, :1])
    best, lowest = latents, torch.full((n * k,), math.inf, device=latents.device)
    start = lowest
    for step in range(steps + 1):
        with torch.enable_grad():
            latents = latents.detach().requires_grad_()
            losses = in_full_precision(loss, generate(latents), targets)
            (gradient,) = torch.autograd.grad(losses.sum(), latents)
        latents, losses = latents.detach(), losses.detach()
        start = losses if step == 0 else start
        better = losses < lowest
        best = torch.where(better[:, None], latents, best)
        lowest = torch.where(better, losses, lowest)
        if step == steps:
            break
        first = torch.lerp(gradient, first, BETAS[0])
        length = gradient.square().sum(1, keepdim=True)
        second = torch.lerp(length, second, BETAS[1])
        mean = first / (1 - BETAS[0] ** (step + 1))
        scale = (second / (1 - BETAS[1] ** (step + 1))).sqrt() + EPS
        now = rate * (1 + math.cos(math.pi * step / steps)) / 2
        latents = project(latents - now * mean / scale)
    lowest, winner = lowest.unflatten(0, (n, k)).min(1)
    rows = torch.arange(n, device=latents.device)
    best = best.unflatten(0, (n, k))[rows, winner]
    return Fitted(best, lowest, start.unflatten(0, (n, k)).amin(1))

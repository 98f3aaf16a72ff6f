"""The code of an image that was not trained on: a search with the generator as it is."""

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

    codes: Tensor  # (n, d), of the lowest loss over all starts and steps
    loss: Tensor  # (n,)
    start_loss: Tensor  # (n,), the lowest of the starts


@outside_inference_mode
def fit_codes(
    generate: Callable[[Tensor], Tensor],  # codes (m, d) to images (m, c, h, w) in [-1, 1]
    loss: ImageLoss,
    images: Tensor,  # (n, c, h, w) in [-1, 1]
    starts: Tensor,  # (n, k, d), k codes for each image
    project: Callable[[Tensor], Tensor],  # (m, d) -> (m, d), into the region of codes
    steps: int = 200,
    rate: float = 0.2,  # at the start; it falls to 0 along half a cosine
) -> Fitted:
    """The best codes that Adam finds from each start, projected after each step.

    It has one scale for each code: with one for each number in it, steps that end at the border of
    the region would come to rest elsewhere than at the least loss. So images do not influence one
    another: the gradient is of the sum of their losses. The generator has to treat images one by
    one too, as it does in evaluation mode; its weights are left alone.
    """
    n, k, _ = starts.shape
    targets = images.repeat_interleave(k, 0)
    codes = project(starts.flatten(0, 1).float())
    first, second = torch.zeros_like(codes), torch.zeros_like(codes[:, :1])
    best, lowest = codes, torch.full((n * k,), math.inf, device=codes.device)
    start = lowest
    for step in range(steps + 1):
        with torch.enable_grad():
            codes = codes.detach().requires_grad_()
            losses = in_full_precision(loss, generate(codes), targets)
            (gradient,) = torch.autograd.grad(losses.sum(), codes)
        codes, losses = codes.detach(), losses.detach()
        start = losses if step == 0 else start
        better = losses < lowest
        best = torch.where(better[:, None], codes, best)
        lowest = torch.where(better, losses, lowest)
        if step == steps:
            break
        first = torch.lerp(gradient, first, BETAS[0])
        length = gradient.square().sum(1, keepdim=True)
        second = torch.lerp(length, second, BETAS[1])
        mean = first / (1 - BETAS[0] ** (step + 1))
        scale = (second / (1 - BETAS[1] ** (step + 1))).sqrt() + EPS
        now = rate * (1 + math.cos(math.pi * step / steps)) / 2
        codes = project(codes - now * mean / scale)
    lowest, winner = lowest.unflatten(0, (n, k)).min(1)
    rows = torch.arange(n, device=codes.device)
    best = best.unflatten(0, (n, k))[rows, winner]
    return Fitted(best, lowest, start.unflatten(0, (n, k)).amin(1))
